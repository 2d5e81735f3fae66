use rayon::prelude::*;

use crate::kernels::cpu::Isa;

/// Rows that are packed together: four vectors of 16 lanes, one row a lane.
const GROUP: usize = 64;
/// Groups of one unit of parallel work.
const GROUPS_PER_TILE: usize = 8;
/// Columns that are computed together.
const COLUMNS: usize = 4;
/// Codes of rows are shifted by this to be unsigned.
const SHIFT: i32 = 128;

/// Bounds on what rows reach under a rotation, from 8-bit codes of both.
///
/// With `x ~ s q` a row and `r ~ s_r c` a column of the rotation (of length 1), the exact product obeys
/// `|x r - s s_r (q c)| <= |x - s q| + |s q| |r - s_r c|`, where `q c` is an exact integer. A row whose bound stays below
/// the extremes already seen need not be computed in floating point; in practice one in a thousand needs to be.
pub(super) struct Screen {
    block: usize,
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
struct Codes {
    /// `[B columns, B / 4]`, four signed bytes a word, low byte first.
    words: Vec<i32>,
    /// `-SHIFT` times the sum of each column's codes.
    start: Vec<i32>,
    scale: f32,
    /// At least `|r - s_r c|` of every column.
    error: f32,
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
        let fast = Isa::best() >= Isa::Avx512Vnni && cfg!(target_arch = "x86_64");
        (fast && block.is_multiple_of(COLUMNS)).then_some(Self { block, groups: Vec::new() })
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
        let block = self.block;
        let packed = self.groups.len();
        if end.div_ceil(GROUP) > packed {
            let fresh = order[packed * GROUP..order.len().min(end.next_multiple_of(GROUP))].par_chunks(GROUP);
            self.groups.par_extend(fresh.map(|rows| Group::pack(x, rows, block)));
        }
        let codes = Codes::new(r, block);
        let tiles = self.groups[start / GROUP..end.div_ceil(GROUP)].par_chunks(GROUPS_PER_TILE).enumerate();
        let tile = |(tile, groups): (usize, &[Group])| {
            let mut found = Vec::new();
            for (i, group) in groups.iter().enumerate() {
                let first = (start / GROUP + tile * GROUPS_PER_TILE + i) * GROUP;
                group.candidates(first, &codes, thresholds, &mut found);
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
                let code = (v * inverse).round_ties_even().clamp(-127.0, 127.0);
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

    fn candidates(&self, first: usize, codes: &Codes, thresholds: Thresholds, found: &mut Vec<Candidate>) {
        let (mut max, mut min) = ([i32::MIN; GROUP], [i32::MAX; GROUP]);
        extremes(&self.codes, codes, &mut max, &mut min);
        for lane in 0..GROUP {
            let slack = (self.error[lane] + self.length[lane] * codes.error) * SLACK;
            let scale = self.scale[lane] * codes.scale;
            let (high, low) = (max[lane] as f32 * scale, -(min[lane] as f32) * scale);
            let candidate = Candidate {
                place: (first + lane) as u32,
                high: high + high.abs() * (SLACK - 1.0) + slack,
                low: low + low.abs() * (SLACK - 1.0) + slack,
            };
            if candidate.reaches(thresholds) {
                found.push(candidate);
            }
        }
    }
}

/// Covers the rounding of the exact evaluation in `f32` (`B` terms of half a unit in the last place each for `B` up to
/// 256, relative to the lengths) and of the bound itself.
const SLACK: f32 = 1.0 + 64.0 * f32::EPSILON;

impl Codes {
    fn new(r: &[f32], block: usize) -> Self {
        let largest = r.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let scale = largest / 127.0;
        let inverse = if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
        let mut words = vec![0u32; block * block / 4];
        let (mut sums, mut errors) = (vec![0i32; block], vec![0.0f64; block]);
        for (k, row) in r.chunks_exact(block).enumerate() {
            for (column, &v) in row.iter().enumerate() {
                let code = (v * inverse).round_ties_even().clamp(-127.0, 127.0);
                words[column * (block / 4) + k / 4] |= u32::from(code as i8 as u8) << (8 * (k % 4));
                sums[column] += code as i32;
                errors[column] += (f64::from(v) - f64::from(scale) * f64::from(code)).powi(2);
            }
        }
        Self {
            words: words.into_iter().map(|w| w as i32).collect(),
            start: sums.into_iter().map(|s| -SHIFT * s).collect(),
            scale,
            error: above(errors.into_iter().fold(0.0, f64::max).sqrt()),
        }
    }
}

/// A bound as `f32`, rounded up.
fn above(bound: f64) -> f32 {
    (bound * (1.0 + 1e-6)) as f32
}

/// Largest and smallest integer product of each row of a group with the columns of a rotation.
fn extremes(rows: &[u8], codes: &Codes, max: &mut [i32; GROUP], min: &mut [i32; GROUP]) {
    #[cfg(target_arch = "x86_64")]
    if Isa::available().contains(&Isa::Avx512Vnni) {
        // SAFETY: the instruction sets of the function were detected.
        return unsafe { extremes_avx512(rows, codes, max, min) };
    }
    extremes_scalar(rows, codes, max, min);
}

fn extremes_scalar(rows: &[u8], codes: &Codes, max: &mut [i32; GROUP], min: &mut [i32; GROUP]) {
    let quarter = codes.words.len() / codes.start.len().max(1);
    for (words, &start) in codes.words.chunks_exact(quarter).zip(&codes.start) {
        for lane in 0..GROUP {
            let mut sum = start;
            for (k, word) in words.iter().enumerate() {
                let row = &rows[(k * GROUP + lane) * 4..][..4];
                sum += row.iter().zip(word.to_le_bytes()).map(|(&q, c)| i32::from(q) * i32::from(c as i8)).sum::<i32>();
            }
            max[lane] = max[lane].max(sum);
            min[lane] = min[lane].min(sum);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn extremes_avx512(rows: &[u8], codes: &Codes, max: &mut [i32; GROUP], min: &mut [i32; GROUP]) {
    use std::arch::x86_64::{
        __m512i, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_max_epi32, _mm512_min_epi32, _mm512_set1_epi32,
        _mm512_storeu_si512,
    };
    const VECTORS: usize = GROUP / 16;
    let block = codes.start.len();
    let quarter = block / 4;
    assert!(rows.len() == block * GROUP && codes.words.len() == block * quarter && block.is_multiple_of(COLUMNS));
    let mut high = [_mm512_set1_epi32(i32::MIN); VECTORS];
    let mut low = [_mm512_set1_epi32(i32::MAX); VECTORS];
    for column in (0..block).step_by(COLUMNS) {
        let mut sums = [[_mm512_set1_epi32(0); VECTORS]; COLUMNS];
        for c in 0..COLUMNS {
            sums[c] = [_mm512_set1_epi32(codes.start[column + c]); VECTORS];
        }
        for k in 0..quarter {
            let mut x = [_mm512_set1_epi32(0); VECTORS];
            for v in 0..VECTORS {
                // SAFETY: `rows` holds `block / 4` times `GROUP * 4` bytes (asserted); k < block / 4, v < GROUP / 16.
                x[v] = unsafe { _mm512_loadu_si512(rows.as_ptr().add((k * GROUP + v * 16) * 4).cast::<__m512i>()) };
            }
            for c in 0..COLUMNS {
                // SAFETY: `words` holds `block` columns of `quarter` words (asserted); column + c < block.
                let word = _mm512_set1_epi32(unsafe { *codes.words.get_unchecked((column + c) * quarter + k) });
                for v in 0..VECTORS {
                    sums[c][v] = _mm512_dpbusd_epi32(sums[c][v], x[v], word);
                }
            }
        }
        for c in 0..COLUMNS {
            for v in 0..VECTORS {
                high[v] = _mm512_max_epi32(high[v], sums[c][v]);
                low[v] = _mm512_min_epi32(low[v], sums[c][v]);
            }
        }
    }
    for v in 0..VECTORS {
        // SAFETY: both arrays hold GROUP = 16 * VECTORS integers.
        unsafe {
            _mm512_storeu_si512(max.as_mut_ptr().add(v * 16).cast::<__m512i>(), high[v]);
            _mm512_storeu_si512(min.as_mut_ptr().add(v * 16).cast::<__m512i>(), low[v]);
        }
    }
}
