//! The production search is the plain one: with the same draws the oracle's Algorithm 1, in f64 over every row, finds the
//! same pivots, the same best step and the same rotation, in each mode; and so does the whole chain with its zigzags.
#![cfg(feature = "runner")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails and reports this way"
)]

mod oracle;

use duquant::transform::{
    PermutationKind, RotationKind, RotationPool, RotationPools, SearchOptions, TransformOptions, base_matrix, build,
    search,
};
use duquant_reference as reference;
use oracle::{Random, widen};
use reference::{GreedyMode, SearchSettings, matmul, transpose};

const MODES: [(RotationKind, GreedyMode); 3] = [
    (RotationKind::Paper, GreedyMode::Paper),
    (RotationKind::Official, GreedyMode::Official),
    (RotationKind::Left, GreedyMode::Left),
];

/// `Q'` of draw `k`, which stands behind the base matrix (before it in mode `Left`) in the pool's `Rot`.
fn draw(pool: &RotationPool, kind: RotationKind, k: usize) -> Vec<f64> {
    let n = pool.block();
    let undo = transpose(&base_matrix(n), n, n);
    let bordered = match kind {
        RotationKind::Left => matmul(pool.matrix(k), &undo, n, n, n),
        _ => matmul(&undo, pool.matrix(k), n, n, n),
    };
    for i in 1..n {
        assert!(bordered[i].abs() < 1e-12 && bordered[i * n].abs() < 1e-12, "Rot is no base matrix times diag(1, Q')");
    }
    bordered.chunks(n).skip(1).flat_map(|row| row[1..].to_vec()).collect()
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |max: f64, (a, b)| max.max((a - b).abs()))
}

#[test]
fn the_base_matrix_is_the_oracles() {
    for n in [2, 3, 4, 16, 64, 128] {
        assert!(largest_difference(&base_matrix(n), &reference::base_matrix(n)) < 1e-12, "{n}");
    }
}

#[test]
fn each_mode_finds_what_the_plain_search_finds() {
    for (kind, mode) in MODES {
        for (tokens, channels, block, steps) in
            [(64, 64, 16, 40), (40, 96, 32, 24), (1, 8, 4, 12), (300, 4, 4, 30), (24, 256, 128, 16), (33, 64, 64, 1)]
        {
            let mut random = Random::new(7 * block as u64 + steps as u64);
            let x = random.activations(tokens, channels);
            let pool = RotationPool::new(kind, block, steps.max(3), 5).unwrap();
            for rotation in [0, 2] {
                let options = SearchOptions { kind, steps, rotation, max_rows: usize::MAX };
                let got = search(&x, &pool, &options).unwrap();
                let mut take =
                    |step: usize| draw(&pool, kind, if kind == RotationKind::Official { rotation } else { step });
                let expected = reference::greedy_rotation(&widen(&x), x.len() / block, block, steps, mode, &mut take);
                let case =
                    format!("{kind:?}, [{tokens}, {channels}], block {block}, {steps} steps, rotation {rotation}");
                assert_eq!(got.best_step, expected.best_step, "{case}: peaks {:?}", expected.peaks);
                let off = largest_difference(&got.rotation, &expected.rotation);
                assert!(off < 1e-9, "{case}: rotations differ by {off}");
                let peak = expected.peaks[expected.best_step];
                assert!((f64::from(got.after) / peak - 1.0).abs() < 1e-5, "{case}: {} against {peak}", got.after);
                assert!((f64::from(got.before) / expected.peaks[0] - 1.0).abs() < 1e-6, "{case}");
            }
        }
    }
}

#[test]
fn the_chain_is_the_plain_chain() {
    let (tokens, channels, block, steps) = (48, 96, 32, 16);
    let x = Random::new(3).activations(tokens, channels);
    for (kind, mode) in MODES {
        for permutations in 0..3 {
            let options = TransformOptions {
                rotation: kind,
                permutation: PermutationKind::Zigzag,
                permutations,
                block,
                steps,
                seed: 9,
            };
            let pools = RotationPools::new();
            let got = build(&x, tokens, channels, &options, &pools).unwrap();
            let pool = pools.get(kind, block, steps, 9).unwrap();
            let mut take = |rotation: usize, step: usize| {
                draw(&pool, kind, if kind == RotationKind::Official { rotation } else { step })
            };
            let settings = SearchSettings { block, steps, permutations, mode };
            let expected = reference::search_transform(&widen(&x), channels, &settings, &mut take);
            let case = format!("{kind:?}, {permutations} permutations");
            let got = oracle::transform(&got);
            assert_eq!(got.permutations, expected.permutations, "{case}");
            for (got, expected) in got.rotations.iter().zip(&expected.rotations) {
                assert!(largest_difference(got, expected) < 1e-6, "{case}");
            }
            assert_eq!(got.rotations.len(), permutations + 1, "{case}");
        }
    }
}
