use super::{KEYS, Sizes};
use crate::kernels::cpu::lanes::LANES;

/// The scratch of one job.
pub(super) struct Parts<'a> {
    /// `[rows, KEYS]`: scores, then weights.
    pub(super) scores: &'a mut [f32],
    /// `[rows, value_dim]`: the weighted sum so far.
    pub(super) sums: &'a mut [f32],
    /// `[KEYS, value_dim]`: values without their scales; or bytes `[value_dim / 16, KEYS / 4, 16, 4]`, their codes.
    pub(super) values: &'a mut [f32],
    /// `[KEYS, key_dim]` bytes: unpacked codes.
    pub(super) keys: &'a mut [u8],
    /// `[KEYS]`: zero point of each key.
    pub(super) zero: &'a mut [f32],
    /// `[KEYS]`: `sum - D zero` of each key.
    pub(super) centre: &'a mut [f32],
    /// `[rows]`: the largest score so far.
    pub(super) largest: &'a mut [f32],
    /// `[rows]`: sum of the weights so far.
    pub(super) total: &'a mut [f32],
    /// `[KEYS]`: zero point of each value.
    pub(super) value_zero: &'a mut [f32],
    /// `[rows, 2, KEYS]`: weights as codes.
    pub(super) weights: &'a mut [i8],
    /// `[rows]` each: what a code of a weight counts, and weights times zero points.
    pub(super) step: &'a mut [f32],
    pub(super) zero_high: &'a mut [f32],
    pub(super) zero_low: &'a mut [f32],
}

impl<'a> Parts<'a> {
    /// Lengths in `f32`, in the order of the fields, each a whole number of cache lines.
    pub(super) fn lengths(sizes: Sizes) -> [usize; 13] {
        let rows = sizes.rows;
        let value_dim = sizes.layout.value_dim();
        let keys = KEYS * sizes.layout.key_dim / 4;
        // Weights as codes, their numbers, and values as codes in the place of `f32`.
        let (codes, of_codes, values) = if sizes.codes { (rows * KEYS / 2, rows, 4) } else { (0, 0, 1) };
        let (values, zeros) = (KEYS * value_dim / values, if sizes.codes { KEYS } else { 0 });
        let (scores, sums, n) = (rows * KEYS, rows * value_dim, of_codes);
        [scores, sums, values, keys, KEYS, KEYS, rows, rows, zeros, codes, n, n, n]
            .map(|len| len.next_multiple_of(LANES))
    }

    pub(super) fn new(sizes: Sizes, scratch: &'a mut [f32]) -> Self {
        let mut rest = scratch;
        let mut parts = Self::lengths(sizes)
            .map(|len| {
                let (part, behind) = std::mem::take(&mut rest).split_at_mut(len);
                rest = behind;
                part
            })
            .into_iter();
        let mut next = || parts.next().unwrap_or_default();
        Self {
            scores: next(),
            sums: next(),
            values: next(),
            keys: bytemuck::cast_slice_mut(next()),
            zero: next(),
            centre: next(),
            largest: next(),
            total: next(),
            value_zero: next(),
            weights: bytemuck::cast_slice_mut(next()),
            step: next(),
            zero_high: next(),
            zero_low: next(),
        }
    }
}
