use rayon::prelude::*;

use super::super::matmul::{Right, multiply};

/// Rows of one unit of parallel work. A constant, so that threads cannot change which products are computed together.
const TILE: usize = 128;
/// Rows of the first look, and the most that are looked at before the bound is taken again.
const FIRST_WAVE: usize = 64;
const LARGEST_WAVE: usize = 4096;

/// An entry of the rotated rows: its value and where it is. Ties go to the lower column, then to the lower row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Entry {
    pub(super) value: f32,
    pub(super) column: u32,
    pub(super) row: u32,
}

impl Entry {
    fn place(self) -> (u32, u32) {
        (self.column, self.row)
    }
}

/// The largest and the smallest entry.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Extremes {
    pub(super) max: Entry,
    pub(super) min: Entry,
}

impl Extremes {
    const NONE: Self = Self {
        max: Entry { value: f32::NEG_INFINITY, column: u32::MAX, row: u32::MAX },
        min: Entry { value: f32::INFINITY, column: u32::MAX, row: u32::MAX },
    };

    /// The extremes of both. Associative and commutative, ties included.
    fn merge(self, other: Self) -> Self {
        let (max, min) = (other.max, other.min);
        let higher = max.value > self.max.value || (max.value == self.max.value && max.place() < self.max.place());
        let lower = min.value < self.min.value || (min.value == self.min.value && min.place() < self.min.place());
        Self { max: if higher { max } else { self.max }, min: if lower { min } else { self.min } }
    }

    /// The entry of the larger magnitude; of two equal ones that at the lower place.
    pub(super) fn largest(self) -> Entry {
        let (high, low) = (self.max.value, -self.min.value);
        if high > low || (high == low && self.max.place() < self.min.place()) { self.max } else { self.min }
    }
}

/// Which rows can still change what the criterion sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needed {
    /// Only the largest magnitude matters.
    Magnitude,
    /// Both extremes matter.
    Both,
}

impl Needed {
    /// A row whose entries cannot reach this magnitude cannot matter.
    fn threshold(self, seen: Extremes) -> f32 {
        match self {
            Self::Magnitude => seen.max.value.max(-seen.min.value),
            Self::Both => seen.max.value.min(-seen.min.value),
        }
    }
}

/// The rows of a search, `[M, B]`: every block of every token, in the order of their norms.
///
/// A rotation keeps a row's L2 norm, which bounds each of its entries. So rows are visited from the longest to the
/// shortest, always rotated from the original data, and the visit ends at the first row which is too short to reach the
/// extremes already seen. The result is exactly that of visiting them all.
pub(super) struct Rows<'a> {
    x: &'a [f32],
    block: usize,
    /// Row numbers in `x`, longest first.
    order: Vec<u32>,
    /// Upper bound of the magnitude of any entry of a row under any rotation, in the same order.
    bounds: Vec<f32>,
    /// The first rows in order, as many as any visit needed yet.
    gathered: Vec<f32>,
    /// Products of a wave.
    products: Vec<f32>,
    /// Rows that were rotated, over all visits.
    pub(super) visited: u64,
}

impl<'a> Rows<'a> {
    /// Sorts the rows of `x`, whose length is a multiple of `block`; keeps at most `limit` of them.
    pub(super) fn new(x: &'a [f32], block: usize, limit: usize) -> Self {
        // Rounding may lift a computed entry above the exact norm: a dot product of B terms by B units in the last place
        // at most, the rotation's own rounding by one more.
        let slack = 1.0 + 2.0 * (block as f64 + 8.0) * f64::from(f32::EPSILON);
        let norm = |row: &[f32]| row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
        let bounds: Vec<f32> = x.par_chunks_exact(block).map(|row| (norm(row) * slack) as f32).collect();
        let mut order: Vec<u32> = (0..bounds.len() as u32).collect();
        let longer = |&a: &u32, &b: &u32| bounds[b as usize].total_cmp(&bounds[a as usize]).then(a.cmp(&b));
        order.par_sort_unstable_by(longer);
        order.truncate(limit);
        let bounds = order.iter().map(|&row| bounds[row as usize]).collect();
        Self { x, block, order, bounds, gathered: Vec::new(), products: Vec::new(), visited: 0 }
    }

    /// The extremes of `X R` for the rotation `r`, `[B, B]`, as far as `needed` asks.
    pub(super) fn extremes(&mut self, r: &[f32], needed: Needed) -> Extremes {
        let mut seen = Extremes::NONE;
        let (mut start, mut wave) = (0, FIRST_WAVE);
        loop {
            let threshold = needed.threshold(seen);
            let reaching = self.bounds.partition_point(|&bound| bound >= threshold);
            let end = reaching.min(start + wave);
            if end <= start {
                return seen;
            }
            seen = seen.merge(self.visit(start, end, r));
            self.visited += (end - start) as u64;
            (start, wave) = (end, (2 * wave).min(LARGEST_WAVE));
        }
    }

    /// The extremes of the rows `start..end` in order, rotated.
    fn visit(&mut self, start: usize, end: usize, r: &[f32]) -> Extremes {
        let block = self.block;
        for at in self.gathered.len() / block..end {
            let row = self.order[at] as usize * block;
            self.gathered.extend_from_slice(&self.x[row..row + block]);
        }
        let count = end - start;
        if self.products.len() < count * block {
            self.products.resize(count * block, 0.0);
        }
        let rows = self.gathered[start * block..end * block].par_chunks(TILE * block);
        let products = self.products[..count * block].par_chunks_mut(TILE * block);
        let order = self.order[start..end].par_chunks(TILE);
        let tile = |((rows, products), order): ((&[f32], &mut [f32]), &[u32])| {
            multiply(rows, r, Right::Plain, (order.len(), block, block), 1.0, products);
            tile_extremes(products, block, order)
        };
        rows.zip(products).zip(order).map(tile).reduce(|| Extremes::NONE, Extremes::merge)
    }
}

/// The extremes of a tile of products `[rows, block]`, whose rows have the numbers `order`.
fn tile_extremes(products: &[f32], block: usize, order: &[u32]) -> Extremes {
    // The values first, in lanes that the compiler can vectorise, then where they are.
    const LANES: usize = 16;
    let (mut high, mut low) = ([f32::NEG_INFINITY; LANES], [f32::INFINITY; LANES]);
    let chunks = products.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for lane in 0..LANES {
            high[lane] = if chunk[lane] > high[lane] { chunk[lane] } else { high[lane] };
            low[lane] = if chunk[lane] < low[lane] { chunk[lane] } else { low[lane] };
        }
    }
    let max = high.iter().chain(rest).fold(f32::NEG_INFINITY, |m, &v| m.max(v));
    let min = low.iter().chain(rest).fold(f32::INFINITY, |m, &v| m.min(v));
    let mut found = Extremes::NONE;
    for (values, &row) in products.chunks_exact(block).zip(order) {
        for (column, &value) in values.iter().enumerate() {
            if value == max || value == min {
                let entry = Entry { value, column: column as u32, row };
                found = found.merge(Extremes { max: entry, min: entry });
            }
        }
    }
    found
}
