//! Canonical weights into the layout that the kernels read.

use super::super::tile::PANEL;
use super::super::tokens::CODE_BLOCK;
use super::super::{Error, Gpu, Product};
use super::GemmW4A4Desc;
use crate::kernels::error::check_length;
use crate::kernels::{Error as KernelError, QuantizedMatrix};
use ::wgpu::{Buffer, BufferBinding};
use rayon::prelude::*;

/// Codes of one vector.
const BLOCK: usize = 32;

/// Weights in the kernels' layout, in the host's memory: for hosts that bring their own device memory.
///
/// `codes`: for each 32 channels, for each 32 input channels, 16 bytes a channel. `channels`: 16 bytes a channel, the scale
/// (`f32`), the zero point, `c` (`u32` each) and the bias (`f32`).
#[derive(Debug, Clone, PartialEq)]
pub struct HostWeights {
    /// [`GemmW4A4Desc::weight_bytes`] bytes.
    pub codes: Vec<u8>,
    /// [`GemmW4A4Desc::channel_bytes`] bytes.
    pub channels: Vec<u8>,
    pub(super) product: Product,
}

/// Packed weights as operands.
#[derive(Debug, Clone)]
pub struct WeightsBinding<'a> {
    /// [`GemmW4A4Desc::weight_bytes`] of codes.
    pub codes: BufferBinding<'a>,
    /// [`GemmW4A4Desc::channel_bytes`] of scales, zero points, corrections and biases.
    pub channels: BufferBinding<'a>,
}

/// Packed weights in buffers of their own.
#[derive(Debug)]
pub struct PackedWeights {
    codes: Buffer,
    channels: Buffer,
}

impl PackedWeights {
    /// Both as operands.
    #[must_use]
    pub fn binding(&self) -> WeightsBinding<'_> {
        WeightsBinding {
            codes: self.codes.as_entire_buffer_binding(),
            channels: self.channels.as_entire_buffer_binding(),
        }
    }
}

impl HostWeights {
    /// Which products they are packed for.
    #[must_use]
    pub fn product(&self) -> Product {
        self.product
    }

    pub(super) fn upload(&self, gpu: &Gpu) -> Result<PackedWeights, Error> {
        Ok(PackedWeights {
            codes: gpu.upload("packed weights", &self.codes)?,
            channels: gpu.upload("packed channels", &self.channels)?,
        })
    }
}

impl GemmW4A4Desc {
    pub(super) fn blocks(&self) -> usize {
        self.k.next_multiple_of(CODE_BLOCK) / BLOCK
    }

    pub(super) fn panels(&self) -> usize {
        self.n.div_ceil(PANEL)
    }

    /// Bytes of packed codes.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        16 * (PANEL as u64 * self.panels() as u64).saturating_mul(self.blocks() as u64)
    }

    /// Bytes of packed scales, zero points, corrections and biases.
    #[must_use]
    pub fn channel_bytes(&self) -> u64 {
        16 * self.n as u64
    }
}

pub(super) fn pack(
    desc: &GemmW4A4Desc,
    product: Product,
    matrices: &[&QuantizedMatrix],
    bias: Option<&[f32]>,
) -> Result<HostWeights, Error> {
    for matrix in matrices {
        matrix.validate()?;
        check_length("weight.k", desc.k, matrix.k)?;
        if matrix.bits != desc.weight_bits {
            let expected = format!("{} as planned", desc.weight_bits);
            return Err(KernelError::Unsupported { what: "weight.bits", expected, got: matrix.bits.to_string() }.into());
        }
    }
    check_length("weight.n", desc.n, matrices.iter().map(|matrix| matrix.n).sum())?;
    match (desc.bias, bias) {
        (true, Some(bias)) => check_length("bias", desc.n, bias.len())?,
        (true, None) => check_length("bias", desc.n, 0)?,
        (false, Some(bias)) => check_length("bias", 0, bias.len())?,
        (false, None) => {}
    }
    let rows: Vec<(&QuantizedMatrix, usize)> =
        matrices.iter().flat_map(|matrix| (0..matrix.n).map(move |row| (*matrix, row))).collect();
    let panel_bytes = 16 * PANEL * desc.blocks();
    let mut codes = vec![0_u8; panel_bytes * desc.panels()];
    let mut channels = vec![0_u8; 16 * desc.n];
    codes
        .par_chunks_mut(panel_bytes.max(1))
        .zip(channels.par_chunks_mut(16 * PANEL))
        .zip(rows.par_chunks(PANEL))
        .enumerate()
        .for_each_init(
            || vec![0_u8; desc.k],
            |row_codes, (panel, ((codes, channels), rows))| {
                for (lane, (matrix, row)) in rows.iter().enumerate() {
                    matrix.unpack_row(*row, row_codes);
                    let zero = i64::from(matrix.zero_point[*row]);
                    let sum: i64 = row_codes.iter().map(|&code| i64::from(code)).sum();
                    let bias = bias.map_or(0.0, |bias| bias[panel * PANEL + lane]);
                    // Fits: `plan` bounds K times the largest code.
                    let correction = (sum - desc.k as i64 * zero) as i32;
                    let words = [
                        matrix.scale[*row].to_bits(),
                        u32::from(matrix.zero_point[*row]),
                        correction.cast_unsigned(),
                        bias.to_bits(),
                    ];
                    for (out, word) in channels[16 * lane..16 * lane + 16].chunks_exact_mut(4).zip(words) {
                        out.copy_from_slice(&word.to_le_bytes());
                    }
                    for (block, part) in row_codes.chunks(BLOCK).enumerate() {
                        let at = 16 * (block * PANEL + lane);
                        pack_block(part, product, &mut codes[at..at + 16]);
                    }
                }
            },
        );
    Ok(HostWeights { codes, channels, product })
}

/// Up to 32 codes: byte `i` of word `j` holds code `8 j + i` and, in the high nibble, code `8 j + 4 + i`.
fn pack_block(codes: &[u8], product: Product, out: &mut [u8]) {
    // Pairs want the halves of each word swapped.
    let swap = if product == Product::Pairs { 2 } else { 0 };
    for (i, &code) in codes.iter().enumerate() {
        let (word, high, byte) = (i / 8, i / 4 % 2, (i % 4) ^ swap);
        out[4 * word + byte] |= code << (4 * high);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nibbles_lie_as_documented() {
        let codes: Vec<u8> = (0..16).collect();
        let mut out = [0; 16];
        pack_block(&codes, Product::Dot, &mut out);
        assert_eq!(out, [0x40, 0x51, 0x62, 0x73, 0xc8, 0xd9, 0xea, 0xfb, 0, 0, 0, 0, 0, 0, 0, 0]);
        let mut out = [0; 16];
        pack_block(&codes[..9], Product::Pairs, &mut out);
        assert_eq!(out, [0x62, 0x73, 0x40, 0x51, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}
