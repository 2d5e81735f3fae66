//! Rotations: the base matrix, the Hadamard matrix, and the greedy search for a block's rotation (eq. 2, Algorithm 1).
//!
//! Row vectors throughout: a block `x` of `n` channels becomes `x R`.

use crate::{identity, matmul};

/// The orthogonal matrix `[n, n]` whose first row is `1 / sqrt(n)` everywhere: a product of plane rotations of
/// neighbouring axes, then rows and columns 0 and `n - 1` swapped.
///
/// # Panics
/// When `n` is 0.
#[must_use]
pub fn base_matrix(n: usize) -> Vec<f64> {
    assert!(n > 0, "a matrix has at least one row");
    let mut r = identity(n);
    for i in 0..n - 1 {
        let cosine = 1.0 / ((i + 2) as f64).sqrt();
        let sine = ((i + 1) as f64 / (i + 2) as f64).sqrt();
        let mut plane = identity(n);
        plane[i * n + i] = cosine;
        plane[(i + 1) * n + i + 1] = cosine;
        plane[i * n + i + 1] = -sine;
        plane[(i + 1) * n + i] = sine;
        r = matmul(&plane, &r, n, n, n);
    }
    swap_with_first(&mut r, n, n - 1);
    r
}

/// The normalised Sylvester Hadamard matrix `[n, n]`: entry `(i, j)` is `(-1)^(ones of i & j) / sqrt(n)`.
///
/// # Panics
/// When `n` is not a power of two.
#[must_use]
pub fn hadamard_matrix(n: usize) -> Vec<f64> {
    assert!(n.is_power_of_two(), "a Sylvester matrix has a power of two rows, got {n}");
    let entry = 1.0 / (n as f64).sqrt();
    let sign = |i: usize, j: usize| if (i & j).count_ones() & 1 == 1 { -entry } else { entry };
    (0..n * n).map(|at| sign(at / n, at % n)).collect()
}

/// `x -> x R` for every block of `n` consecutive channels; `x` is any number of such blocks, one after the other.
///
/// # Panics
/// When `x` is no whole number of blocks or `rotation` is not `n * n` long.
#[must_use]
pub fn rotate_blocks(x: &[f64], rotation: &[f64], n: usize) -> Vec<f64> {
    assert!(n > 0 && x.len().is_multiple_of(n), "x must be whole blocks of {n} channels");
    matmul(x, rotation, x.len() / n, n, n)
}

/// Which variant of the greedy search runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GreedyMode {
    /// Algorithm 1 as printed: pivot = column of the largest `|x|`, a fresh `Q'` every step, factor
    /// `E base diag(1, Q') E`, criterion `max |X|`. The state after every step is a candidate.
    Paper,
    /// What the released code does: pivot = row of the extreme modulo `n`, one `Q'` for all steps, the same factor,
    /// criterion `max - min`. It is measured before each step, so that the last step is never a candidate.
    Official,
    /// As `Paper` with the factor `E diag(1, Q') base E`, which keeps the first column and not the first row.
    Left,
}

/// What a greedy search found.
#[derive(Debug, Clone, PartialEq)]
pub struct GreedyRotation {
    /// The rotation `[n, n]`: the product of the first `best_step` factors.
    pub rotation: Vec<f64>,
    /// How many factors are in it; 0 is the identity.
    pub best_step: usize,
    /// The criterion after `0..=steps` factors.
    pub peaks: Vec<f64>,
    /// The pivot of each step: the index that is swapped with 0.
    pub pivots: Vec<usize>,
}

/// The greedy search for one rotation that all blocks share.
///
/// `x` holds all tokens and all blocks stacked: `rows` rows of `n` channels, in the order tokens, then blocks of a token.
/// `draw(step)` supplies the orthogonal `Q'` `[n - 1, n - 1]` of a step; in mode `Official` it is called once, with 0. The
/// product with the smallest criterion is kept, the earliest one on ties, the identity when nothing improves. Among
/// several largest values the first in memory is the pivot; among a maximum and a minimum of the same magnitude, the
/// maximum.
///
/// # Panics
/// When `x` is not `rows * n` long, `n` is 0, or a draw is not `(n - 1)^2` long.
#[must_use]
pub fn greedy_rotation(
    x: &[f64],
    rows: usize,
    n: usize,
    steps: usize,
    mode: GreedyMode,
    draw: &mut dyn FnMut(usize) -> Vec<f64>,
) -> GreedyRotation {
    assert!(n > 0, "a block has at least one channel");
    assert_eq!(x.len(), rows * n, "x is [rows, n]");
    let base = base_matrix(n);
    let mut y = x.to_vec();
    let mut product = identity(n);
    let mut shared_draw: Option<Vec<f64>> = None;
    let mut best_peak = criterion(&y, mode);
    let mut found =
        GreedyRotation { rotation: product.clone(), best_step: 0, peaks: vec![best_peak], pivots: Vec::new() };

    for step in 0..steps {
        let q = match (mode, &shared_draw) {
            (GreedyMode::Official, Some(q)) => q.clone(),
            (GreedyMode::Official, None) => {
                let q = draw(0);
                shared_draw = Some(q.clone());
                q
            }
            _ => draw(step),
        };
        let q = bordered(&q, n);
        let mut factor = match mode {
            GreedyMode::Paper | GreedyMode::Official => matmul(&base, &q, n, n, n),
            GreedyMode::Left => matmul(&q, &base, n, n, n),
        };
        let pivot = pivot(&y, n, mode);
        swap_with_first(&mut factor, n, pivot);

        y = matmul(&y, &factor, rows, n, n);
        product = matmul(&product, &factor, n, n, n);
        let peak = criterion(&y, mode);
        found.peaks.push(peak);
        found.pivots.push(pivot);
        let is_candidate = mode != GreedyMode::Official || step + 1 < steps;
        if is_candidate && peak < best_peak {
            best_peak = peak;
            found.rotation.clone_from(&product);
            found.best_step = step + 1;
        }
    }
    found
}

/// What a search makes small: `max |x|`, or `max - min` in mode `Official`. 0 for no values.
fn criterion(y: &[f64], mode: GreedyMode) -> f64 {
    if y.is_empty() {
        return 0.0;
    }
    let max = y.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let min = y.iter().copied().fold(f64::INFINITY, f64::min);
    match mode {
        GreedyMode::Paper | GreedyMode::Left => max.max(-min),
        GreedyMode::Official => max - min,
    }
}

/// The index that the next factor swaps with 0.
fn pivot(y: &[f64], n: usize, mode: GreedyMode) -> usize {
    let first_where = |better: &dyn Fn(f64, f64) -> bool| {
        let mut at = 0;
        for i in 1..y.len() {
            if better(y[i], y[at]) {
                at = i;
            }
        }
        at
    };
    match mode {
        GreedyMode::Paper | GreedyMode::Left => {
            // Over columns: the first column whose maximum is the largest.
            let mut best = (0, f64::NEG_INFINITY);
            for column in 0..n {
                let column_max = y.iter().skip(column).step_by(n).fold(0.0_f64, |m, x| m.max(x.abs()));
                if column_max > best.1 {
                    best = (column, column_max);
                }
            }
            best.0
        }
        GreedyMode::Official if y.is_empty() => 0,
        GreedyMode::Official => {
            let max_at = first_where(&|a, b| a > b);
            let min_at = first_where(&|a, b| a < b);
            let at = if y[max_at].abs() >= y[min_at].abs() { max_at } else { min_at };
            (at / n) % n
        }
    }
}

/// `diag(1, Q')`.
fn bordered(q: &[f64], n: usize) -> Vec<f64> {
    let inner = n - 1;
    assert_eq!(q.len(), inner * inner, "Q' is [n - 1, n - 1]");
    let mut out = identity(n);
    for row in 0..inner {
        for column in 0..inner {
            out[(row + 1) * n + column + 1] = q[row * inner + column];
        }
    }
    out
}

/// Swaps rows 0 and `e` and columns 0 and `e`: `E r E`.
fn swap_with_first(r: &mut [f64], n: usize, e: usize) {
    for column in 0..n {
        r.swap(column, e * n + column);
    }
    for row in 0..n {
        r.swap(row * n, row * n + e);
    }
}

#[cfg(test)]
#[path = "rotation_tests.rs"]
mod tests;
