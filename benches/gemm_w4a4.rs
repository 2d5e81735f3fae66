//! The packed INT4 GEMM on every instruction set of this machine beside the `gemm` crate in f32 and our own f32 path.
//! A group is a shape `K -> N` and a number of tokens; elements are operations (two a product), so that `Gelem/s` reads
//! as GOP/s.
//!
//! ```text
//! cargo bench --bench gemm_w4a4 -- '4096x4096/T512'
//! ```

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use duquant::kernels::cpu::{
    Epilogue, FloatValues, FloatWeights, GemmW4A4, GemmW4A4Desc, Isa, QuantizedTokens, gemm_float,
};
use duquant::kernels::{Affine, Error, QuantizedMatrix};
use std::hint::black_box;
use std::time::Duration;

const SHAPES: [(usize, usize); 5] = [(4096, 4096), (576, 960), (576, 576), (576, 3072), (1536, 576)];
const TOKENS: [usize; 6] = [512, 64, 16, 8, 4, 1];

/// Numbers in -1..1 that repeat from run to run.
fn numbers(count: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(next).collect()
}

fn quantize_tokens(t: usize, k: usize, x: &[f32]) -> Result<QuantizedTokens, Error> {
    let settings = Affine::new(4, 0.9)?;
    let mut out = QuantizedTokens::new(t, k);
    out.set_tokens(t)?;
    let stride = out.stride();
    for (t, row) in x.chunks(k).enumerate() {
        let codes = &mut out.codes[t * stride..t * stride + k];
        let params = settings.quantize_row(row, codes)?;
        out.row_sum[t] = codes.iter().map(|&code| i32::from(code)).sum();
        (out.scale[t], out.zero_point[t]) = (params.scale, i32::from(params.zero_point));
    }
    Ok(out)
}

fn gemm_crate(t: usize, k: usize, n: usize, x: &[f32], w: &[f32], y: &mut [f32]) {
    assert!(x.len() == t * k && w.len() == n * k && y.len() == t * n, "operands hold whole matrices");
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
}

fn shape(c: &mut Criterion, k: usize, n: usize) -> Result<(), Error> {
    let w = numbers(n * k);
    let weight = QuantizedMatrix::quantize(&w, n, k, &[Affine::new(4, 0.8)?])?;
    for t in TOKENS {
        let x = numbers(t * k);
        let tokens = quantize_tokens(t, k, &x)?;
        let mut y = vec![0.0; t * n];
        let mut group = c.benchmark_group(format!("{k}x{n}/T{t}"));
        group.throughput(Throughput::Elements((2 * t * n * k) as u64));
        group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
        for &isa in Isa::available() {
            let plan = GemmW4A4::plan(&GemmW4A4Desc { m_max: t, n, k, weight_bits: 4, activation_bits: 4 }, isa)?;
            let packed = plan.pack(&weight)?;
            let mut workspace = vec![0; plan.workspace_bytes()];
            group.bench_function(format!("w4a4 {}: {}", isa.name(), plan.kernel(t)), |b| {
                b.iter(|| plan.run(&packed, black_box(&tokens), Epilogue::default(), &mut y, &mut workspace));
            });
        }
        group.bench_function("gemm_float f32", |b| {
            let weights = FloatWeights { values: FloatValues::F32(&w), n, k };
            b.iter(|| gemm_float(black_box(&x), t, weights, Epilogue::default(), &mut y));
        });
        group.bench_function("gemm crate f32", |b| b.iter(|| gemm_crate(t, k, n, black_box(&x), &w, &mut y)));
        group.finish();
    }
    Ok(())
}

fn all(c: &mut Criterion) {
    for (k, n) in SHAPES {
        shape(c, k, n).unwrap_or_else(|error| unreachable!("{k} to {n}: {error}"));
    }
}

criterion_group!(benches, all);
criterion_main!(benches);
