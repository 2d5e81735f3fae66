//! A call of `transform_quantize` in CUDA, and how far from the oracle its values may be.
#![allow(dead_code, reason = "each test file takes what it needs")]

use super::cuda::{STREAM, download};
use super::oracle::{self, Random, widen};
use duquant::kernels::cuda::{
    Buffer, Device, Dtype, SourceOperand, TokenForm, TokenSource, TokensOperand, TransformOutput,
    TransformQuantizeDesc, TransformQuantizePlan, TransformShape, TransformTables, TransformTarget,
};
use duquant::kernels::{Affine, Transform};
use duquant_reference as reference;
use half::{bf16, f16};
use std::sync::Arc;

pub(crate) const EPSILON: f32 = 1e-5;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Case<'a> {
    pub(crate) transform: &'a Transform,
    pub(crate) affine: Affine,
    pub(crate) source: TokenSource,
    pub(crate) input: Dtype,
    pub(crate) form: TokenForm,
    pub(crate) tokens: usize,
}

/// What a call wrote.
pub(crate) struct Codes {
    /// `[ceil(T / 8) 8, ceil(K / 128) 128]`, padding too.
    pub(crate) codes: Vec<u8>,
    pub(crate) stride: usize,
    /// Scale bits, zero point, row sum and the unused word.
    pub(crate) params: Vec<[u32; 4]>,
}

pub(crate) fn encode(dtype: Dtype, x: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F32 => bytemuck::cast_slice(x).to_vec(),
        Dtype::F16 => x.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        Dtype::Bf16 => x.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
    }
}

pub(crate) fn decode(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::F32 => bytes.chunks(4).map(bytemuck::pod_read_unaligned).collect(),
        Dtype::F16 => bytes.chunks(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Dtype::Bf16 => bytes.chunks(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
    }
}

/// Rows of every kind: as LLMs have them, zeros, one sign, massive values, wide, small.
pub(crate) fn draw(random: &mut Random, tokens: usize, width: usize) -> Vec<f32> {
    let mut x = random.normals(tokens * width);
    let shift = random.below(7);
    for (t, row) in x.chunks_mut(width).enumerate() {
        let at = random.below(width);
        match (t + shift) % 7 {
            0 => row.fill(0.0),
            1 => row.iter_mut().for_each(|x| *x = x.abs()),
            2 => row.iter_mut().for_each(|x| *x = -x.abs() - 0.5),
            3 => row[at] = 6700.0,
            4 => row.iter_mut().step_by(5).for_each(|x| *x *= 20.0),
            5 => row.iter_mut().for_each(|x| *x *= 1e-2),
            _ => {}
        }
    }
    x
}

impl Case<'_> {
    pub(crate) fn desc(&self, target: TransformTarget) -> TransformQuantizeDesc {
        TransformQuantizeDesc {
            m_max: self.tokens,
            shape: TransformShape::of(self.transform),
            affine: Some(self.affine),
            source: self.source,
            input: self.input,
            target,
        }
    }

    pub(crate) fn width(&self) -> usize {
        self.transform.channels * if self.source == TokenSource::SiluMul { 2 } else { 1 }
    }

    /// What the kernel reads of `x`, and the linear's input in `f64`.
    pub(crate) fn real(&self, x: &[f32], weight: &[f32]) -> Vec<f64> {
        let (k, x) = (self.transform.channels, widen(&decode(self.input, &encode(self.input, x))));
        match self.source {
            TokenSource::Tokens => x,
            TokenSource::RmsNorm { .. } => reference::rms_norm(&x, &widen(weight), f64::from(EPSILON)),
            TokenSource::SiluMul => x.chunks(2 * k).flat_map(|row| reference::swiglu(&row[..k], &row[k..])).collect(),
        }
    }

    fn enqueue(
        &self,
        device: &Arc<dyn Device>,
        target: TransformTarget,
        x: &[f32],
        weight: &[f32],
        out: impl FnOnce(&TransformQuantizePlan) -> TransformOutput,
    ) -> TransformQuantizePlan {
        let plan = TransformQuantizePlan::plan_as(device.as_ref(), &self.desc(target), self.form).unwrap();
        let tables: TransformTables = plan.pack(device, self.transform).unwrap();
        let d_x = Buffer::upload(device, "x", &encode(self.input, x)).unwrap();
        let d_w = Buffer::upload(device, "weight", weight).unwrap();
        let source = match self.source {
            TokenSource::Tokens => SourceOperand::Tokens(d_x.address()),
            TokenSource::RmsNorm { .. } => SourceOperand::RmsNorm { x: d_x.address(), weight: d_w.address() },
            TokenSource::SiluMul => SourceOperand::SiluMul(d_x.address()),
        };
        let out = out(&plan);
        // SAFETY: the buffers are as large as the shape says; they live until the device is read.
        unsafe { plan.enqueue(device.as_ref(), STREAM, self.tokens, source, &tables, out) }.unwrap();
        device.synchronize(STREAM).unwrap();
        plan
    }

    /// `[T, K]` of a target of values, over poison.
    pub(crate) fn values(
        &self,
        device: &Arc<dyn Device>,
        target: TransformTarget,
        x: &[f32],
        weight: &[f32],
    ) -> Vec<f32> {
        let (TransformTarget::Float(dtype) | TransformTarget::Dequantized(dtype)) = target else {
            panic!("a target of values")
        };
        let bytes = self.tokens * self.transform.channels * dtype.bytes() as usize;
        let out = Buffer::upload(device, "out", &vec![0xff_u8; bytes]).unwrap();
        self.enqueue(device, target, x, weight, |_| TransformOutput::Values(out.address()));
        decode(dtype, &download(&out, bytes))
    }

    /// Codes over poison, and the kernel's name.
    pub(crate) fn codes(&self, device: &Arc<dyn Device>, x: &[f32], weight: &[f32]) -> (Codes, String) {
        let layout =
            duquant::kernels::cuda::TokensLayout { form: self.form, m_max: self.tokens, k: self.transform.channels };
        let codes = Buffer::upload(device, "codes", &vec![0xff_u8; layout.code_bytes() as usize]).unwrap();
        let params = Buffer::upload(device, "params", &vec![0xff_u8; layout.param_bytes() as usize]).unwrap();
        let plan = self.enqueue(device, TransformTarget::Codes, x, weight, |plan| {
            assert_eq!(plan.layout(), layout);
            TransformOutput::Codes(TokensOperand { codes: codes.address(), params: params.address() })
        });
        let bytes: Vec<u8> = download(&codes, layout.code_bytes() as usize);
        let stride = layout.k.next_multiple_of(128);
        let mask = if self.form == TokenForm::Fragments4 { 15 } else { 255 };
        let all = (0..self.tokens.next_multiple_of(8)).flat_map(|t| (0..stride).map(move |k| (t, k)));
        let unpacked = all
            .map(|(t, k)| {
                let (byte, bit) = layout.place(self.tokens, t, k);
                bytes[byte] >> bit & mask
            })
            .collect();
        let params = download(&params, self.tokens);
        (Codes { codes: unpacked, stride, params }, plan.kernel(self.tokens))
    }
}

/// The oracle's transformed tokens, and for each how far the kernel's may be: rounding to `f16` of what a rotation reads
/// (`u = 2^-11`, and half of the smallest step of values that are kept 16 times smaller), of its matrix and of the result, and the sums' `f32`, whatever their order.
pub(crate) fn bounds(transform: &Transform, real: &[f64], before: f64) -> (Vec<f64>, Vec<f64>) {
    let (k, block) = (transform.channels, transform.block);
    let exact = oracle::transform(transform).apply(real);
    let smooth = |i: usize| transform.inverse_smooth.as_ref().map_or(1.0, |smooth| f64::from(smooth[i % k]));
    let mut x: Vec<f64> = real.iter().enumerate().map(|(i, x)| x * smooth(i)).collect();
    let mut error: Vec<f64> = x.iter().map(|x| before * x.abs()).collect();
    let round = |x: f64, e: f64| e + (x.abs() + e) * 2.0_f64.powi(-11) + 2.0_f64.powi(-21);
    let round_entry = |r: f64| r.abs() * 2.0_f64.powi(-11) + 2.0_f64.powi(-25);
    for i in 0..transform.rotation_count() {
        if i > 0 {
            let permutation = transform.permutation(i - 1);
            let gather = |v: &[f64]| -> Vec<f64> {
                v.chunks(k).flat_map(|row| permutation.iter().map(|&from| row[from as usize])).collect()
            };
            (x, error) = (gather(&x), gather(&error));
        } else {
            error = x.iter().zip(&error).map(|(&x, &e)| round(x, e)).collect();
        }
        let r = transform.rotation(i);
        let (mut y, mut out) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        for (at, j) in (0..x.len()).step_by(block).flat_map(|at| (0..block).map(move |j| (at, j))) {
            let (mut sum, mut sum_error, mut magnitude) = (0.0, 0.0, 0.0);
            for c in 0..block {
                let entry = f64::from(r[c * block + j]);
                let entry_error = if transform.hadamard { 1e-7 } else { round_entry(entry) };
                sum += x[at + c] * entry;
                sum_error += error[at + c] * (entry.abs() + entry_error) + x[at + c].abs() * entry_error;
                magnitude += x[at + c].abs() * entry.abs();
            }
            y[at + j] = sum;
            out[at + j] = round(sum, sum_error + magnitude * block as f64 * 2.0_f64.powi(-23));
        }
        (x, error) = (y, out);
    }
    assert!(x.iter().zip(&exact).all(|(a, b)| (a - b).abs() <= 1e-9 * (1.0 + b.abs())), "the oracle's transform");
    (exact, error)
}
