//! One W4A4 linear inside a program that has a wgpu device, buffers and an encoder of its own.
//!
//! ```text
//! cargo run --release --example wgpu_linear
//! ```
//!
//! The host opens its device with what the kernels ask for, binds its own buffers, and records the prologue (a rotation by
//! a Hadamard, per-token quantization) and the GEMM between two commands of its own. Nothing is submitted but by the host.
#![allow(clippy::print_stdout, reason = "an example prints")]

use duquant::kernels::wgpu::{
    Dtype, GemmW4A4Desc, GemmW4A4Plan, Gpu, QuantizedTokens, Recorder, SourceBinding, TokenSource, TransformOutput,
    TransformQuantizeDesc, TransformQuantizePlan, TransformShape, TransformTarget, required_features, required_limits,
};
use duquant::kernels::{Affine, QuantizedMatrix, Transform};
use std::error::Error;
use wgpu::{BufferDescriptor, BufferUsages, DeviceDescriptor, Instance, InstanceDescriptor, MapMode, PollType};

const TOKENS: usize = 5;
const K: usize = 512;
const N: usize = 96;
const BLOCK: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    // The host's own device, opened with what the kernels want of its adapter.
    let instance = Instance::new(InstanceDescriptor::new_without_display_handle());
    let adapter = pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default()))?;
    let (device, queue) = pollster::block_on(adapter.request_device(&DeviceDescriptor {
        required_features: required_features(&adapter),
        required_limits: required_limits(&adapter),
        ..DeviceDescriptor::default()
    }))?;
    let gpu = Gpu::from_host(device.clone(), queue.clone())?;

    // A layer: weights rotated like their input will be, then quantized.
    let transform = hadamard();
    let weight: Vec<f32> = (0..N * K).map(|i| noise(i as u32)).collect();
    let mut rotated = weight.clone();
    rotate(&transform, &mut rotated);
    let matrix = QuantizedMatrix::quantize(&rotated, N, K, &[Affine::new(4, 1.0)?])?;

    // Plan and pack once.
    let affine = Affine::new(4, 1.0)?;
    let prologue = TransformQuantizePlan::plan(
        &gpu,
        &TransformQuantizeDesc {
            m_max: TOKENS,
            shape: TransformShape::of(&transform),
            affine: Some(affine),
            source: TokenSource::Tokens,
            input: Dtype::F32,
            target: TransformTarget::Codes,
        },
    )?;
    let desc = GemmW4A4Desc {
        m_max: TOKENS,
        n: N,
        k: K,
        weight_bits: 4,
        activation_bits: 4,
        out: Dtype::F32,
        bias: false,
        accumulate: false,
    };
    let gemm = GemmW4A4Plan::plan(&gpu, &desc)?;
    let tables = prologue.pack(&gpu, &transform)?;
    let weights = gemm.pack(&gpu, &matrix, None)?;
    println!("{}: {} and {}", gpu.info().name, prologue.kernel(TOKENS), gemm.kernel(TOKENS));

    // The host's own buffers, bound once.
    let storage = |label, size, usage| {
        device.create_buffer(&BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false })
    };
    let bytes = 4 * (TOKENS * N) as u64;
    let x = storage("x", 4 * (TOKENS * K) as u64, BufferUsages::STORAGE | BufferUsages::COPY_DST);
    let y = storage("y", bytes, BufferUsages::STORAGE | BufferUsages::COPY_SRC);
    let back = storage("back", bytes, BufferUsages::MAP_READ | BufferUsages::COPY_DST);
    let workspace = storage("workspace", prologue.workspace_bytes().max(4), BufferUsages::STORAGE);
    let codes = QuantizedTokens::new(&gpu, desc.tokens())?;
    let source = SourceBinding::Tokens(x.as_entire_buffer_binding());
    let out = TransformOutput::Codes(codes.binding());
    let prologue = prologue.bind(&gpu, source, &tables, out, Some(workspace.as_entire_buffer_binding()))?;
    let gemm = gemm.bind(&gpu, &codes.binding(), &weights.binding(), y.as_entire_buffer_binding())?;

    // The host's own encoder: its commands, two kernels, its commands again.
    let tokens: Vec<f32> = (0..TOKENS * K).map(|i| 3.0 * noise(i as u32 + 7_000_000)).collect();
    queue.write_buffer(&x, 0, bytemuck::cast_slice(&tokens));
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let mut recorder = Recorder::new(&mut encoder);
    prologue.enqueue(&mut recorder, TOKENS)?;
    gemm.enqueue(&mut recorder, TOKENS)?;
    drop(recorder);
    encoder.copy_buffer_to_buffer(&y, 0, &back, 0, bytes);
    queue.submit([encoder.finish()]);

    back.slice(..).map_async(MapMode::Read, |_| ());
    device.poll(PollType::wait_indefinitely())?;
    let got: Vec<f32> = bytemuck::pod_collect_to_vec(&back.slice(..).get_mapped_range()?);
    let (mut error, mut size) = (0.0, 0.0);
    for (at, &got) in got.iter().enumerate() {
        let (t, n) = (at / N, at % N);
        let pairs = tokens[t * K..][..K].iter().zip(&weight[n * K..][..K]);
        let exact: f64 = pairs.map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
        error += (f64::from(got) - exact).powi(2);
        size += exact.powi(2);
    }
    let relative = (error / size).sqrt();
    println!("{TOKENS} tokens by {N} x {K} at 4 bits: relative error {relative:.4} against floating point");
    if relative < 0.2 { Ok(()) } else { Err(format!("relative error {relative}").into()) }
}

/// The transform of one rotation: blocks of 64 channels by the normalised Sylvester Hadamard.
fn hadamard() -> Transform {
    let entry = 1.0 / (BLOCK as f32).sqrt();
    let sign = |i: usize| if ((i / BLOCK) & (i % BLOCK)).count_ones().is_multiple_of(2) { entry } else { -entry };
    let rotations = (0..BLOCK * BLOCK).map(sign).collect();
    Transform { channels: K, block: BLOCK, rotations, hadamard: true, ..Transform::default() }
}

/// `w -> w R`, block by block: what is done to weights offline, since `(x R) (w R)^T = x w^T`.
fn rotate(transform: &Transform, rows: &mut [f32]) {
    for block in rows.chunks_exact_mut(BLOCK) {
        let turned: Vec<f32> =
            (0..BLOCK).map(|j| (0..BLOCK).map(|i| block[i] * transform.rotation(0)[i * BLOCK + j]).sum()).collect();
        block.copy_from_slice(&turned);
    }
}

/// Something like normal noise.
fn noise(seed: u32) -> f32 {
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
    let mut sum = 0.0;
    for _ in 0..6 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        sum += (state >> 8) as f32 / (1 << 24) as f32 - 0.5;
    }
    sum
}
