//! RMSNorm and SwiGLU's product in CUDA against the oracle, on every type, odd widths and rows that hold NaN.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails this way")]

mod cuda;
mod oracle;

use cuda::{STREAM, download, upload};
use duquant::kernels::cuda::{Arch, Buffer, Dtype, RmsNormPlan, RowsDesc, SiluMulPlan};
use duquant_reference as reference;
use half::{bf16, f16};
use oracle::{Random, relative_error, widen};

fn encode(dtype: Dtype, x: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F32 => bytemuck::cast_slice(x).to_vec(),
        Dtype::F16 => x.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        Dtype::Bf16 => x.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
    }
}

fn decode(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::F32 => bytes.chunks(4).map(bytemuck::pod_read_unaligned).collect(),
        Dtype::F16 => bytes.chunks(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Dtype::Bf16 => bytes.chunks(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
    }
}

fn bound(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => 2e-6,
        Dtype::F16 => 1e-3,
        Dtype::Bf16 => 8e-3,
    }
}

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

#[test]
fn rms_norm_is_the_oracles() {
    for (name, device) in cuda::devices("rms_norm_is_the_oracles", &[Arch::Sm80, Arch::Sm90a]) {
        for (i, (tokens, k)) in [(1, 1), (2, 7), (3, 64), (5, 576), (2, 1001), (1, 11008)].into_iter().enumerate() {
            let (input, output) = (DTYPES[i % 3], DTYPES[(i / 2) % 3]);
            let mut random = Random::new(i as u64);
            let x = decode(input, &encode(input, &random.activations(tokens, k)));
            let weight = random.normals(k);
            let desc = RowsDesc { m_max: tokens, channels: k, input, output };
            let plan = RmsNormPlan::plan(device.as_ref(), &desc, 1e-5).unwrap();
            let (d_x, d_w) = (upload(&device, &encode(input, &x)), upload(&device, &weight));
            let out = Buffer::new(&device, "out", (tokens * k) as u64 * output.bytes()).unwrap();
            // SAFETY: the buffers are as large as the shape says.
            unsafe { plan.enqueue(device.as_ref(), STREAM, tokens, d_x.address(), d_w.address(), out.address()) }
                .unwrap();
            let got = decode(output, &download(&out, tokens * k * output.bytes() as usize));
            let expected = reference::rms_norm(&widen(&x), &widen(&weight), 1e-5);
            let error = relative_error(&widen(&got), &expected);
            assert!(error < bound(output), "{name} [{tokens}, {k}] {input:?} to {output:?}: {error:e}");
        }
    }
}

#[test]
fn silu_mul_is_the_oracles() {
    for (name, device) in cuda::devices("silu_mul_is_the_oracles", &[Arch::Sm86]) {
        for (i, (tokens, k)) in [(1, 1), (3, 7), (2, 1536), (1, 333)].into_iter().enumerate() {
            let (input, output) = (DTYPES[i % 3], DTYPES[(i + 1) % 3]);
            let gate_up = decode(input, &encode(input, &Random::new(i as u64).normals(2 * tokens * k)));
            let desc = RowsDesc { m_max: tokens, channels: k, input, output };
            let plan = SiluMulPlan::plan(device.as_ref(), &desc).unwrap();
            let d_x = upload(&device, &encode(input, &gate_up));
            let out = Buffer::new(&device, "out", (tokens * k) as u64 * output.bytes()).unwrap();
            // SAFETY: the buffers are as large as the shape says.
            unsafe { plan.enqueue(device.as_ref(), STREAM, tokens, d_x.address(), out.address()) }.unwrap();
            let got = decode(output, &download(&out, tokens * k * output.bytes() as usize));
            let expected: Vec<f64> =
                gate_up.chunks(2 * k).flat_map(|row| reference::swiglu(&widen(&row[..k]), &widen(&row[k..]))).collect();
            let error = relative_error(&widen(&got), &expected);
            assert!(error < bound(output), "{name} [{tokens}, {k}] {input:?} to {output:?}: {error:e}");
        }
    }
}
