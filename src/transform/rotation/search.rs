use super::matrices::{identity, swap_columns};
use super::pool::check_greedy;
use super::rows::{Needed, Rows};
use super::screen::Screen;
use super::{RotationKind, RotationPool};
use crate::kernels::{Error, check_length};

use crate::transform::check_finite;
use crate::transform::matmul::{Right, multiply};

/// What a greedy search is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SearchOptions {
    /// [`RotationKind::Paper`], [`RotationKind::Official`] or [`RotationKind::Left`].
    pub kind: RotationKind,
    /// Greedy steps `N`; the paper takes 256.
    pub steps: usize,
    /// Which rotation of a chain this is: official mode takes its one draw by this number.
    pub rotation: usize,
    /// Search the longest this many rows only. An approximation unless it exceeds the number of rows; `usize::MAX` is
    /// exact.
    pub max_rows: usize,
}

/// What a greedy search found.
#[derive(Debug, Clone, PartialEq)]
pub struct Search {
    /// The rotation, row-major `[B, B]`, for row vectors: `x -> x R`.
    pub rotation: Vec<f64>,
    /// Steps whose product the rotation is, 0 for the identity.
    pub best_step: usize,
    /// The criterion before the first step, and after the best: `max |x|`, in official mode `max x - min x`.
    pub before: f32,
    /// The criterion after the best step.
    pub after: f32,
    /// Rows that had to be computed in floating point, over all steps, out of `(steps + 1) * rows`.
    pub computed: u64,
}

/// Greedy search for the rotation of a block (Algorithm 1; [`RotationKind`] names what differs in the official code).
///
/// `x` is `[tokens * K / B, B]`: all tokens and all blocks stacked, since every block shares one rotation (Remark 2). Step
/// `k` finds the channel `e` of the outlier in `Y = X R_(k-1)` and sets `R_k = R_(k-1) E_0e Rot_k E_0e`, with `E_0e` the
/// swap of channels 0 and `e` and `Rot_k` from the pool. The result is the `R_k` of the smallest criterion, the first on
/// ties. `R` is a product in `f64`; `Y` is computed in `f32` from `x` and `R` at every step, so that errors do not add up.
/// Rows which provably
/// hold no extreme are skipped, which changes nothing in the result; nor do threads.
///
/// # Errors
/// [`Error::Unsupported`] when the kind is not searched, no steps are asked for, or there are 2^32 rows or more;
/// [`Error::Length`] when `x` is not rows of the pool's block; [`Error::NotFinite`] naming the row.
pub fn search(x: &[f32], pool: &RotationPool, options: &SearchOptions) -> Result<Search, Error> {
    let block = pool.block();
    let unsupported =
        |what, expected: &str, got: String| Err(Error::Unsupported { what, expected: expected.into(), got });
    check_greedy(options.kind)?;
    if options.steps == 0 || pool.draws() == 0 {
        return unsupported("steps", "at least 1", "0".into());
    }
    if options.max_rows == 0 {
        return unsupported("max_rows", "at least 1", "0".into());
    }
    check_length("x", x.len().next_multiple_of(block), x.len())?;
    if x.len() / block >= u32::MAX as usize {
        return unsupported("rows", "less than 2^32", (x.len() / block).to_string());
    }
    check_finite("x", x, block)?;

    // Inside the pool, so that the many short parallel sections of the steps start without waking it each time.
    Ok(rayon::scope(|_| walk(x, pool, options, Screen::new(block))))
}

/// The search itself, on checked arguments.
pub(super) fn walk(x: &[f32], pool: &RotationPool, options: &SearchOptions, screen: Option<Screen>) -> Search {
    let block = pool.block();
    let official = options.kind == RotationKind::Official;
    let needed = if official { Needed::Both } else { Needed::Magnitude };
    let mut rows = Rows::new(x, block, options.max_rows, screen);
    let mut r = identity(block);
    let mut product = r.clone();
    let mut single: Vec<f32> = r.iter().map(|&v| v as f32).collect();
    let mut best = Search { rotation: r.clone(), best_step: 0, before: 0.0, after: 0.0, computed: 0 };
    for step in 0..=options.steps {
        let seen = rows.extremes(&single, needed);
        let outlier = seen.largest();
        let peak = if official { seen.max.value - seen.min.value } else { outlier.value.abs() };
        if step == 0 {
            (best.before, best.after) = (peak, peak);
        } else if peak < best.after && (step < options.steps || !official) {
            (best.after, best.best_step) = (peak, step);
            best.rotation.copy_from_slice(&r);
        }
        // Nothing to spread: no rows at all, or nothing but zeros.
        if step == options.steps || !outlier.value.is_finite() || outlier.value == 0.0 {
            break;
        }
        let e = if official { outlier.row as usize % block } else { outlier.column as usize };
        let rot = pool.matrix(if official { options.rotation } else { step });
        swap_columns(&mut r, block, 0, e);
        multiply(&r, rot, Right::Plain, (block, block, block), 1.0, &mut product);
        swap_columns(&mut product, block, 0, e);
        std::mem::swap(&mut r, &mut product);
        single.iter_mut().zip(&r).for_each(|(s, &v)| *s = v as f32);
    }
    if x.is_empty() {
        (best.before, best.after) = (0.0, 0.0);
    }
    best.computed = rows.computed;
    best
}

#[cfg(test)]
#[path = "search_tests.rs"]
mod tests;
