//! Causal attention over the cache: tiles with an online softmax for many queries, a split over the context for few; one
//! kernel for all where the bits are to be the CPU's.

mod reproducible;

use super::super::Affine;
use super::kv_cache::{KvBinding, KvLayout, QueryLayout, check_binding, check_range, check_rows, check_workgroups};
use super::pipelines::{Bound, Kernel, Operand};
use super::{Access, Dtype, Error, Gpu, Recorder, Shader, Variant};
use ::wgpu::BufferBinding;
use std::sync::Arc;

const CACHE: &str = include_str!("../../../shaders/attention_cache.wgsl");

static PREFILL: Shader = Shader {
    name: "attention_prefill",
    sources: &[CACHE, include_str!("../../../shaders/attention_prefill.wgsl")],
    bindings: &[Access::Read, Access::Read, Access::Read, Access::Read, Access::Write],
    immediates: 32,
};

static DECODE: Shader = Shader {
    name: "attention_decode",
    sources: &[CACHE, include_str!("../../../shaders/attention_decode.wgsl")],
    bindings: &[Access::Read, Access::Read, Access::Read, Access::Read, Access::Write],
    immediates: 32,
};

static MERGE: Shader = Shader {
    name: "attention_merge",
    sources: &[include_str!("../../../shaders/attention_merge.wgsl")],
    bindings: &[Access::Read, Access::Write],
    immediates: 8,
};

/// Rows (queries x heads of a group) of a workgroup of `attention_prefill`.
const PREFILL_ROWS: usize = 32;
/// Keys of a workgroup of `attention_decode`.
const SPAN: usize = 256;
/// Most rows of a workgroup of `attention_decode`.
const DECODE_ROWS: usize = 8;
/// Calls of up to so many tokens are split over the context.
const DECODE_TOKENS: usize = 4;

/// What [`AttentionPlan`] is planned for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionDesc {
    /// Query heads `H`, a multiple of the cache's heads.
    pub heads: usize,
    /// Most tokens of a call.
    pub tokens_max: usize,
    /// Tokens that a query sees at most, itself included; all without it.
    pub window: Option<usize>,
    /// Type of the output.
    pub out: Dtype,
    /// The cache that is read.
    pub cache: KvLayout,
}

/// Causal attention with grouped queries: `out = softmax(q k^T / sqrt(D)) v`, `[T, H D]`.
///
/// Scores of quantized queries and keys come from exact integer dot products with the asymmetric correction. The softmax runs
/// in `f32` and its result is not quantized; the scales of quantized values are folded into it. A cached key or value of scale
/// NaN makes the output of every query that sees it NaN. In a floating-point cache NaN or infinity may also reach queries of
/// the same call that come before it.
///
/// On a device that computes as the CPU does ([`super::Arithmetic::Reproducible`]), the output in `f32` is what
/// [`crate::kernels::cpu::attention()`] gives, bit for bit. Exceptions are weights that fall below `2^-126`, which many devices
/// take for 0, and NaN or infinity in a floating-point cache: here they reach no query that does not see them.
#[derive(Debug, Clone)]
pub struct AttentionPlan {
    desc: AttentionDesc,
    /// Rows of queries and output.
    rows: usize,
    kernels: Kernels<Arc<Kernel>>,
}

/// The kernels of a plan, or what they are bound to.
#[derive(Debug, Clone)]
enum Kernels<K> {
    Fast {
        /// Only where calls may have more than [`DECODE_TOKENS`] tokens.
        prefill: Option<K>,
        decode: K,
        merge: K,
    },
    Reproducible(K),
}

/// The memory of one layer's call.
#[derive(Debug, Clone)]
pub struct AttentionOperands<'a> {
    /// What `rope_hadamard_quantize` wrote: [`QueryLayout::bytes`].
    pub queries: BufferBinding<'a>,
    /// The cache, which holds the call's own tokens too.
    pub cache: KvBinding<'a>,
    /// `[T, H D]`, written.
    pub out: BufferBinding<'a>,
    /// [`AttentionPlan::workspace_bytes`], overwritten. It may serve all layers in turn.
    pub workspace: BufferBinding<'a>,
}

/// A plan with its memory.
#[derive(Debug, Clone)]
pub struct BoundAttention {
    desc: AttentionDesc,
    rows: usize,
    kernels: Kernels<Bound>,
}

impl AttentionPlan {
    /// Compiles the kernels.
    ///
    /// # Errors
    /// [`Error::Kernel`] for a head dimension that is no multiple of 16 or above 256, heads that are no multiple of the
    /// cache's, more tokens than the cache holds, quantizer settings outside [`Affine::new`]'s, or a window of 0;
    /// [`Error::Limit`] for operands, a number of tokens or a context above the device's limits; [`Error::Device`] when the
    /// driver refuses.
    pub fn plan(gpu: &Gpu, desc: &AttentionDesc) -> Result<Self, Error> {
        desc.queries().check(gpu, &desc.cache)?;
        if let Some(window) = desc.window {
            check_range("window", window, 1, usize::MAX)?;
        }
        check_binding(gpu, "out", desc.out_bytes())?;
        if let Some(fused) = gpu.reproducible() {
            let kernels = Kernels::Reproducible(reproducible::kernel(gpu, desc, fused)?);
            return Ok(Self { desc: *desc, rows: desc.tokens_max, kernels });
        }
        check_binding(gpu, "workspace", desc.workspace_bytes())?;
        let tokens = desc.tokens_max.min(DECODE_TOKENS);
        check_workgroups(
            gpu,
            "tokens_max",
            (desc.tokens_max as u64 * desc.group() as u64).div_ceil(PREFILL_ROWS as u64),
        )?;
        check_workgroups(gpu, "capacity", desc.cache.capacity.div_ceil(SPAN) as u64)?;
        check_workgroups(gpu, "heads", (tokens * desc.heads) as u64)?;
        check_workgroup_memory(gpu, workgroup_bytes(desc))?;
        let prefill =
            if desc.tokens_max > DECODE_TOKENS { Some(gpu.kernel(&PREFILL, &prefill_variant(desc))?) } else { None };
        let decode = gpu.kernel(&DECODE, &decode_variant(desc))?;
        let merge = gpu.kernel(&MERGE, &merge_variant(desc))?;
        Ok(Self { desc: *desc, rows: desc.tokens_max, kernels: Kernels::Fast { prefill, decode, merge } })
    }

    /// The same plan for queries and an output of `rows` rows, at least `tokens_max`: the tokens of several sequences, each with a
    /// cache and a call of its own ([`BoundAttention::enqueue_at`]).
    ///
    /// # Errors
    /// [`Error::Kernel`] for fewer rows, [`Error::Limit`] for more than the device can bind.
    pub fn with_rows(self, gpu: &Gpu, rows: usize) -> Result<Self, Error> {
        check_range("rows", rows, self.desc.tokens_max, 1 << 30)?;
        let plan = Self { rows, ..self };
        check_binding(gpu, "queries", plan.queries().bytes())?;
        check_binding(gpu, "out", plan.out_bytes())?;
        Ok(plan)
    }

    /// What it was planned for.
    #[must_use]
    pub fn desc(&self) -> &AttentionDesc {
        &self.desc
    }

    /// How the queries that it reads lie.
    #[must_use]
    pub fn queries(&self) -> QueryLayout {
        QueryLayout { tokens_max: self.rows, ..self.desc.queries() }
    }

    /// Which kernel runs for so many tokens (`attention_merge` follows `attention_decode`).
    #[must_use]
    pub fn kernel(&self, tokens: usize) -> &'static str {
        match &self.kernels {
            Kernels::Fast { prefill: Some(prefill), .. } if tokens > DECODE_TOKENS => prefill.name,
            Kernels::Fast { decode, .. } => decode.name,
            Kernels::Reproducible(kernel) => kernel.name,
        }
    }

    /// Bytes of the output, `[tokens_max, H D]` or as many rows as [`Self::with_rows`] says.
    #[must_use]
    pub fn out_bytes(&self) -> u64 {
        AttentionDesc { tokens_max: self.rows, ..self.desc }.out_bytes()
    }

    /// Bytes of the partial outputs of a call that is split over the context; 0 where no call is.
    #[must_use]
    pub fn workspace_bytes(&self) -> u64 {
        match self.kernels {
            Kernels::Fast { .. } => self.desc.workspace_bytes(),
            Kernels::Reproducible(_) => 0,
        }
    }

    /// Joins the kernels with the memory of a layer.
    ///
    /// # Errors
    /// [`Error::Binding`] and [`Error::Alignment`] for operands that do not fit the shape or the device.
    pub fn bind(&self, gpu: &Gpu, operands: &AttentionOperands<'_>) -> Result<BoundAttention, Error> {
        let AttentionOperands { queries, cache, out, workspace } = operands;
        let layout = &self.desc.cache;
        let operand = |name, binding: &_, bytes| Operand { name, binding: BufferBinding::clone(binding), bytes };
        let with = |last| {
            [
                operand("queries", queries, self.queries().bytes()),
                operand("keys", &cache.keys, layout.key_bytes()),
                operand("values", &cache.values, layout.value_bytes()),
                operand("params", &cache.params, layout.param_bytes()),
                last,
            ]
        };
        let to_out = || operand("out", out, self.out_bytes());
        let to_workspace = || operand("workspace", workspace, self.workspace_bytes());
        let kernels = match &self.kernels {
            Kernels::Fast { prefill, decode, merge } => Kernels::Fast {
                prefill: prefill.as_ref().map(|kernel| gpu.bind(kernel, &with(to_out()))).transpose()?,
                decode: gpu.bind(decode, &with(to_workspace()))?,
                merge: gpu.bind(merge, &[to_workspace(), to_out()])?,
            },
            Kernels::Reproducible(kernel) => Kernels::Reproducible(gpu.bind(kernel, &with(to_out()))?),
        };
        Ok(BoundAttention { desc: self.desc, rows: self.rows, kernels })
    }
}

impl BoundAttention {
    /// Records `tokens` queries, the first of them at `position`; the cache holds the tokens below `position + tokens`.
    ///
    /// # Errors
    /// [`Error::Kernel`] for more tokens than planned or than the cache has room for. Nothing is recorded then.
    pub fn enqueue(&self, recorder: &mut Recorder<'_>, tokens: usize, position: usize) -> Result<(), Error> {
        self.enqueue_at(recorder, 0, tokens, position)
    }

    /// As [`Self::enqueue`], for the queries from row `row` on; the output goes to the same rows.
    ///
    /// # Errors
    /// As [`Self::enqueue`], and for rows beyond those of [`AttentionPlan::with_rows`].
    pub fn enqueue_at(
        &self,
        recorder: &mut Recorder<'_>,
        row: usize,
        tokens: usize,
        position: usize,
    ) -> Result<(), Error> {
        let AttentionDesc { heads, window, cache, .. } = self.desc;
        self.desc.queries().check_tokens(tokens)?;
        check_rows(row, tokens, self.rows)?;
        cache.check_room(tokens, position)?;
        if tokens == 0 {
            return Ok(());
        }
        let window = window.unwrap_or(usize::MAX).min(u32::MAX as usize);
        let rows = tokens * self.desc.group();
        let first_span = (position + 1).saturating_sub(window) / SPAN;
        let splits = (position + tokens).div_ceil(SPAN) - first_span;
        let immediates =
            [tokens, position, cache.capacity, cache.kv_heads, window, splits, first_span, row].map(|x| x as u32);
        let immediates = bytemuck::bytes_of(&immediates);
        let kv_heads = cache.kv_heads as u32;
        match &self.kernels {
            Kernels::Reproducible(kernel) => {
                recorder.dispatch(kernel, immediates, [rows.div_ceil(reproducible::ROWS) as u32, kv_heads, 1]);
            }
            Kernels::Fast { prefill: Some(prefill), .. } if tokens > DECODE_TOKENS => {
                recorder.dispatch(prefill, immediates, [rows.div_ceil(PREFILL_ROWS) as u32, kv_heads, 1]);
            }
            Kernels::Fast { decode, merge, .. } => {
                let blocks = rows.div_ceil(self.desc.decode_rows()) as u32;
                recorder.dispatch(decode, immediates, [splits as u32, kv_heads * blocks, 1]);
                let immediates = [splits as u32, (row * heads) as u32];
                recorder.dispatch(merge, bytemuck::bytes_of(&immediates), [(tokens * heads) as u32, 1, 1]);
            }
        }
        Ok(())
    }
}

impl AttentionDesc {
    fn queries(&self) -> QueryLayout {
        QueryLayout::new(self.heads, self.tokens_max, &self.cache)
    }

    /// Query heads to a key head; the layout has been checked.
    fn group(&self) -> usize {
        self.heads / self.cache.kv_heads
    }

    fn out_bytes(&self) -> u64 {
        let row = self.heads as u64 * self.cache.head_dim as u64 * self.out.bytes();
        row.saturating_mul(self.tokens_max as u64)
    }

    fn workspace_bytes(&self) -> u64 {
        let rows = self.tokens_max.min(DECODE_TOKENS) as u64 * self.heads as u64;
        // A window's keys may straddle one span more than they fill; no call has more spans than the cache.
        let spans = self.cache.capacity.div_ceil(SPAN);
        let seen =
            self.window.map_or(spans, |window| window.saturating_add(DECODE_TOKENS).div_ceil(SPAN) + 1).min(spans);
        4 * rows.saturating_mul(seen as u64).saturating_mul(self.cache.head_dim as u64 + 2)
    }

    /// Words of a query that the scores take.
    fn query_words(&self) -> usize {
        if self.cache.key.is_some() { self.cache.head_dim / 4 } else { self.cache.head_dim }
    }

    /// Rows of a workgroup of `attention_decode`: the heads of a group, as far as workgroup memory and registers hold them.
    fn decode_rows(&self) -> usize {
        let most = if self.cache.head_dim > 128 { DECODE_ROWS / 2 } else { DECODE_ROWS };
        self.group().min(most)
    }
}

/// Workgroup memory of the larger kernel.
fn workgroup_bytes(desc: &AttentionDesc) -> u64 {
    let decode = 4 * desc.decode_rows() * (desc.query_words() + SPAN + 64 + 8);
    let prefill = 16 * (3 * 256 + 64);
    decode.max(prefill) as u64
}

/// Ok when a workgroup may have so many bytes of memory.
fn check_workgroup_memory(gpu: &Gpu, got: u64) -> Result<(), Error> {
    let limit = u64::from(gpu.limits().max_compute_workgroup_storage_size);
    if got > limit {
        let limit_name = "max_compute_workgroup_storage_size";
        return Err(Error::Limit { what: "attention".into(), limit_name, limit, got });
    }
    Ok(())
}

fn cache_constants(desc: &AttentionDesc) -> Vec<(&'static str, f64)> {
    vec![
        ("KEY_BITS", f64::from(desc.cache.key_bits())),
        ("VALUE_BITS", f64::from(desc.cache.value_bits())),
        ("GROUP", desc.group() as f64),
        ("SCALE", f64::from((1.0 / (desc.cache.head_dim as f64).sqrt()) as f32)),
    ]
}

fn prefill_variant(desc: &AttentionDesc) -> Variant {
    let mut constants = cache_constants(desc);
    constants.push(("OUT_BITS", 8.0 * desc.out.bytes() as f64));
    Variant { prelude: format!("const HEAD_DIM: u32 = {}u;\n", desc.cache.head_dim), constants }
}

fn decode_variant(desc: &AttentionDesc) -> Variant {
    let (rows, words) = (desc.decode_rows(), desc.query_words());
    let prelude = format!(
        "const HEAD_DIM: u32 = {}u;\nconst ROWS: u32 = {rows}u;\nconst WORDS: u32 = {words}u;\n",
        desc.cache.head_dim
    );
    Variant { prelude, constants: cache_constants(desc) }
}

fn merge_variant(desc: &AttentionDesc) -> Variant {
    let constants = vec![("OUT_BITS", 8.0 * desc.out.bytes() as f64)];
    Variant { prelude: format!("const HEAD_DIM: u32 = {}u;\n", desc.cache.head_dim), constants }
}

/// Caches of every head dimension that models have and every container, for the tests of the shaders.
pub(super) fn layouts() -> Vec<KvLayout> {
    let codes = |bits| Some(Affine { bits, clip: 0.9, symmetric: false });
    let kinds = [
        (codes(4), codes(4), Dtype::F32),
        (codes(8), codes(8), Dtype::F32),
        (codes(4), None, Dtype::F16),
        (None, codes(4), Dtype::F32),
        (None, None, Dtype::F32),
        (None, None, Dtype::F16),
    ];
    [64, 80, 96, 128, 256]
        .into_iter()
        .flat_map(|head_dim| {
            kinds.map(|(key, value, float)| KvLayout { kv_heads: 1, head_dim, capacity: 1, key, value, float })
        })
        .collect()
}

pub(super) fn variants() -> Vec<(&'static Shader, Variant)> {
    let mut all = Vec::new();
    for cache in layouts() {
        for out in [Dtype::F32, Dtype::F16] {
            let desc = |heads| AttentionDesc { heads, tokens_max: 1, window: None, out, cache };
            all.push((&PREFILL, prefill_variant(&desc(1))));
            all.push((&MERGE, merge_variant(&desc(1))));
            all.extend([1, 3, 8].map(|heads| (&DECODE, decode_variant(&desc(heads)))));
            all.extend(reproducible::variants(&desc(3)));
        }
    }
    all
}
