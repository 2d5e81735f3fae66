use half::{bf16, f16};
use rayon::prelude::*;

/// How a GGUF tensor stores its values: in blocks of [`BlockType::values`] consecutive values of a row.
///
/// `d` and `m` below are a block's f16 scale and minimum, `q` a code; K-quants have 256 values a block and sub-blocks
/// with scales of 4 to 8 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockType {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
    /// 4 bits: `d (q - 8)`.
    Q4_0,
    /// 4 bits: `d q + m`.
    Q4_1,
    /// 5 bits: `d (q - 16)`.
    Q5_0,
    /// 5 bits: `d q + m`.
    Q5_1,
    /// 8 bits: `d q`.
    Q8_0,
    /// 2 bits in sub-blocks of 16: `d s q - m t`, `s` and `t` of 4 bits.
    Q2K,
    /// 3 bits in sub-blocks of 16: `d (s - 32) (q - 4)`, `s` of 6 bits.
    Q3K,
    /// 4 bits in sub-blocks of 32: `d s q - m t`, `s` and `t` of 6 bits.
    Q4K,
    /// 5 bits in sub-blocks of 32, as [`BlockType::Q4K`].
    Q5K,
    /// 6 bits in sub-blocks of 16: `d s (q - 32)`, `s` of 8 bits with sign.
    Q6K,
}

impl BlockType {
    /// Every type that can be read.
    pub const ALL: [Self; 13] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// Number in the file, bytes and values of a block, name.
    fn facts(self) -> (u32, usize, usize, &'static str) {
        match self {
            Self::F32 => (0, 4, 1, "F32"),
            Self::F16 => (1, 2, 1, "F16"),
            Self::Bf16 => (30, 2, 1, "BF16"),
            Self::Q4_0 => (2, 18, 32, "Q4_0"),
            Self::Q4_1 => (3, 20, 32, "Q4_1"),
            Self::Q5_0 => (6, 22, 32, "Q5_0"),
            Self::Q5_1 => (7, 24, 32, "Q5_1"),
            Self::Q8_0 => (8, 34, 32, "Q8_0"),
            Self::Q2K => (10, 84, 256, "Q2_K"),
            Self::Q3K => (11, 110, 256, "Q3_K"),
            Self::Q4K => (12, 144, 256, "Q4_K"),
            Self::Q5K => (13, 176, 256, "Q5_K"),
            Self::Q6K => (14, 210, 256, "Q6_K"),
        }
    }

    /// The type's number in the file.
    #[must_use]
    pub fn id(self) -> u32 {
        self.facts().0
    }

    /// Bytes of a block.
    #[must_use]
    pub fn bytes(self) -> usize {
        self.facts().1
    }

    /// Values of a block.
    #[must_use]
    pub fn values(self) -> usize {
        self.facts().2
    }

    /// The name that ggml gives it.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.facts().3
    }

    /// The type with this number.
    #[must_use]
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.id() == id)
    }

    pub(super) fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }

    /// The values that whole blocks in `data` stand for; bytes behind the last whole block are left out.
    #[must_use]
    pub fn dequantize(self, data: &[u8]) -> Vec<f32> {
        let blocks = data.len() / self.bytes();
        let mut out = vec![0.0; blocks * self.values()];
        let decode: fn(&[u8], &mut [f32]) = match self {
            Self::F32 => |b, y| y[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            Self::F16 => |b, y| y[0] = half_at(b, 0),
            Self::Bf16 => |b, y| y[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32(),
            Self::Q4_0 => |b, y| nibbles(&b[2..], y, |q| (q as f32 - 8.0) * half_at(b, 0)),
            Self::Q4_1 => |b, y| nibbles(&b[4..], y, |q| q as f32 * half_at(b, 0) + half_at(b, 2)),
            Self::Q5_0 => |b, y| fives(&b[2..], y, |q| (q as f32 - 16.0) * half_at(b, 0)),
            Self::Q5_1 => |b, y| fives(&b[4..], y, |q| q as f32 * half_at(b, 0) + half_at(b, 2)),
            Self::Q8_0 => |b, y| {
                let d = half_at(b, 0);
                for (y, &q) in y.iter_mut().zip(&b[2..]) {
                    *y = f32::from(q as i8) * d;
                }
            },
            Self::Q2K => q2_k,
            Self::Q3K => q3_k,
            Self::Q4K => q4_k,
            Self::Q5K => q5_k,
            Self::Q6K => q6_k,
        };
        // A share of work is a fixed number of blocks, long enough to outweigh handing it to a thread.
        let share = 4096_usize.div_ceil(self.values());
        out.par_chunks_mut(share * self.values()).zip(data.par_chunks(share * self.bytes())).for_each(|(out, data)| {
            for (y, block) in out.chunks_exact_mut(self.values()).zip(data.chunks_exact(self.bytes())) {
                decode(block, y);
            }
        });
        out
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// 32 codes in 16 bytes: low nibbles are the first 16 values, high nibbles the last.
fn nibbles(codes: &[u8], y: &mut [f32], value: impl Fn(u8) -> f32) {
    for (j, &byte) in codes.iter().take(16).enumerate() {
        y[j] = value(byte & 15);
        y[j + 16] = value(byte >> 4);
    }
}

/// 32 codes of 5 bits: a word with bit 4 of each, then nibbles.
fn fives(block: &[u8], y: &mut [f32], value: impl Fn(u8) -> f32) {
    let high = u32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    let bit = |j: usize| (((high >> j) & 1) as u8) << 4;
    for (j, &byte) in block[4..20].iter().enumerate() {
        y[j] = value((byte & 15) | bit(j));
        y[j + 16] = value((byte >> 4) | bit(j + 16));
    }
}

/// Scales (16 bytes: scale low, minimum high), codes (64 bytes), d, m.
fn q2_k(block: &[u8], y: &mut [f32]) {
    let (scales, codes) = (&block[..16], &block[16..80]);
    let (d, m) = (half_at(block, 80), half_at(block, 82));
    for (sub, y) in y.chunks_exact_mut(16).enumerate() {
        let (scale, minimum) = (d * f32::from(scales[sub] & 15), m * f32::from(scales[sub] >> 4));
        let (from, shift) = two_bits(sub);
        for (y, code) in y.iter_mut().zip(&codes[from..]) {
            *y = scale * f32::from((code >> shift) & 3) - minimum;
        }
    }
}

/// Third bits (32 bytes), low two bits (64 bytes), scales (16 of 6 bits in 12 bytes), d.
fn q3_k(block: &[u8], y: &mut [f32]) {
    let (third, codes, packed) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half_at(block, 108);
    for (sub, y) in y.chunks_exact_mut(16).enumerate() {
        // Low four bits: bytes 0..8, low nibbles for scales 0..8 and high nibbles for 8..16. High two bits: bytes 8..12,
        // scale i in byte 8 + i % 4 at bit 2 (i / 4).
        let low = if sub < 8 { packed[sub] & 15 } else { packed[sub - 8] >> 4 };
        let high = (packed[8 + sub % 4] >> (2 * (sub / 4))) & 3;
        let scale = d * (f32::from(low | (high << 4)) - 32.0);
        let (from, shift) = two_bits(sub);
        // Value 32 a + l has its third bit in byte l at bit a.
        let (bit, start) = (sub / 2, 16 * (sub % 2));
        for (l, y) in y.iter_mut().enumerate() {
            let code = (codes[from + l] >> shift) & 3;
            let offset = if third[start + l] & (1 << bit) == 0 { 4.0 } else { 0.0 };
            *y = scale * (f32::from(code) - offset);
        }
    }
}

/// Where sub-block `sub` of 16 two-bit codes begins and at which bit: each half of 128 values takes 32 bytes, and each
/// byte holds four values that lie 32 apart.
fn two_bits(sub: usize) -> (usize, usize) {
    let (half, quarter, side) = (sub / 8, (sub / 2) % 4, sub % 2);
    (32 * half + 16 * side, 2 * quarter)
}

/// Scale and minimum of sub-block `sub` of 32, each of 6 bits, out of 12 bytes: those of the first four lie whole in
/// bytes 0..4 and 4..8, whose top two bits are the top of the last four's.
fn six_bit_scales(packed: &[u8], sub: usize) -> (f32, f32) {
    let (scale, minimum) = if sub < 4 {
        (packed[sub] & 63, packed[sub + 4] & 63)
    } else {
        let low = packed[sub + 4];
        ((low & 15) | ((packed[sub - 4] >> 6) << 4), (low >> 4) | ((packed[sub] >> 6) << 4))
    };
    (f32::from(scale), f32::from(minimum))
}

/// d, m, scales (12 bytes), codes (128 bytes: 32 bytes hold two sub-blocks, low nibbles first).
fn q4_k(block: &[u8], y: &mut [f32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let (packed, codes) = (&block[4..16], &block[16..144]);
    for (sub, y) in y.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = six_bit_scales(packed, sub);
        let (scale, minimum) = (d * scale, m * minimum);
        for (y, code) in y.iter_mut().zip(&codes[32 * (sub / 2)..]) {
            *y = scale * f32::from((code >> (4 * (sub % 2))) & 15) - minimum;
        }
    }
}

/// d, m, scales (12 bytes), fifth bits (32 bytes: sub-block i at bit i), codes as in [`q4_k`].
fn q5_k(block: &[u8], y: &mut [f32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let (packed, fifth, codes) = (&block[4..16], &block[16..48], &block[48..176]);
    for (sub, y) in y.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = six_bit_scales(packed, sub);
        let (scale, minimum) = (d * scale, m * minimum);
        for ((y, code), fifth) in y.iter_mut().zip(&codes[32 * (sub / 2)..]).zip(fifth) {
            let code = ((code >> (4 * (sub % 2))) & 15) | (((fifth >> sub) & 1) << 4);
            *y = scale * f32::from(code) - minimum;
        }
    }
}

/// Low nibbles (128 bytes), high two bits (64 bytes), scales (16 signed bytes), d. Each half of 128 values takes 64 bytes
/// of nibbles (values 0..64 low, 64..128 high) and 32 bytes of high bits (values 32 apart share a byte).
fn q6_k(block: &[u8], y: &mut [f32]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(block, 208);
    for (i, y) in y.iter_mut().enumerate() {
        let (half, j) = (i / 128, i % 128);
        let nibble = (low[64 * half + j % 64] >> (4 * (j / 64))) & 15;
        let top = (high[32 * half + j % 32] >> (2 * (j / 32))) & 3;
        let code = f32::from(nibble | (top << 4)) - 32.0;
        *y = d * f32::from(scales[i / 16] as i8) * code;
    }
}
