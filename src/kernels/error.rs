/// What can be wrong with a call into the kernels. Every variant says what was expected and what came.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// An operand has another number of elements than its shape asks for.
    #[error("{operand}: expected {expected} elements, got {got}")]
    Length {
        /// The operand as the function's documentation names it.
        operand: &'static str,
        /// Elements that the shape asks for.
        expected: usize,
        /// Elements that came.
        got: usize,
    },
    /// A descriptor or an option is outside what the kernel supports.
    #[error("{what}: expected {expected}, got {got}")]
    Unsupported {
        /// The field that is out of range.
        what: &'static str,
        /// The values that are supported.
        expected: String,
        /// The value that came.
        got: String,
    },
    /// An operand holds NaN or infinity where the quantizer needs finite numbers.
    #[error("{operand}: row {row} holds a value that is not finite")]
    NotFinite {
        /// The operand as the function's documentation names it.
        operand: &'static str,
        /// The first row that holds such a value.
        row: usize,
    },
}

/// `Ok` when `operand` has `expected` elements.
pub(crate) fn check_length(operand: &'static str, expected: usize, got: usize) -> Result<(), Error> {
    if expected == got { Ok(()) } else { Err(Error::Length { operand, expected, got }) }
}
