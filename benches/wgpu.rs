//! The GEMMs on a wgpu adapter, both sides in one run: `gemm_w4a4`, `gemm_f32` and `gemm_f16` at 4096 by 4096, in device time
//! (time stamps around each kernel). Prints one JSON object with adapter, driver, kernels and every sample.
//!
//! ```text
//! cargo bench --no-default-features --features wgpu --bench wgpu -- [--tokens 1,8] [--samples 7] [--shape NxK]
//!     [--tiles FILE] [--tune]
//! ```
//!
//! On an adapter that runs on the CPU, `cpu_us` is the processor time of the process, over all threads: what the median means
//! little for on a machine that others use.
//!
//! `--tune` measures tiles for the shape first, prints the table to standard error and uses it; `--tiles` reads one.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a measurement reports this way")]

use duquant::kernels::cpu::{FloatValues, FloatWeights};
use duquant::kernels::wgpu::{
    Dtype, Error, GemmFloatDesc, GemmFloatPlan, GemmW4A4Desc, GemmW4A4Plan, Gpu, GpuOptions, QuantizedTokens, Recorder,
    Timer, TuneShape, tune,
};
use duquant::kernels::{Affine, QuantizedMatrix};
use std::fmt::Write;
use std::path::PathBuf;

struct Settings {
    tokens: Vec<usize>,
    samples: u32,
    shape: TuneShape,
    tiles: Option<PathBuf>,
    tune: bool,
}

fn settings() -> Result<Settings, String> {
    let mut out = Settings {
        tokens: vec![1, 4, 8, 64, 512],
        samples: 7,
        shape: TuneShape { n: 4096, k: 4096 },
        tiles: None,
        tune: false,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{flag} wants a value"));
        let number = |text: &str| text.parse().map_err(|_| format!("{flag}: {text} is no number"));
        match flag.as_str() {
            // Cargo passes it.
            "--bench" => {}
            "--tune" => out.tune = true,
            "--tiles" => out.tiles = Some(value()?.into()),
            "--samples" => out.samples = number(&value()?)? as u32,
            "--tokens" => out.tokens = value()?.split(',').map(number).collect::<Result<_, _>>()?,
            "--shape" => {
                let text = value()?;
                let (n, k) = text.split_once('x').ok_or(format!("--shape: expected NxK, got {text}"))?;
                out.shape = TuneShape { n: number(n)?, k: number(k)? };
            }
            other => return Err(format!("unknown argument {other}")),
        }
    }
    Ok(out)
}

/// Numbers in -1..1 that repeat from run to run.
fn numbers(count: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(next).collect()
}

/// Processor time of this process so far, in seconds.
#[cfg(unix)]
fn processor_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of ours.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64
}

#[cfg(not(unix))]
fn processor_seconds() -> f64 {
    f64::NAN
}

/// Device seconds and processor seconds of one run.
fn sample(
    gpu: &Gpu,
    timer: &mut Timer,
    enqueue: impl Fn(&mut Recorder<'_>) -> Result<(), Error>,
) -> Result<(f64, f64), Error> {
    let before = processor_seconds();
    let mut encoder = gpu.encoder();
    enqueue(&mut Recorder::timed(&mut encoder, timer))?;
    gpu.submit(encoder)?;
    let seconds = timer.finish(gpu)?.iter().map(|&(_, seconds)| seconds).sum();
    Ok((seconds, processor_seconds() - before))
}

/// A kernel's name and its samples as JSON.
fn report(name: &str, kernel: &str, tokens: usize, samples: &[(f64, f64)]) -> String {
    let all: Vec<String> = samples.iter().map(|(seconds, _)| format!("{:.1}", seconds * 1e6)).collect();
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN) * 1e6
    };
    let device = median(samples.iter().map(|sample| sample.0).collect());
    let processor = median(samples.iter().map(|sample| sample.1).collect());
    format!(
        "{{\"operation\": \"{name}\", \"tokens\": {tokens}, \"kernel\": \"{kernel}\", \"median_us\": {device:.1}, \
         \"cpu_us\": {processor:.1}, \"samples_us\": [{}]}}",
        all.join(", ")
    )
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let settings = settings()?;
    let adapter = std::env::var("WGPU_ADAPTER_NAME").ok();
    let mut gpu = Gpu::open(&GpuOptions { adapter, tiles: settings.tiles, ..GpuOptions::default() })?;
    if settings.tune {
        let table = tune(&gpu, &[settings.shape])?;
        eprint!("{}", table.to_text());
        gpu = gpu.with_tiles(table);
    }
    let TuneShape { n, k } = settings.shape;
    let m_max = settings.tokens.iter().copied().max().unwrap_or(1);
    let values = numbers(n * k);
    let matrix = QuantizedMatrix::quantize(&values, n, k, &[Affine::new(4, 0.8)?])?;

    let desc = GemmW4A4Desc {
        m_max,
        n,
        k,
        weight_bits: 4,
        activation_bits: 4,
        out: Dtype::F32,
        bias: false,
        accumulate: false,
    };
    let w4a4 = GemmW4A4Plan::plan(&gpu, &desc)?;
    let weights = w4a4.pack(&gpu, &matrix, None)?;
    let x = QuantizedTokens::new(&gpu, desc.tokens())?;
    let codes: Vec<u8> = (0..desc.tokens().code_bytes()).map(|i| (i * 7 % 16) as u8).collect();
    gpu.queue().write_buffer(x.codes(), 0, &codes);
    let y = gpu.buffer("y", 4 * (m_max * n) as u64)?;
    let w4a4_bound = w4a4.bind(&gpu, &x.binding(), &weights.binding(), y.as_entire_buffer_binding())?;

    let float_x = gpu.upload("x", bytemuck::cast_slice(&numbers(m_max * k)))?;
    let mut floats = Vec::new();
    for weight in [Dtype::F32, Dtype::F16] {
        if weight == Dtype::F16 && !gpu.has_f16() {
            continue;
        }
        let desc =
            GemmFloatDesc { m_max, n, k, x: Dtype::F32, weight, out: Dtype::F32, bias: false, accumulate: false };
        let plan = GemmFloatPlan::plan(&gpu, &desc)?;
        let packed = plan.pack(&gpu, &[FloatWeights { values: FloatValues::F32(&values), n, k }], None)?;
        let bound =
            plan.bind(&gpu, float_x.as_entire_buffer_binding(), &packed.bindings(), y.as_entire_buffer_binding())?;
        floats.push((if weight == Dtype::F32 { "gemm_f32" } else { "gemm_f16" }, plan, bound, packed));
    }

    let mut timer = Timer::new(&gpu, 64)?;
    let mut lines = Vec::new();
    for &tokens in &settings.tokens {
        let mut samples = vec![Vec::new(); 1 + floats.len()];
        // The sides take turns, so that what else the machine does meets all of them; the first round warms up.
        for round in 0..=settings.samples {
            let mut times = vec![sample(&gpu, &mut timer, |recorder| w4a4_bound.enqueue(recorder, tokens))?];
            for (_, _, bound, _) in &floats {
                times.push(sample(&gpu, &mut timer, |recorder| bound.enqueue(recorder, tokens))?);
            }
            if round > 0 {
                samples.iter_mut().zip(times).for_each(|(samples, time)| samples.push(time));
            }
        }
        let names = std::iter::once(("gemm_w4a4", w4a4.kernel(tokens)))
            .chain(floats.iter().map(|(name, plan, ..)| (*name, plan.kernel(tokens))));
        for ((name, kernel), samples) in names.zip(&samples) {
            lines.push(report(name, &kernel, tokens, samples));
        }
    }
    let info = gpu.info();
    let mut out = String::new();
    writeln!(out, "{{")?;
    writeln!(
        out,
        "  \"adapter\": {:?}, \"driver\": {:?}, \"backend\": \"{:?}\",",
        info.name, info.driver_info, info.backend
    )?;
    writeln!(out, "  \"n\": {n}, \"k\": {k}, \"time\": \"device time stamps around each kernel\",")?;
    writeln!(out, "  \"results\": [\n    {}\n  ]\n}}", lines.join(",\n    "))?;
    print!("{out}");
    Ok(())
}
