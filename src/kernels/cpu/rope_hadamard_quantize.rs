use super::aligned::Aligned;
use super::kv_cache::{HeadLayout, KeyWriter, KvCache, MAX_HEAD_DIM, ValueWriter, Writer};
use super::lanes::{self, Kernel, LANES, Lanes, Level, Row};
use super::tiles::SharedMut;
use super::{Isa, RopeTable};
use crate::kernels::error::check_length;
use crate::kernels::{Affine, Arithmetic, Error};
use rayon::prelude::*;

/// What the queries of a layer look like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueryHeadsDesc {
    /// Query heads `H`, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Channels of a head `D`: even, at most 256.
    pub head_dim: usize,
    /// Tokens of a call.
    pub tokens_max: usize,
    /// Quantizer of keys and queries, the cache's; `None` keeps `f32`.
    pub key: Option<Affine>,
}

/// The queries of some tokens, after RoPE, Hadamard and quantization, as [`rope_hadamard_quantize`] writes and
/// [`super::attention`] reads them. It may serve all layers of a model in turn.
#[derive(Debug, Clone)]
pub struct QueryHeads {
    pub(super) desc: QueryHeadsDesc,
    pub(super) layout: HeadLayout,
    pub(super) tokens: usize,
    pub(super) level: Level,
    pub(super) arithmetic: Arithmetic,
    pub(super) store: QueryStore,
}

/// `[kv_head][token][head of the group]` rows.
#[derive(Debug, Clone)]
pub(super) enum QueryStore {
    /// Codes of 8 bits are shifted by -128, zero points and sums with them, so that a code fits a signed byte.
    Codes {
        affine: Affine,
        codes: Aligned<i8>,
        scale: Aligned<f32>,
        zero_point: Aligned<f32>,
        sum: Aligned<f32>,
    },
    Float(Aligned<f32>),
}

impl QueryHeads {
    /// [`Self::new_with`] [`Arithmetic::Reproducible`]: attention gives the same bits on every instruction set.
    ///
    /// # Errors
    /// As there.
    pub fn new(desc: &QueryHeadsDesc, isa: Isa) -> Result<Self, Error> {
        Self::new_with(desc, isa, Arithmetic::Reproducible)
    }

    /// Room for `tokens_max` tokens; the only allocation. `arithmetic` is that of [`super::attention`].
    ///
    /// # Errors
    /// [`Error::Unsupported`] for heads that are no multiple of `kv_heads`, an odd head dimension or one above 256,
    /// quantizer settings outside [`Affine::new`]'s, or an instruction set that this machine lacks.
    pub fn new_with(desc: &QueryHeadsDesc, isa: Isa, arithmetic: Arithmetic) -> Result<Self, Error> {
        let level = Level::new(isa)?;
        let layout = HeadLayout::new(desc.head_dim)?;
        if desc.kv_heads == 0 || desc.heads == 0 || !desc.heads.is_multiple_of(desc.kv_heads) {
            let expected = format!("a multiple of {} key heads", desc.kv_heads);
            return Err(Error::Unsupported { what: "heads", expected, got: desc.heads.to_string() });
        }
        let rows = desc.heads.checked_mul(desc.tokens_max).filter(|&rows| rows <= 1 << 32);
        let Some(rows) = rows else {
            let expected = "at most 2^32 heads x tokens".into();
            return Err(Error::Unsupported { what: "tokens_max", expected, got: desc.tokens_max.to_string() });
        };
        let store = match desc.key {
            Some(affine) => {
                Affine::new(affine.bits, affine.clip)?;
                QueryStore::Codes {
                    affine,
                    codes: Aligned::new(rows * layout.key_dim),
                    scale: Aligned::new(rows),
                    zero_point: Aligned::new(rows),
                    sum: Aligned::new(rows),
                }
            }
            None => QueryStore::Float(Aligned::new(rows * layout.head_dim)),
        };
        Ok(Self { desc: *desc, layout, tokens: 0, level, arithmetic, store })
    }

    /// What it was made for.
    #[must_use]
    pub fn desc(&self) -> &QueryHeadsDesc {
        &self.desc
    }

    /// What [`super::attention`] runs on these queries and values of `value`, for logs: what multiplies queries and keys, and
    /// weights and values.
    #[must_use]
    pub fn attention_kernel(&self, value: Option<Affine>) -> String {
        let isa = self.level.isa();
        let (amx, avx512) = (isa == Isa::Amx, Isa::Avx512Vnni.name());
        let vectors = if amx { avx512 } else { isa.name() };
        let tiles = format!("amx tdpbsud (few queries: {avx512})");
        let floats = format!("{vectors} f32");
        let scores = match self.desc.key {
            // Tiles take 64 codes at a time.
            Some(_) if amx && self.layout.key_dim.is_multiple_of(64) => &tiles,
            Some(_) => vectors,
            None => &floats,
        };
        let sums = match value {
            Some(_) if self.arithmetic == Arithmetic::Fast => {
                if amx {
                    &tiles
                } else {
                    vectors
                }
            }
            _ => &floats,
        };
        if scores == sums { format!("{scores} scores and sums") } else { format!("{scores} scores, {sums} sums") }
    }

    /// Tokens that it holds.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Bytes that it occupies.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.store {
            QueryStore::Codes { codes, scale, zero_point, sum, .. } => {
                codes.bytes() + scale.bytes() + zero_point.bytes() + sum.bytes()
            }
            QueryStore::Float(values) => values.bytes(),
        }
    }

    /// Row of a token and head.
    pub(super) fn row(&self, token: usize, head: usize) -> usize {
        let group = self.desc.heads / self.desc.kv_heads;
        (head / group * self.desc.tokens_max + token) * group + head % group
    }

    /// The query of `token` in `head` as the real numbers that it stands for. For tests and inspection.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a token or head that is not there.
    pub fn query(&self, head: usize, token: usize) -> Result<Vec<f32>, Error> {
        if head >= self.desc.heads || token >= self.tokens {
            return Err(Error::Unsupported {
                what: "head and token",
                expected: format!("a head below {} and a token below {}", self.desc.heads, self.tokens),
                got: format!("head {head} and token {token}"),
            });
        }
        let (row, d) = (self.row(token, head), self.layout.head_dim);
        Ok(match &self.store {
            QueryStore::Codes { codes, scale, zero_point, .. } => {
                let codes = &codes.as_slice()[row * self.layout.key_dim..][..d];
                let (scale, zero) = (scale.as_slice()[row], zero_point.as_slice()[row]);
                codes.iter().map(|&code| scale * (f32::from(code) - zero)).collect()
            }
            QueryStore::Float(values) => values.as_slice()[row * d..(row + 1) * d].to_vec(),
        })
    }
}

/// Tokens of a tile.
const TILE: usize = 16;
/// Values below which everything stays on the calling thread.
const INLINE: usize = 1 << 15;

/// RoPE on queries and keys, per-head Hadamard, per-token per-head quantization; keys and values go behind the last token
/// of the cache, queries into `queries`, whose count it sets.
///
/// `qkv` is `[T, (H + 2 Hkv) D]`, each row the query heads, the key heads and the value heads, as the stacked GEMM writes
/// them. `position` is the position of its first token. Where keys are quantized, queries and keys are multiplied by the
/// normalised Sylvester Hadamard of the largest power of two that divides `D` (block-diagonal), which leaves `q k^T` as it
/// is, and both are quantized with the key's settings. Values get no Hadamard. A head of a token that holds NaN or infinity
/// gets scale NaN and codes 0: the attention to it is NaN, other tokens and heads are untouched. In `f32` caches it is
/// stored as it is.
///
/// # Errors
/// [`Error::Length`] when `qkv` is no whole number of rows, [`Error::Unsupported`] when `queries`, `cache` and `rope` are
/// of different shapes or settings, for more tokens than `queries` or `cache` has room for, or positions beyond the table.
/// Nothing is written then.
pub fn rope_hadamard_quantize(
    qkv: &[f32],
    rope: &RopeTable,
    position: usize,
    queries: &mut QueryHeads,
    cache: &mut KvCache,
) -> Result<(), Error> {
    let QueryHeadsDesc { heads, kv_heads, head_dim, tokens_max, .. } = queries.desc;
    check_match(queries, cache)?;
    check_length("rope table's head dimension", head_dim, rope.head_dim())?;
    let width = (heads + 2 * kv_heads) * head_dim;
    let tokens = qkv.len() / width;
    check_length("qkv", tokens * width, qkv.len())?;
    if tokens > tokens_max {
        let expected = format!("at most {tokens_max}");
        return Err(Error::Unsupported { what: "tokens", expected, got: tokens.to_string() });
    }
    if position.checked_add(tokens).is_none_or(|end| end > rope.positions()) {
        let expected = format!("positions below {} (RopeTable::grow extends them)", rope.positions());
        return Err(Error::Unsupported { what: "position", expected, got: format!("{position} + {tokens}") });
    }
    cache.check_room(tokens)?;
    let start = cache.len();
    let level = queries.level;
    let block = 1 << head_dim.trailing_zeros();
    let store = match &mut queries.store {
        QueryStore::Codes { affine, codes, scale, zero_point, sum } => QueryWriter::Codes {
            affine: *affine,
            codes: SharedMut::new(codes.as_mut_slice()),
            scale: SharedMut::new(scale.as_mut_slice()),
            zero_point: SharedMut::new(zero_point.as_mut_slice()),
            sum: SharedMut::new(sum.as_mut_slice()),
        },
        QueryStore::Float(values) => QueryWriter::Float(SharedMut::new(values.as_mut_slice())),
    };
    let call = Call { qkv, rope, position, start, heads, kv_heads, tokens_max, block, store, cache: cache.writer() };
    let tile = |i: usize| level.run(Tile { call: &call, first: i * TILE, last: ((i + 1) * TILE).min(tokens) });
    let tiles = tokens.div_ceil(TILE);
    if qkv.len() < INLINE {
        (0..tiles).for_each(tile);
    } else {
        (0..tiles).into_par_iter().for_each(tile);
    }
    cache.advance(tokens);
    queries.tokens = tokens;
    Ok(())
}

/// Ok when queries and cache belong to the same attention.
pub(super) fn check_match(queries: &QueryHeads, cache: &KvCache) -> Result<(), Error> {
    let (query, cache) = (&queries.desc, cache.desc());
    if (query.kv_heads, query.head_dim, query.key) != (cache.kv_heads, cache.head_dim, cache.key) {
        return Err(Error::Unsupported {
            what: "queries",
            expected: format!("those of {} heads of {} with {:?}", cache.kv_heads, cache.head_dim, cache.key),
            got: format!("{} heads of {} with {:?}", query.kv_heads, query.head_dim, query.key),
        });
    }
    Ok(())
}

enum QueryWriter<'a> {
    Codes {
        affine: Affine,
        codes: SharedMut<'a, i8>,
        scale: SharedMut<'a, f32>,
        zero_point: SharedMut<'a, f32>,
        sum: SharedMut<'a, f32>,
    },
    Float(SharedMut<'a, f32>),
}

struct Call<'a> {
    qkv: &'a [f32],
    rope: &'a RopeTable,
    position: usize,
    /// Slot of the first token in the cache.
    start: usize,
    heads: usize,
    kv_heads: usize,
    tokens_max: usize,
    /// Size of the Hadamard.
    block: usize,
    store: QueryWriter<'a>,
    cache: Writer<'a>,
}

struct Tile<'a> {
    call: &'a Call<'a>,
    first: usize,
    last: usize,
}

impl Kernel for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let call = self.call;
        let layout = call.cache.layout;
        let d = layout.head_dim;
        let group = call.heads / call.kv_heads;
        let width = (call.heads + 2 * call.kv_heads) * d;
        // Codes past the head's channels stay 0.
        let (mut values, mut codes) = ([0.0; MAX_HEAD_DIM], [0; MAX_HEAD_DIM]);
        for t in self.first..self.last {
            let row = &call.qkv[t * width..(t + 1) * width];
            let (cos, sin) = call.rope.row(call.position + t);
            let slot = call.start + t;
            for (h, x) in row.chunks_exact(d).enumerate() {
                let values = &mut values[..d];
                if h < call.heads + call.kv_heads {
                    rotate(l, x, cos, sin, values);
                }
                if t == self.first && h < call.heads && h.is_multiple_of(group) {
                    // By the time the queries are through, what the keys and values go to is there.
                    call.cache.prefetch(h / group, slot);
                }
                // SAFETY of the writes: token `t` of each head belongs to this tile alone.
                if h < call.heads {
                    let at = (h / group * call.tokens_max + t) * group + h % group;
                    match &call.store {
                        QueryWriter::Codes { affine, codes: place, scale, zero_point, sum } => {
                            lanes::hadamard(l, values, call.block);
                            let params = lanes::quantize_row(l, affine, values, &mut codes[..d]);
                            // SAFETY: as above.
                            unsafe {
                                let shift = shift(affine);
                                let place = place.part(at * layout.key_dim, layout.key_dim);
                                for (place, &code) in place[..d].iter_mut().zip(&codes[..d]) {
                                    *place = code.wrapping_sub(shift) as i8;
                                }
                                scale.part(at, 1)[0] = params.scale;
                                zero_point.part(at, 1)[0] = f32::from(params.zero_point) - f32::from(shift);
                                sum.part(at, 1)[0] = params.sum as f32 - f32::from(shift) * d as f32;
                            }
                        }
                        // SAFETY: as above.
                        QueryWriter::Float(place) => unsafe { place.part(at * d, d).copy_from_slice(values) },
                    }
                } else if h < call.heads + call.kv_heads {
                    let head = h - call.heads;
                    match &call.cache.key {
                        KeyWriter::Codes { affine, .. } => {
                            lanes::hadamard(l, values, call.block);
                            let params = lanes::quantize_row(l, affine, values, &mut codes[..d]);
                            // SAFETY: as above.
                            unsafe { call.cache.key_codes(head, slot, &codes, params) };
                        }
                        // SAFETY: as above.
                        KeyWriter::Float(_) => unsafe { call.cache.key_float(head, slot, values) },
                    }
                } else {
                    let head = h - call.heads - call.kv_heads;
                    match &call.cache.value {
                        ValueWriter::Codes { affine, .. } => {
                            let params: Row = lanes::quantize_row(l, affine, x, &mut codes[..d]);
                            // SAFETY: as above.
                            unsafe { call.cache.value_codes(head, slot, &codes[..d], params) };
                        }
                        // SAFETY: as above.
                        ValueWriter::Float(_) => unsafe { call.cache.value_float(head, slot, x) },
                    }
                }
            }
        }
    }
}

/// What is taken off a query's codes so that they fit a signed byte.
fn shift(affine: &Affine) -> u8 {
    if affine.bits == 8 { 128 } else { 0 }
}

/// Channel `i` turns with channel `i + D / 2`.
#[inline(always)]
fn rotate<L: Lanes>(l: L, x: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32]) {
    let half = x.len() / 2;
    let (a, b) = x.split_at(half);
    let (low, high) = out.split_at_mut(half);
    let ((xs, x_tail), (ys, y_tail)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let ((cs, c_tail), (ss, s_tail)) = (cos.as_chunks::<LANES>(), sin.as_chunks::<LANES>());
    let (lows, low_tail) = low.as_chunks_mut::<LANES>();
    let (highs, high_tail) = high.as_chunks_mut::<LANES>();
    for i in 0..xs.len() {
        let (x, y, c, s) = (l.load(&xs[i]), l.load(&ys[i]), l.load(&cs[i]), l.load(&ss[i]));
        l.store(l.fnma(y, s, l.mul(x, c)), &mut lows[i]);
        l.store(l.fma(x, s, l.mul(y, c)), &mut highs[i]);
    }
    if !x_tail.is_empty() {
        let (x, y) = (l.load_tail(x_tail, 0.0), l.load_tail(y_tail, 0.0));
        let (c, s) = (l.load_tail(c_tail, 0.0), l.load_tail(s_tail, 0.0));
        l.store_tail(l.fnma(y, s, l.mul(x, c)), low_tail);
        l.store_tail(l.fma(x, s, l.mul(y, c)), high_tail);
    }
}
