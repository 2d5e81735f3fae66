//! What the device behind NVIDIA's driver passes on: launches, copies, graphs and matrix products, over libraries that stand in for
//! NVIDIA's.
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

use bytemuck::{Pod, Zeroable};
use cuda::host::HostDevice;
use duquant::kernels::cuda::{
    Arch, Buffer, Chip, Device, Driver, Dtype, Error, Event, Function, Graph, Kernel, Launch, MatrixProduct, Stream,
};
use std::sync::Arc;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Arguments {
    words: [u64; 6],
}

const ARGUMENTS: Arguments = Arguments { words: [1, 2, 3, u64::MAX, 5, 6] };

fn open() -> (Arc<Driver>, Arc<dyn Device>) {
    let driver = Arc::new(Driver::open(0).unwrap());
    (Arc::clone(&driver), driver)
}

fn launch(device: &dyn Device, stream: Stream, launch: &Launch) -> Result<(), Error> {
    // SAFETY: kernels do nothing here.
    unsafe { device.launch(stream, launch) }
}

#[test]
fn a_launch_arrives_as_it_is() {
    fake::run("a_launch_arrives_as_it_is", None, |fake| {
        let (driver, device) = open();
        let stream = driver.stream().unwrap();
        let function = device.load(&fake::rms_norm()).unwrap();
        assert!(Arc::ptr_eq(&function, &device.load(&fake::rms_norm()).unwrap()));
        launch(device.as_ref(), stream.stream(), &Launch::new(&function, [7, 5, 3], 512, 163 * 1024, &ARGUMENTS))
            .unwrap();
        let got = fake.last();
        assert_eq!((got.grid, got.block, got.shared, got.count), ([7, 5, 3], [512, 1, 1], 163 * 1024, 1));
        assert_eq!(got.stream, stream.stream().raw() as usize);
        assert_eq!(&got.arguments[..48], bytemuck::bytes_of(&ARGUMENTS));

        // Two kernels of one file and the same macros are of one module.
        device.load(&Kernel { entry: "silu_mul_rows", ..fake::rms_norm() }).unwrap();
        assert_eq!((fake.live()[1], fake.compiled()), (1, 1));

        let refused = |grid, block, shared| {
            launch(device.as_ref(), Stream::DEFAULT, &Launch::new(&function, grid, block, shared, &ARGUMENTS))
                .unwrap_err()
        };
        let limit = |what: &str, limit, got| Error::Limit { what: format!("{}, {what}", fake::rms_norm()), limit, got };
        assert_eq!(refused([1, 65_536, 1], 32, 0), limit("blocks in y", 65_535, 65_536));
        assert_eq!(refused([1, 1, 65_536], 32, 0), limit("blocks in z", 65_535, 65_536));
        assert_eq!(refused([1; 3], 544, 0), limit("threads of a block", 512, 544));
        assert_eq!(refused([1; 3], 32, 200_000), limit("bytes of shared memory", 163 * 1024, 200_000));
        launch(device.as_ref(), Stream::DEFAULT, &Launch::new(&function, [0, 1, 1], 32, 0, &ARGUMENTS)).unwrap();
        assert_eq!(fake.last().count, 1, "an empty grid is nothing to do, and what is refused is not passed on");
        fake.fail("cuLaunchKernel", 1, 700);
        let text = refused([1; 3], 32, 0).to_string();
        let expected = "launching rms_norm<INPUT=0,OUTPUT=0>: CUDA_ERROR_ILLEGAL_ADDRESS (700): an illegal memory access was encountered";
        assert_eq!(text, expected);
    });
}

#[test]
fn another_devices_kernel_is_refused() {
    fake::run("another_devices_kernel_is_refused", None, |fake| {
        let (_, device) = open();
        let foreign = HostDevice::new(Chip::typical(Arch::Sm80));
        let kernel = fake::rms_norm();
        let function = Arc::new(Function { kernel, handle: 0x1234, keep: Box::new(foreign) });
        let error =
            launch(device.as_ref(), Stream::DEFAULT, &Launch::new(&function, [1; 3], 32, 0, &ARGUMENTS)).unwrap_err();
        assert!(error.to_string().contains("got another device's"), "{error}");
        // The primary context is one, however often it is opened.
        let (_, again) = open();
        let function = again.load(&fake::rms_norm()).unwrap();
        launch(device.as_ref(), Stream::DEFAULT, &Launch::new(&function, [1; 3], 32, 0, &ARGUMENTS)).unwrap();
        assert_eq!(fake.last().count, 1);
    });
}

#[test]
fn memory_is_counted_and_holds_what_is_written() {
    fake::run("memory_is_counted_and_holds_what_is_written", None, |fake| {
        for pools in [true, false] {
            fake.device(80, pools, 1);
            let (driver, device) = open();
            let x = Buffer::upload(&device, "x", &[1_u32, 2, 3, 4]).unwrap();
            let y = Buffer::zeroed(&device, "y", 16).unwrap();
            let mut got = [9_u32; 4];
            y.read(&mut got).unwrap();
            assert_eq!(got, [0; 4]);
            device.copy(Stream::DEFAULT, x.address(), y.address() + 8, 8).unwrap();
            device.fill(Stream::DEFAULT, y.address(), 0x11, 4).unwrap();
            device.synchronize(Stream::DEFAULT).unwrap();
            y.read(&mut got).unwrap();
            assert_eq!(got, [0x1111_1111, 0, 1, 2]);
            let empty = Buffer::upload::<u32>(&device, "nothing", &[]).unwrap();
            assert!(empty.address() != 0 && empty.read::<u32>(&mut []).is_ok());
            device.copy(Stream::DEFAULT, x.address(), y.address(), 0).unwrap();
            device.fill(Stream::DEFAULT, y.address(), 1, 0).unwrap();

            let large = Buffer::new(&device, "large", 1 << 20).unwrap();
            drop(large);
            let usage = driver.memory().unwrap();
            assert_eq!((usage.current, usage.peak), (32, 32 + (1 << 20)));
            assert_eq!((usage.free, usage.total), (3 << 30, 4 << 30));
            driver.reset_peak();
            assert_eq!(driver.memory().unwrap().peak, 32);

            let exhausted = |what: &str, bytes| Error::OutOfMemory { what: what.into(), bytes };
            assert_eq!(Buffer::new(&device, "vast", 5 << 30).unwrap_err(), exhausted("vast", 5 << 30));
            fake.fail(if pools { "cuMemAllocAsync" } else { "cuMemAlloc_v2" }, 2, 2);
            let first = Buffer::new(&device, "first", 64).unwrap();
            assert_eq!(Buffer::new(&device, "second", 64).unwrap_err(), exhausted("second", 64));
            assert_eq!(driver.memory().unwrap().current, 96);
            drop((first, x, y, empty, device, driver));
            fake.assert_clean("after all buffers");
        }
    });
}

#[test]
fn a_graph_replays_and_a_failed_capture_ends() {
    fake::run("a_graph_replays_and_a_failed_capture_ends", None, |fake| {
        let (driver, device) = open();
        let owned = driver.stream().unwrap();
        let stream = owned.stream();
        let function = device.load(&fake::rms_norm()).unwrap();
        let enqueue = || launch(device.as_ref(), stream, &Launch::new(&function, [1; 3], 32, 0, &ARGUMENTS));
        let two = || enqueue().and_then(|()| enqueue());

        let text = Graph::capture(&driver, Stream::DEFAULT, two).unwrap_err().to_string();
        assert!(text.starts_with("stream: expected one of its own"), "{text}");
        // What goes wrong inside is what is told, not that the capture is spoilt.
        let mine = Error::Driver { what: "mine".into(), message: "no".into() };
        assert_eq!(Graph::capture(&driver, stream, || Err::<(), _>(mine.clone())).unwrap_err(), mine);
        let spoil = || device.read(0, &mut []);
        let text = Graph::capture(&driver, stream, spoil).unwrap_err().to_string();
        assert!(text.starts_with("waiting for the device"), "{text}");
        let text = Graph::capture(&driver, stream, || spoil().or(Ok::<_, Error>(()))).unwrap_err().to_string();
        assert!(text.starts_with("cuStreamEndCapture"), "{text}");
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            Graph::capture(&driver, stream, || -> Result<(), Error> { panic!("inside") })
        }));
        assert!(panicked.is_err());
        assert_eq!((fake.live()[4..6].to_vec(), fake.depth(), fake.misuse()), (vec![0, 0], 0, 0));

        let graph = Graph::capture(&driver, stream, two).unwrap();
        let before = fake.last().count;
        let (start, end) = (Event::new(&driver).unwrap(), Event::new(&driver).unwrap());
        assert!(end.elapsed_ms(&start).is_err(), "they are not recorded yet");
        start.record(stream).unwrap();
        graph.upload(stream).unwrap();
        for _ in 0..3 {
            // SAFETY: kernels do nothing here.
            unsafe { graph.launch(stream) }.unwrap();
        }
        end.record(stream).unwrap();
        assert_eq!(fake.last().count - before, 6, "two launches, three times");
        assert_eq!(end.elapsed_ms(&start).unwrap(), 6.0);
        // The same by marks, which know their own kind.
        let marks = [driver.mark(stream).unwrap(), {
            // SAFETY: kernels do nothing here.
            unsafe { graph.launch(stream) }.unwrap();
            driver.mark(stream).unwrap()
        }];
        assert!((marks[1].seconds_since(marks[0].as_ref()).unwrap() - 2e-3).abs() < 1e-9);
        assert!(marks[1].seconds_since(&std::time::Instant::now()).is_err());
    });
}

/// A wait for the whole context fails while any thread records, and spoils the capture: so it comes behind.
#[test]
fn other_threads_may_free_and_read_while_one_records() {
    fake::run("other_threads_may_free_and_read_while_one_records", None, |fake| {
        for pools in [true, false] {
            fake.device(80, pools, 1);
            let (driver, device) = open();
            let kept = Buffer::zeroed(&device, "kept", 16).unwrap();
            let freed = Buffer::zeroed(&device, "freed", 16).unwrap();
            let (send, begun) = std::sync::mpsc::channel();
            std::thread::scope(|scope| {
                let other = scope.spawn(move || {
                    begun.recv().unwrap();
                    drop(freed);
                    kept.read(&mut [0_u8; 16])
                });
                let record = &mut |_: Stream| {
                    send.send(()).unwrap();
                    // Long enough for a wait that does not stand back.
                    std::thread::sleep(std::time::Duration::from_millis(100));
                    Ok(())
                };
                assert!(device.capture(record).unwrap().is_some());
                assert_eq!(other.join().unwrap(), Ok(()));
            });
            assert_eq!(driver.memory().unwrap().current, 0);
            drop((device, driver));
            fake.assert_clean("after all captures");
        }
    });
}

/// The stream that records has a workspace before it does, and the graph has it afterwards.
#[test]
fn products_are_captured() {
    const WORKSPACE: u64 = 32 << 20;
    fake::run("products_are_captured", None, |fake| {
        let (driver, device) = open();
        let operand = Buffer::zeroed(&device, "operand", 64).unwrap();
        let (x, weight, y) = (operand.address(), operand.address(), operand.address() + 32);
        let (input, output) = (Dtype::F32, Dtype::F32);
        let product =
            MatrixProduct { tokens: 1, n: 1, k: 4, input, output, x, weight, bias: None, y, accumulate: false };
        // SAFETY: the operand is as large as the shape says.
        let run = |stream| unsafe { device.matrix_product(stream, &product) };
        let current = || driver.memory().unwrap().current - operand.bytes();
        run(Stream::DEFAULT).unwrap();
        assert_eq!(current(), WORKSPACE);
        let plain = device.capture(&mut |_| Ok(())).unwrap();
        assert_eq!(current(), WORKSPACE, "a graph without products has no workspace");
        let graph = device.capture(&mut |stream| run(stream)).unwrap();
        assert_eq!(current(), 2 * WORKSPACE, "and one with products its own");
        let failed = device.capture(&mut |stream| run(stream).and_then(|()| device.read(x, &mut [])));
        assert!(failed.is_err());
        assert_eq!(current(), 2 * WORKSPACE);
        drop((plain, graph));
        assert_eq!(current(), WORKSPACE);
        drop((operand, device, driver));
        fake.assert_clean("after all graphs");
    });
}

#[test]
fn products_are_row_major() {
    fake::run("products_are_row_major", None, |fake| {
        let (driver, device) = open();
        let (tokens, n, k) = (3, 5, 4);
        let numbers = |count: usize, step: usize| (0..count).map(|i| ((i * step) % 7) as f32 - 3.0).collect::<Vec<_>>();
        let (x, w, bias, start) = (numbers(tokens * k, 3), numbers(n * k, 5), numbers(n, 2), numbers(tokens * n, 4));
        let upload = |values: &[f32]| Buffer::upload(&device, "operand", values).unwrap();
        let (d_x, d_w, d_bias) = (upload(&x), upload(&w), upload(&bias));
        let product = MatrixProduct {
            tokens,
            n,
            k,
            input: Dtype::F32,
            output: Dtype::F32,
            x: d_x.address(),
            weight: d_w.address(),
            bias: None,
            y: 0,
            accumulate: false,
        };
        // SAFETY: the operands are as large as the shape says, or the product is refused.
        let run = |stream, product: &MatrixProduct| unsafe { device.matrix_product(stream, product) };
        for (biased, accumulate) in [(false, false), (true, false), (false, true), (true, true), (true, true)] {
            let y = upload(&start);
            let bias_at = biased.then(|| d_bias.address());
            run(Stream::DEFAULT, &MatrixProduct { y: y.address(), bias: bias_at, accumulate, ..product }).unwrap();
            let mut got = vec![0.0; tokens * n];
            y.read(&mut got).unwrap();
            let expected: Vec<f32> = (0..tokens * n)
                .map(|i| {
                    let (t, j) = (i / n, i % n);
                    let dot: f32 = (0..k).map(|l| x[t * k + l] * w[j * k + l]).sum();
                    dot + if biased { bias[j] } else { 0.0 } + if accumulate { start[i] } else { 0.0 }
                })
                .collect();
            assert_eq!(got, expected, "{biased} {accumulate}");
        }
        assert_eq!(fake.blas().1, 4, "an algorithm is chosen once for what it depends on");
        let allocated = driver.memory().unwrap().current;
        let (other, y) = (driver.stream().unwrap(), upload(&start));
        run(other.stream(), &MatrixProduct { y: y.address(), ..product }).unwrap();
        assert_eq!(driver.memory().unwrap().current - allocated, (32 << 20) + y.bytes(), "a workspace for each stream");

        run(other.stream(), &MatrixProduct { tokens: 0, ..product }).unwrap();
        let text = run(other.stream(), &MatrixProduct { k: 0, ..product }).unwrap_err().to_string();
        assert_eq!(text, "k: expected at least 1, got 0");
        let text = run(other.stream(), &MatrixProduct { output: Dtype::F16, ..product }).unwrap_err().to_string();
        assert_eq!(text, "output: expected F32 or F32, got F16");
        let half = MatrixProduct { input: Dtype::F16, output: Dtype::F32, ..product };
        let text = run(other.stream(), &half).unwrap_err().to_string();
        let expected =
            "choosing cuBLASLt's algorithm for [3, 4] x [5, 4]^T, F16 to F32: CUBLAS_STATUS_NOT_SUPPORTED (15)";
        assert_eq!(text, expected);
        drop((d_x, d_w, d_bias, y, other, device, driver));
        fake.assert_clean("after all products");
        assert_eq!(fake.blas().0, 0, "descriptors are destroyed");
    });
}

#[test]
fn libraries_that_do_not_fit_are_told() {
    fake::run("libraries_that_do_not_fit_are_told", Some("MISFIT"), |fake| {
        let (driver, device) = open();
        assert_eq!((driver.driver_version(), driver.compiler_version().unwrap()), ("12.8".into(), "13.0".into()));
        fake.fail("cuModuleLoadData", 1, 200);
        let text = device.load(&fake::rms_norm()).unwrap_err().to_string();
        assert!(text.contains("NVRTC 13.0 made it (the driver knows CUDA 12.8: install an NVRTC of that"), "{text}");
        device.load(&fake::rms_norm()).expect("what failed once is tried again");

        let (input, output) = (Dtype::F32, Dtype::F32);
        let product = MatrixProduct {
            tokens: 1,
            n: 1,
            k: 1,
            input,
            output,
            x: 0,
            weight: 0,
            bias: None,
            y: 0,
            accumulate: false,
        };
        // SAFETY: there is no library that could run it.
        let error = unsafe { device.matrix_product(Stream::DEFAULT, &product) }.unwrap_err();
        assert!(matches!(error, Error::Library { library: "libcublasLt", .. }), "{error}");
        assert!(error.to_string().contains("libcublasLt.so.12: too old, it has no cublasLtMatmul"), "{error}");
        drop((device, driver));
        fake.assert_clean("after both");
    });
}
