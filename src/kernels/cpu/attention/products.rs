//! What becomes of the two exact integer products of attention, `q k^T` and weights by values.

use super::weights::BASE;
use crate::kernels::cpu::lanes::{Finish, LANES, Lanes};

/// Scores of quantized queries against quantized keys from their products: the asymmetric correction,
///
/// ```text
/// y[r, t] = scale[r] key_scale[t] (q[r] k[t] - zk[t] sum_q[r] - zq[r] (sum_k[t] - D zk[t]))
/// ```
///
/// All numbers in the parentheses are integers below 2^24, so `f32` holds them exactly.
#[derive(Clone, Copy)]
pub(super) struct Scores {
    /// Sum of the codes, zero point and scale of each query, `[rows]` each.
    pub(super) query_sum: *const f32,
    pub(super) query_zero: *const f32,
    pub(super) query_scale: *const f32,
    /// Factor on every scale, `1 / sqrt(D)`.
    pub(super) factor: f32,
    /// Zero point, `sum_k - D zk` and scale of each key, `[16 blocks]` each.
    pub(super) key_zero: *const f32,
    pub(super) key_centre: *const f32,
    pub(super) key_scale: *const f32,
    /// `[rows, y_stride]`.
    pub(super) y: *mut f32,
    pub(super) y_stride: usize,
}

impl Finish for Scores {
    #[inline(always)]
    unsafe fn finish<L: Lanes>(self, l: L, first: usize, block: usize, dots: &[L::F]) {
        let at = block * LANES;
        // SAFETY: the fields are as they say, by the caller's promise.
        unsafe {
            let zero = l.load_at(self.key_zero.add(at));
            let centre = l.load_at(self.key_centre.add(at));
            let key_scale = l.load_at(self.key_scale.add(at));
            for (row, &dot) in (first..).zip(dots) {
                let x = l.fnma(zero, l.splat(*self.query_sum.add(row)), dot);
                let x = l.fnma(centre, l.splat(*self.query_zero.add(row)), x);
                let x = l.mul(l.mul(x, l.splat(*self.query_scale.add(row) * self.factor)), key_scale);
                l.store_at(x, self.y.add(row * self.y_stride + at));
            }
        }
    }
}

/// Weighted sums of quantized values from products of the codes of weights and values. The rows are high and low parts of
/// weights by turns:
///
/// ```text
/// sums[r, d] += step[r] (BASE (high[r] v[d] - zero_high[r]) + low[r] v[d] - zero_low[r])
/// ```
///
/// Both differences are integers below 2^24.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    /// `[rows]` each: what a code counts, and the parts of the weights times the zero points of the values.
    pub(super) step: *const f32,
    pub(super) zero_high: *const f32,
    pub(super) zero_low: *const f32,
    /// `[rows, value_dim]`.
    pub(super) sums: *mut f32,
    pub(super) value_dim: usize,
}

impl Finish for Sums {
    #[inline(always)]
    unsafe fn finish<L: Lanes>(self, l: L, first: usize, block: usize, dots: &[L::F]) {
        for (row, parts) in (first / 2..).zip(dots.as_chunks::<2>().0) {
            // SAFETY: the fields are as they say, by the caller's promise.
            unsafe {
                let high = l.sub(parts[0], l.splat(*self.zero_high.add(row)));
                let low = l.sub(parts[1], l.splat(*self.zero_low.add(row)));
                let at = self.sums.add(row * self.value_dim + block * LANES);
                let sum = l.fma(l.fma(high, l.splat(BASE), low), l.splat(*self.step.add(row)), l.load_at(at));
                l.store_at(sum, at);
            }
        }
    }
}
