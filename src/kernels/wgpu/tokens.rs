//! Quantized tokens on the device: what `transform_quantize` writes and `gemm_w4a4` reads.

use super::{Error, Gpu};
use ::wgpu::{Buffer, BufferBinding};

/// Floating-point type of an operand in device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dtype {
    /// IEEE single precision.
    #[default]
    F32,
    /// IEEE half precision; the device must have `SHADER_F16`.
    F16,
}

impl Dtype {
    /// Bytes of one number.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

/// Codes of a row of quantized tokens are padded with code 0 to a multiple of so many.
pub(super) const CODE_BLOCK: usize = 64;

/// How quantized tokens lie in memory.
///
/// `codes` is `[T, stride]`, one code a byte, four to a little-endian `u32`; `stride` is `K` rounded up to a multiple of
/// 64, and what is between them holds code 0. `params` is `[T]` of 16 bytes: the scale (`f32`), the zero point, the sum of
/// the row's codes and an unused word (`u32` each).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokensLayout {
    /// Most tokens.
    pub m_max: usize,
    /// Input channels `K`.
    pub k: usize,
}

impl TokensLayout {
    /// Codes from one row to the next.
    #[must_use]
    pub fn stride(&self) -> usize {
        self.k.next_multiple_of(CODE_BLOCK)
    }

    /// Bytes of the codes.
    #[must_use]
    pub fn code_bytes(&self) -> u64 {
        self.m_max as u64 * self.stride() as u64
    }

    /// Bytes of the scales, zero points and row sums.
    #[must_use]
    pub fn param_bytes(&self) -> u64 {
        16 * self.m_max as u64
    }
}

/// The host's memory for quantized tokens.
#[derive(Debug, Clone)]
pub struct TokensBinding<'a> {
    /// [`TokensLayout::code_bytes`] of codes.
    pub codes: BufferBinding<'a>,
    /// [`TokensLayout::param_bytes`] of scales, zero points and row sums.
    pub params: BufferBinding<'a>,
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
    /// As [`Gpu::buffer`].
    pub fn new(gpu: &Gpu, layout: TokensLayout) -> Result<Self, Error> {
        let codes = gpu.buffer("codes", layout.code_bytes())?;
        let params = gpu.buffer("token parameters", layout.param_bytes())?;
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
    pub fn binding(&self) -> TokensBinding<'_> {
        TokensBinding { codes: self.codes.as_entire_buffer_binding(), params: self.params.as_entire_buffer_binding() }
    }
}
