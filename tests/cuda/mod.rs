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

use duquant::kernels::cuda::{Arch, Buffer, Chip, Device, Driver, Source, Stream};
use std::sync::Arc;

/// The stream of the tests.
pub(crate) const STREAM: Stream = Stream::DEFAULT;

/// What `test` runs on, one device for each of `archs` with a name for messages: the host shim, with few multiprocessors so that
/// small shapes reach every path, or the GPU. Empty, with a word why, where there is no C++ compiler; in CI that is a failure.
pub(crate) fn devices(test: &str, archs: &[Arch]) -> Vec<(String, Arc<dyn Device>)> {
    devices_with(test, archs, &[])
}

/// [`devices`] that also run the kernels of `sources`, files of `tests/cuda`.
pub(crate) fn devices_with(test: &str, archs: &[Arch], sources: &'static [Source]) -> Vec<(String, Arc<dyn Device>)> {
    match std::env::var("DUQUANT_CUDA").as_deref() {
        Ok("gpu") => return gpus(test, archs, sources),
        Ok(other) if other != "host" => panic!("DUQUANT_CUDA: expected gpu or host, got {other}"),
        _ => {}
    }
    match host::compiler() {
        Ok(_) => archs
            .iter()
            .map(|&arch| {
                let chip = Chip { multiprocessors: 6, ..Chip::typical(arch) };
                let device = host::HostDevice::with_sources(chip, sources);
                (format!("{} on the host", arch.name()), Arc::new(device) as Arc<dyn Device>)
            })
            .collect(),
        Err(fault) => {
            assert!(std::env::var_os("CI").is_none(), "{test}: {fault}");
            println!("skipped {test}: {fault}");
            Vec::new()
        }
    }
}

/// [`devices`] for one chip with so many multiprocessors, where it is a host that can have as many as it is told.
pub(crate) fn device_of(test: &str, arch: Arch, multiprocessors: u32) -> Option<Arc<dyn Device>> {
    let (_, device) = devices(test, &[arch]).pop()?;
    if std::env::var("DUQUANT_CUDA").as_deref() == Ok("gpu") {
        return Some(device);
    }
    Some(Arc::new(host::HostDevice::new(Chip { multiprocessors, ..Chip::typical(arch) })))
}

/// The GPU with the kernels of its own family, if `archs` has one of them, and on Hopper also with those of the first family with
/// INT4 tensor cores, which the compiler emulates there.
fn gpus(test: &str, archs: &[Arch], sources: &'static [Source]) -> Vec<(String, Arc<dyn Device>)> {
    let open = || match Driver::open(0) {
        Ok(driver) => driver.with_sources(sources),
        Err(fault) => panic!("{test}: DUQUANT_CUDA=gpu, but {fault}"),
    };
    let own = open().chip().arch;
    let mut out = Vec::new();
    let mut add = |driver: Driver| {
        out.push((format!("{} on {}", driver.chip().arch.name(), driver.name()), Arc::new(driver) as Arc<dyn Device>));
    };
    if archs.iter().any(|arch| arch.has_int4() == own.has_int4()) {
        add(open());
    }
    if let Some(&arch) = archs.iter().find(|arch| arch.has_int4() && !own.has_int4()) {
        add(open().with_arch(arch).unwrap());
    }
    if out.is_empty() {
        println!("skipped {test}: there is nothing in it for {}", own.name());
    }
    out
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
