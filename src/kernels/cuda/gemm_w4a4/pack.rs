//! Canonical weights into the layout that the kernels read.

use super::super::tokens::CHUNK;
use super::super::{Address, Buffer, Device, Error};
use super::GemmW4A4Desc;
use crate::kernels::error::check_length;
use crate::kernels::{Error as KernelError, QuantizedMatrix};
use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;
use std::sync::Arc;

/// Output channels of a block of weights. `N` is padded to whole blocks.
pub(super) const BLOCK: usize = 64;
/// Input channels of a step: the `k64` of the matrix instructions.
const STEP: usize = 64;
/// Bytes of a block and a step: four A fragments.
const STEP_BYTES: usize = 2048;

/// Weights in the kernels' layout, in the host's memory: for hosts that bring their own device memory.
///
/// `weights` is `[ceil(N / 64), 2 ceil(K / 128)]` steps of 64 x 64 codes, 2048 bytes each; channels and input channels
/// behind the matrix have code 0. A step is four A fragments of `mma.m16n8k64`, each 32 lanes of 16 bytes. Lane `4 g + t`
/// of fragment `f` holds four words of eight codes, low nibble first: word `h + 2 i` is output channel `8 g + 2 f + h` of
/// the block, input channels `32 i + 8 t ..+ 8` of the step. So a thread that multiplies all four fragments holds, for each
/// token, eight neighbouring output channels.
///
/// `channels` is 16 bytes for each of the `64 ceil(N / 64)` channels: the scale (`f32`), the zero point, `c` (`i32` each)
/// and the bias (`f32`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostWeights {
    /// [`GemmW4A4Desc::weight_bytes`] bytes.
    pub weights: Vec<u8>,
    /// [`GemmW4A4Desc::channel_bytes`] bytes.
    pub channels: Vec<u8>,
}

/// The host's memory for packed weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightsOperand {
    /// [`GemmW4A4Desc::weight_bytes`] of codes.
    pub weights: Address,
    /// [`GemmW4A4Desc::channel_bytes`] of scales, zero points, corrections and biases.
    pub channels: Address,
}

/// Packed weights in buffers of their own.
#[derive(Debug)]
pub struct PackedWeights {
    weights: Buffer,
    channels: Buffer,
}

impl PackedWeights {
    /// Both as operands.
    #[must_use]
    pub fn operand(&self) -> WeightsOperand {
        WeightsOperand { weights: self.weights.address(), channels: self.channels.address() }
    }

    /// Bytes of device memory.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.weights.bytes() + self.channels.bytes()
    }
}

impl HostWeights {
    /// Copies them to the device.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn upload(&self, device: &Arc<dyn Device>) -> Result<PackedWeights, Error> {
        Ok(PackedWeights {
            weights: Buffer::upload(device, "packed weights", &self.weights)?,
            channels: Buffer::upload(device, "packed channels", &self.channels)?,
        })
    }
}

/// `ChannelParams` of `types.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ChannelParams {
    scale: f32,
    zero_point: i32,
    offset: i32,
    bias: f32,
}

impl GemmW4A4Desc {
    /// Blocks of 64 output channels.
    pub(super) fn blocks(&self) -> usize {
        self.n.div_ceil(BLOCK)
    }

    /// Chunks of 128 input channels.
    pub(super) fn chunks(&self) -> usize {
        self.k.div_ceil(CHUNK)
    }

    /// Bytes of packed codes.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        (CHUNK / STEP * STEP_BYTES) as u64 * self.blocks() as u64 * self.chunks() as u64
    }

    /// Bytes of packed scales, zero points, corrections and biases.
    #[must_use]
    pub fn channel_bytes(&self) -> u64 {
        (size_of::<ChannelParams>() * BLOCK) as u64 * self.blocks() as u64
    }
}

/// Word of output channel `n` and input channels `8 word ..+ 8` among the words of a block of channels.
fn place(n: usize, word: usize) -> usize {
    let (g, f, h) = (n / 8, n % 8 / 2, n % 2);
    let (step, i, t) = (word / 8, word / 4 % 2, word % 4);
    step * (STEP_BYTES / 4) + (f * 32 + 4 * g + t) * 4 + h + 2 * i
}

/// Packs `matrices`, one below the other.
pub(super) fn pack(
    desc: &GemmW4A4Desc,
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
    check_length("bias", if desc.bias { desc.n } else { 0 }, bias.map_or(0, <[f32]>::len))?;
    let rows: Vec<(&QuantizedMatrix, usize)> =
        matrices.iter().flat_map(|matrix| (0..matrix.n).map(move |row| (*matrix, row))).collect();
    let block_words = CHUNK / STEP * STEP_BYTES / 4 * desc.chunks();
    let mut weights = vec![0_u32; block_words * desc.blocks()];
    let mut channels = vec![ChannelParams::zeroed(); BLOCK * desc.blocks()];
    weights
        .par_chunks_mut(block_words)
        .zip(channels.par_chunks_mut(BLOCK))
        .zip(rows.par_chunks(BLOCK))
        .enumerate()
        .for_each(|(block, ((weights, channels), rows))| {
            for (n, ((matrix, row), channel)) in rows.iter().zip(channels).enumerate() {
                let mut sum = 0_i64;
                for (i, word) in row_words(matrix, *row).enumerate() {
                    weights[place(n, i)] = word.to_le();
                    sum += (0..8).map(|code| i64::from(word >> (4 * code) & 15)).sum::<i64>();
                }
                let zero_point = i32::from(matrix.zero_point[*row]);
                *channel = ChannelParams {
                    scale: matrix.scale[*row],
                    zero_point,
                    // Fits: a plan bounds K times the largest code.
                    offset: (sum - desc.k as i64 * i64::from(zero_point)) as i32,
                    bias: bias.map_or(0.0, |bias| bias[block * BLOCK + n]),
                };
            }
        });
    let bytes = |words: &[u32]| bytemuck::cast_slice(words).to_vec();
    Ok(HostWeights { weights: bytes(&weights), channels: bytes(bytemuck::cast_slice(&channels)) })
}

/// A row of up to 4-bit codes in words of eight, low nibble first: what the canonical layout holds, with nothing behind `K`.
fn row_words(matrix: &QuantizedMatrix, row: usize) -> impl Iterator<Item = u32> {
    let (bytes, k) = (matrix.row_bytes(), matrix.k);
    matrix.packed[row * bytes..][..bytes].chunks_exact(4).enumerate().map(move |(i, word)| {
        let beyond = (8 * (i + 1)).saturating_sub(k);
        u32::from_le_bytes([word[0], word[1], word[2], word[3]]) & (u32::MAX >> (4 * beyond))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cuda::Dtype;

    #[test]
    fn packed_codes_are_read_back_by_the_fragments_of_the_manual() {
        let (n, k) = (129, 200);
        let code = |n: usize, k: usize| ((7 * n + 3 * k + n * k) % 16) as u8;
        let matrix = QuantizedMatrix::from_rows(n, k, 4, |n, codes| {
            codes.iter_mut().enumerate().for_each(|(k, out)| *out = code(n, k));
            Ok(crate::kernels::RowParams { scale: 1.0 + n as f32, inverse_scale: 1.0, zero_point: (n % 16) as u8 })
        })
        .unwrap();
        let desc = GemmW4A4Desc {
            m_max: 1,
            n,
            k,
            weight_bits: 4,
            activation_bits: 4,
            out: Dtype::F32,
            bias: true,
            accumulate: false,
        };
        let bias: Vec<f32> = (0..n).map(|n| n as f32 - 5.0).collect();
        let packed = pack(&desc, &[&matrix], Some(&bias)).unwrap();
        assert_eq!(packed.weights.len(), 3 * 4 * 2048);
        let words: Vec<u32> = packed.weights.chunks(4).map(bytemuck::pod_read_unaligned).collect();
        // PTX, figure of the A fragment of m16n8k64: a0 (row g, k 8 t ..), a1 (row g + 8), a2 (row g, k 32 + 8 t ..), a3.
        for (at, word) in words.iter().enumerate() {
            let (a, lane, f, step, block) = (at % 4, at / 4 % 32, at / 128 % 4, at / 512 % 4, at / 2048);
            let (g, t) = (lane / 4, lane % 4);
            let channel = 64 * block + 8 * g + 2 * f + a % 2;
            for i in 0..8 {
                let input = 64 * step + 32 * (a / 2) + 8 * t + i;
                let expected = if channel < n && input < k { code(channel, input) } else { 0 };
                assert_eq!((word >> (4 * i) & 15) as u8, expected, "channel {channel}, input {input}");
            }
        }
        let channels: Vec<ChannelParams> = packed.channels.chunks(16).map(bytemuck::pod_read_unaligned).collect();
        assert_eq!(channels.len(), 192);
        for (row, channel) in channels.iter().enumerate().take(n) {
            let sum: i32 = (0..k).map(|k| i32::from(code(row, k))).sum();
            assert_eq!(channel.offset, sum - (k * (row % 16)) as i32);
            assert_eq!((channel.scale, channel.bias), (1.0 + row as f32, row as f32 - 5.0));
        }
        assert!(channels[n..].iter().all(|channel| bytemuck::bytes_of(channel) == [0; 16]));
    }
}
