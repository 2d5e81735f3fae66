use rayon::prelude::*;

use super::reach::{COLUMNS, reach};
use crate::kernels::cpu::Isa;

/// Rows that are packed together: four vectors of 16 lanes, one row a lane.
pub(super) const GROUP: usize = 64;
/// Groups of one unit of parallel work.
const GROUPS_PER_TILE: usize = 8;
/// Codes of rows are shifted by this to be unsigned.
pub(super) const SHIFT: i32 = 128;

/// Bounds on what rows reach under a rotation, from 8-bit codes of both.
///
/// With `x ~ s q` a row and `r ~ s_r c` a column of the rotation (of length 1), the exact product obeys
/// `|x r - s s_r (q c)| <= |x - s q| + |s q| |r - s_r c|`, where `q c` is an exact integer. A row whose bound stays below
/// the extremes already seen need not be computed in floating point; in practice one in a thousand needs to be.
pub(super) struct Screen {
    block: usize,
    isa: Isa,
    groups: Vec<Group>,
}

/// `GROUP` rows; the last group is filled up with rows of zeros.
struct Group {
    /// Codes plus [`SHIFT`], `[B / 4, GROUP, 4]`.
    codes: Vec<u8>,
    /// `s` of each row.
    scale: [f32; GROUP],
    /// At least `|x - s q|` of each row.
    error: [f32; GROUP],
    /// At least `|s q|` of each row.
    length: [f32; GROUP],
}

/// A rotation in 8-bit codes.
pub(super) struct Codes {
    /// `[B columns, B / 4]`, four signed bytes a word, low byte first.
    pub(super) words: Vec<i32>,
    /// `-SHIFT` times the sum of each column's codes.
    pub(super) start: Vec<i32>,
    scale: f32,
    /// At least `|r - s_r c|` of every column.
    error: f32,
    /// Rounding of the floating-point product and of the bound, relative to the row's length.
    rounding: f32,
}

/// How far rows may reach upwards and downwards before they matter.
#[derive(Debug, Clone, Copy)]
pub(super) struct Thresholds {
    pub(super) high: f32,
    pub(super) low: f32,
}

/// A row that may matter: its place in order, and bounds of its largest entry and of its smallest, negated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub(super) place: u32,
    pub(super) high: f32,
    pub(super) low: f32,
}

impl Candidate {
    /// Whether it may still matter. Equality counts, for the order among ties.
    pub(super) fn reaches(&self, thresholds: Thresholds) -> bool {
        self.high >= thresholds.high || self.low >= thresholds.low
    }
}

impl Screen {
    /// A screen for rows of `block`, where the machine has the instructions that make it worth its while.
    pub(super) fn new(block: usize) -> Option<Self> {
        let fast = cfg!(target_arch = "x86_64") && Isa::best() >= Isa::Avx512Vnni;
        (fast && block.is_multiple_of(COLUMNS)).then(|| Self::with_isa(block, Isa::best()))
    }

    /// A screen for rows of `block`, a multiple of 4, on an instruction set that the machine has.
    pub(super) fn with_isa(block: usize, isa: Isa) -> Self {
        Self { block, isa, groups: Vec::new() }
    }

    /// The rows from place `start` on and before `end` which may reach the thresholds under `r`, `[B, B]`, in order.
    /// `order` lists the rows of `x` by place.
    pub(super) fn candidates(
        &mut self,
        x: &[f32],
        order: &[u32],
        (start, end): (usize, usize),
        r: &[f32],
        thresholds: Thresholds,
    ) -> Vec<Candidate> {
        let (block, isa) = (self.block, self.isa);
        let packed = self.groups.len();
        if end.div_ceil(GROUP) > packed {
            let fresh = order[packed * GROUP..order.len().min(end.next_multiple_of(GROUP))].par_chunks(GROUP);
            self.groups.par_extend(fresh.map(|rows| Group::pack(x, rows, block)));
        }
        let codes = Codes::new(r, block);
        let tiles = self.groups[start / GROUP..end.div_ceil(GROUP)].par_chunks(GROUPS_PER_TILE).enumerate();
        let tile = |(tile, groups): (usize, &[Group])| {
            let (mut found, mut scratch) = (Vec::new(), Vec::new());
            for (i, group) in groups.iter().enumerate() {
                let first = (start / GROUP + tile * GROUPS_PER_TILE + i) * GROUP;
                group.candidates(first, &codes, isa, thresholds, &mut scratch, &mut found);
            }
            found
        };
        let mut found: Vec<Candidate> = tiles.flat_map_iter(tile).collect();
        found.retain(|c| (start..end).contains(&(c.place as usize)));
        found
    }
}

impl Group {
    fn pack(x: &[f32], rows: &[u32], block: usize) -> Self {
        let zero = [0.0; GROUP];
        let codes = vec![SHIFT as u8; block * GROUP];
        let mut group = Self { codes, scale: zero, error: zero, length: zero };
        for (lane, &row) in rows.iter().enumerate() {
            let row = &x[row as usize * block..(row as usize + 1) * block];
            let largest = row.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let scale = largest / 127.0;
            // A row too small to be divided by stays code 0, and all of it is error.
            let inverse = if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
            let (mut error, mut length) = (0.0f64, 0.0f64);
            for (k, &v) in row.iter().enumerate() {
                let code = round(v * inverse);
                group.codes[(k / 4 * GROUP + lane) * 4 + k % 4] = (code as i32 + SHIFT) as u8;
                let coded = f64::from(scale) * f64::from(code);
                error += (f64::from(v) - coded).powi(2);
                length += coded * coded;
            }
            group.scale[lane] = scale;
            group.error[lane] = above(error.sqrt());
            group.length[lane] = above(length.sqrt());
        }
        group
    }

    fn candidates(
        &self,
        first: usize,
        codes: &Codes,
        isa: Isa,
        thresholds: Thresholds,
        scratch: &mut Vec<i32>,
        found: &mut Vec<Candidate>,
    ) {
        let (mut max, mut min) = ([i32::MIN; GROUP], [i32::MAX; GROUP]);
        reach(isa, &self.codes, codes, scratch, &mut max, &mut min);
        // Without branches first: most groups hold no candidate.
        let (mut high, mut low) = ([0.0f32; GROUP], [0.0f32; GROUP]);
        let mut any = false;
        for lane in 0..GROUP {
            let length = self.length[lane];
            let error = self.error[lane] * SLACK + length * codes.error + length * codes.rounding;
            let scale = self.scale[lane] * codes.scale;
            high[lane] = max[lane] as f32 * scale + error;
            low[lane] = error - min[lane] as f32 * scale;
            any |= (high[lane] >= thresholds.high) | (low[lane] >= thresholds.low);
        }
        if any {
            let all = (0..GROUP).map(|l| Candidate { place: (first + l) as u32, high: high[l], low: low[l] });
            found.extend(all.filter(|c| c.reaches(thresholds)));
        }
    }
}

/// Lengthens the error of a row's codes by the rounding of a rotation's columns, whose lengths are 1 to 6 digits.
const SLACK: f32 = 1.0 + 1e-4;

impl Codes {
    pub(super) fn new(r: &[f32], block: usize) -> Self {
        let largest = r.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let scale = largest / 127.0;
        let inverse = if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
        let mut words = vec![0u32; block * block / 4];
        let (mut sums, mut errors) = (vec![0i32; block], vec![0.0f32; block]);
        for (k, row) in r.chunks_exact(block).enumerate() {
            for (column, &v) in row.iter().enumerate() {
                let code = round(v * inverse);
                words[column * (block / 4) + k / 4] |= u32::from(code as i8 as u8) << (8 * (k % 4));
                sums[column] += code as i32;
                let error = v - scale * code;
                errors[column] += error * error;
            }
        }
        Self {
            words: words.into_iter().map(|w| w as i32).collect(),
            start: sums.into_iter().map(|s| -SHIFT * s).collect(),
            scale,
            error: errors.into_iter().fold(0.0, f32::max).sqrt() * SLACK + f32::EPSILON,
            // A dot product of B terms, twice over, and a few operations of the bound.
            rounding: (block + 16) as f32 * f32::EPSILON,
        }
    }
}

/// The nearest integer, ties to even, of a number that is at most 127 in magnitude but for rounding.
fn round(v: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves no bits for a fraction; a call to round would not be vectorised everywhere.
    const SHIFTER: f32 = 12_582_912.0;
    (v + SHIFTER - SHIFTER).clamp(-127.0, 127.0)
}

/// A bound as `f32`, rounded up.
fn above(bound: f64) -> f32 {
    (bound * (1.0 + 1e-6)) as f32
}
