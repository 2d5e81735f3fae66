//! The greedy search against a plain one in `f64`, and what it promises.

use proptest::prelude::*;
use rand_distr::{Distribution, StandardNormal};

use super::super::RotationPools;
use super::super::matrices::orthogonality_error;
use super::super::pool::draw;
use super::*;
use crate::kernels::cpu::Isa;

const GREEDY: [RotationKind; 3] = [RotationKind::Paper, RotationKind::Official, RotationKind::Left];

fn options(kind: RotationKind, steps: usize) -> SearchOptions {
    SearchOptions { kind, steps, rotation: 0, max_rows: usize::MAX }
}

/// Heavy-tailed rows with a few large channels and, where asked for, one massive entry.
fn activations(rows: usize, block: usize, massive: bool, seed: u64) -> Vec<f32> {
    let mut rng = draw(seed, 99);
    let mut normal = || -> f64 { StandardNormal.sample(&mut rng) };
    let channel: Vec<f64> = (0..block).map(|c| if c % 13 == 5 { 6.0 } else { normal().exp() }).collect();
    let mut x = Vec::with_capacity(rows * block);
    for _ in 0..rows {
        let token = (0.5 * normal()).exp();
        x.extend(channel.iter().map(|c| (token * c * normal()) as f32));
    }
    if massive && !x.is_empty() {
        let at = rows / 2 * block + block / 3;
        x[at] = -1000.0;
    }
    x
}

/// Algorithm 1 and its variants as loops in `f64` over every row: the rotation, its step, and the criterion after each step.
fn plain(x: &[f32], pool: &RotationPool, options: &SearchOptions) -> (Vec<f64>, usize, Vec<f64>) {
    let n = pool.block();
    let official = options.kind == RotationKind::Official;
    let mut y: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
    let product = |a: &[f64], b: &[f64]| -> Vec<f64> {
        let mut out = vec![0.0; a.len()];
        for (row, out) in a.chunks_exact(n).zip(out.chunks_exact_mut(n)) {
            for (&v, b) in row.iter().zip(b.chunks_exact(n)) {
                out.iter_mut().zip(b).for_each(|(o, w)| *o += v * w);
            }
        }
        out
    };
    let look = |y: &[f64]| {
        let at =
            |better: &dyn Fn(f64, f64) -> bool| (1..y.len()).fold(0, |b, i| if better(y[i], y[b]) { i } else { b });
        let (max, min) = (at(&|a, b| a > b), at(&|a, b| a < b));
        let outlier = if y[max] >= -y[min] { max } else { min };
        let peak = if official { y[max] - y[min] } else { y[outlier].abs() };
        (peak, if official { outlier / n % n } else { outlier % n })
    };
    let mut r = identity(n);
    let (mut best, mut step_of_best, mut peaks) = (r.clone(), 0, vec![look(&y).0]);
    for step in 0..options.steps {
        let (_, e) = look(&y);
        let mut rot = pool.matrix(if official { options.rotation } else { step }).to_vec();
        for column in 0..n {
            rot.swap(column, e * n + column);
        }
        swap_columns(&mut rot, n, 0, e);
        y = product(&y, &rot);
        r = product(&r, &rot);
        peaks.push(look(&y).0);
        if peaks[step + 1] < peaks[step_of_best] && (step + 1 < options.steps || !official) {
            (best, step_of_best) = (r.clone(), step + 1);
        }
    }
    (best, step_of_best, peaks)
}

#[test]
fn the_search_is_the_plain_one_in_every_mode() {
    for kind in GREEDY {
        for (rows, block, massive) in
            [(300, 8, false), (900, 16, false), (500, 16, true), (1, 4, true), (400, 64, false)]
        {
            let x = activations(rows, block, massive, 3);
            let steps = 20;
            let pool = RotationPool::new(kind, block, steps, 5).unwrap();
            let got = search(&x, &pool, &options(kind, steps)).unwrap();
            let (rotation, best, peaks) = plain(&x, &pool, &options(kind, steps));
            let case = format!("{kind:?} {rows} x {block} massive {massive}");
            assert_eq!(got.best_step, best, "{case}");
            let worst = got.rotation.iter().zip(&rotation).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
            assert!(worst < 1e-10, "{case}: {worst}");
            assert!((f64::from(got.after) / peaks[best] - 1.0).abs() < 1e-5, "{case}");
            assert!((f64::from(got.before) / peaks[0] - 1.0).abs() < 1e-6, "{case}");
        }
    }
}

#[test]
fn skipping_rows_changes_no_bit() {
    // A group of zeros at the end, a partial group, rows of equal norm, and rows of one sign.
    for kind in GREEDY {
        for block in [4, 8, 64, 128] {
            let mut x = activations(777, block, false, 8);
            x.extend(vec![0.0; 40 * block]);
            x.extend((0..100 * block).map(|i| ((i * 31 % 17) as f32).sqrt() * 1e-2 + 0.5));
            let pool = RotationPool::new(kind, block, 12, 1).unwrap();
            let wanted = options(kind, 12);
            let mut all = walk(&x, &pool, &wanted, None);
            for &isa in Isa::available() {
                let screened = walk(&x, &pool, &wanted, Some(Screen::with_isa(block, isa)));
                all.computed = screened.computed;
                assert_eq!(screened, all, "{kind:?} {block} {isa:?}");
            }
        }
    }
}

#[test]
fn the_screen_lets_few_rows_through() {
    let x = activations(20_000, 64, false, 4);
    let pool = RotationPool::new(RotationKind::Paper, 64, 10, 1).unwrap();
    let best = Isa::available().last().copied().unwrap();
    let found = walk(&x, &pool, &options(RotationKind::Paper, 10), Some(Screen::with_isa(64, best)));
    assert!(found.computed < 11 * 1000, "{} of {} rows computed", found.computed, 11 * 20_000);
}

#[test]
fn threads_do_not_change_the_result() {
    let x = activations(3000, 32, false, 6);
    for kind in GREEDY {
        let run = |threads: usize, screen: bool| {
            let pool = RotationPool::new(kind, 32, 16, 2).unwrap();
            let threads = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let screen = screen.then(|| Screen::with_isa(32, Isa::best()));
            threads.install(|| walk(&x, &pool, &options(kind, 16), screen))
        };
        for screen in [false, true] {
            let one = run(1, screen);
            assert_eq!(one, run(2, screen));
            assert_eq!(one, run(3, screen));
        }
    }
}

#[test]
fn official_mode_draws_by_the_number_of_the_rotation() {
    let x = activations(200, 8, false, 1);
    let pools = RotationPools::new();
    let pool = pools.get(RotationKind::Official, 8, 30, 4).unwrap();
    let run = |rotation| search(&x, &pool, &SearchOptions { rotation, ..options(RotationKind::Official, 30) }).unwrap();
    assert_eq!(run(1), run(1));
    assert_ne!(run(0).rotation, run(1).rotation);
}

#[test]
fn a_limit_of_rows_takes_the_longest() {
    let mut x = activations(500, 8, false, 1);
    x[100 * 8 + 2] = 500.0;
    let pool = RotationPool::new(RotationKind::Paper, 8, 10, 0).unwrap();
    let limited = SearchOptions { max_rows: 1, ..options(RotationKind::Paper, 10) };
    let alone = search(&x[800..808], &pool, &options(RotationKind::Paper, 10)).unwrap();
    let got = search(&x, &pool, &limited).unwrap();
    assert_eq!((got.rotation, got.after), (alone.rotation, alone.after));
    assert_eq!(got.computed, 11);
}

#[test]
fn zeros_and_nothing_give_the_identity() {
    let pool = RotationPool::new(RotationKind::Paper, 4, 3, 0).unwrap();
    for x in [vec![], vec![0.0; 8]] {
        let found = search(&x, &pool, &options(RotationKind::Paper, 3)).unwrap();
        assert_eq!((found.rotation, found.best_step, found.after), (identity(4), 0, 0.0));
    }
}

#[test]
fn what_cannot_be_searched_is_refused() {
    let pool = RotationPool::new(RotationKind::Paper, 4, 3, 0).unwrap();
    let wanted = options(RotationKind::Paper, 3);
    assert!(matches!(search(&[1.0; 6], &pool, &wanted), Err(Error::Length { .. })));
    assert!(matches!(search(&[1.0; 4], &pool, &options(RotationKind::Paper, 0)), Err(Error::Unsupported { .. })));
    assert!(matches!(search(&[1.0; 4], &pool, &options(RotationKind::Random, 3)), Err(Error::Unsupported { .. })));
    let none = SearchOptions { max_rows: 0, ..wanted };
    assert!(matches!(search(&[1.0; 4], &pool, &none), Err(Error::Unsupported { .. })));
    let nan = [1.0, 1.0, 1.0, 1.0, 1.0, f32::NAN, 1.0, 1.0];
    assert!(matches!(search(&nan, &pool, &wanted), Err(Error::NotFinite { row: 1, .. })));
    assert!(matches!(search(&[f32::MAX; 4], &pool, &wanted), Err(Error::NotFinite { row: 0, .. })));
    let no_draws = RotationPool::new(RotationKind::Paper, 4, 0, 0).unwrap();
    assert!(search(&[1.0; 4], &no_draws, &wanted).is_err());
}

#[test]
fn a_massive_outlier_strictly_falls() {
    // Theorem 1, where it is strict: one entry far above the rest of its row is spread over the block.
    for kind in [RotationKind::Paper, RotationKind::Left] {
        let x = activations(600, 64, true, 2);
        let pool = RotationPool::new(kind, 64, 64, 0).unwrap();
        let found = search(&x, &pool, &options(kind, 64)).unwrap();
        assert_eq!(found.before, 1000.0);
        assert!(found.after < 400.0, "{kind:?}: {}", found.after);
    }
}

#[test]
fn hundreds_of_steps_stay_orthogonal_in_single_precision() {
    let x = activations(200, 128, false, 2);
    let pool = RotationPool::new(RotationKind::Paper, 128, 256, 0).unwrap();
    // The last step's product, not the best one: errors add up with the steps.
    let mut r = identity(128);
    let mut product = r.clone();
    for k in 0..256 {
        multiply(&r, pool.matrix(k), Right::Plain, (128, 128, 128), 1.0, &mut product);
        std::mem::swap(&mut r, &mut product);
    }
    for r in [r, search(&x, &pool, &options(RotationKind::Paper, 256)).unwrap().rotation] {
        let single: Vec<f64> = r.iter().map(|&v| f64::from(v as f32)).collect();
        assert!(orthogonality_error(&single, 128) < 1e-5);
        assert!(orthogonality_error(&r, 128) < 1e-12);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Theorem 1: whatever the data, the peak never rises, and the rotation it comes from is orthogonal and gives it.
    #[test]
    fn the_peak_never_rises(
        rows in 1usize..40,
        log_block in 2u32..5,
        kind in 0usize..3,
        scale in -20i32..20,
        seed in 0u64..1000,
    ) {
        let (block, kind) = (1 << log_block, GREEDY[kind]);
        let mut x = activations(rows, block, seed % 2 == 0, seed);
        x.iter_mut().for_each(|v| *v *= 2f32.powi(scale));
        let pool = RotationPool::new(kind, block, 9, seed).unwrap();
        let found = search(&x, &pool, &options(kind, 9)).unwrap();
        prop_assert!(found.after <= found.before);
        prop_assert_eq!(found.after < found.before, found.best_step > 0);
        prop_assert!(orthogonality_error(&found.rotation, block) < 1e-12);
        let (mut max, mut min) = (f64::NEG_INFINITY, f64::INFINITY);
        for row in x.chunks_exact(block) {
            for column in 0..block {
                let y: f64 = (0..block).map(|i| f64::from(row[i]) * found.rotation[i * block + column]).sum();
                (max, min) = (max.max(y), min.min(y));
            }
        }
        let peak = if kind == RotationKind::Official { max - min } else { max.max(-min) };
        prop_assert!((peak / f64::from(found.after) - 1.0).abs() < 1e-5, "{} is not {}", peak, found.after);
    }
}
