//! From the output of the q, k and v projections to the queries and the cache that attention reads.

use super::super::cpu::RopeTable;
use super::super::{Affine, Error as KernelError};
use super::arithmetic::PRELUDES;
use super::kv_cache::{KvBinding, KvLayout, QueryLayout, check_binding, check_range, check_rows, check_workgroups};
use super::pipelines::{Bound, Kernel, Operand};
use super::{Access, Dtype, Error, Gpu, Recorder, Shader, Variant};
use ::wgpu::{Buffer, BufferBinding};
use std::sync::Arc;

const KERNEL: &str = include_str!("../../../shaders/rope_hadamard_quantize.wgsl");

static SHADER: Shader = Shader {
    name: "rope_hadamard_quantize",
    sources: &[KERNEL, include_str!("../../../shaders/rope_fast.wgsl")],
    bindings: &[Access::Read, Access::Read, Access::Write, Access::Write, Access::Write, Access::Write],
    immediates: 20,
};

static REPRODUCIBLE: Shader =
    Shader { sources: &[KERNEL, include_str!("../../../shaders/rope_reproducible.wgsl")], ..SHADER };

/// Heads that a workgroup takes.
const ROWS: usize = 8;

/// What [`RopeHadamardQuantizePlan`] is planned for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeHadamardQuantizeDesc {
    /// Query heads `H`, a multiple of the cache's heads.
    pub heads: usize,
    /// Most tokens of a call.
    pub tokens_max: usize,
    /// Type of the input.
    pub input: Dtype,
    /// The cache that keys and values go to.
    pub cache: KvLayout,
}

/// RoPE on queries and keys, per-head Hadamard, per-token per-head quantization; keys and values go into the cache.
///
/// Where keys are quantized, queries and keys are multiplied by the normalised Sylvester Hadamard of the largest power of two
/// that divides `D` (block-diagonal), which leaves `q k^T` as it is, and both are quantized (eq. 1 of the paper) with the
/// key's settings. Values get no Hadamard. A head of a token that holds NaN or infinity gets scale NaN and codes 0: the
/// attention to it is NaN, other tokens and heads are untouched. Without a quantizer it is stored as it is.
///
/// On a device that computes as the CPU does ([`super::Arithmetic::Reproducible`]), all that is stored in codes or `f32` is
/// what [`crate::kernels::cpu::rope_hadamard_quantize()`] stores, bit for bit.
#[derive(Debug, Clone)]
pub struct RopeHadamardQuantizePlan {
    desc: RopeHadamardQuantizeDesc,
    /// Rows of input and queries.
    rows: usize,
    kernel: Arc<Kernel>,
}

/// The memory of one layer's call.
#[derive(Debug, Clone)]
pub struct RopeHadamardQuantizeOperands<'a> {
    /// `[T, (H + 2 Hkv) D]`: a row is the query heads, the key heads and the value heads.
    pub qkv: BufferBinding<'a>,
    /// `[capacity, 2, D / 2]` in `f32`: cosines, then sines of each position, as [`rope_buffer`] writes them.
    pub rope: BufferBinding<'a>,
    /// [`QueryLayout::bytes`], written.
    pub queries: BufferBinding<'a>,
    /// The cache, written at the call's positions.
    pub cache: KvBinding<'a>,
}

/// A plan with its memory.
#[derive(Debug, Clone)]
pub struct BoundRopeHadamardQuantize {
    desc: RopeHadamardQuantizeDesc,
    rows: usize,
    bound: Bound,
}

impl RopeHadamardQuantizePlan {
    /// Compiles the kernel.
    ///
    /// # Errors
    /// [`Error::Kernel`] for a head dimension that is no multiple of 16 or above 256, heads that are no multiple of the
    /// cache's, more tokens than the cache holds, or quantizer settings outside [`Affine::new`]'s; [`Error::Limit`] for
    /// operands or a number of tokens above the device's limits; [`Error::Device`] when the driver refuses.
    pub fn plan(gpu: &Gpu, desc: &RopeHadamardQuantizeDesc) -> Result<Self, Error> {
        let queries = QueryLayout::new(desc.heads, desc.tokens_max, &desc.cache);
        queries.check(gpu, &desc.cache)?;
        check_binding(gpu, "qkv", desc.qkv_bytes())?;
        check_binding(gpu, "rope", desc.rope_bytes())?;
        check_workgroups(gpu, "tokens_max", desc.tokens_max as u64)?;
        let (shader, variant) = variant(desc, gpu.reproducible());
        Ok(Self { desc: *desc, rows: desc.tokens_max, kernel: gpu.kernel(shader, &variant)? })
    }

    /// The same plan for an input and queries of `rows` rows, at least `tokens_max`: the tokens of several sequences, each with a
    /// cache and a call of its own ([`BoundRopeHadamardQuantize::enqueue_at`]).
    ///
    /// # Errors
    /// [`Error::Kernel`] for fewer rows, [`Error::Limit`] for more than the device can bind.
    pub fn with_rows(self, gpu: &Gpu, rows: usize) -> Result<Self, Error> {
        check_range("rows", rows, self.desc.tokens_max, 1 << 30)?;
        let plan = Self { rows, ..self };
        check_binding(gpu, "qkv", plan.qkv_bytes())?;
        check_binding(gpu, "queries", plan.queries().bytes())?;
        Ok(plan)
    }

    /// What it was planned for.
    #[must_use]
    pub fn desc(&self) -> &RopeHadamardQuantizeDesc {
        &self.desc
    }

    /// How the queries that it writes lie.
    #[must_use]
    pub fn queries(&self) -> QueryLayout {
        QueryLayout::new(self.desc.heads, self.rows, &self.desc.cache)
    }

    fn qkv_bytes(&self) -> u64 {
        RopeHadamardQuantizeDesc { tokens_max: self.rows, ..self.desc }.qkv_bytes()
    }

    /// Which kernel runs for so many tokens.
    #[must_use]
    pub fn kernel(&self, _tokens: usize) -> &'static str {
        self.kernel.name
    }

    /// Joins the kernel with the memory of a layer.
    ///
    /// # Errors
    /// [`Error::Binding`] and [`Error::Alignment`] for operands that do not fit the shape or the device.
    pub fn bind(
        &self,
        gpu: &Gpu,
        operands: &RopeHadamardQuantizeOperands<'_>,
    ) -> Result<BoundRopeHadamardQuantize, Error> {
        let RopeHadamardQuantizeOperands { qkv, rope, queries, cache } = operands;
        let layout = &self.desc.cache;
        let operand = |name, binding: &_, bytes| Operand { name, binding: BufferBinding::clone(binding), bytes };
        let operands = [
            operand("qkv", qkv, self.qkv_bytes()),
            operand("rope", rope, self.desc.rope_bytes()),
            operand("queries", queries, self.queries().bytes()),
            operand("keys", &cache.keys, layout.key_bytes()),
            operand("values", &cache.values, layout.value_bytes()),
            operand("params", &cache.params, layout.param_bytes()),
        ];
        Ok(BoundRopeHadamardQuantize { desc: self.desc, rows: self.rows, bound: gpu.bind(&self.kernel, &operands)? })
    }
}

impl BoundRopeHadamardQuantize {
    /// Records `tokens` tokens, the first of them at `position`: its angle and its place in the cache.
    ///
    /// # Errors
    /// [`Error::Kernel`] for more tokens than planned or than the cache has room for. Nothing is recorded then.
    pub fn enqueue(&self, recorder: &mut Recorder<'_>, tokens: usize, position: usize) -> Result<(), Error> {
        self.enqueue_at(recorder, 0, tokens, position)
    }

    /// As [`Self::enqueue`], for the input's rows from `row` on; queries go to the same rows.
    ///
    /// # Errors
    /// As [`Self::enqueue`], and for rows beyond those of [`RopeHadamardQuantizePlan::with_rows`].
    pub fn enqueue_at(
        &self,
        recorder: &mut Recorder<'_>,
        row: usize,
        tokens: usize,
        position: usize,
    ) -> Result<(), Error> {
        let RopeHadamardQuantizeDesc { heads, tokens_max, cache, .. } = self.desc;
        QueryLayout::new(heads, tokens_max, &cache).check_tokens(tokens)?;
        check_rows(row, tokens, self.rows)?;
        cache.check_room(tokens, position)?;
        let immediates = [position, cache.capacity, heads, cache.kv_heads, row].map(|x| x as u32);
        let blocks = (heads + 2 * cache.kv_heads).div_ceil(ROWS);
        recorder.dispatch(&self.bound, bytemuck::bytes_of(&immediates), [blocks as u32, tokens as u32, 1]);
        Ok(())
    }
}

impl RopeHadamardQuantizeDesc {
    fn qkv_bytes(&self) -> u64 {
        let row = (self.heads + 2 * self.cache.kv_heads) as u64 * self.cache.head_dim as u64 * self.input.bytes();
        row.saturating_mul(self.tokens_max as u64)
    }

    fn rope_bytes(&self) -> u64 {
        4 * (self.cache.capacity as u64).saturating_mul(self.cache.head_dim as u64)
    }
}

/// The table of cosines and sines on the device: `[positions, 2, D / 2]` in `f32`.
///
/// # Errors
/// As [`Gpu::buffer`].
pub fn rope_buffer(gpu: &Gpu, table: &RopeTable) -> Result<Buffer, Error> {
    let mut rows = Vec::with_capacity(table.positions() * table.head_dim());
    for position in 0..table.positions() {
        let (cos, sin) = table.row(position);
        rows.extend_from_slice(cos);
        rows.extend_from_slice(sin);
    }
    if rows.is_empty() {
        let expected = "a table of at least one position".into();
        return Err(KernelError::Unsupported { what: "rope", expected, got: "none".into() }.into());
    }
    gpu.upload("rope", bytemuck::cast_slice(&rows))
}

/// The fast kernel, or with `fused` (the functions of that name) the reproducible one.
fn variant(desc: &RopeHadamardQuantizeDesc, fused: Option<&str>) -> (&'static Shader, Variant) {
    let KvLayout { head_dim, key, value, .. } = desc.cache;
    let block = if key.is_some() { 1_u32 << head_dim.trailing_zeros() } else { 1 };
    let (shader, scale) = match fused {
        // The CPU rounds the root.
        Some(_) => (&REPRODUCIBLE, 1.0 / (block as f32).sqrt()),
        None => (&SHADER, (1.0 / f64::from(block).sqrt()) as f32),
    };
    // What a quantizer that is not there would do is never stored.
    let settings = |affine: Option<Affine>| {
        let affine = affine.unwrap_or(Affine { bits: 8, clip: 1.0, symmetric: false });
        let levels = f32::from(affine.max_code());
        [levels, 1.0 / levels, affine.clip, f32::from(u8::from(affine.symmetric))].map(f64::from)
    };
    let ([key_levels, key_step, key_clip, key_symmetric], [value_levels, value_step, value_clip, value_symmetric]) =
        (settings(key), settings(value));
    let variant = Variant {
        prelude: format!("{}const HEAD_DIM: u32 = {head_dim}u;\n", fused.unwrap_or_default()),
        constants: vec![
            ("INPUT_BITS", 8.0 * desc.input.bytes() as f64),
            ("KEY_BITS", f64::from(desc.cache.key_bits())),
            ("VALUE_BITS", f64::from(desc.cache.value_bits())),
            ("HADAMARD", f64::from(block)),
            ("HADAMARD_SCALE", f64::from(scale)),
            ("KEY_LEVELS", key_levels),
            ("KEY_STEP", key_step),
            ("KEY_CLIP", key_clip),
            ("KEY_SYMMETRIC", key_symmetric),
            ("VALUE_LEVELS", value_levels),
            ("VALUE_STEP", value_step),
            ("VALUE_CLIP", value_clip),
            ("VALUE_SYMMETRIC", value_symmetric),
        ],
    };
    (shader, variant)
}

pub(super) fn variants() -> Vec<(&'static Shader, Variant)> {
    super::attention::layouts()
        .into_iter()
        .flat_map(|cache| {
            let variants = [Dtype::F32, Dtype::F16].map(|input| {
                let desc = RopeHadamardQuantizeDesc { heads: 2, tokens_max: 1, input, cache };
                [None, Some(PRELUDES[0]), Some(PRELUDES[1])].map(|fused| variant(&desc, fused))
            });
            variants.into_iter().flatten()
        })
        .collect()
}
