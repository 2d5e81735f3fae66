//! Floating-point weights into the layout that the kernels read, in parts that fit a binding.

use super::super::tile::PANEL;
use super::super::{Dtype, Error, Gpu};
use super::GemmFloatDesc;
use crate::kernels::cpu::{FloatValues, FloatWeights};
use crate::kernels::error::check_length;
use ::wgpu::{Buffer, BufferBinding};
use half::f16;
use rayon::prelude::*;

/// Input channels of one vector.
const QUAD: usize = 4;

/// Channels `first..first + rows` of a weight: what one dispatch computes and one binding holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The first output channel.
    pub first: usize,
    /// Output channels; a multiple of 32 but in the last part.
    pub rows: usize,
}

/// One part's packed weights and bias as operands.
#[derive(Debug, Clone)]
pub struct PartBinding<'a> {
    /// [`GemmFloatDesc::part_bytes`] of weights.
    pub weights: BufferBinding<'a>,
    /// `rows` of `f32`, and at least 4 bytes; only read where a bias was planned.
    pub bias: BufferBinding<'a>,
}

/// Packed weights in buffers of their own, a buffer a part.
#[derive(Debug)]
pub struct PackedFloatWeights {
    parts: Vec<(Buffer, Buffer)>,
}

impl PackedFloatWeights {
    /// All parts as operands, in order.
    #[must_use]
    pub fn bindings(&self) -> Vec<PartBinding<'_>> {
        self.parts
            .iter()
            .map(|(weights, bias)| PartBinding {
                weights: weights.as_entire_buffer_binding(),
                bias: bias.as_entire_buffer_binding(),
            })
            .collect()
    }
}

impl GemmFloatDesc {
    pub(super) fn quads(&self) -> usize {
        self.k.div_ceil(QUAD)
    }

    /// Bytes of a panel of 32 channels.
    pub(super) fn panel_bytes(&self) -> u64 {
        ((PANEL * QUAD) as u64).saturating_mul(self.quads() as u64).saturating_mul(self.weight.bytes())
    }

    /// Bytes of the packed weights of `part`: for each 32 channels, for each 4 input channels, 4 numbers a channel.
    #[must_use]
    pub fn part_bytes(&self, part: &Part) -> u64 {
        self.panel_bytes().saturating_mul(part.rows.div_ceil(PANEL) as u64)
    }

    /// As few parts as there can be when none is larger than `limit` bytes and panels stay whole, all of about one size.
    /// `None` when not even one panel fits.
    pub(super) fn parts(&self, limit: u64) -> Option<Vec<Part>> {
        let panels = self.n.div_ceil(PANEL);
        let fit = limit.checked_div(self.panel_bytes()).unwrap_or(u64::MAX);
        let fit = usize::try_from(fit).unwrap_or(usize::MAX);
        if fit == 0 && panels > 0 {
            return None;
        }
        let count = panels.div_ceil(fit.max(1)).max(1);
        let rows = panels.div_ceil(count) * PANEL;
        let part = |first: usize| Part { first, rows: rows.min(self.n - first) };
        if rows == 0 {
            return Some(vec![Part { first: 0, rows: 0 }]);
        }
        Some((0..self.n).step_by(rows).map(part).collect())
    }
}

/// Checks `weights`, stacked one below the other, against the plan.
pub(super) fn check(desc: &GemmFloatDesc, weights: &[FloatWeights<'_>], bias: Option<&[f32]>) -> Result<(), Error> {
    for FloatWeights { values, n, k } in weights {
        check_length("weight.k", desc.k, *k)?;
        let length = match values {
            FloatValues::F32(values) => values.len(),
            FloatValues::F16(values) => values.len(),
            FloatValues::Bf16(values) => values.len(),
        };
        check_length("weight", n.saturating_mul(*k), length)?;
    }
    check_length("weight.n", desc.n, weights.iter().fold(0_usize, |sum, weight| sum.saturating_add(weight.n)))?;
    match (desc.bias, bias) {
        (true, bias) => check_length("bias", desc.n, bias.map_or(0, <[f32]>::len))?,
        (false, bias) => check_length("bias", 0, bias.map_or(0, <[f32]>::len))?,
    }
    Ok(())
}

/// The bytes of `part` of checked weights.
pub(super) fn pack(desc: &GemmFloatDesc, weights: &[FloatWeights<'_>], part: &Part) -> Vec<u8> {
    let size = desc.weight.bytes() as usize;
    let rows: Vec<(&FloatWeights<'_>, usize)> = weights
        .iter()
        .flat_map(|weight| (0..weight.n).map(move |row| (weight, row)))
        .skip(part.first)
        .take(part.rows)
        .collect();
    let panel_bytes = desc.panel_bytes() as usize;
    let mut out = vec![0_u8; panel_bytes * part.rows.div_ceil(PANEL)];
    out.par_chunks_mut(panel_bytes.max(1)).zip(rows.par_chunks(PANEL)).for_each(|(out, rows)| {
        for (lane, (weight, row)) in rows.iter().enumerate() {
            for k in 0..desc.k {
                let at = size * ((k / QUAD * PANEL + lane) * QUAD + k % QUAD);
                let from = row * desc.k + k;
                write(desc.weight, &weight.values, from, &mut out[at..at + size]);
            }
        }
    });
    out
}

fn write(dtype: Dtype, values: &FloatValues<'_>, from: usize, out: &mut [u8]) {
    match (dtype, values) {
        // Not by way of f32: halves are copied as they are.
        (Dtype::F16, FloatValues::F16(values)) => out.copy_from_slice(&values[from].to_le_bytes()),
        _ => {
            let value = match values {
                FloatValues::F32(values) => values[from],
                FloatValues::F16(values) => values[from].to_f32(),
                FloatValues::Bf16(values) => values[from].to_f32(),
            };
            match dtype {
                Dtype::F32 => out.copy_from_slice(&value.to_le_bytes()),
                Dtype::F16 => out.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
            }
        }
    }
}

pub(super) fn upload(
    gpu: &Gpu,
    desc: &GemmFloatDesc,
    parts: &[Part],
    weights: &[FloatWeights<'_>],
    bias: Option<&[f32]>,
) -> Result<PackedFloatWeights, Error> {
    check(desc, weights, bias)?;
    let parts = parts.iter().map(|part| {
        let buffer = gpu.upload("packed weights", &pack(desc, weights, part))?;
        let bias = bias.map_or(&[][..], |bias| &bias[part.first..part.first + part.rows]);
        Ok((buffer, gpu.upload("bias", bytemuck::cast_slice(bias))?))
    });
    Ok(PackedFloatWeights { parts: parts.collect::<Result<_, Error>>()? })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails and reports this way")]
    use super::*;

    fn desc(n: usize, k: usize, weight: Dtype) -> GemmFloatDesc {
        GemmFloatDesc { m_max: 1, n, k, x: Dtype::F32, weight, out: Dtype::F32, bias: false, accumulate: false }
    }

    #[test]
    fn parts_fit_and_cover() {
        for (n, k, limit) in [(0, 8, 4096), (1, 8, 4096), (100, 7, 1 << 20), (1000, 64, 8192), (1000, 64, 20_000)] {
            let desc = desc(n, k, Dtype::F32);
            let parts = desc.parts(limit).unwrap();
            let mut next = 0;
            for part in &parts {
                assert_eq!((part.first, part.first % PANEL), (next, 0));
                assert!(desc.part_bytes(part) <= limit, "{part:?}");
                next += part.rows;
            }
            assert_eq!(next, n);
        }
        assert_eq!(desc(1000, 64, Dtype::F32).parts(8191), None);
        // A 128k x 4096 head in halves under the default limit of 128 MiB.
        let head = desc(128_000, 4096, Dtype::F16);
        assert_eq!(head.parts(128 << 20).unwrap().len(), 8);
    }

    #[test]
    fn numbers_lie_as_documented() {
        let desc = desc(2, 5, Dtype::F32);
        let values: Vec<f32> = (0..10_u8).map(f32::from).collect();
        let weights = [FloatWeights { values: FloatValues::F32(&values), n: 2, k: 5 }];
        let packed = pack(&desc, &weights, &Part { first: 0, rows: 2 });
        let packed: Vec<f32> = packed.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        assert_eq!(packed[..8], [0.0, 1.0, 2.0, 3.0, 5.0, 6.0, 7.0, 8.0]);
        assert_eq!(packed[128..136], [4.0, 0.0, 0.0, 0.0, 9.0, 0.0, 0.0, 0.0]);
        assert_eq!(packed.len(), 256);
    }
}
