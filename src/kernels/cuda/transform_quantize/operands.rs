//! Operands of a call, and the arguments that the kernels in `cuda/` declare.

use super::super::{Address, TokensOperand};
use super::tiling::{Rotation, Tiling};
use super::{
    Error, TokenForm, TokenSource, TransformQuantizeDesc, TransformTables, TransformTarget, check_address, unsupported,
};
use bytemuck::{Pod, Zeroable};

/// The host's memory with the tokens, in the type that the plan names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceOperand {
    /// `[T, K]`.
    Tokens(Address),
    /// Operands of the norm.
    RmsNorm {
        /// `[T, K]`.
        x: Address,
        /// `[K]` in `f32`.
        weight: Address,
    },
    /// `[T, 2K]`.
    SiluMul(Address),
}

/// The host's memory for what the kernel writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransformOutput {
    /// For [`TransformTarget::Codes`], as [`TransformQuantizePlan::layout`](super::TransformQuantizePlan::layout) says.
    Codes(TokensOperand),
    /// `[T, K]`, for the other targets.
    Values(Address),
}

/// `TokenSource` of `token_source.cuh`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Source {
    x: Address,
    norm_weight: Address,
    inverse_smooth: Address,
    tokens: u32,
    channels: u32,
    kind: u32,
    wide: u32,
    epsilon: f32,
    unused: u32,
}

impl Source {
    pub(super) fn new(
        desc: &TransformQuantizeDesc,
        tokens: usize,
        operand: SourceOperand,
        inverse_smooth: Address,
        span: usize,
    ) -> Result<Self, Error> {
        let channels = desc.shape.channels;
        let (kind, x, norm_weight, epsilon) = match (desc.source, operand) {
            (TokenSource::Tokens, SourceOperand::Tokens(x)) => (0, x, 0, 0.0),
            (TokenSource::RmsNorm { epsilon }, SourceOperand::RmsNorm { x, weight }) => {
                check_address("weight", weight)?;
                (1, x, weight, epsilon)
            }
            (TokenSource::SiluMul, SourceOperand::SiluMul(x)) => (2, x, 0, 0.0),
            (expected, got) => return unsupported("source", format!("{expected:?}"), format!("{got:?}")),
        };
        check_address("source", x)?;
        let wide = channels.is_multiple_of(8) && span.is_multiple_of(8);
        Ok(Self {
            x,
            norm_weight,
            inverse_smooth,
            tokens: tokens as u32,
            channels: channels as u32,
            kind,
            wide: u32::from(wide),
            epsilon,
            unused: 0,
        })
    }
}

/// `TokenSink` of `token_sink.cuh`, with `AffineArgs` of `affine.cuh` in it.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Sink {
    out: Address,
    params: Address,
    tokens: u32,
    channels: u32,
    groups: u32,
    form: u32,
    target: u32,
    dtype: u32,
    clip: f32,
    inverse_max_code: f32,
    max_code: i32,
    symmetric: i32,
}

impl Sink {
    pub(super) fn new(
        desc: &TransformQuantizeDesc,
        form: TokenForm,
        tokens: usize,
        operand: TransformOutput,
    ) -> Result<Self, Error> {
        let (target, dtype, out, params) = match (desc.target, operand) {
            (TransformTarget::Codes, TransformOutput::Codes(TokensOperand { codes, params })) => {
                check_address("codes", codes)?;
                check_address("params", params)?;
                (0, 0, codes, params)
            }
            (TransformTarget::Float(dtype), TransformOutput::Values(out)) => (1, dtype.define(), out, 0),
            (TransformTarget::Dequantized(dtype), TransformOutput::Values(out)) => (2, dtype.define(), out, 0),
            (expected, got) => return unsupported("out", format!("{expected:?}"), format!("{got:?}")),
        };
        check_address("out", out)?;
        // Without a quantizer any will do: its codes are not asked for.
        let (clip, max_code, symmetric) =
            desc.affine.map_or((1.0, 15, false), |affine| (affine.clip, affine.max_code(), affine.symmetric));
        Ok(Self {
            out,
            params,
            tokens: tokens as u32,
            channels: desc.shape.channels as u32,
            groups: tokens.div_ceil(8) as u32,
            form: form.define(),
            target,
            dtype,
            clip,
            inverse_max_code: 1.0 / f32::from(max_code),
            max_code: i32::from(max_code),
            symmetric: i32::from(symmetric),
        })
    }
}

/// `QuantizeTokensArgs` of `quantize_tokens.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Args {
    pub(super) source: Source,
    pub(super) sink: Sink,
}

/// `TransformQuantizeArgs` of `transform_quantize.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Rotated {
    source: Source,
    sink: Sink,
    rotations: Address,
    places: Address,
    rotation_count: u32,
    token_bits: u32,
    rows: u32,
    span: u32,
    tiles: u32,
    factor: f32,
    clear: u32,
    unused: u32,
}

impl Rotated {
    pub(super) fn new(
        source: Source,
        sink: Sink,
        tables: &TransformTables,
        desc: &TransformQuantizeDesc,
        rotation: &Rotation,
        tiling: &Tiling,
    ) -> Self {
        let clear = tiling.rows << (3 - tiling.token_bits) != desc.shape.channels;
        Self {
            source,
            sink,
            rotations: tables.rotations(),
            places: tables.places(tiling.index),
            rotation_count: desc.shape.rotations as u32,
            token_bits: tiling.token_bits,
            rows: tiling.rows as u32,
            span: rotation.span as u32,
            tiles: tiling.tiles as u32,
            factor: rotation.factor,
            clear: u32::from(clear),
            unused: 0,
        }
    }
}
