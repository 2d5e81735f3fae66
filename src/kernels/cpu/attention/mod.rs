//! Causal attention over the cache.

#[cfg(target_arch = "x86_64")]
mod amx;
mod few;
mod parts;
mod products;
mod tile;
mod weights;

#[cfg(test)]
mod tests;

use super::kv_cache::{HeadLayout, KeyStore, KvCache, ValueStore};
use super::rope_hadamard_quantize::{QueryHeads, check_match};
use super::tiles::{self, SharedMut};
use crate::kernels::error::check_length;
use crate::kernels::{Arithmetic, Error};
use parts::Parts;
use tile::Tile;

/// Keys of a tile.
const KEYS: usize = 128;
/// Rows (queries x heads of a group) of a tile.
const ROWS: usize = 96;
/// Multiply-adds below which everything stays on the calling thread.
const INLINE_WORK: usize = 1 << 21;

/// Causal attention with grouped queries: `out = softmax(q k^T / sqrt(D)) v`, `[T, H D]`.
///
/// `queries` holds the last `T` tokens of `cache`; query `t` sees the tokens up to its own, and with a `window` of `w` only
/// the last `w` of these, itself included. Scores of quantized queries and keys come from exact integer dot products with
/// the asymmetric correction. The softmax runs in `f32` over tiles of 128 keys at fixed places (online, rescaled where the
/// maximum grows) and its result is not quantized; the scales of quantized values are folded into it. The bits of a query's
/// output depend on its key and value tokens alone up to the tile's rescaling: not on threads or the instruction set.
///
/// With queries of [`Arithmetic::Fast`] the weights of quantized values become integers too, of 15 bits: in each tile a
/// weight, times its value's scale, is within 1 / 65024 of the largest there. Their sums are exact; in half precision, the
/// customary one, a weight is within 1 / 2048 of itself. The bits are others than those of [`Arithmetic::Reproducible`] and as
/// independent of threads, of the queries beside a query and of the instruction set.
///
/// A cached key or value of scale NaN makes the output of every query that sees it NaN. In an `f32` cache NaN or infinity
/// may also reach the queries of the same tile that come before it.
///
/// # Errors
/// [`Error::Unsupported`] when queries and cache are of different shapes, the cache holds fewer tokens than `queries`, or
/// the window is 0; [`Error::Length`] when `out` is not `[T, H D]` or `workspace` is below what one thread needs.
pub fn attention(
    queries: &QueryHeads,
    cache: &KvCache,
    window: Option<usize>,
    out: &mut [f32],
    workspace: &mut [f32],
) -> Result<(), Error> {
    check_match(queries, cache)?;
    let tokens = queries.tokens;
    let width = queries.desc.heads * queries.desc.head_dim;
    check_length("out", tokens * width, out.len())?;
    if cache.len() < tokens {
        let expected = format!("a cache of at least {tokens} tokens");
        return Err(Error::Unsupported { what: "cache", expected, got: cache.len().to_string() });
    }
    if window == Some(0) {
        return Err(Error::Unsupported { what: "window", expected: "at least 1".into(), got: "0".into() });
    }
    let sizes = Sizes::new(queries);
    let per_job = sizes.scratch();
    let least = tiles::least_workspace(per_job);
    if workspace.len() < least {
        return Err(Error::Length { operand: "workspace", expected: least, got: workspace.len() });
    }
    let kv_heads = queries.desc.kv_heads;
    let seen = window.unwrap_or(usize::MAX).min(cache.len());
    let parallel = tokens * width * seen >= INLINE_WORK;
    let out = SharedMut::new(out);
    tiles::for_each_tile(workspace, per_job, tokens.div_ceil(sizes.queries) * kv_heads, parallel, |i, scratch| {
        let (tile, kv_head) = (i / kv_heads, i % kv_heads);
        let first = tile * sizes.queries;
        let last = (first + sizes.queries).min(tokens);
        queries.level.run(Tile { queries, cache, window, kv_head, first, last, sizes, out: &out, scratch });
    });
    Ok(())
}

impl QueryHeads {
    /// Length in `f32` of the workspace that lets every thread of the current pool work in [`attention`]. A shorter one
    /// costs threads, down to an error below that of one thread.
    #[must_use]
    pub fn workspace_len(&self) -> usize {
        let sizes = Sizes::new(self);
        let tiles = self.desc.tokens_max.div_ceil(sizes.queries) * self.desc.kv_heads;
        tiles::workspace_len(sizes.scratch(), tiles)
    }
}

/// Extents of a tile.
#[derive(Clone, Copy)]
struct Sizes {
    layout: HeadLayout,
    /// Query heads to a key head.
    group: usize,
    /// Tokens of queries.
    queries: usize,
    /// `queries * group`.
    rows: usize,
    /// Whether weights of quantized values become integers.
    codes: bool,
}

impl Sizes {
    fn new(queries: &QueryHeads) -> Self {
        let group = queries.desc.heads / queries.desc.kv_heads;
        // The number of queries depends on the shape alone, so that a decoder's workspace is as small as its call.
        let tile = (ROWS / group).clamp(1, queries.desc.tokens_max.max(1));
        let codes = queries.arithmetic == Arithmetic::Fast;
        Self { layout: queries.layout, group, queries: tile, rows: tile * group, codes }
    }

    /// Values of a job's scratch: see [`Parts`].
    fn scratch(self) -> usize {
        Parts::lengths(self).iter().sum()
    }
}
