use rayon::prelude::*;

use super::super::matmul::{Right, multiply};
use super::screen::{Candidate, Screen, Thresholds};

/// Rows of one unit of parallel work.
const TILE: usize = 64;
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

    /// The same for each direction.
    fn thresholds(self, seen: Extremes) -> Thresholds {
        match self {
            Self::Magnitude => Thresholds { high: self.threshold(seen), low: self.threshold(seen) },
            Self::Both => Thresholds { high: seen.max.value, low: -seen.min.value },
        }
    }
}

/// The rows of a search, `[M, B]`: every block of every token, in the order of their norms.
///
/// A rotation keeps a row's L2 norm, which bounds each of its entries. So rows are visited from the longest to the
/// shortest, always rotated from the original data, and the visit ends at the first row which is too short to reach the
/// extremes already seen. After the first look, a [`Screen`] where there is one bounds the rest far more tightly. The
/// result is exactly that of computing every row.
pub(super) struct Rows<'a> {
    x: &'a [f32],
    block: usize,
    /// Row numbers in `x`, longest first.
    order: Vec<u32>,
    /// Upper bound of the magnitude of any entry of a row under any rotation, in the same order.
    bounds: Vec<f32>,
    screen: Option<Screen>,
    /// Rows that were computed in floating point, over all visits.
    pub(super) computed: u64,
}

impl<'a> Rows<'a> {
    /// Sorts the rows of `x`, whose length is a multiple of `block`; keeps at most `limit` of them.
    pub(super) fn new(x: &'a [f32], block: usize, limit: usize, screen: Option<Screen>) -> Self {
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
        Self { x, block, order, bounds, screen, computed: 0 }
    }

    /// The extremes of `X R` for the rotation `r`, `[B, B]`, as far as `needed` asks.
    pub(super) fn extremes(&mut self, r: &[f32], needed: Needed) -> Extremes {
        let mut seen = Extremes::NONE;
        let (mut start, mut wave) = (0, FIRST_WAVE);
        loop {
            let reaching = self.bounds.partition_point(|&bound| bound >= needed.threshold(seen));
            if reaching <= start {
                return seen;
            }
            if start > 0 && self.screen.is_some() {
                return self.screened((start, reaching), r, needed, seen);
            }
            let end = reaching.min(start + wave);
            seen = seen.merge(self.compute(start..end, r));
            (start, wave) = (end, (2 * wave).min(LARGEST_WAVE));
        }
    }

    /// Adds the rows of some places to the extremes seen, computing only those that the screen lets through.
    fn screened(&mut self, places: (usize, usize), r: &[f32], needed: Needed, mut seen: Extremes) -> Extremes {
        let Some(screen) = &mut self.screen else { return seen };
        let mut left = screen.candidates(self.x, &self.order, places, r, needed.thresholds(seen));
        // The most promising first, since what they reach rules out most of the others.
        let promise = |c: &Candidate| c.high.max(c.low);
        left.sort_unstable_by(|a, b| promise(b).total_cmp(&promise(a)).then(a.place.cmp(&b.place)));
        while !left.is_empty() {
            let next = left.split_off(left.len().min(FIRST_WAVE));
            let rows: Vec<u32> = left.iter().map(|c| self.order[c.place as usize]).collect();
            seen = seen.merge(self.compute_rows(&rows, r));
            left = next;
            left.retain(|c| c.reaches(needed.thresholds(seen)));
        }
        seen
    }

    fn compute(&mut self, places: std::ops::Range<usize>, r: &[f32]) -> Extremes {
        let order = std::mem::take(&mut self.order);
        let seen = self.compute_rows(&order[places], r);
        self.order = order;
        seen
    }

    /// The extremes of some rows of `x`, rotated.
    fn compute_rows(&mut self, rows: &[u32], r: &[f32]) -> Extremes {
        let (x, block) = (self.x, self.block);
        self.computed += rows.len() as u64;
        let tile = |(gathered, products): &mut (Vec<f32>, Vec<f32>), rows: &[u32]| {
            gathered.clear();
            for &row in rows {
                gathered.extend_from_slice(&x[row as usize * block..(row as usize + 1) * block]);
            }
            // Always the same shape, so that a row's products do not depend on how many others there are.
            gathered.resize(TILE * block, 0.0);
            products.resize(TILE * block, 0.0);
            multiply(gathered, r, Right::Plain, (TILE, block, block), 1.0, products);
            tile_extremes(&products[..rows.len() * block], block, rows)
        };
        if rows.len() <= TILE {
            return tile(&mut Default::default(), rows);
        }
        rows.par_chunks(TILE).map_init(Default::default, tile).reduce(|| Extremes::NONE, Extremes::merge)
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
