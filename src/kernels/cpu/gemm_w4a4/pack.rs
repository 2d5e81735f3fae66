//! The layout that every CPU kernel reads weights in.
//!
//! A panel is 16 output channels. Its codes stand in rows of 64 bytes, `[16 channels][4 input channels]`: what one
//! `vpdpbusd` takes and what one row of an AMX `B` tile is. Sixteen rows make a block of 64 input channels. Codes of up
//! to 4 bits are kept as nibbles: 64 packed bytes hold two rows, the even one in the low nibbles and the odd one in the
//! high nibbles, so that a mask and a shift bring both back in order. One copy of the weights serves prefill and decode.

use super::super::super::error::check_length;
use super::super::super::{Error, QuantizedMatrix};
use super::super::aligned::Aligned;
use super::GemmW4A4Desc;
use rayon::prelude::*;

/// Output channels of a panel.
pub(super) const PANEL: usize = 16;
/// Input channels of a block; `K` is padded with code 0 to a whole number of blocks.
pub(super) const BLOCK: usize = 64;

/// Weights in the layout of the CPU kernels, with what the epilogue needs for each output channel. Any
/// [`super::GemmW4A4`] of the same `n`, `k` and weight bits reads them, whatever its instruction set.
#[derive(Debug, Clone)]
pub struct PackedWeights {
    n: usize,
    k: usize,
    bits: u32,
    blocks: usize,
    /// `[panel][block]`, as above.
    packed: Aligned<u8>,
    /// `sw[n]`, padded with 0 to whole panels, as are the next two.
    pub(super) scale: Vec<f32>,
    /// `zw[n]`.
    pub(super) zero_point: Vec<i32>,
    /// `c[n] = sum_k qw[n, k] - K zw[n]`.
    pub(super) centred_sum: Vec<i32>,
}

impl PackedWeights {
    /// Output channels `N`.
    #[must_use]
    pub fn n(&self) -> usize {
        self.n
    }

    /// Input channels `K`.
    #[must_use]
    pub fn k(&self) -> usize {
        self.k
    }

    /// Bits of a code, 2 to 8.
    #[must_use]
    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// Bytes that the packed codes and the per-channel numbers take in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.packed.bytes() + 4 * (self.scale.len() + self.zero_point.len() + self.centred_sum.len())
    }

    /// Blocks of 64 input channels.
    pub(super) fn blocks(&self) -> usize {
        self.blocks
    }

    /// Panels that hold a real channel; the packed data is padded to an even number of them.
    pub(super) fn panels(&self) -> usize {
        self.n.div_ceil(PANEL)
    }

    /// Whether two codes share a byte.
    pub(super) fn nibbles(&self) -> bool {
        self.bits <= 4
    }

    /// Bytes of one packed block of a panel.
    pub(super) fn block_bytes(&self) -> usize {
        if self.nibbles() { PANEL * BLOCK / 2 } else { PANEL * BLOCK }
    }

    /// The packed codes of `count` panels from `panel` on.
    pub(super) fn panel(&self, panel: usize, count: usize) -> &[u8] {
        let bytes = self.blocks * self.block_bytes();
        &self.packed[panel * bytes..(panel + count) * bytes]
    }
}

/// Packs matrices of the same `K` and bits, one below the other, as one weight.
pub(super) fn pack(desc: &GemmW4A4Desc, matrices: &[&QuantizedMatrix]) -> Result<PackedWeights, Error> {
    let mut rows = 0_usize;
    for matrix in matrices {
        matrix.validate()?;
        check_length("matrix.k", desc.k, matrix.k)?;
        if matrix.bits != desc.weight_bits {
            return Err(Error::Unsupported {
                what: "matrix.bits",
                expected: format!("{} as planned", desc.weight_bits),
                got: matrix.bits.to_string(),
            });
        }
        rows = rows.saturating_add(matrix.n);
    }
    check_length("rows of the matrices", desc.n, rows)?;

    let blocks = desc.k.div_ceil(BLOCK);
    let panels = desc.n.div_ceil(PANEL).next_multiple_of(2);
    let padded = panels * PANEL;
    let nibbles = desc.weight_bits <= 4;
    let panel_bytes = blocks * PANEL * BLOCK / if nibbles { 2 } else { 1 };
    let mut packed = Aligned::<u8>::new(panels * panel_bytes);
    let mut scale = vec![0.0; padded];
    let mut zero_point = vec![0; padded];
    let mut centred_sum = vec![0; padded];
    let numbers = scale
        .par_chunks_mut(PANEL)
        .zip(zero_point.par_chunks_mut(PANEL))
        .zip(centred_sum.par_chunks_mut(PANEL))
        .enumerate();
    // With no input channels there is nothing to pack, and one byte a panel keeps the zip whole.
    let mut empty = vec![0; if panel_bytes == 0 { panels } else { 0 }];
    let data = if panel_bytes == 0 { &mut empty } else { packed.as_mut_slice() };
    numbers.zip(data.par_chunks_mut(panel_bytes.max(1))).for_each_init(
        || vec![0_u8; desc.k],
        |codes, ((panel, ((scale, zero_point), centred_sum)), bytes)| {
            for channel in 0..PANEL {
                let Some((matrix, row)) = locate(matrices, panel * PANEL + channel) else { break };
                matrix.unpack_row(row, codes);
                scale[channel] = matrix.scale[row];
                zero_point[channel] = i32::from(matrix.zero_point[row]);
                let sum: i64 = codes.iter().map(|&code| i64::from(code)).sum();
                // Fits: `plan` bounds K times the largest code.
                centred_sum[channel] = (sum - desc.k as i64 * i64::from(matrix.zero_point[row])) as i32;
                for (k, &code) in codes.iter().enumerate() {
                    let (quad, within) = (k / 4, k % 4);
                    if nibbles {
                        bytes[quad / 2 * 64 + channel * 4 + within] |= code << (4 * (quad % 2));
                    } else {
                        bytes[quad * 64 + channel * 4 + within] = code;
                    }
                }
            }
        },
    );
    Ok(PackedWeights { n: desc.n, k: desc.k, bits: desc.weight_bits, blocks, packed, scale, zero_point, centred_sum })
}

/// The matrix and its row that stand at `channel` of the stack.
fn locate<'a>(matrices: &[&'a QuantizedMatrix], mut channel: usize) -> Option<(&'a QuantizedMatrix, usize)> {
    for matrix in matrices {
        if channel < matrix.n {
            return Some((matrix, channel));
        }
        channel -= matrix.n;
    }
    None
}
