//! Every kernel of a layer by criterion, on every backend that this machine has, in device time: time stamps around each kernel
//! on wgpu, events on CUDA, the clock on the CPU.
//!
//! ```text
//! cargo bench --bench kernels -- [FILTER]
//! DUQUANT_BENCH_MODEL=llama2-7b DUQUANT_BENCH_BACKENDS=cpu,cuda cargo bench --bench kernels
//! ```
#![allow(clippy::print_stderr, clippy::unwrap_used, reason = "a benchmark says what it skips, and fails this way")]

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use duquant::bench::{Bits, Method, Phase, Rounds, SpeedOptions, preset};
use duquant::checkpoint::Config;
use duquant::model::{Backend, Operation};
use std::time::Duration;

/// The backends of this machine among those that are wanted.
fn backends() -> Vec<(&'static str, Backend)> {
    let wanted = std::env::var("DUQUANT_BENCH_BACKENDS").unwrap_or_else(|_| "cpu,wgpu,cuda".into());
    let mut all = Vec::new();
    for name in wanted.split(',') {
        match open(name) {
            Ok(backend) => all.push(backend),
            Err(why) => eprintln!("skipped: {name}: {why}"),
        }
    }
    all
}

fn open(name: &str) -> Result<(&'static str, Backend), String> {
    match name {
        "cpu" => Ok(("cpu", Backend::default())),
        #[cfg(feature = "wgpu")]
        "wgpu" => {
            use duquant::kernels::wgpu::{Dtype, Gpu, GpuOptions};
            let gpu = Gpu::open(&GpuOptions::default()).map_err(|fault| fault.to_string())?;
            if !gpu.has_timestamps() {
                return Err("the device has no time stamps".into());
            }
            Ok(("wgpu", Backend::Wgpu { gpu: gpu.into(), float: Dtype::F32 }))
        }
        #[cfg(feature = "cuda")]
        "cuda" => {
            use duquant::kernels::cuda::{Driver, Dtype};
            let device = std::sync::Arc::new(Driver::open(0).map_err(|fault| fault.to_string())?);
            Ok(("cuda", Backend::Cuda { device, float: Dtype::F16, chunk: duquant::model::CUDA_CHUNK }))
        }
        other => Err(format!("expected cpu, wgpu or cuda (built with its feature), got {other}")),
    }
}

/// The wanted model's shape, or one small enough for a quick look.
fn config() -> Config {
    let named = std::env::var("DUQUANT_BENCH_MODEL").ok().and_then(|name| preset(&name));
    named
        .or_else(|| {
            preset("llama2-7b").map(|c| Config { hidden: 1024, intermediate: 2816, heads: 8, kv_heads: 8, ..c })
        })
        .unwrap()
}

fn bench(c: &mut Criterion) {
    let config = config();
    let bits = Bits { weight: 4, activation: 4 };
    for (name, backend) in backends() {
        for (method, phase, batch, length) in [
            (Method::DuQuant(1), Phase::Prefill, 1, 128),
            (Method::DuQuant(1), Phase::Decode, 1, 512),
            (Method::Float(Method::baseline(&backend)), Phase::Prefill, 1, 128),
            (Method::Float(Method::baseline(&backend)), Phase::Decode, 1, 512),
        ] {
            let options = SpeedOptions {
                phases: vec![phase],
                batches: vec![batch],
                length,
                steps: 1,
                samples: 1,
                methods: vec![method],
                bits: vec![bits],
                seed: 0,
            };
            let mut rounds = Rounds::new(&config, &backend, &options, method, bits, phase, batch).unwrap();
            let label = if phase == Phase::Prefill { "prefill" } else { "decode" };
            let mut group = c.benchmark_group(format!("{name}/{}/{label}", method.name()));
            group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
            for (at, operation) in Operation::ALL.into_iter().enumerate() {
                group.bench_function(BenchmarkId::from_parameter(format!("{operation:?}")), |b| {
                    b.iter_custom(|runs| {
                        let seconds: f64 = (0..runs).map(|_| rounds.run().unwrap()[at]).sum();
                        // A clock too coarse to see a kernel gives 0, which criterion does not take.
                        Duration::from_secs_f64(seconds).max(Duration::from_nanos(1))
                    });
                });
            }
            group.finish();
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
