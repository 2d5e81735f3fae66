//! Scores to weights, and weights to codes.

use crate::kernels::cpu::lanes::{self, LANES, Lanes};

/// `2^-100`: weights below it are 0, and so are all where the largest, times its value's scale, is.
const LEAST: f32 = f32::from_bits(27 << 23);
/// Largest code of a weight, `MOST = 127 BASE + 127`.
const MOST: f32 = 32_512.0;
/// A code of a weight is `BASE high + low`, both within -127..=127.
pub(super) const BASE: f32 = 255.0;

/// Weights of one query in the making.
pub(super) struct Weights<'a, F> {
    pub(super) offset: F,
    /// Sum of the weights, lane by lane.
    pub(super) total: F,
    /// The largest weights times scales, lane by lane.
    pub(super) heaviest: F,
    /// Of the values.
    pub(super) scales: Option<&'a [[f32; LANES]]>,
}

impl<F: Copy> Weights<'_, F> {
    /// Scores to weights `e^(score - offset)`, times the scale of each value. Of an `edge` the query sees these lanes.
    #[inline(always)]
    pub(super) fn make<L: Lanes<F = F>>(
        &mut self,
        l: L,
        block: usize,
        scores: &mut [f32; LANES],
        edge: Option<(usize, usize)>,
    ) {
        let zero = l.splat(0.0);
        let seen = |p| edge.map_or(p, |(low, high)| l.keep(p, low, high, zero));
        let p = lanes::exp(l, l.sub(l.load(scores), self.offset));
        // Times a value's scale the least weights would be no normal numbers, with which everything behind is many times
        // slower; below 2^-100 they are 0.
        let mut p = seen(l.max(zero, l.sub(p, l.splat(LEAST))));
        self.total = l.add(self.total, p);
        if let Some(scales) = self.scales {
            p = seen(l.mul(p, l.load(&scales[block])));
        }
        self.heaviest = l.max(p, self.heaviest);
        l.store(p, scores);
    }
}

/// The weights of one query as codes.
pub(super) struct WeightCodes<'a> {
    /// `[high, low][KEYS]`.
    pub(super) codes: &'a mut [i8],
    pub(super) step: &'a mut f32,
    pub(super) zero_high: &'a mut f32,
    pub(super) zero_low: &'a mut f32,
}

impl WeightCodes<'_> {
    /// Rounds `weights`, none of which is below 0 and none above a lane of `largest`, to codes: a weight is within 1 / 65024
    /// of the largest of them. `zeros` are the zero points of the values. Where a weight is NaN, so are its products with
    /// zero points. Codes of keys past the weights are 0, up to `keys`.
    #[inline(always)]
    pub(super) fn write<L: Lanes>(
        self,
        l: L,
        weights: &[[f32; LANES]],
        largest: L::F,
        zeros: &[[f32; LANES]],
        keys: usize,
    ) {
        let largest = l.largest(largest);
        // Below the least there is nothing to be seen, and the inverse might be infinity.
        let some = largest >= LEAST;
        *self.step = if some { largest * (1.0 / MOST) } else { 0.0 };
        let inverse = l.splat(if some { MOST / largest } else { 0.0 });
        let mut zero = [l.splat(0.0); 2];
        let (high, low) = self.codes.split_at_mut(self.codes.len() / 2);
        let (high, low) = (high.as_chunks_mut::<64>().0, low.as_chunks_mut::<64>().0);
        let zeros = zeros.as_chunks::<4>().0;
        let (fours, rest) = weights.as_chunks::<4>();
        for (i, weights) in fours.iter().enumerate() {
            split(l, weights, inverse, &zeros[i], &mut zero, &mut high[i], &mut low[i]);
        }
        let mut done = fours.len();
        if !rest.is_empty() {
            let mut last = [[0.0; LANES]; 4];
            last[..rest.len()].copy_from_slice(rest);
            split(l, &last, inverse, &zeros[done], &mut zero, &mut high[done], &mut low[done]);
            done += 1;
        }
        high[done..keys.div_ceil(64)].fill([0; 64]);
        low[done..keys.div_ceil(64)].fill([0; 64]);
        // Integers below 2^24, whatever the order.
        [*self.zero_high, *self.zero_low] = sums(l, zero);
    }
}

/// The high and the low parts of the codes of four vectors of weights, and what they add to the products with zero points.
#[inline(always)]
fn split<L: Lanes>(
    l: L,
    weights: &[[f32; LANES]; 4],
    inverse: L::F,
    zeros: &[[f32; LANES]; 4],
    zero: &mut [L::F; 2],
    high: &mut [i8; 64],
    low: &mut [i8; 64],
) {
    let (mut of_high, mut of_low) = ([l.zero_int(); 4], [l.zero_int(); 4]);
    for i in 0..4 {
        let code = l.round(l.mul(l.load(&weights[i]), inverse));
        // An odd base has no ties.
        let high = l.round(l.mul(code, l.splat(1.0 / BASE)));
        let low = l.fnma(high, l.splat(BASE), code);
        let zeros = l.load(&zeros[i]);
        zero[0] = l.fma(high, zeros, zero[0]);
        zero[1] = l.fma(low, zeros, zero[1]);
        (of_high[i], of_low[i]) = (l.to_int(high), l.to_int(low));
    }
    l.store_signed_bytes(of_high, high);
    l.store_signed_bytes(of_low, low);
}

/// The sums of the lanes of two vectors of integers.
#[inline(always)]
fn sums<L: Lanes>(l: L, [a, b]: [L::F; 2]) -> [f32; 2] {
    let zero = l.splat(0.0);
    let (a, b) = (l.add(a, l.swap::<8>(a)), l.add(b, l.swap::<8>(b)));
    let v = l.add(l.keep(a, 0, 8, zero), l.keep(b, 8, 16, zero));
    let v = l.add(v, l.swap::<4>(v));
    let v = l.add(v, l.swap::<2>(v));
    let v = l.add(v, l.swap::<1>(v));
    [l.first(v), l.first(l.swap::<8>(v))]
}
