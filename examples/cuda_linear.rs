//! One W4A4 linear inside a program that has a CUDA context, a stream and memory of its own, here by cudarc's safe API.
//!
//! ```text
//! cargo run --release --example cuda_linear
//! ```
//!
//! The host lends its context; plans and packed weights are made once; prologue and GEMM are enqueued on the host's stream, on the
//! host's memory. Nothing waits but the host. Without an NVIDIA driver it says what to install.
#![allow(clippy::print_stdout, reason = "an example prints")]

use cudarc::driver::{CudaContext, DevicePtr, DevicePtrMut};
use duquant::kernels::cuda::{
    Buffer, Device, Driver, Dtype, GemmW4A4Desc, GemmW4A4Plan, SourceOperand, Stream, TokenSource, TokensOperand,
    TransformOutput, TransformQuantizeDesc, TransformQuantizePlan, TransformShape, TransformTarget,
};
use duquant::kernels::{Affine, QuantizedMatrix, Transform};
use std::error::Error;
use std::sync::Arc;

const TOKENS: usize = 5;
const K: usize = 512;
const N: usize = 96;

fn main() -> Result<(), Box<dyn Error>> {
    // Says what is missing where there is no driver, before anything of the host's is tried.
    drop(Driver::open(0)?);

    // The host's own context, stream and memory.
    let context = CudaContext::new(0)?;
    let stream = context.new_stream()?;
    let x: Vec<f32> = (0..TOKENS * K).map(|i| noise(i as u32)).collect();
    let host_x = stream.clone_htod(&x)?;
    let mut host_y = stream.alloc_zeros::<f32>(TOKENS * N)?;

    // SAFETY: the context outlives the driver and all that is made with it.
    let device: Arc<dyn Device> = Arc::new(unsafe { Driver::borrow(context.cu_ctx().cast()) }?);
    let borrowed = Stream::from_raw(stream.cu_stream().cast());

    // Plan and pack once.
    let transform = Transform::identity(K);
    let affine = Affine::new(4, 1.0)?;
    let prologue = TransformQuantizePlan::plan(
        device.as_ref(),
        &TransformQuantizeDesc {
            m_max: TOKENS,
            shape: TransformShape::of(&transform),
            affine: Some(affine),
            source: TokenSource::Tokens,
            input: Dtype::F32,
            target: TransformTarget::Codes,
        },
    )?;
    let tables = prologue.pack(&device, &transform)?;
    let weight: Vec<f32> = (0..N * K).map(|i| noise(!(i as u32))).collect();
    let matrix = QuantizedMatrix::quantize(&weight, N, K, &[affine])?;
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
    let gemm = GemmW4A4Plan::plan(device.as_ref(), &desc)?;
    let packed = gemm.pack(&device, &matrix)?;
    println!("{} runs {} and {}", device.name(), prologue.kernel(TOKENS), gemm.kernel(TOKENS));

    // What lies between the two may be the host's memory as well.
    let mut codes = stream.alloc_zeros::<u8>(gemm.tokens().code_bytes() as usize)?;
    let mut params = stream.alloc_zeros::<u8>(gemm.tokens().param_bytes() as usize)?;
    let workspace = Buffer::zeroed(&device, "workspace", gemm.workspace_bytes().max(16))?;
    {
        let ((x, _x), (y, _y)) = (host_x.device_ptr(&stream), host_y.device_ptr_mut(&stream));
        let ((codes, _codes), (params, _params)) = (codes.device_ptr_mut(&stream), params.device_ptr_mut(&stream));
        let tokens = TokensOperand { codes, params };
        let out = TransformOutput::Codes(tokens);
        // SAFETY: all operands are of this context and as large as the plans say, and stay alive until the stream is waited for.
        unsafe {
            prologue.enqueue(device.as_ref(), borrowed, TOKENS, SourceOperand::Tokens(x), &tables, out)?;
            gemm.enqueue(device.as_ref(), borrowed, TOKENS, tokens, packed.operand(), y, workspace.address())?;
        }
    }
    let y = stream.clone_dtoh(&host_y)?;
    stream.synchronize()?;

    let exact = |t: usize, n: usize| -> f64 {
        let row = |m: &[f32], i: usize| m[i * K..(i + 1) * K].to_vec();
        row(&x, t).iter().zip(row(&weight, n)).map(|(a, b)| f64::from(*a) * f64::from(b)).sum()
    };
    let (mut error, mut size) = (0.0, 0.0);
    for (t, n) in (0..TOKENS).flat_map(|t| (0..N).map(move |n| (t, n))) {
        error += (f64::from(y[t * N + n]) - exact(t, n)).powi(2);
        size += exact(t, n).powi(2);
    }
    println!("relative error of the 4-bit product: {:.3}", (error / size).sqrt());
    Ok(())
}

/// Numbers in -1..1 that repeat from run to run.
fn noise(i: u32) -> f32 {
    let mut z = i.wrapping_mul(0x9e37_79b9) ^ 0x85eb_ca6b;
    z = (z ^ (z >> 15)).wrapping_mul(0x2c1b_3c6d);
    z = (z ^ (z >> 12)).wrapping_mul(0x297a_2d39);
    ((z ^ (z >> 15)) >> 8) as f32 / (1 << 23) as f32 - 1.0
}
