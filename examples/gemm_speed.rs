//! How fast the packed INT4 GEMM is on this machine, beside the `gemm` crate in f32.
//!
//! ```text
//! cargo run --release --example gemm_speed [-- ISA[,ISA..] [TOKENS[,TOKENS..] [SHAPES]]]
//! ```
//!
//! `ISA` is `best`, `all` or a name as `DUQUANT_ISA` takes it; `f32` adds the `gemm` crate, `f16` the output head.
//! `SHAPES` are `KxN` separated by commas. Each number is the best of many repetitions, codes, scales and epilogue included.
#![allow(clippy::print_stdout, reason = "an example that prints a table")]

use duquant::kernels::cpu::{
    Epilogue, FloatValues, FloatWeights, GemmW4A4, GemmW4A4Desc, Isa, QuantizedTokens, gemm_float,
};
use duquant::kernels::{Affine, Error, QuantizedMatrix};
use std::time::{Duration, Instant};

fn numbers(count: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(next).collect()
}

/// The shortest of at least 5 runs and 0.3 seconds of them.
fn best(mut run: impl FnMut()) -> Duration {
    run();
    let start = Instant::now();
    let mut best = Duration::MAX;
    let mut count = 0;
    while count < 5 || start.elapsed() < Duration::from_millis(300) {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed());
        count += 1;
    }
    best
}

fn report(name: &str, (t, k, n): (usize, usize, usize), bytes: usize, time: Duration) {
    let seconds = time.as_secs_f64();
    let tera = 2.0 * (t * k * n) as f64 / seconds / 1e12;
    let giga = bytes as f64 / seconds / 1e9;
    println!(
        "{name:>18}  T {t:>4}  {k:>5} -> {n:<5}  {:>10.1} us  {tera:>7.3} TOP/s  {giga:>6.1} GB/s of weights",
        seconds * 1e6
    );
}

fn quantized(t: usize, k: usize, n: usize, isas: &[Isa]) -> Result<(), Error> {
    let weight = QuantizedMatrix::quantize(&numbers(n * k), n, k, &[Affine::new(4, 0.8)?])?;
    let settings = Affine::new(4, 0.9)?;
    let mut x = QuantizedTokens::new(t, k);
    x.set_tokens(t)?;
    let stride = x.stride();
    for (t, row) in numbers(t * k).chunks(k).enumerate() {
        let codes = &mut x.codes[t * stride..t * stride + k];
        let params = settings.quantize_row(row, codes)?;
        x.row_sum[t] = codes.iter().map(|&code| i32::from(code)).sum();
        (x.scale[t], x.zero_point[t]) = (params.scale, i32::from(params.zero_point));
    }
    let mut y = vec![0.0; t * n];
    for &isa in isas {
        let plan = GemmW4A4::plan(&GemmW4A4Desc { m_max: t, n, k, weight_bits: 4, activation_bits: 4 }, isa)?;
        let packed = plan.pack(&weight)?;
        let mut workspace = vec![0; plan.workspace_bytes()];
        let mut outcome = Ok(());
        let time = best(|| outcome = plan.run(&packed, &x, Epilogue::default(), &mut y, &mut workspace));
        outcome?;
        report(plan.kernel(t), (t, k, n), packed.bytes(), time);
    }
    Ok(())
}

fn float(t: usize, k: usize, n: usize, half: bool) -> Result<(), Error> {
    let (x, w) = (numbers(t * k), numbers(n * k));
    let mut y = vec![0.0; t * n];
    let mut outcome = Ok(());
    let narrow: Vec<half::f16> = if half { w.iter().map(|&w| half::f16::from_f32(w)).collect() } else { Vec::new() };
    let values = if half { FloatValues::F16(&narrow) } else { FloatValues::F32(&w) };
    let time = best(|| outcome = gemm_float(&x, t, FloatWeights { values, n, k }, Epilogue::default(), &mut y));
    outcome?;
    report(if half { "gemm_float f16" } else { "gemm_float f32" }, (t, k, n), n * k * if half { 2 } else { 4 }, time);
    if !half {
        let time = best(|| {
            // SAFETY: the three matrices have the sizes and strides that are given.
            unsafe {
                gemm::gemm(
                    t,
                    n,
                    k,
                    y.as_mut_ptr(),
                    1,
                    n as isize,
                    false,
                    x.as_ptr(),
                    1,
                    k as isize,
                    w.as_ptr(),
                    k as isize,
                    1,
                    0.0,
                    1.0,
                    false,
                    false,
                    false,
                    gemm::Parallelism::Rayon(0),
                );
            }
        });
        report("gemm crate f32", (t, k, n), n * k * 4, time);
    }
    Ok(())
}

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |i: usize, default: &'static str| arguments.get(i).map_or(default, String::as_str).split(',');
    let mut isas = Vec::new();
    for name in argument(0, "all,f32") {
        match name {
            "all" => isas.extend_from_slice(Isa::available()),
            "best" => isas.push(Isa::best()),
            _ => isas.extend(Isa::available().iter().copied().filter(|isa| isa.name() == name)),
        }
    }
    for shape in argument(2, "4096x4096,576x960,576x576,576x3072,1536x576") {
        let Some((k, n)) = shape.split_once('x') else { continue };
        let (Ok(k), Ok(n)) = (k.parse(), n.parse()) else { continue };
        for t in argument(1, "512,64,16,8,4,1").filter_map(|t| t.parse().ok()) {
            quantized(t, k, n, &isas)?;
            for (name, half) in [("f32", false), ("f16", true)] {
                if argument(0, "all,f32").any(|wanted| wanted == name) {
                    float(t, k, n, half)?;
                }
            }
        }
    }
    Ok(())
}
