use super::*;
use crate::testing::{Random, abs_max, close};
use crate::{orthogonality_error, transpose};

const MODES: [GreedyMode; 3] = [GreedyMode::Paper, GreedyMode::Official, GreedyMode::Left];

/// Rows and columns 0 and `e` swapped, written another way: a gather with the transposition's index.
fn conjugated(r: &[f64], n: usize, e: usize) -> Vec<f64> {
    let swap = |i: usize| match i {
        0 => e,
        i if i == e => 0,
        i => i,
    };
    (0..n * n).map(|at| r[swap(at / n) * n + swap(at % n)]).collect()
}

fn identity_draw(n: usize) -> impl FnMut(usize) -> Vec<f64> {
    move |_| identity(n - 1)
}

#[test]
fn base_matrix_of_four() {
    // In units of 1e-4.
    let expected = [
        [5000, 5000, 5000, 5000], //
        [0, 4082, -8165, 4082],
        [-8660, 2887, 2887, 2887],
        [0, -7071, 0, 7071],
    ];
    let base = base_matrix(4);
    let rounded: Vec<i32> = base.iter().map(|x| (x * 1e4).round() as i32).collect();
    assert_eq!(rounded, expected.concat());
    // To the last digits: the entries in closed form.
    close(&base[4..8], &[0.0, 1.0 / 6.0_f64.sqrt(), -2.0 / 6.0_f64.sqrt(), 1.0 / 6.0_f64.sqrt()], 1e-15);
    assert!(orthogonality_error(&base, 4) < 1e-15);
}

#[test]
fn base_matrix_is_orthogonal_with_a_uniform_first_row() {
    assert_eq!(base_matrix(1), [1.0]);
    for n in [2, 3, 5, 8, 64, 128] {
        let base = base_matrix(n);
        assert!(orthogonality_error(&base, n) < 1e-13);
        close(&base[..n], &vec![1.0 / (n as f64).sqrt(); n], 1e-13);
        let first_column: Vec<f64> = base.iter().step_by(n).copied().collect();
        assert!(n == 2 || first_column.iter().any(|x| (x - first_column[0]).abs() > 0.1));
    }
}

#[test]
fn hadamard_by_recursion() {
    let mut expected = vec![1.0];
    let mut n = 1;
    while n <= 64 {
        let h = hadamard_matrix(n);
        let scaled: Vec<f64> = h.iter().map(|x| x * (n as f64).sqrt()).collect();
        close(&scaled, &expected, 1e-14);
        close(&h, &transpose(&h, n, n), 0.0);
        assert!(orthogonality_error(&h, n) < 1e-14);
        // H_2n = [[H, H], [H, -H]]
        let mut next = vec![0.0; 4 * n * n];
        for (i, x) in expected.iter().enumerate() {
            let (row, column, width) = (i / n, i % n, 2 * n);
            next[row * width + column] = *x;
            next[row * width + column + n] = *x;
            next[(row + n) * width + column] = *x;
            next[(row + n) * width + column + n] = -x;
        }
        (expected, n) = (next, 2 * n);
    }
}

#[test]
fn paper_by_hand_with_two_channels() {
    let a = 0.5_f64.sqrt();
    // The outlier is in column 1, so rows and columns 0 and 1 of [[a, a], [-a, a]] swap.
    let found = greedy_rotation(&[0.0, 4.0], 1, 2, 1, GreedyMode::Paper, &mut |_| vec![1.0]);
    close(&found.rotation, &[a, -a, a, a], 1e-15);
    assert_eq!((found.best_step, found.pivots), (1, vec![1]));
    close(&found.peaks, &[4.0, 4.0 * a], 1e-15);
}

#[test]
fn official_by_hand_with_two_channels() {
    let a = 0.5_f64.sqrt();
    // The only row is row 0, whatever the column: the factor is the base matrix, [0, 4] becomes [-4a, 4a], whose range is
    // wider, and the identity stays. Mode `paper` improves on the same input.
    let found = greedy_rotation(&[0.0, 4.0], 1, 2, 2, GreedyMode::Official, &mut |_| vec![1.0]);
    assert_eq!((found.best_step, found.pivots[0]), (0, 0));
    assert_eq!(found.rotation, identity(2));
    close(&found.peaks[..2], &[4.0, 8.0 * a], 1e-15);

    // [4, 0] becomes [4a, 4a], of range 0. With one step that state is never measured.
    let found = greedy_rotation(&[4.0, 0.0], 1, 2, 2, GreedyMode::Official, &mut |_| vec![1.0]);
    assert_eq!(found.best_step, 1);
    close(&found.rotation, &[a, a, -a, a], 1e-15);
    let found = greedy_rotation(&[4.0, 0.0], 1, 2, 1, GreedyMode::Official, &mut |_| vec![1.0]);
    assert_eq!((found.best_step, found.rotation), (0, identity(2)));
}

#[test]
fn the_official_pivot_is_the_row_modulo_n() {
    // 5 rows of 3: the extreme of larger magnitude is -9 in row 4, column 0; 4 mod 3 = 1.
    let mut x = vec![0.5; 15];
    x[2] = 8.0;
    x[12] = -9.0;
    let found = greedy_rotation(&x, 5, 3, 1, GreedyMode::Official, &mut identity_draw(3));
    assert_eq!(found.pivots, [1]);
    let found = greedy_rotation(&x, 5, 3, 1, GreedyMode::Paper, &mut identity_draw(3));
    assert_eq!(found.pivots, [0]);
    // Equal magnitudes: the maximum's row.
    x[2] = 9.0;
    let found = greedy_rotation(&x, 5, 3, 1, GreedyMode::Official, &mut identity_draw(3));
    assert_eq!(found.pivots, [0]);
}

#[test]
fn the_first_step_is_the_swapped_base_matrix() {
    let x = [0.0, 0.0, 8.0, 0.0, 1.0, 1.0, 1.0, 1.0];
    let expected = conjugated(&base_matrix(4), 4, 2);
    for mode in [GreedyMode::Paper, GreedyMode::Left] {
        let found = greedy_rotation(&x, 2, 4, 1, mode, &mut identity_draw(4));
        assert_eq!((found.best_step, found.pivots), (1, vec![2]));
        close(&found.rotation, &expected, 1e-15);
        // Row 2 is uniform, so that the outlier spreads evenly.
        close(&found.rotation[8..12], &[0.5; 4], 1e-15);
        close(&found.peaks, &[8.0, 4.0], 1e-15);
    }
    // In mode `official` the outlier must be in row 2 of the stack, and a second step must measure the first.
    let mut x = vec![0.0; 16];
    x[8..12].copy_from_slice(&[0.0, 0.0, 8.0, 0.0]);
    let found = greedy_rotation(&x, 4, 4, 2, GreedyMode::Official, &mut identity_draw(4));
    assert_eq!((found.best_step, found.pivots[0]), (1, 2));
    close(&found.rotation, &expected, 1e-15);
    close(&found.peaks[..2], &[8.0, 4.0], 1e-15);
}

#[test]
fn the_draw_stands_right_or_left_of_the_base_matrix() {
    // Q' moves the last three axes round: e1 -> e2 -> e3 -> e1 (row i has its one in column i + 1).
    let cycle = [0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0];
    let base = base_matrix(4);
    let x = [8.0, 0.0, 0.0, 0.0];
    let right: Vec<f64> = (0..16).map(|at| base[at / 4 * 4 + [0, 3, 1, 2][at % 4]]).collect();
    let left: Vec<f64> = (0..16).map(|at| base[[0, 2, 3, 1][at / 4] * 4 + at % 4]).collect();
    let found = greedy_rotation(&x, 1, 4, 1, GreedyMode::Paper, &mut |_| cycle.to_vec());
    close(&found.rotation, &right, 1e-15);
    let found = greedy_rotation(&x, 1, 4, 1, GreedyMode::Left, &mut |_| cycle.to_vec());
    close(&found.rotation, &left, 1e-15);
    let found = greedy_rotation(&x, 1, 4, 2, GreedyMode::Official, &mut |_| cycle.to_vec());
    close(&found.rotation, &right, 1e-15);
}

#[test]
fn draws_are_fresh_except_in_the_official_mode() {
    let x = Random::new(5).activations(6, 8);
    for mode in MODES {
        let mut asked = Vec::new();
        let mut random = Random::new(6);
        let _ = greedy_rotation(&x, 6, 8, 4, mode, &mut |step| {
            asked.push(step);
            random.orthogonal(7)
        });
        let expected = if mode == GreedyMode::Official { vec![0] } else { vec![0, 1, 2, 3] };
        assert_eq!(asked, expected);
    }
}

#[test]
fn the_best_prefix_is_kept() {
    let (rows, n, steps) = (40, 16, 30);
    for (seed, mode) in [7, 8, 9].into_iter().flat_map(|seed| MODES.map(|mode| (seed, mode))) {
        let x = Random::new(seed).activations(rows, n);
        let mut random = Random::new(100 + seed);
        let found = greedy_rotation(&x, rows, n, steps, mode, &mut |_| random.orthogonal(n - 1));
        assert_eq!((found.peaks.len(), found.pivots.len()), (steps + 1, steps));
        let candidates = &found.peaks[..steps + usize::from(mode != GreedyMode::Official)];
        let best = candidates.iter().copied().fold(f64::INFINITY, f64::min);
        assert_eq!(found.peaks[found.best_step], best);
        assert!(!candidates[..found.best_step].contains(&best), "the first of equals");
        assert!(best < found.peaks[0], "planted outliers always shrink");
        // The rotation really has that effect on x.
        let y = rotate_blocks(&x, &found.rotation, n);
        assert!((criterion(&y, mode) - best).abs() < 1e-10 * found.peaks[0]);
        assert!(orthogonality_error(&found.rotation, n) < 1e-10);
    }
}

#[test]
fn nothing_to_improve_gives_the_identity() {
    for mode in MODES {
        let found = greedy_rotation(&[0.0; 12], 3, 4, 5, mode, &mut identity_draw(4));
        assert_eq!((found.best_step, found.rotation), (0, identity(4)));
        let found = greedy_rotation(&[], 0, 4, 2, mode, &mut identity_draw(4));
        assert_eq!((found.best_step, found.peaks), (0, vec![0.0; 3]));
        let found = greedy_rotation(&[3.0, 1.0, 1.0, 1.0], 1, 4, 0, mode, &mut identity_draw(4));
        assert_eq!((found.rotation, found.peaks.len()), (identity(4), 1));
        let found = greedy_rotation(&[3.0, -1.0], 2, 1, 3, mode, &mut |_| Vec::new());
        assert_eq!(found.rotation, [1.0]);
    }
}

#[test]
fn theorem_1_for_a_single_outlier() {
    // A block with one outlier O: the rotation spreads it to O / sqrt(n) in every channel.
    for (n, channel) in [(4, 3), (16, 5), (64, 63)] {
        let mut x = vec![0.0; n];
        x[channel] = -1000.0;
        let mut random = Random::new(n as u64);
        let found = greedy_rotation(&x, 1, n, 1, GreedyMode::Left, &mut |_| random.orthogonal(n - 1));
        let y = rotate_blocks(&x, &found.rotation, n);
        assert!((abs_max(&y) - 1000.0 / (n as f64).sqrt()).abs() < 1e-9);
    }
}

#[test]
fn many_steps_stay_orthogonal() {
    let (rows, n) = (8, 32);
    let x = Random::new(11).activations(rows, n);
    let mut random = Random::new(12);
    let found = greedy_rotation(&x, rows, n, 256, GreedyMode::Paper, &mut |_| random.orthogonal(n - 1));
    assert!(orthogonality_error(&found.rotation, n) < 1e-10);
}
