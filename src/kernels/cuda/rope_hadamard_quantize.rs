//! From the output of the q, k and v projections to the queries and the cache that attention reads.

use super::super::Affine;
use super::super::cpu::RopeTable;
use super::checks::{check_address, check_range};
use super::{
    Address, Arch, Buffer, Device, Dtype, Error, Function, HEAD_DIMS, Kernel, KvLayout, KvOperand, Launch, QueryLayout,
    QueryOperand, Stream,
};
use bytemuck::{Pod, Zeroable};
use std::sync::Arc;

/// Warps of a block.
const WARPS: u32 = 4;

/// What [`RopeHadamardQuantizePlan`] is planned for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeHadamardQuantizeDesc {
    /// Query heads `H`, a multiple of the cache's heads.
    pub heads: usize,
    /// Most tokens of a call.
    pub tokens_max: usize,
    /// Most sequences of a call.
    pub sequences_max: usize,
    /// Positions that the table of cosines and sines has.
    pub positions: usize,
    /// Type of the input.
    pub input: Dtype,
    /// The cache that keys and values go to.
    pub cache: KvLayout,
}

/// RoPE on queries and keys, per-head Hadamard, per-token per-head quantization; keys and values go into the pages of the cache.
///
/// Where keys are quantized, queries and keys are multiplied by the normalised Sylvester Hadamard of the largest power of two
/// that divides `D` (block-diagonal), which leaves `q k^T` as it is, and both are quantized (eq. 1 of the paper) with the
/// key's settings. Values get no Hadamard. A head of a token that holds NaN or infinity gets scale NaN and codes 0: the
/// attention to it is NaN, other tokens and heads are untouched. Without a quantizer it is stored as it is.
///
/// All arithmetic is in `f32` and in the order of [`crate::kernels::cpu::rope_hadamard_quantize()`]: codes, scales, zero points and
/// sums are the same, bit for bit.
#[derive(Debug, Clone)]
pub struct RopeHadamardQuantizePlan {
    desc: RopeHadamardQuantizeDesc,
    function: Arc<Function>,
}

/// The memory of one layer's call. All addresses are multiples of 16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RopeHadamardQuantizeOperands {
    /// `[T, (H + 2 Hkv) D]`: a row is the query heads, the key heads and the value heads.
    pub qkv: Address,
    /// `[positions, 2, D / 2]` in `f32`: cosines, then sines of each position, as [`rope_buffer`] writes them.
    pub rope: Address,
    /// [`super::Sequence`] of each sequence, in any order. A token that belongs to none is skipped. A position beyond the table
    /// turns as the table's last.
    pub sequences: Address,
    /// Page numbers (`u32`).
    pub page_table: Address,
    /// [`QueryLayout`] rows of the call's tokens, written.
    pub queries: QueryOperand,
    /// The cache, written at the call's positions.
    pub cache: KvOperand,
}

/// `AffineArgs` of `cuda/affine.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
struct AffineArgs {
    clip: f32,
    inverse_max_code: f32,
    max_code: i32,
    symmetric: i32,
}

impl AffineArgs {
    fn new(affine: Option<Affine>) -> Self {
        // What a quantizer that is not there would do is never stored.
        let affine = affine.unwrap_or(Affine { bits: 8, clip: 1.0, symmetric: false });
        let top = affine.max_code();
        Self {
            clip: affine.clip,
            inverse_max_code: 1.0 / f32::from(top),
            max_code: i32::from(top),
            symmetric: i32::from(affine.symmetric),
        }
    }
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct RopeHadamardQuantizeArgs {
    qkv: Address,
    rope: Address,
    sequences: Address,
    page_table: Address,
    query_codes: Address,
    query_params: Address,
    keys: Address,
    values: Address,
    params: Address,
    tokens: u32,
    sequence_count: u32,
    heads: u32,
    kv_heads: u32,
    positions: u32,
    key_bits: u32,
    value_bits: u32,
    float_type: u32,
    hadamard_scale: f32,
    unused: u32,
    key: AffineArgs,
    value: AffineArgs,
}

impl RopeHadamardQuantizePlan {
    /// Loads the kernel.
    ///
    /// # Errors
    /// [`Error::Kernel`] for a cache without kernels, heads that are no multiple of the cache's, and an empty or too large shape;
    /// what [`Device::load`] gives.
    pub fn plan(device: &dyn Device, desc: &RopeHadamardQuantizeDesc) -> Result<Self, Error> {
        desc.cache.check_heads(desc.heads)?;
        check_range("tokens_max", desc.tokens_max, 1, 1 << 22)?;
        check_range("sequences_max", desc.sequences_max, 1, 65_535)?;
        check_range("positions", desc.positions, 1, 1 << 24)?;
        // The kernel counts warps in 32 bits, those of its last block among them.
        check_range("tokens_max x warps of heads", desc.tokens_max * warps_of_token(desc), 1, 1 << 31)?;
        Ok(Self { desc: *desc, function: device.load(&kernel(desc.input, desc.cache.head_dim))? })
    }

    /// What it was planned for.
    #[must_use]
    pub fn desc(&self) -> &RopeHadamardQuantizeDesc {
        &self.desc
    }

    /// How the queries that it writes lie.
    #[must_use]
    pub fn queries(&self) -> QueryLayout {
        QueryLayout::new(self.desc.heads, self.desc.tokens_max, &self.desc.cache)
    }

    /// Which kernel runs for `tokens` tokens.
    #[must_use]
    pub fn kernel(&self, _tokens: usize) -> String {
        self.function.kernel.to_string()
    }

    /// Enqueues `tokens` tokens of `sequences` sequences. Where they stand and which pages they have is read on the device.
    ///
    /// # Safety
    /// The addresses must be the device's and hold what the shape says until the kernel has run; the pages of the sequences must
    /// lie in the page table, and their numbers below the cache's pages.
    ///
    /// # Errors
    /// [`Error::Kernel`] for more tokens or sequences than planned, [`Error::Alignment`] for an address that is no multiple of 16.
    pub unsafe fn enqueue(
        &self,
        device: &dyn Device,
        stream: Stream,
        tokens: usize,
        sequences: usize,
        operands: &RopeHadamardQuantizeOperands,
    ) -> Result<(), Error> {
        check_range("tokens", tokens, 0, self.desc.tokens_max)?;
        check_range("sequences", sequences, 0, self.desc.sequences_max)?;
        let RopeHadamardQuantizeOperands { qkv, rope, page_table, queries, cache, .. } = *operands;
        for (what, at) in [
            ("qkv", qkv),
            ("rope", rope),
            ("sequences", operands.sequences),
            ("page_table", page_table),
            ("queries", queries.codes),
            ("keys", cache.keys),
            ("values", cache.values),
        ] {
            check_address(what, at)?;
        }
        let layout = &self.desc.cache;
        if layout.key.is_some() {
            check_address("query parameters", queries.params)?;
        }
        if layout.param_bytes() > 0 {
            check_address("cache parameters", cache.params)?;
        }
        let hadamard = 1_u32 << layout.head_dim.trailing_zeros();
        let arguments = RopeHadamardQuantizeArgs {
            qkv,
            rope,
            sequences: operands.sequences,
            page_table,
            query_codes: queries.codes,
            query_params: queries.params,
            keys: cache.keys,
            values: cache.values,
            params: cache.params,
            tokens: tokens as u32,
            sequence_count: sequences as u32,
            heads: self.desc.heads as u32,
            kv_heads: layout.kv_heads as u32,
            positions: self.desc.positions as u32,
            key_bits: layout.key_bits(),
            value_bits: layout.value_bits(),
            float_type: layout.float.define(),
            // The CPU rounds the root.
            hadamard_scale: 1.0 / (hadamard as f32).sqrt(),
            unused: 0,
            key: AffineArgs::new(layout.key),
            value: AffineArgs::new(layout.value),
        };
        let warps = if sequences == 0 { 0 } else { tokens * warps_of_token(&self.desc) };
        let blocks = warps.div_ceil(WARPS as usize) as u32;
        let launch = Launch::new(&self.function, [blocks, 1, 1], 32 * WARPS, 0, &arguments);
        // SAFETY: the caller vouches for the operands; a warp writes the rows of its own heads of one token.
        unsafe { device.launch(stream, &launch) }
    }
}

/// Warps that a token's heads take.
fn warps_of_token(desc: &RopeHadamardQuantizeDesc) -> usize {
    (desc.heads + 2 * desc.cache.kv_heads).div_ceil(heads_of_warp(desc.cache.head_dim))
}

/// Heads of a token that share a warp, eight channels a lane: `HEADS` of the source.
fn heads_of_warp(head_dim: usize) -> usize {
    32 / (head_dim / 8).next_power_of_two()
}

/// The table of cosines and sines on the device: `[positions, 2, D / 2]` in `f32`.
///
/// # Errors
/// [`Error::Kernel`] for a table of no position; as [`Buffer::upload`].
pub fn rope_buffer(device: &Arc<dyn Device>, table: &RopeTable) -> Result<Buffer, Error> {
    check_range("positions", table.positions(), 1, 1 << 24)?;
    let mut rows = Vec::with_capacity(table.positions() * table.head_dim());
    for position in 0..table.positions() {
        let (cos, sin) = table.row(position);
        rows.extend_from_slice(cos);
        rows.extend_from_slice(sin);
    }
    Buffer::upload(device, "rope", &rows)
}

fn kernel(input: Dtype, head_dim: usize) -> Kernel {
    let defines = vec![("INPUT", input.define()), ("HEAD_DIM", head_dim as u32)];
    let (file, entry) = ("rope_hadamard_quantize.cu", "rope_hadamard_quantize");
    Kernel { file, entry, defines, archs: &Arch::ALL, registers: 64 }
}

/// Every kernel of this file.
pub(super) fn kernels() -> Vec<Kernel> {
    let dtypes = [Dtype::F32, Dtype::F16, Dtype::Bf16];
    dtypes.into_iter().flat_map(|input| HEAD_DIMS.map(|head_dim| kernel(input, head_dim))).collect()
}
