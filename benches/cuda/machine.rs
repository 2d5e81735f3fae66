//! The device, how its time is taken, and numbers to multiply.

use super::Fault;
use super::host::HostDevice;
use duquant::kernels::cuda::{
    Arch, Buffer, Chip, Device, Driver, Error, Event, Graph, IntegerProduct, MatrixProduct, OwnedStream, Stream,
};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;

/// A GPU with a stream of its own, or the host shim.
pub(crate) struct Machine {
    pub(crate) device: Arc<dyn Device>,
    driver: Option<(Arc<Driver>, OwnedStream)>,
    samples: usize,
}

/// Milliseconds of one operation: all samples, sorted.
pub(crate) struct Times(Vec<f64>);

impl Times {
    pub(crate) fn median(&self) -> f64 {
        self.0[self.0.len() / 2]
    }

    /// Median, 10th and 90th percentile and samples in microseconds, with the rates of so many bytes and operations.
    pub(crate) fn report(&self, bytes: f64, operations: f64) -> Value {
        let at = |share: f64| self.0[((self.0.len() - 1) as f64 * share).round() as usize];
        let us = |ms: f64| (ms * 1e6).round() / 1e3;
        json!({
            "median_us": us(self.median()), "p10_us": us(at(0.1)), "p90_us": us(at(0.9)),
            "gigabytes_per_second": (bytes / self.median() / 1e4).round() / 1e2,
            "tera_operations_per_second": (operations / self.median() / 1e7).round() / 1e2,
            "samples_us": self.0.iter().map(|&ms| us(ms)).collect::<Vec<_>>(),
        })
    }
}

impl Machine {
    pub(crate) fn open(ordinal: Option<usize>, samples: usize) -> Result<Self, Fault> {
        let Some(ordinal) = ordinal else {
            let chip = Chip { multiprocessors: 4, ..Chip::typical(Arch::Sm80) };
            return Ok(Self { device: Arc::new(HostDevice::new(chip)), driver: None, samples });
        };
        let driver = Arc::new(Driver::open(ordinal)?);
        let stream = driver.stream()?;
        Ok(Self { device: Arc::clone(&driver) as Arc<dyn Device>, driver: Some((driver, stream)), samples })
    }

    /// Whether times mean something; otherwise shapes are tiny.
    pub(crate) fn is_gpu(&self) -> bool {
        self.driver.is_some()
    }

    pub(crate) fn stream(&self) -> Stream {
        self.driver.as_ref().map_or(Stream::DEFAULT, |(_, stream)| stream.stream())
    }

    pub(crate) fn describe(&self) -> Value {
        let chip = self.device.chip();
        let versions = self.driver.as_ref().map(|(driver, _)| {
            let compiler = driver.compiler_version().unwrap_or_else(|fault| fault.to_string());
            json!({ "driver": driver.driver_version(), "nvrtc": compiler, "capability": driver.capability() })
        });
        let commit = std::env::var("DUQUANT_COMMIT").ok().or_else(commit).unwrap_or_default();
        json!({
            "device": self.device.name(), "arch": chip.arch.name(), "multiprocessors": chip.multiprocessors,
            "l2_bytes": chip.l2_bytes, "versions": versions, "commit": commit,
            "time": if self.is_gpu() { "device events around a graph of launches, each on its own operands" } else { "none: host shim" },
        })
    }

    /// Copies of operands of so many bytes that are needed for none to be found in the second-level cache.
    pub(crate) fn copies(&self, bytes: u64) -> usize {
        if self.is_gpu() { (3 * self.device.chip().l2_bytes / bytes.max(1) + 1).min(64) as usize } else { 1 }
    }

    /// Milliseconds of one of `launches` operations that `enqueue(i)` enqueues.
    pub(crate) fn time(
        &self,
        launches: usize,
        mut enqueue: impl FnMut(usize) -> Result<(), Error>,
    ) -> Result<Times, Fault> {
        let Some((driver, stream)) = &self.driver else {
            let start = Instant::now();
            (0..launches).try_for_each(&mut enqueue)?;
            return Ok(Times(vec![start.elapsed().as_secs_f64() * 1e3 / launches as f64]));
        };
        let stream = stream.stream();
        // Algorithms are chosen and workspaces made before the capture.
        enqueue(0)?;
        self.device.synchronize(stream)?;
        let graph = Graph::capture(driver, stream, || (0..launches).try_for_each(&mut enqueue))?;
        let (start, end) = (Event::new(driver)?, Event::new(driver)?);
        let run = || -> Result<f64, Fault> {
            start.record(stream)?;
            // SAFETY: what was captured is alive: the caller's buffers outlive this call.
            unsafe { graph.launch(stream) }?;
            end.record(stream)?;
            Ok(f64::from(end.elapsed_ms(&start)?) / launches as f64)
        };
        // Clocks rise and code is loaded in the first runs.
        let mut warm = 0.0;
        for _ in 0..100 {
            warm += run()? * launches as f64;
            if warm > 20.0 {
                break;
            }
        }
        let mut times = (0..self.samples).map(|_| run()).collect::<Result<Vec<_>, _>>()?;
        times.sort_by(f64::total_cmp);
        Ok(Times(times))
    }

    /// `bytes` of random words: a mebibyte of draws, repeated. Any type's numbers are finite when `mask` keeps their exponents low.
    pub(crate) fn random(&self, what: &str, bytes: u64, mask: u64) -> Result<Buffer, Fault> {
        let block = 1_u64 << 20;
        let buffer = Buffer::new(&self.device, what, bytes.next_multiple_of(16))?;
        let mut state = bytes ^ 0x9e37_79b9_7f4a_7c15;
        let mut draw = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state & mask
        };
        let first: Vec<u64> = (0..bytes.min(block).div_ceil(8)).map(|_| draw()).collect();
        let stream = self.stream();
        self.device.write(buffer.address(), &bytemuck::cast_slice(&first)[..bytes.min(block) as usize])?;
        let mut done = bytes.min(block);
        while done < bytes {
            let count = done.min(bytes - done);
            self.device.copy(stream, buffer.address(), buffer.address() + done, count)?;
            done += count;
        }
        self.device.synchronize(stream)?;
        Ok(buffer)
    }

    /// Half-precision numbers below 2 in magnitude.
    pub(crate) fn halves(&self, what: &str, count: u64) -> Result<Buffer, Fault> {
        self.random(what, 2 * count, 0xbfff_bfff_bfff_bfff)
    }

    /// cuBLASLt's product in half precision.
    pub(crate) fn half_product(&self, product: &MatrixProduct) -> Result<(), Error> {
        // SAFETY: callers make operands of the shape.
        unsafe { self.device.matrix_product(self.stream(), product) }
    }

    /// cuBLASLt's product of 8-bit integers; nothing on the host shim.
    pub(crate) fn integer_product(&self, product: &IntegerProduct) -> Result<(), Error> {
        match &self.driver {
            // SAFETY: callers make operands of the shape.
            Some((driver, _)) => unsafe { driver.integer_product(self.stream(), product) },
            None => Ok(()),
        }
    }
}

/// The commit that is checked out, where there is a checkout.
fn commit() -> Option<String> {
    let output = std::process::Command::new("git").args(["rev-parse", "HEAD"]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
