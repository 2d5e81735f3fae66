//! What tests of the CUDA kernels share: the devices that they run on.
//!
//! Without a GPU the sources run under the host shim ([`host`]), for each chip that is asked for. With `DUQUANT_CUDA=gpu` the same
//! tests run on the device at hand.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "each test file takes what it needs; a test fails and reports this way"
)]

pub(crate) mod capture;
pub(crate) mod gemm;
pub(crate) mod host;

use duquant::kernels::cuda::{Arch, Buffer, Chip, Device, Stream};
use std::sync::Arc;

/// The stream of the tests.
pub(crate) const STREAM: Stream = Stream::DEFAULT;

/// What `test` runs on, one device for each of `archs` with a name for messages: the host shim, with few multiprocessors so that
/// small shapes reach every path, or the GPU. Empty, with a word why, where there is no C++ compiler; in CI that is a failure.
pub(crate) fn devices(test: &str, archs: &[Arch]) -> Vec<(String, Arc<dyn Device>)> {
    match host::compiler() {
        Ok(_) => archs
            .iter()
            .map(|&arch| {
                let chip = Chip { multiprocessors: 6, ..Chip::typical(arch) };
                (format!("{} on the host", arch.name()), Arc::new(host::HostDevice::new(chip)) as Arc<dyn Device>)
            })
            .collect(),
        Err(fault) => {
            assert!(std::env::var_os("CI").is_none(), "{test}: {fault}");
            println!("skipped {test}: {fault}");
            Vec::new()
        }
    }
}

/// The device as one that is not shared.
pub(crate) fn upload<T: bytemuck::Pod>(device: &Arc<dyn Device>, values: &[T]) -> Buffer {
    Buffer::upload(device, "operand", values).unwrap()
}

/// What a buffer holds.
pub(crate) fn download<T: bytemuck::Pod>(buffer: &Buffer, count: usize) -> Vec<T> {
    let mut out = vec![T::zeroed(); count];
    buffer.read(&mut out).unwrap();
    out
}
