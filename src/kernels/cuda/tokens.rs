//! Quantized tokens on the device: what `transform_quantize` writes and `gemm_w4a4` reads.

use super::{Address, Arch, Buffer, Device, Error};
use std::sync::Arc;

/// Tokens of a group: the `n8` of the matrix instructions.
pub(super) const GROUP: usize = 8;
/// Channels of a chunk. `K` is padded with code 0 to whole chunks.
pub(super) const CHUNK: usize = 128;

/// How the codes of 8 tokens x 128 channels, an atom, lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenForm {
    /// 4-bit codes as the B fragments of `mma.m16n8k64`: 512 bytes. Lane `4 g + t` has 16 bytes, words `2 s + h`: the codes of
    /// token `g`, channels `64 s + 32 h + 8 t ..+ 8`, low nibble first.
    Fragments4,
    /// Codes one to a byte as the B fragments of `mma.m16n8k32`: 1024 bytes. Half `s` of the atom has 16 bytes a lane, words
    /// `2 p + h`: byte `j` is token `g`, channel `64 s + 32 h + 8 t + 2 j + p`.
    Fragments8,
    /// Codes one to a byte as `wgmma` reads them from shared memory with 128-byte swizzle: 1024 bytes. Token `g` has 128 slots;
    /// 16-byte piece `i` of them lies at piece `i ^ g`. Slot `32 (2 s + p) + 16 h + 4 t + j` is channel
    /// `64 s + 32 h + 8 t + 2 j + p`.
    Tiles8,
}

impl TokenForm {
    /// What the GEMM of `arch` reads for activations of so many bits.
    #[must_use]
    pub fn of(arch: Arch, activation_bits: u32) -> Self {
        match (arch.has_int4(), activation_bits <= 4) {
            (true, true) => Self::Fragments4,
            (true, false) => Self::Fragments8,
            (false, _) => Self::Tiles8,
        }
    }

    /// Bytes of an atom.
    #[must_use]
    pub fn atom_bytes(self) -> usize {
        if self == Self::Fragments4 { 512 } else { 1024 }
    }

    /// What the sources call it: `FORM_FRAGMENTS4`, `FORM_FRAGMENTS8`, `FORM_TILES8` of `types.cuh`.
    #[must_use]
    pub fn define(self) -> u32 {
        match self {
            Self::Fragments4 => 0,
            Self::Fragments8 => 1,
            Self::Tiles8 => 2,
        }
    }

    /// Byte in the atom, and bit in the byte, of token `g` (below 8) and channel `k` (below 128).
    #[must_use]
    pub fn place(self, g: usize, k: usize) -> (usize, u32) {
        let (s, h, t, i) = (k / 64, k / 32 % 2, k / 8 % 4, k % 8);
        let (j, p) = (i / 2, i % 2);
        match self {
            Self::Fragments4 => ((4 * g + t) * 16 + (2 * s + h) * 4 + j, 4 * p as u32),
            Self::Fragments8 => (512 * s + (4 * g + t) * 16 + (2 * p + h) * 4 + j, 0),
            Self::Tiles8 => {
                let slot = 32 * (2 * s + p) + 16 * h + 4 * t + j;
                (128 * g + ((slot / 16) ^ g) * 16 + slot % 16, 0)
            }
        }
    }
}

/// How quantized tokens lie in memory.
///
/// `codes` is atoms, `[ceil(K / 128), ceil(T / 8)]` for the `T` of the call, each as [`TokenForm`] says; codes of tokens from `T`
/// on and of channels from `K` on are 0. `params` is `[T]` of 16 bytes: the scale (`f32`), the zero point, the sum of the row's
/// codes and an unused word (`i32` each).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokensLayout {
    /// How an atom lies.
    pub form: TokenForm,
    /// Most tokens.
    pub m_max: usize,
    /// Input channels `K`.
    pub k: usize,
}

impl TokensLayout {
    /// Bytes of the codes of `m_max` tokens.
    #[must_use]
    pub fn code_bytes(&self) -> u64 {
        self.m_max.div_ceil(GROUP) as u64 * self.k.div_ceil(CHUNK) as u64 * self.form.atom_bytes() as u64
    }

    /// Bytes of the scales, zero points and row sums of `m_max` tokens.
    #[must_use]
    pub fn param_bytes(&self) -> u64 {
        16 * self.m_max as u64
    }

    /// Byte, and bit in the byte, of a code when the call has `tokens` tokens.
    #[must_use]
    pub fn place(&self, tokens: usize, token: usize, k: usize) -> (usize, u32) {
        let atom = k / CHUNK * tokens.div_ceil(GROUP) + token / GROUP;
        let (byte, bit) = self.form.place(token % GROUP, k % CHUNK);
        (atom * self.form.atom_bytes() + byte, bit)
    }
}

/// The host's memory for quantized tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokensOperand {
    /// [`TokensLayout::code_bytes`] of codes.
    pub codes: Address,
    /// [`TokensLayout::param_bytes`] of scales, zero points and row sums.
    pub params: Address,
}

/// Buffers of quantized tokens, for callers without an allocator of their own.
#[derive(Debug)]
pub struct QuantizedTokens {
    layout: TokensLayout,
    codes: Buffer,
    params: Buffer,
}

impl QuantizedTokens {
    /// Room for the tokens of `layout`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(device: &Arc<dyn Device>, layout: TokensLayout) -> Result<Self, Error> {
        let codes = Buffer::new(device, "codes", layout.code_bytes())?;
        let params = Buffer::new(device, "token parameters", layout.param_bytes())?;
        Ok(Self { layout, codes, params })
    }

    /// How the tokens lie.
    #[must_use]
    pub fn layout(&self) -> &TokensLayout {
        &self.layout
    }

    /// The codes.
    #[must_use]
    pub fn codes(&self) -> &Buffer {
        &self.codes
    }

    /// Scales, zero points and row sums.
    #[must_use]
    pub fn params(&self) -> &Buffer {
        &self.params
    }

    /// Both as operands.
    #[must_use]
    pub fn operand(&self) -> TokensOperand {
        TokensOperand { codes: self.codes.address(), params: self.params.address() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_of_an_atom_has_its_own_place() {
        for form in [TokenForm::Fragments4, TokenForm::Fragments8, TokenForm::Tiles8] {
            let mut taken = vec![false; 2 * form.atom_bytes()];
            for (g, k) in (0..GROUP).flat_map(|g| (0..CHUNK).map(move |k| (g, k))) {
                let (byte, bit) = form.place(g, k);
                let at = 2 * byte + bit as usize / 4;
                assert!(!std::mem::replace(&mut taken[at], true), "{form:?}: token {g}, channel {k}");
            }
        }
    }
}
