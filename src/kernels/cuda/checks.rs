//! What plans and calls check before anything is enqueued.

use super::super::Error as KernelError;
use super::{Address, Error};

/// An error about a field of a descriptor.
pub(super) fn unsupported<T>(what: &'static str, expected: impl ToString, got: impl ToString) -> Result<T, Error> {
    Err(KernelError::Unsupported { what, expected: expected.to_string(), got: got.to_string() }.into())
}

/// Ok when `got` lies in `least ..= most`.
pub(super) fn check_range(what: &'static str, got: usize, least: usize, most: usize) -> Result<(), Error> {
    if (least..=most).contains(&got) { Ok(()) } else { unsupported(what, format!("{least} to {most}"), got) }
}

/// Ok when an operand's address suits 16-byte accesses.
pub(super) fn check_address(operand: &'static str, got: Address) -> Result<(), Error> {
    let alignment = 16;
    if got != 0 && got.is_multiple_of(alignment) { Ok(()) } else { Err(Error::Alignment { operand, alignment, got }) }
}
