//! The device behind NVIDIA's driver, over libraries that stand in for NVIDIA's: what is alive, what is passed on, and what happens
//! when any call fails.
#![cfg(all(feature = "cuda", target_os = "linux"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails and reports this way"
)]

mod cuda;
#[path = "cuda/fake/mod.rs"]
mod fake;
mod oracle;

use duquant::kernels::Error as KernelError;
use duquant::kernels::cuda::{
    Arch, Buffer, Chip, CubinCache, Device, Driver, Dtype, Error, Event, Graph, Kernel, RmsNormPlan, RowsDesc, Stream,
};
use std::sync::Arc;

const DESC: RowsDesc = RowsDesc { m_max: 4, channels: 24, input: Dtype::F32, output: Dtype::F32 };

fn open() -> Arc<Driver> {
    Arc::new(Driver::open(0).unwrap())
}

fn shared(driver: &Arc<Driver>) -> Arc<dyn Device> {
    Arc::clone(driver) as Arc<dyn Device>
}

/// Everything that a host does, in one go.
fn workflow() -> Result<(), Error> {
    let driver = Arc::new(Driver::open(0)?);
    let device = shared(&driver);
    let stream = driver.stream()?;
    let plan = RmsNormPlan::plan(device.as_ref(), &DESC, 1e-5)?;
    let x = Buffer::upload(&device, "x", &[1.0_f32; 96])?;
    let y = Buffer::zeroed(&device, "y", 384)?;
    device.copy(stream.stream(), x.address(), y.address(), 384)?;
    let (start, end) = (Event::new(&driver)?, Event::new(&driver)?);
    start.record(stream.stream())?;
    let graph = Graph::capture(&driver, stream.stream(), || {
        // SAFETY: the buffers are as large as the shape says.
        unsafe { plan.enqueue(device.as_ref(), stream.stream(), 4, x.address(), x.address(), y.address()) }
    })?;
    graph.upload(stream.stream())?;
    // SAFETY: the buffers are alive.
    unsafe { graph.launch(stream.stream())? };
    end.record(stream.stream())?;
    device.synchronize(stream.stream())?;
    end.elapsed_ms(&start)?;
    y.read(&mut [0.0_f32; 96])?;
    driver.memory().map(|_| ())
}

#[test]
fn without_a_driver_there_is_a_word_and_no_panic() {
    // On a machine with a driver it opens, or says what is wrong with the device.
    match Driver::open(usize::MAX) {
        Err(error @ Error::Library { library: "libcuda", .. }) => {
            let text = error.to_string();
            assert!(text.contains("install NVIDIA's driver") && text.contains("Tried: libcuda.so.1: "), "{text}");
        }
        Err(Error::NoDevice { ordinal: usize::MAX, .. } | Error::Driver { .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_old_driver_is_told() {
    fake::run("an_old_driver_is_told", Some("WITHOUT_EVENT_TIMES"), |_| {
        let text = Driver::open(0).unwrap_err().to_string();
        assert!(text.contains("libcuda.so.1: too old, it has no cuEventElapsedTime"), "{text}");
    });
}

#[test]
fn devices_are_counted_and_known() {
    fake::run("devices_are_counted_and_known", None, |fake| {
        assert_eq!(Driver::open(2).unwrap_err(), Error::NoDevice { ordinal: 2, count: 2 });
        fake.device(80, true, 0);
        assert_eq!(Driver::open(1).unwrap_err(), Error::NoDevice { ordinal: 1, count: 0 });
        fake.device(75, true, 1);
        assert_eq!(Driver::open(0).unwrap_err(), Error::Chip { major: 7, minor: 5 });
        fake.assert_clean("after devices that do not serve");
        for (capability, arch, option) in [
            (80, Arch::Sm80, "sm_80"),
            (86, Arch::Sm86, "sm_86"),
            (87, Arch::Sm86, "sm_87"),
            (90, Arch::Sm90a, "sm_90a"),
        ] {
            fake.device(capability, true, 1);
            let driver = Driver::open(0).unwrap();
            assert_eq!(driver.chip(), Chip { arch, multiprocessors: 108, l2_bytes: 40 << 20 });
            assert_eq!((driver.arch_option().as_str(), driver.name().as_str()), (option, "Fake GPU"));
            assert_eq!((driver.driver_version(), driver.compiler_version().unwrap()), ("12.8".into(), "12.8".into()));
        }
        fake.assert_clean("after all");
    });
}

#[test]
fn kernels_of_another_family_are_compiled_for_the_device() {
    fake::run("kernels_of_another_family_are_compiled_for_the_device", None, |fake| {
        fake.device(90, true, 1);
        let driver = Driver::open(0).unwrap().with_arch(Arch::Sm80).unwrap().with_cache(CubinCache::disabled());
        assert_eq!(driver.chip().arch, Arch::Sm80);
        driver.load(&fake::rms_norm()).unwrap();
        assert_eq!(fake.compiled_for(), ("sm_90a".into(), "800".into()));
        driver.load(&fake::rms_norm()).unwrap();
        assert_eq!(fake.compiled(), 1, "it was there");
        let driver = Driver::open(0).unwrap().with_cache(CubinCache::disabled());
        driver.load(&fake::rms_norm()).unwrap();
        assert_eq!(fake.compiled_for(), ("sm_90a".into(), "900".into()));

        fake.device(86, true, 1);
        for arch in [Arch::Sm80, Arch::Sm89, Arch::Sm90a] {
            let error = Driver::open(0).unwrap().with_arch(arch).unwrap_err();
            assert!(matches!(error, Error::Kernel(KernelError::Unsupported { what: "arch", .. })), "{error}");
        }
        let foreign = Kernel { archs: &[Arch::Sm90a], ..fake::rms_norm() };
        let text = Driver::open(0).unwrap().load(&foreign).unwrap_err().to_string();
        assert_eq!(text, "architecture of the kernel: expected sm_90a, got sm_86");
        let absent = Kernel { entry: "no_such_entry", ..fake::rms_norm() };
        let text = Driver::open(0).unwrap().load(&absent).unwrap_err().to_string();
        assert!(text.contains("cuModuleGetFunction of no_such_entry") && text.contains("error 500"), "{text}");
    });
}

#[test]
fn everything_is_released_whatever_fails() {
    fake::run("everything_is_released_whatever_fails", None, |fake| {
        let source = include_str!("cuda/fake/libcuda.c");
        let functions = source.lines().filter_map(|line| line.strip_prefix("int cu")?.split_once('('));
        let mut injected = 0;
        for function in functions.map(|(name, _)| format!("cu{name}")) {
            // Values that are dropped have nobody to tell, and leave what cannot be given back.
            let gives_back = ["Destroy", "Free", "Unload", "Release", "Pop"].iter().any(|part| function.contains(part));
            // Codes and versions are told without failing; contexts come in the next test.
            let tells = function.starts_with("cuGetError") || function == "cuDriverGetVersion";
            if gives_back || tells || function == "cuCtxGetCurrent" || function == "cuCtxPushCurrent_v2" {
                continue;
            }
            for pools in [true, false] {
                fake.device(80, pools, 1);
                fake.count(&function);
                workflow().unwrap();
                fake.assert_clean("after success");
                for nth in 1..=fake.calls() {
                    fake.fail(&function, nth, 700);
                    match workflow() {
                        // Freeing waits for the device as well, and goes on if that fails.
                        Ok(()) => assert_eq!((function.as_str(), pools), ("cuCtxSynchronize", true)),
                        Err(Error::Driver { message, .. }) => {
                            assert_eq!(
                                message,
                                "CUDA_ERROR_ILLEGAL_ADDRESS (700): an illegal memory access was encountered"
                            );
                        }
                        Err(other) => panic!("{function} {nth}: {other}"),
                    }
                    fake.assert_clean(&format!("after {function} failed, call {nth}"));
                    injected += 1;
                }
            }
        }
        assert!(injected > 80, "{injected}");
    });
}

#[test]
fn a_context_that_cannot_be_entered_is_told() {
    fake::run("a_context_that_cannot_be_entered_is_told", None, |fake| {
        for function in ["cuCtxGetCurrent", "cuCtxPushCurrent_v2"] {
            let driver = open();
            fake.fail(function, 1, 700);
            let Err(Error::Driver { what, .. }) = driver.allocate("x", 16) else { panic!("{function} failed") };
            assert!(function.starts_with(&what), "{what}");
            assert_eq!(driver.memory().unwrap().current, 0);
            drop(driver);
            fake.assert_clean(function);
        }
    });
}

#[test]
fn the_last_to_go_takes_the_context_along() {
    fake::run("the_last_to_go_takes_the_context_along", None, |fake| {
        let driver = open();
        let device = shared(&driver);
        let (stream, event) = (driver.stream().unwrap(), Event::new(&driver).unwrap());
        let plan = RmsNormPlan::plan(device.as_ref(), &DESC, 1e-5).unwrap();
        let graph = Graph::capture(&driver, stream.stream(), || Ok::<_, Error>(())).unwrap();
        let buffer = Buffer::new(&device, "x", 100).unwrap();
        assert_eq!(fake.live(), [1, 1, 2, 1, 0, 1, 1]);
        drop((driver, device));
        assert_eq!(fake.live()[0], 1, "the buffer needs it");
        drop(buffer);
        assert_eq!(fake.live(), [1, 1, 1, 1, 0, 1, 0], "the others keep the context");
        drop(plan);
        drop((stream, event));
        assert_eq!(fake.live(), [1, 0, 0, 0, 0, 1, 0]);
        drop(graph);
        fake.assert_clean("after the last");
    });
}

#[test]
fn a_borrowed_context_is_the_hosts() {
    fake::run("a_borrowed_context_is_the_hosts", None, |fake| {
        // SAFETY: null is refused.
        let error = unsafe { Driver::borrow(std::ptr::null_mut()) }.unwrap_err();
        assert_eq!(error.to_string(), "context: expected a CUcontext, got null");
        let (host, other) = (fake.create_context(), fake.create_context());
        assert_eq!(fake.depth(), 2);
        // SAFETY: the context lives until the end of this test.
        let driver = Arc::new(unsafe { Driver::borrow(host) }.unwrap());
        let device = shared(&driver);
        let buffer = Buffer::upload(&device, "x", &[1_u32, 2, 3]).unwrap();
        let plan = RmsNormPlan::plan(device.as_ref(), &DESC, 1e-5).unwrap();
        assert_eq!((fake.pop_context(), fake.depth()), (other, 1), "the host's own context is current as before");
        let mut got = [0_u32; 3];
        // The context is current already: nothing to push.
        fake.count("cuCtxPushCurrent_v2");
        buffer.read(&mut got).unwrap();
        assert_eq!((got, fake.calls(), fake.depth()), ([1, 2, 3], 0, 1));
        drop((plan, buffer, device, driver));
        assert_eq!((fake.live(), fake.pop_context()), ([2, 0, 0, 0, 0, 0, 0], host));
        fake.destroy_context(host);
        fake.destroy_context(other);
        fake.assert_clean("after the host's end");
    });
}

#[test]
fn threads_share_a_device() {
    fake::run("threads_share_a_device", None, |fake| {
        let driver = open();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let device = shared(&driver);
                    let plan = RmsNormPlan::plan(device.as_ref(), &DESC, 1e-5).unwrap();
                    for i in 0..200 {
                        let buffer = Buffer::upload(&device, "x", &[i; 96]).unwrap();
                        let at = buffer.address();
                        // SAFETY: the buffer is as large as the shape says.
                        unsafe { plan.enqueue(device.as_ref(), Stream::DEFAULT, 1, at, at, at) }.unwrap();
                        let mut got = [0; 96];
                        buffer.read(&mut got).unwrap();
                        assert_eq!(got, [i; 96]);
                    }
                    assert_eq!(fake.depth(), 0);
                });
            }
        });
        assert_eq!((fake.compiled(), fake.last().count, driver.memory().unwrap().current), (1, 1600, 0));
        drop(driver);
        fake.assert_clean("after all threads");
    });
}
