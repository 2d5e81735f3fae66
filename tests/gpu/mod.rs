//! What tests on a wgpu adapter share: the adapter or a word about its absence, and an ear for the validation layers.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "each test file takes what it needs; a test fails and reports this way"
)]

use duquant::kernels::wgpu::{Arithmetic, Error, Gpu, GpuOptions};
use std::ops::Deref;
use std::sync::{Mutex, Once, OnceLock};

/// What the validation layers, the driver and wgpu complained about, in this process.
static COMPLAINTS: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Ear;

impl log::Log for Ear {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn && metadata.target().starts_with("wgpu")
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let text = format!("{} {}: {}", record.level(), record.target(), record.args());
            // A driver's word about itself (lavapipe is not a conformant implementation) is no fault of the calls.
            if !text.contains("not a conformant") {
                COMPLAINTS.lock().unwrap().push(text);
            }
        }
    }

    fn flush(&self) {}
}

/// The device of the tests; when it is dropped, nobody may have complained.
pub(crate) struct TestGpu(&'static Gpu);

impl Deref for TestGpu {
    type Target = Gpu;

    fn deref(&self) -> &Gpu {
        self.0
    }
}

impl Drop for TestGpu {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let complaints = COMPLAINTS.lock().unwrap();
            assert!(complaints.is_empty(), "the validation layers or wgpu complained:\n{}", complaints.join("\n"));
        }
    }
}

/// The device that the tests of this process share, opened with validation. Without an adapter: a failure in CI, otherwise
/// `None` and a word why `test` is skipped.
pub(crate) fn gpu(test: &str) -> Option<TestGpu> {
    gpu_with(test, Arithmetic::Fast)
}

/// The same with kernels that compute as `arithmetic` says.
pub(crate) fn gpu_with(test: &str, arithmetic: Arithmetic) -> Option<TestGpu> {
    static FAST: OnceLock<Result<Gpu, Error>> = OnceLock::new();
    static REPRODUCIBLE: OnceLock<Result<Gpu, Error>> = OnceLock::new();
    static START: Once = Once::new();
    START.call_once(|| {
        log::set_logger(&Ear).unwrap();
        log::set_max_level(log::LevelFilter::Warn);
    });
    let options =
        GpuOptions { adapter: std::env::var("WGPU_ADAPTER_NAME").ok(), validation: true, ..GpuOptions::default() };
    let gpu = if arithmetic == Arithmetic::Fast { &FAST } else { &REPRODUCIBLE };
    match gpu.get_or_init(|| Gpu::open(&options)?.with_arithmetic(arithmetic)) {
        Ok(gpu) => Some(TestGpu(gpu)),
        Err(fault) => {
            assert!(std::env::var_os("CI").is_none(), "{test}: {fault}");
            println!("skipped {test}: {fault}");
            None
        }
    }
}
