//! RMSNorm and SwiGLU's product on wgpu are the oracle's, to what `f32` and the device's `inverseSqrt`, `exp` and division
//! leave: 4e-6 of the value, and for half-precision outputs `2^-11` of it and `2^-25` more.
#![cfg(feature = "wgpu")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails and reports this way")]

mod gpu;
mod oracle;

use duquant::kernels::wgpu::{Dtype, Error, Gpu, Recorder, RmsNormPlan, RowsDesc, SiluMulPlan};
use duquant_reference as reference;
use gpu::gpu;
use half::f16;
use oracle::{Random, widen};

const TOKENS: [usize; 10] = [1, 2, 3, 7, 8, 9, 63, 64, 65, 257];
const SMALL: [usize; 12] = [1, 2, 31, 63, 64, 65, 100, 127, 128, 129, 192, 255];
const LARGE: [usize; 6] = [576, 1536, 4097, 11_008, 13_824, 28_672];
const EPSILON: f32 = 1e-5;

fn draw(random: &mut Random, tokens: usize, k: usize) -> Vec<f32> {
    let mut x = random.normals(tokens * k);
    for (t, row) in x.chunks_mut(k).enumerate() {
        let at = random.below(k);
        match t % 5 {
            1 => row.fill(0.0),
            2 => row[at] = 6700.0,
            3 => row.iter_mut().for_each(|x| *x = x.abs() * 100.0),
            4 => row.iter_mut().for_each(|x| *x *= 1e-3),
            _ => {}
        }
    }
    x
}

fn encode(x: &[f32], dtype: Dtype) -> (Vec<u8>, Vec<f64>) {
    match dtype {
        Dtype::F32 => (bytemuck::cast_slice(x).to_vec(), widen(x)),
        Dtype::F16 => {
            let halves: Vec<f16> = x.iter().map(|&x| f16::from_f32(x)).collect();
            (bytemuck::cast_slice(&halves).to_vec(), halves.iter().map(|x| x.to_f64()).collect())
        }
    }
}

fn decode(gpu: &Gpu, buffer: &::wgpu::Buffer, count: usize, dtype: Dtype) -> Vec<f64> {
    let bytes = gpu.read(buffer, 0, buffer.size()).unwrap();
    let mut out = match dtype {
        Dtype::F32 => widen(&bytemuck::pod_collect_to_vec::<u8, f32>(&bytes)),
        Dtype::F16 => {
            bytemuck::pod_collect_to_vec::<u8, u16>(&bytes).iter().map(|&x| f16::from_bits(x).to_f64()).collect()
        }
    };
    out.truncate(count);
    out
}

fn close(got: &[f64], want: &[f64], dtype: Dtype, place: &str) {
    assert_eq!(got.len(), want.len(), "{place}");
    let (relative, absolute) = match dtype {
        Dtype::F32 => (4e-6, 1e-30),
        Dtype::F16 => (4e-6 + 2.0_f64.powi(-11), 2.0_f64.powi(-25)),
    };
    for (at, (got, want)) in got.iter().zip(want).enumerate() {
        let beyond = dtype == Dtype::F16 && want.abs() > 65_504.0;
        let fits = (got - want).abs() <= relative * want.abs() + absolute;
        assert!(fits || (beyond && got.abs() >= 65_504.0), "{place}, {at}: {got} against {want}");
    }
}

fn types(gpu: &Gpu, i: usize) -> (Dtype, Dtype) {
    let all = [Dtype::F32, Dtype::F16];
    if gpu.has_f16() { (all[i % 2], all[i / 2 % 2]) } else { (Dtype::F32, Dtype::F32) }
}

fn check_rms_norm(gpu: &Gpu, tokens: usize, k: usize, i: usize) {
    let mut random = Random::new(i as u64);
    let (input, output) = types(gpu, i);
    let (bytes, x) = encode(&draw(&mut random, tokens, k), input);
    let weight: Vec<f32> = random.normals(k);
    let x_buffer = gpu.upload("x", &bytes).unwrap();
    let weight_buffer = gpu.upload("weight", bytemuck::cast_slice(&weight)).unwrap();
    let out = gpu.buffer("out", (tokens * k) as u64 * output.bytes()).unwrap();
    let plan = RmsNormPlan::plan(gpu, &RowsDesc { m_max: tokens, channels: k, input, output }, EPSILON).unwrap();
    let [x_binding, weight_binding, out_binding] =
        [&x_buffer, &weight_buffer, &out].map(|b| b.as_entire_buffer_binding());
    let bound = plan.bind(gpu, x_binding, weight_binding, out_binding).unwrap();
    let mut encoder = gpu.encoder();
    bound.enqueue(&mut Recorder::new(&mut encoder), tokens).unwrap();
    gpu.submit(encoder).unwrap();
    let want = reference::rms_norm(&x, &widen(&weight), f64::from(EPSILON));
    let got = decode(gpu, &out, tokens * k, output);
    close(&got, &want, output, &format!("rms_norm [{tokens}, {k}] {input:?} to {output:?}"));
}

fn check_silu_mul(gpu: &Gpu, tokens: usize, k: usize, i: usize) {
    let mut random = Random::new(i as u64);
    let (input, output) = types(gpu, i);
    let mut values = draw(&mut random, tokens, 2 * k);
    // Where the exponential is far out its error counts most: 3 + 2|x| ULP are allowed, so gates stay within 12 but for a few
    // beyond the end, where the product is the gate or nothing.
    values.iter_mut().for_each(|x| *x = if x.abs() > 3000.0 { *x } else { x.clamp(-12.0, 12.0) });
    let (bytes, x) = encode(&values, input);
    let x_buffer = gpu.upload("gate_up", &bytes).unwrap();
    let out = gpu.buffer("out", (tokens * k) as u64 * output.bytes()).unwrap();
    let plan = SiluMulPlan::plan(gpu, &RowsDesc { m_max: tokens, channels: k, input, output }).unwrap();
    let bound = plan.bind(gpu, x_buffer.as_entire_buffer_binding(), out.as_entire_buffer_binding()).unwrap();
    let mut encoder = gpu.encoder();
    bound.enqueue(&mut Recorder::new(&mut encoder), tokens).unwrap();
    gpu.submit(encoder).unwrap();
    let half = |first: usize| x.chunks(2 * k).flat_map(|row| row[first..first + k].to_vec()).collect::<Vec<_>>();
    let want = reference::swiglu(&half(0), &half(k));
    let got = decode(gpu, &out, tokens * k, output);
    close(&got, &want, output, &format!("silu_mul [{tokens}, {k}] {input:?} to {output:?}"));
}

/// The shapes of both kernels, each twice and more so that every pair of types comes up.
fn shapes() -> Vec<(usize, usize)> {
    let small = SMALL.iter().flat_map(|&k| TOKENS.map(|t| (t, k)));
    let large = LARGE.iter().flat_map(|&k| [(1, k), (3, k), (7, k)]);
    let mut out: Vec<_> = small.chain(large).collect();
    for _ in 0..2 {
        out.extend_from_within(..);
    }
    out
}

#[test]
fn rms_norm_is_the_oracle() {
    let Some(gpu) = gpu("rms_norm_is_the_oracle") else { return };
    let shapes = shapes();
    assert!(shapes.len() >= 500);
    for (i, &(tokens, k)) in shapes.iter().enumerate() {
        check_rms_norm(&gpu, tokens, k, i + i / (shapes.len() / 4));
    }
}

#[test]
fn silu_mul_is_the_oracle() {
    let Some(gpu) = gpu("silu_mul_is_the_oracle") else { return };
    let shapes = shapes();
    for (i, &(tokens, k)) in shapes.iter().enumerate() {
        check_silu_mul(&gpu, tokens, k, i + i / (shapes.len() / 4));
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(gpu) = gpu("what_does_not_fit_is_refused") else { return };
    let desc = RowsDesc { m_max: 4, channels: 64, input: Dtype::F32, output: Dtype::F32 };
    assert!(matches!(RmsNormPlan::plan(&gpu, &desc, -1.0), Err(Error::Kernel(_))));
    assert!(matches!(RmsNormPlan::plan(&gpu, &RowsDesc { channels: 0, ..desc }, EPSILON), Err(Error::Kernel(_))));
    assert!(matches!(SiluMulPlan::plan(&gpu, &RowsDesc { m_max: 0, ..desc }), Err(Error::Kernel(_))));
    let huge = RowsDesc { m_max: 1 << 20, channels: 1 << 20, ..desc };
    assert!(matches!(SiluMulPlan::plan(&gpu, &huge), Err(Error::Limit { .. })));
    let plan = RmsNormPlan::plan(&gpu, &desc, EPSILON).unwrap();
    let [x, weight, out] = [1024, 256, 1024].map(|bytes| gpu.buffer("operand", bytes).unwrap());

    let bind = |weight: ::wgpu::BufferBinding<'_>| {
        plan.bind(&gpu, x.as_entire_buffer_binding(), weight, out.as_entire_buffer_binding())
    };
    let bound = bind(weight.as_entire_buffer_binding()).unwrap();
    let short = ::wgpu::BufferBinding { buffer: &weight, offset: 0, size: std::num::NonZeroU64::new(252) };
    assert!(matches!(bind(short), Err(Error::Binding { operand: "weight", expected: 256, got: 252 })));
    let crooked = ::wgpu::BufferBinding { buffer: &x, offset: 4, size: None };
    assert!(matches!(bind(crooked), Err(Error::Alignment { operand: "weight", got: 4, .. })));
    let mut encoder = gpu.encoder();
    assert!(matches!(bound.enqueue(&mut Recorder::new(&mut encoder), 5), Err(Error::Kernel(_))));
    bound.enqueue(&mut Recorder::new(&mut encoder), 0).unwrap();
}
