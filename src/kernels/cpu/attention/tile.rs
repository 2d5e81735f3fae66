use super::{KEYS, KeyStore, KvCache, QueryHeads, STEP, SharedMut, Sizes, ValueStore};
#[cfg(target_arch = "x86_64")]
use super::{Tiles, amx};
use crate::kernels::cpu::lanes::{self, DotRows, Kernel, LANES, Lanes, MatMul};
use crate::kernels::cpu::rope_hadamard_quantize::QueryStore;
#[cfg(target_arch = "x86_64")]
use crate::kernels::cpu::tile_registers;

/// `2^-100`: weights below it are 0.
const LEAST_WEIGHT: f32 = f32::from_bits(27 << 23);

/// The scratch of one job.
pub(super) struct Parts<'a> {
    /// `[rows, KEYS]`: scores, then weights.
    scores: &'a mut [f32],
    /// `[rows, value_dim]`: the weighted sum so far.
    sums: &'a mut [f32],
    /// `[KEYS, value_dim]`: values without their scales.
    values: &'a mut [f32],
    /// `[KEYS, key_dim]` bytes: unpacked codes.
    keys: &'a mut [u8],
    /// `[KEYS]`: zero point of each key.
    zero: &'a mut [f32],
    /// `[KEYS]`: `sum - D zero` of each key.
    centre: &'a mut [f32],
    /// `[rows]`: the largest score so far.
    largest: &'a mut [f32],
    /// `[rows]`: sum of the weights so far.
    total: &'a mut [f32],
    /// `[rows, KEYS]`: weights as two bfloat16, where sums are tiles'.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "tiles are x86's"))]
    split: &'a mut [f32],
}

impl<'a> Parts<'a> {
    /// Lengths in `f32`, in the order of the fields, each a whole number of cache lines.
    pub(super) fn lengths(sizes: Sizes) -> [usize; 9] {
        let rows = sizes.rows;
        // Tiles store whole ones of rows.
        let (sum_rows, split) = if sizes.tiles.sums {
            (rows.next_multiple_of(LANES), rows.next_multiple_of(LANES) * KEYS)
        } else {
            (rows, 0)
        };
        let value_dim = sizes.layout.value_dim();
        let keys = KEYS * sizes.layout.key_dim / 4;
        [rows * KEYS, sum_rows * value_dim, KEYS * value_dim, keys, KEYS, KEYS, rows, rows, split]
            .map(|len| len.next_multiple_of(LANES))
    }

    fn new(sizes: Sizes, scratch: &'a mut [f32]) -> Self {
        let [a, b, c, d, e, f, g, h, _] = Self::lengths(sizes);
        let (scores, rest) = scratch.split_at_mut(a);
        let (sums, rest) = rest.split_at_mut(b);
        let (values, rest) = rest.split_at_mut(c);
        let (keys, rest) = rest.split_at_mut(d);
        let (zero, rest) = rest.split_at_mut(e);
        let (centre, rest) = rest.split_at_mut(f);
        let (largest, rest) = rest.split_at_mut(g);
        let (total, split) = rest.split_at_mut(h);
        Self { scores, sums, values, keys: bytemuck::cast_slice_mut(keys), zero, centre, largest, total, split }
    }
}

/// Queries `first..last` of the heads that share one key head.
pub(super) struct Tile<'a> {
    pub(super) queries: &'a QueryHeads,
    pub(super) cache: &'a KvCache,
    pub(super) window: Option<usize>,
    pub(super) kv_head: usize,
    pub(super) first: usize,
    pub(super) last: usize,
    pub(super) sizes: Sizes,
    pub(super) out: &'a SharedMut<'a, f32>,
    pub(super) scratch: &'a mut [f32],
}

/// Some keys, `start..end`; `start` is a multiple of [`STEP`].
#[derive(Clone, Copy)]
struct Span {
    start: usize,
    end: usize,
}

impl Span {
    fn blocks(self) -> usize {
        (self.end - self.start).div_ceil(LANES)
    }
}

impl Kernel for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self, l: L) {
        #[cfg(target_arch = "x86_64")]
        let tiles = self.sizes.tiles != Tiles::default();
        #[cfg(target_arch = "x86_64")]
        if tiles {
            // SAFETY: tiles are planned where this process may use them; what is configured is released below.
            unsafe { tile_registers::configure() };
        }
        let mut parts = Parts::new(self.sizes, std::mem::take(&mut self.scratch));
        let rows = (self.last - self.first) * self.sizes.group;
        parts.sums[..rows * self.sizes.layout.value_dim()].fill(0.0);
        parts.total[..rows].fill(0.0);
        parts.largest[..rows].fill(f32::MIN);
        let position = self.cache.len() - self.queries.tokens + self.first;
        let seen = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let end = self.cache.len() - self.queries.tokens + self.last;
        // At the same places whatever the first query is: where steps of a sum begin is part of its bits.
        let mut start = seen / STEP * STEP;
        while start < end {
            let span = Span { start, end: end.min((start / KEYS + 1) * KEYS) };
            self.score(l, &mut parts, rows, span);
            self.weigh(l, &mut parts, rows, span, position);
            self.sum(l, &mut parts, rows, span);
            start = span.end;
        }
        #[cfg(target_arch = "x86_64")]
        if tiles {
            // SAFETY: configured above.
            unsafe { tile_registers::release() };
        }
        self.write(&parts);
    }
}

impl Tile<'_> {
    /// `q k^T / sqrt(D)` into the scores.
    #[inline(always)]
    fn score<L: Lanes>(&self, l: L, parts: &mut Parts<'_>, rows: usize, span: Span) {
        let layout = self.sizes.layout;
        let (d, groups, blocks) = (layout.head_dim, layout.groups(), span.blocks());
        let factor = 1.0 / (d as f32).sqrt();
        let row = self.queries.row(self.first, self.kv_head * self.sizes.group);
        let key = self.kv_head * self.cache.slots() + span.start;
        match (&self.queries.store, &self.cache.key) {
            (
                QueryStore::Codes { affine, codes: q, scale, zero_point, sum },
                KeyStore::Codes { codes, scale: key_scale, zero_point: key_zero, sum: key_sum, .. },
            ) => {
                let count = blocks * LANES;
                for i in 0..count {
                    let zero = f32::from(key_zero.as_slice()[key + i]);
                    parts.zero[i] = zero;
                    parts.centre[i] = f32::from(key_sum.as_slice()[key + i]) - d as f32 * zero;
                }
                let size = layout.key_block(affine.bits);
                let codes = &codes.as_slice()[key / LANES * size..(key / LANES + blocks) * size];
                let keys = if affine.bits <= 4 {
                    for (codes, keys) in codes.chunks_exact(size).zip(parts.keys.chunks_exact_mut(2 * size)) {
                        let (low, high) = keys.split_at_mut(size);
                        let (low, high) = (low.as_chunks_mut::<64>().0, high.as_chunks_mut::<64>().0);
                        for ((codes, low), high) in codes.as_chunks::<64>().0.iter().zip(low).zip(high) {
                            l.split_nibbles(codes, low, high);
                        }
                    }
                    parts.keys.as_ptr()
                } else {
                    codes.as_ptr()
                };
                let dots = DotRows {
                    q: q.as_slice()[row * layout.key_dim..].as_ptr(),
                    rows,
                    groups,
                    keys,
                    blocks,
                    query_sum: sum.as_slice()[row..].as_ptr(),
                    query_zero: zero_point.as_slice()[row..].as_ptr(),
                    query_scale: scale.as_slice()[row..].as_ptr(),
                    factor,
                    key_zero: parts.zero.as_ptr(),
                    key_centre: parts.centre.as_ptr(),
                    key_scale: key_scale.as_slice()[key..key + count].as_ptr(),
                    y: parts.scores.as_mut_ptr(),
                    y_stride: KEYS,
                    wide: affine.bits == 8,
                };
                // SAFETY: the queries hold `rows` rows from `row` on, the keys `blocks` blocks, and `scores` `rows` rows
                // of `KEYS >= 16 blocks` values.
                unsafe {
                    #[cfg(target_arch = "x86_64")]
                    let dots = if self.sizes.tiles.scores { dots.skip(amx::dots(&dots)) } else { dots };
                    dots.run(l);
                }
            }
            (QueryStore::Float(q), KeyStore::Float(keys)) => {
                let product = MatMul {
                    x: q.as_slice()[row * d..(row + rows) * d].as_ptr(),
                    x_stride: d,
                    rows,
                    k: d,
                    m: keys.as_slice()[key * d..(key + blocks * LANES) * d].as_ptr(),
                    row_step: LANES,
                    strip_step: d * LANES,
                    columns: blocks * LANES,
                    y: parts.scores.as_mut_ptr(),
                    y_stride: KEYS,
                    accumulate: false,
                };
                // SAFETY: as above; a block of keys is one strip.
                unsafe { product.run(l) };
                let factor = l.splat(factor);
                for scores in parts.scores.chunks_exact_mut(KEYS).take(rows) {
                    for scores in &mut scores.as_chunks_mut::<LANES>().0[..blocks] {
                        l.store(l.mul(l.load(scores), factor), scores);
                    }
                }
            }
            // `check_match` has seen the same settings on both sides.
            _ => {}
        }
    }

    /// Scores to weights `e^(score - largest)`, times the scale of each value; masks; rescales the sums where the largest
    /// score grew.
    #[inline(always)]
    fn weigh<L: Lanes>(&self, l: L, parts: &mut Parts<'_>, rows: usize, span: Span, position: usize) {
        let value_dim = self.sizes.layout.value_dim();
        let value = self.kv_head * self.cache.slots() + span.start;
        let scales = match &self.cache.value {
            ValueStore::Codes { scale, .. } => {
                Some(scale.as_slice()[value..value + span.blocks() * LANES].as_chunks::<LANES>().0)
            }
            ValueStore::Float(_) => None,
        };
        let (none, zero, least) = (l.splat(f32::MIN), l.splat(0.0), l.splat(LEAST_WEIGHT));
        for r in 0..rows {
            let scores = &mut parts.scores[r * KEYS..(r + 1) * KEYS].as_chunks_mut::<LANES>().0[..span.blocks()];
            // This query sees the keys `low..high` of the span.
            let position = position + r / self.sizes.group;
            let seen = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
            let high = (position + 1).min(span.end).saturating_sub(span.start);
            let low = seen.saturating_sub(span.start).min(high);
            let mut largest = l.splat(parts.largest[r]);
            for (i, scores) in scores.iter_mut().enumerate() {
                let at = i * LANES;
                if low > at || high < at + LANES {
                    let (low, high) = (low.saturating_sub(at).min(LANES), high.saturating_sub(at).min(LANES));
                    l.store(l.keep(l.load(scores), low, high, none), scores);
                }
                largest = l.max(l.load(scores), largest);
            }
            let largest = l.largest(largest);
            let offset = l.splat(largest);
            let mut total = zero;
            for (i, scores) in scores.iter_mut().enumerate() {
                let at = i * LANES;
                let (low, high) = (low.saturating_sub(at).min(LANES), high.saturating_sub(at).min(LANES));
                let p = lanes::exp(l, l.sub(l.load(scores), offset));
                // Times a value's scale the least weights would be no normal numbers, with which everything behind is many
                // times slower; below 2^-100 they are 0.
                let mut p = l.max(zero, l.sub(p, least));
                let masked = high - low.min(high) < LANES;
                if masked {
                    p = l.keep(p, low, high, zero);
                }
                total = l.add(total, p);
                if let Some(scales) = scales {
                    p = l.mul(p, l.load(&scales[i]));
                    if masked {
                        p = l.keep(p, low, high, zero);
                    }
                }
                l.store(p, scores);
            }
            let shrink = if largest > parts.largest[r] {
                let mut factor = [0.0; LANES];
                l.store(lanes::exp(l, l.splat(parts.largest[r] - largest)), &mut factor);
                let factor = factor[0];
                for sums in parts.sums[r * value_dim..(r + 1) * value_dim].as_chunks_mut::<LANES>().0 {
                    l.store(l.mul(l.load(sums), l.splat(factor)), sums);
                }
                factor
            } else {
                1.0
            };
            parts.total[r] = parts.total[r] * shrink + l.sum(total);
            parts.largest[r] = largest;
        }
    }

    /// Adds the weighted values to the sums.
    #[inline(always)]
    fn sum<L: Lanes>(&self, l: L, parts: &mut Parts<'_>, rows: usize, span: Span) {
        let layout = self.sizes.layout;
        let (value_dim, count) = (layout.value_dim(), span.end - span.start);
        let value = self.kv_head * self.cache.slots() + span.start;
        let values = match &self.cache.value {
            ValueStore::Codes { affine, codes, zero_point, .. } => {
                let size = layout.value_row(affine.bits);
                let codes = &codes.as_slice()[value * size..(value + count) * size];
                #[cfg(target_arch = "x86_64")]
                if self.sizes.tiles.sums {
                    let zero_point = &zero_point.as_slice()[value..value + count];
                    let nibbles = affine.bits <= 4;
                    let values = amx::Values { codes, row: size, zero_point, nibbles };
                    let weighted = amx::Weighted {
                        weights: parts.scores.as_ptr(),
                        stride: KEYS,
                        rows,
                        keys: span.blocks() * LANES,
                        split: parts.split.as_mut_ptr().cast(),
                        value_dim,
                        sums: parts.sums.as_mut_ptr(),
                    };
                    // SAFETY: these sums are planned where the machine has AMX-BF16 alone, and `run` has configured the
                    // tiles; `values` has room for `KEYS` rows of `f32`, `split` and `sums` for whole tiles of rows.
                    unsafe {
                        if rows <= amx::FEW {
                            weighted.run_few(&values);
                        } else {
                            values.pack(parts.values.as_mut_ptr().cast());
                            weighted.run(parts.values.as_ptr().cast());
                        }
                    }
                    return;
                }
                for (i, (codes, out)) in
                    codes.chunks_exact(size).zip(parts.values.chunks_exact_mut(value_dim)).enumerate()
                {
                    let zero = l.splat(f32::from(zero_point.as_slice()[value + i]));
                    let codes = codes.as_chunks::<LANES>().0;
                    let out = out.as_chunks_mut::<LANES>().0;
                    if affine.bits <= 4 {
                        let (low, high) = out.split_at_mut(codes.len());
                        for ((codes, low), high) in codes.iter().zip(low).zip(high) {
                            let (a, b) = l.widen_nibbles(codes);
                            l.store(l.sub(a, zero), low);
                            l.store(l.sub(b, zero), high);
                        }
                    } else {
                        for (codes, out) in codes.iter().zip(out) {
                            l.store(l.sub(l.widen(codes), zero), out);
                        }
                    }
                }
                parts.values.as_ptr()
            }
            ValueStore::Float(values) => values.as_slice()[value * value_dim..(value + count) * value_dim].as_ptr(),
        };
        let product = MatMul {
            x: parts.scores.as_ptr(),
            x_stride: KEYS,
            rows,
            k: count,
            m: values,
            row_step: value_dim,
            strip_step: LANES,
            columns: value_dim,
            y: parts.sums.as_mut_ptr(),
            y_stride: value_dim,
            accumulate: true,
        };
        // SAFETY: `scores` holds `rows` rows of at least `count` weights, `values` `count` rows and `sums` `rows` rows of
        // `value_dim`.
        unsafe { product.run(l) };
    }

    /// Divides by the sum of the weights and writes the heads of each token.
    #[inline(always)]
    fn write(&self, parts: &Parts<'_>) {
        let Sizes { layout, group, .. } = self.sizes;
        let (d, half) = (layout.head_dim, layout.head_dim / 2);
        let rows = parts.sums.chunks_exact(layout.value_dim()).zip(parts.total.iter());
        for (r, (sums, total)) in rows.take((self.last - self.first) * group).enumerate() {
            let (token, head) = (self.first + r / group, self.kv_head * group + r % group);
            // SAFETY: this token and head belong to this tile alone.
            let out = unsafe { self.out.part((token * self.queries.desc.heads + head) * d, d) };
            let factor = 1.0 / total;
            let (low, high) = out.split_at_mut(half);
            for (out, sum) in low.iter_mut().zip(sums) {
                *out = sum * factor;
            }
            for (out, sum) in high.iter_mut().zip(&sums[layout.value_half..]) {
                *out = sum * factor;
            }
        }
    }
}
