//! Attention over the paged cache, causal, with grouped queries and an optional sliding window.

mod decode;
mod prefill;

use super::checks::{check_address, check_range, unsupported};
use super::{Address, Device, Dtype, Error, Kernel, KvLayout, KvOperand, QueryOperand, Stream};
use bytemuck::{Pod, Zeroable};
use decode::Decode;
use prefill::Prefill;

/// What [`AttentionPlan`] is planned for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionDesc {
    /// Query heads `H`, a multiple of the cache's heads: query head `h` reads key head `h / (H / Hkv)`.
    pub heads: usize,
    /// Most tokens of a call, of all sequences together.
    pub tokens_max: usize,
    /// Most sequences of a call.
    pub sequences_max: usize,
    /// Most tokens of a sequence, those of the call among them.
    pub context_max: usize,
    /// Tokens that a query sees, itself among them; `None` for all.
    pub window: Option<usize>,
    /// Type of the output.
    pub out: Dtype,
    /// The cache that keys and values are in.
    pub cache: KvLayout,
}

/// `softmax(q k^T / sqrt(D)) v` of each query over its sequence: a query at position `p` sees the keys at positions `j <= p`, with
/// a window only those with `p - j < window`.
///
/// Products of codes are summed exactly in integers, the softmax is in `f32`, weights meet values in half precision (bfloat16 where
/// values are) and are summed in `f32`. A query or a visible key or value whose scale is NaN makes the output NaN; what is not
/// visible changes nothing, except that NaN or infinity in a value that is not quantized may also reach queries of a long call that
/// do not see it, but see others of its page.
///
/// Sequences of few tokens take the decode kernel, which splits a long cache over many blocks; longer ones the prefill kernel.
#[derive(Debug, Clone)]
pub struct AttentionPlan {
    desc: AttentionDesc,
    decode: Decode,
    prefill: Prefill,
}

/// The memory of a call. All addresses are multiples of 16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionOperands {
    /// The call's queries, `[T, H]` rows ([`super::QueryLayout`]).
    pub queries: QueryOperand,
    /// The cache, with the call's keys and values in it.
    pub cache: KvOperand,
    /// [`super::Sequence`] of each sequence, in device memory. `position + tokens` must not exceed `context_max`, and no sequence
    /// may have more tokens than the call says.
    pub sequences: Address,
    /// Page numbers (`u32`), in device memory.
    pub page_table: Address,
    /// `[T, H D]` of `out`, written.
    pub out: Address,
    /// [`AttentionPlan::workspace_bytes`]. It must be zero before its first use, and is left zero.
    pub workspace: Address,
}

/// The fields that both kernels take; `cuda/attention.cuh` has the same.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct CommonArgs {
    query_codes: Address,
    query_params: Address,
    keys: Address,
    values: Address,
    cache_params: Address,
    sequences: Address,
    page_table: Address,
    out: Address,
    workspace: Address,
    heads: u32,
    kv_heads: u32,
    /// Tokens that a query sees; `u32::MAX` for all.
    window: u32,
    /// `Dtype::define` of the output.
    out_type: u32,
    /// `log2(e) / sqrt(D)`: scores are powers of two.
    score_scale: f32,
    unused: u32,
}

impl AttentionPlan {
    /// Loads the kernels.
    ///
    /// # Errors
    /// [`Error::Kernel`] for a cache without kernels (keys and values must be both codes or both floating point, keys with no fewer
    /// bits than values), heads that are no multiple of the cache's, an empty or too large shape, a window of 0; what
    /// [`Device::load`] gives.
    pub fn plan(device: &dyn Device, desc: &AttentionDesc) -> Result<Self, Error> {
        desc.cache.check_heads(desc.heads)?;
        check_range("tokens_max", desc.tokens_max, 1, 1 << 22)?;
        check_range("sequences_max", desc.sequences_max, 1, 65_535)?;
        check_range("context_max", desc.context_max, 1, 1 << 24)?;
        if desc.window == Some(0) {
            return unsupported("window", "at least 1", 0);
        }
        let bits = (desc.cache.key_bits(), desc.cache.value_bits());
        if !CACHE_BITS.contains(&bits) {
            let expected = "keys and values of 4 and 4, 8 and 4, 8 and 8, or 16 and 16 bits";
            return unsupported("cache", expected, format!("{} and {}", bits.0, bits.1));
        }
        Ok(Self { desc: *desc, decode: Decode::new(device, desc)?, prefill: Prefill::new(device, desc)? })
    }

    /// What it was planned for.
    #[must_use]
    pub fn desc(&self) -> &AttentionDesc {
        &self.desc
    }

    /// Which kernel runs when the longest of the call's sequences has `longest` tokens of its own.
    ///
    /// # Errors
    /// [`Error::Kernel`] where there is none.
    pub fn kernel(&self, longest: usize) -> Result<String, Error> {
        check_range("longest", longest, 0, self.desc.tokens_max)?;
        Ok(if self.decode.takes(longest) { self.decode.kernel() } else { self.prefill.kernel() })
    }

    /// Bytes of the workspace, for every call of the plan.
    #[must_use]
    pub fn workspace_bytes(&self) -> u64 {
        self.decode.workspace_bytes()
    }

    /// Bytes of the output.
    #[must_use]
    pub fn out_bytes(&self) -> u64 {
        (self.desc.tokens_max * self.desc.heads * self.desc.cache.head_dim) as u64 * self.desc.out.bytes()
    }

    /// Enqueues the attention of `tokens` tokens of `sequences` sequences, the longest of which has `longest` tokens in the call.
    /// The grid depends on these three only; what the sequences hold is read on the device.
    ///
    /// # Safety
    /// The addresses must be the device's and hold what the plan's shape says until the kernel has run; sequences, their tokens and
    /// their pages must lie in what the operands hold.
    ///
    /// # Errors
    /// [`Error::Kernel`] for more tokens or sequences than planned, [`Error::Alignment`] for an address that is no multiple of 16.
    pub unsafe fn enqueue(
        &self,
        device: &dyn Device,
        stream: Stream,
        tokens: usize,
        sequences: usize,
        longest: usize,
        operands: &AttentionOperands,
    ) -> Result<(), Error> {
        check_range("tokens", tokens, 0, self.desc.tokens_max)?;
        check_range("sequences", sequences, 0, self.desc.sequences_max)?;
        check_range("longest", longest, 0, tokens.min(self.desc.context_max))?;
        let common = self.common(operands)?;
        if tokens == 0 || sequences == 0 || longest == 0 {
            return Ok(());
        }
        let launch = if self.decode.takes(longest) {
            self.decode.launch(sequences, longest, common)
        } else {
            self.prefill.launch(sequences, longest, common)
        };
        // SAFETY: the caller vouches for the operands; the grid stays in the shape that was checked.
        unsafe { device.launch(stream, &launch) }
    }

    fn common(&self, operands: &AttentionOperands) -> Result<CommonArgs, Error> {
        let AttentionOperands { queries, cache, sequences, page_table, out, workspace } = *operands;
        let quantized = self.desc.cache.key.is_some();
        for (what, at) in [
            ("queries", queries.codes),
            ("keys", cache.keys),
            ("values", cache.values),
            ("sequences", sequences),
            ("page_table", page_table),
            ("out", out),
            ("workspace", workspace),
        ] {
            check_address(what, at)?;
        }
        if quantized {
            check_address("query parameters", queries.params)?;
            check_address("cache parameters", cache.params)?;
        }
        let desc = &self.desc;
        Ok(CommonArgs {
            query_codes: queries.codes,
            query_params: queries.params,
            keys: cache.keys,
            values: cache.values,
            cache_params: cache.params,
            sequences,
            page_table,
            out,
            workspace,
            heads: desc.heads as u32,
            kv_heads: desc.cache.kv_heads as u32,
            window: desc.window.map_or(u32::MAX, |window| u32::try_from(window).unwrap_or(u32::MAX)),
            out_type: desc.out.define(),
            score_scale: (std::f64::consts::LOG2_E / (desc.cache.head_dim as f64).sqrt()) as f32,
            unused: 0,
        })
    }
}

/// Bits of keys and values that there are kernels for.
const CACHE_BITS: [(u32, u32); 4] = [(4, 4), (8, 4), (8, 8), (16, 16)];

/// Every kernel of this folder.
pub(super) fn kernels() -> Vec<Kernel> {
    [decode::kernels(), prefill::kernels()].concat()
}
