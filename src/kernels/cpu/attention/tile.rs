#[cfg(target_arch = "x86_64")]
use super::amx;
use super::few::{FewScores, FewSums};
use super::parts::Parts;
use super::products::{Scores, Sums};
use super::weights::{WeightCodes, Weights};
use super::{KEYS, KeyStore, KvCache, QueryHeads, SharedMut, Sizes, ValueStore};
#[cfg(target_arch = "x86_64")]
use crate::kernels::cpu::Isa;
use crate::kernels::cpu::lanes::{self, Dots, Finish, Kernel, LANES, Lanes, MatMul};
use crate::kernels::cpu::prefetch::{prefetch, prefetch_line};
use crate::kernels::cpu::rope_hadamard_quantize::QueryStore;

/// Queries so few that the cache is not read often enough to be near: it is asked for ahead.
const FEW: usize = 16;

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

/// Some keys, `start..end`; `start` is a multiple of [`LANES`].
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
        let mut parts = Parts::new(self.sizes, std::mem::take(&mut self.scratch));
        let rows = (self.last - self.first) * self.sizes.group;
        for r in 0..rows {
            // Written at the end, and by then near.
            let at = self.out_row(r);
            for line in (0..self.sizes.layout.head_dim).step_by(LANES) {
                prefetch_line(self.out.address(at + line));
            }
        }
        parts.sums[..rows * self.sizes.layout.value_dim()].fill(0.0);
        parts.total[..rows].fill(0.0);
        parts.largest[..rows].fill(f32::MIN);
        let position = self.cache.len() - self.queries.tokens + self.first;
        let seen = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let end = self.cache.len() - self.queries.tokens + self.last;
        let mut start = seen / LANES * LANES;
        while start < end {
            // At the same places whatever the first query is: what a tile holds is part of its bits.
            let next = end.min((start / KEYS + 1) * KEYS);
            let span = Span { start, end: next };
            let ahead = self.ahead(next, end, seen);
            if rows < FEW {
                self.prefetch(ahead);
            }
            self.score(l, &mut parts, rows, span, ahead);
            self.weigh(l, &mut parts, rows, span, position);
            self.sum(l, &mut parts, rows, span, ahead);
            start = next;
        }
        self.write(&parts);
    }
}

impl Tile<'_> {
    /// Where the output of row `r` begins.
    fn out_row(&self, r: usize) -> usize {
        let Sizes { layout, group, .. } = self.sizes;
        let (token, head) = (self.first + r / group, self.kv_head * group + r % group);
        (token * self.queries.desc.heads + head) * layout.head_dim
    }

    /// The slot of the cache from which keys will be read behind `next`, where this head's keys end at `end`: heads are done
    /// the last first.
    fn ahead(&self, next: usize, end: usize, seen: usize) -> usize {
        let slots = self.cache.slots();
        if next < end {
            self.kv_head * slots + next
        } else {
            self.kv_head.saturating_sub(1) * slots + seen / KEYS * KEYS
        }
    }

    /// Has the numbers of the keys and values from slot `first` on brought near.
    #[inline(always)]
    fn prefetch(&self, first: usize) {
        let slots = first..(first + KEYS).min(self.cache.slots() * self.queries.desc.kv_heads);
        if let KeyStore::Codes { scale, zero_point, sum, .. } = &self.cache.key {
            prefetch(&scale.as_slice()[slots.clone()]);
            prefetch(&zero_point.as_slice()[slots.clone()]);
            prefetch(&sum.as_slice()[slots.clone()]);
        }
        if let ValueStore::Codes { scale, zero_point, .. } = &self.cache.value {
            prefetch(&scale.as_slice()[slots.clone()]);
            prefetch(&zero_point.as_slice()[slots]);
        }
    }

    /// Products of integers: on tiles where they may be, and as vectors where they are not.
    ///
    /// # Safety
    /// As [`Dots::run`].
    #[inline(always)]
    unsafe fn dots<L: Lanes>(&self, l: L, dots: Dots, finish: impl Finish) {
        // SAFETY: by the caller's promise; with this instruction set the process may use tiles.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            let dots = if self.queries.level.isa() == Isa::Amx && dots.groups.is_multiple_of(16) {
                dots.skip(amx::dots(&dots, finish))
            } else {
                dots
            };
            dots.run(l, finish);
        }
    }

    /// `q k^T / sqrt(D)` into the scores.
    #[inline(always)]
    fn score<L: Lanes>(&self, l: L, parts: &mut Parts<'_>, rows: usize, span: Span, ahead: usize) {
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
                let of_keys = key_zero.as_slice()[key..key + count].iter().zip(&key_sum.as_slice()[key..key + count]);
                let out = parts.zero[..count].iter_mut().zip(&mut parts.centre[..count]);
                for ((zero, centre), (&key_zero, &key_sum)) in out.zip(of_keys) {
                    *zero = f32::from(key_zero);
                    *centre = f32::from(key_sum) - d as f32 * *zero;
                }
                let size = layout.key_block(affine.bits);
                let ahead = codes.as_slice().as_ptr().wrapping_add(ahead / LANES * size);
                let codes = &codes.as_slice()[key / LANES * size..(key / LANES + blocks) * size];
                let scores = Scores {
                    query_sum: sum.as_slice()[row..].as_ptr(),
                    query_zero: zero_point.as_slice()[row..].as_ptr(),
                    query_scale: scale.as_slice()[row..].as_ptr(),
                    factor,
                    key_zero: parts.zero.as_ptr(),
                    key_centre: parts.centre.as_ptr(),
                    key_scale: key_scale.as_slice()[key..key + count].as_ptr(),
                    y: parts.scores.as_mut_ptr(),
                    y_stride: KEYS,
                };
                let q = q.as_slice()[row * layout.key_dim..].as_ptr();
                if rows < FEW && affine.bits <= 4 {
                    let codes = codes.as_ptr();
                    // SAFETY: as below.
                    unsafe { FewScores { q, rows, lines: groups / 2, codes, blocks, ahead, scores }.run(l) };
                    return;
                }
                let keys = if affine.bits <= 4 {
                    for (codes, keys) in codes.chunks_exact(size).zip(parts.keys.chunks_exact_mut(2 * size)) {
                        let (low, high) = keys.split_at_mut(size);
                        let (low, high) = (low.as_chunks_mut::<64>().0, high.as_chunks_mut::<64>().0);
                        for ((codes, low), high) in codes.as_chunks::<64>().0.iter().zip(low).zip(high) {
                            // SAFETY: 64 bytes.
                            let (a, b) = l.nibbles(unsafe { l.load_bytes_at(codes.as_ptr()) });
                            l.store_block(a, low);
                            l.store_block(b, high);
                        }
                    }
                    parts.keys.as_ptr()
                } else {
                    codes.as_ptr()
                };
                let dots = Dots {
                    q,
                    q_stride: layout.key_dim,
                    first: 0,
                    rows,
                    groups,
                    columns: keys,
                    blocks,
                    wide: affine.bits == 8,
                };
                // SAFETY: the queries hold `rows` rows from `row` on, the keys `blocks` blocks, and `scores` `rows` rows
                // of `KEYS >= 16 blocks` values.
                unsafe { self.dots(l, dots, scores) };
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
        let codes = match &self.cache.value {
            ValueStore::Codes { zero_point, .. } if self.sizes.codes => {
                let zeros = &zero_point.as_slice()[value..value + span.blocks() * LANES];
                // Past them is anything, and anything times a weight of 0 might be NaN.
                parts.value_zero.fill(0.0);
                parts.value_zero.iter_mut().zip(zeros).for_each(|(out, &zero)| *out = f32::from(zero));
                true
            }
            _ => false,
        };
        let (none, zero) = (l.splat(f32::MIN), l.splat(0.0));
        for r in 0..rows {
            let scores = &mut parts.scores[r * KEYS..(r + 1) * KEYS].as_chunks_mut::<LANES>().0[..span.blocks()];
            // This query sees the keys `low..high` of the span.
            let position = position + r / self.sizes.group;
            let seen = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
            let high = (position + 1).min(span.end).saturating_sub(span.start);
            let low = seen.saturating_sub(span.start).min(high);
            let (scores, unseen) = scores.split_at_mut(high.div_ceil(LANES));
            unseen.fill([0.0; LANES]);
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
            let mut weights = Weights { offset: l.splat(largest), total: zero, heaviest: zero, scales };
            let whole = low.div_ceil(LANES)..high / LANES;
            for i in 0..scores.len() {
                if whole.contains(&i) {
                    weights.make(l, i, &mut scores[i], None);
                } else {
                    let edge = |at: usize| at.saturating_sub(i * LANES).min(LANES);
                    weights.make(l, i, &mut scores[i], Some((edge(low), edge(high))));
                }
            }
            let Weights { total, heaviest, .. } = weights;
            if codes {
                let codes = WeightCodes {
                    codes: &mut parts.weights[r * 2 * KEYS..(r + 1) * 2 * KEYS],
                    step: &mut parts.step[r],
                    zero_high: &mut parts.zero_high[r],
                    zero_low: &mut parts.zero_low[r],
                };
                codes.write(l, scores, heaviest, parts.value_zero.as_chunks().0, span.end - span.start);
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
    fn sum<L: Lanes>(&self, l: L, parts: &mut Parts<'_>, rows: usize, span: Span, ahead: usize) {
        let layout = self.sizes.layout;
        let (value_dim, count) = (layout.value_dim(), span.end - span.start);
        let value = self.kv_head * self.cache.slots() + span.start;
        let values = match &self.cache.value {
            ValueStore::Codes { affine, codes, zero_point, .. } => {
                let size = layout.value_row(affine.bits);
                if self.sizes.codes {
                    let ahead = codes.as_slice().as_ptr().wrapping_add(ahead * size);
                    let codes = &codes.as_slice()[value * size..(value + span.blocks() * LANES) * size];
                    self.sum_codes(l, parts, rows, codes, affine.bits, ahead);
                    return;
                }
                let codes = &codes.as_slice()[value * size..(value + count) * size];
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

    /// Adds values of codes `[keys, row]`, weighted by codes, to the sums.
    #[inline(always)]
    fn sum_codes<L: Lanes>(&self, l: L, parts: &mut Parts<'_>, rows: usize, codes: &[u8], bits: u32, ahead: *const u8) {
        let layout = self.sizes.layout;
        let (row, value_dim) = (layout.value_row(bits), layout.value_dim());
        let sums = Sums {
            step: parts.step.as_ptr(),
            zero_high: parts.zero_high.as_ptr(),
            zero_low: parts.zero_low.as_ptr(),
            sums: parts.sums.as_mut_ptr(),
            value_dim,
        };
        if rows < FEW {
            let (weights, groups) = (parts.weights.as_ptr(), codes.len() / row / 4);
            // SAFETY: as below.
            unsafe { FewSums { weights, rows, codes: codes.as_ptr(), row, groups, bits, ahead, sums }.run(l) };
            return;
        }
        // Of whole tiles; past the keys the codes of weights are 0.
        let groups = (codes.len() / row).next_multiple_of(64) / 4;
        let values: &mut [u8] = bytemuck::cast_slice_mut(parts.values);
        let values = values.as_chunks_mut::<64>().0;
        let chunks = row / LANES;
        for (group, codes) in codes.chunks_exact(4 * row).enumerate() {
            let mut keys = codes.chunks_exact(row).map(|key| key.as_chunks::<LANES>().0);
            let [Some(a), Some(b), Some(c), Some(d)] = [keys.next(), keys.next(), keys.next(), keys.next()] else {
                continue;
            };
            for (chunk, (((a, b), c), d)) in a.iter().zip(b).zip(c).zip(d).enumerate() {
                let codes = l.interleave([a, b, c, d]);
                if bits <= 4 {
                    let (low, high) = l.nibbles(codes);
                    l.store_block(low, &mut values[chunk * groups + group]);
                    l.store_block(high, &mut values[(chunks + chunk) * groups + group]);
                } else {
                    l.store_block(codes, &mut values[chunk * groups + group]);
                }
            }
        }
        let dots = Dots {
            q: parts.weights.as_ptr(),
            q_stride: KEYS,
            first: 0,
            rows: 2 * rows,
            groups,
            columns: values.as_ptr().cast(),
            blocks: value_dim / LANES,
            wide: bits == 8,
        };
        // SAFETY: `weights` holds two rows of `KEYS` codes for each of `rows`, `values` so many blocks of `KEYS` or fewer
        // codes, and the others `rows` numbers or rows of `value_dim`.
        unsafe { self.dots(l, dots, sums) };
    }

    /// Divides by the sum of the weights and writes the heads of each token.
    #[inline(always)]
    fn write(&self, parts: &Parts<'_>) {
        let Sizes { layout, group, .. } = self.sizes;
        let (d, half) = (layout.head_dim, layout.head_dim / 2);
        let rows = parts.sums.chunks_exact(layout.value_dim()).zip(parts.total.iter());
        for (r, (sums, total)) in rows.take((self.last - self.first) * group).enumerate() {
            // SAFETY: this token and head belong to this tile alone.
            let out = unsafe { self.out.part(self.out_row(r), d) };
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
