//! The chain and its application: equality of the transformed product, reproducibility, refusals.

use proptest::prelude::*;
use rand_distr::{Distribution, StandardNormal};

use super::*;
use crate::transform::{apply, block_means, transform_weight, undo_weight};

const KINDS: [RotationKind; 6] = [
    RotationKind::Paper,
    RotationKind::Official,
    RotationKind::Left,
    RotationKind::Hadamard,
    RotationKind::Random,
    RotationKind::None,
];

fn normal(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = draw(seed, 7);
    (0..count).map(|_| StandardNormal.sample(&mut rng)).collect()
}

/// Activations with channels of very different size.
fn activations(tokens: usize, k: usize, seed: u64) -> Vec<f32> {
    let mut x = normal(tokens * k, seed);
    x.iter_mut().enumerate().for_each(|(i, v)| *v *= if i % k % 11 == 3 { 20.0 } else { 1.0 });
    x
}

fn options(rotation: RotationKind) -> TransformOptions {
    TransformOptions { rotation, block: 32, steps: 8, seed: 3, ..TransformOptions::default() }
}

/// `max |X G (W G^-T)^T - X W^T|` over the largest magnitude of `X W^T`.
fn inequality(transform: &Transform, x: &[f32], tokens: usize, w: &[f32], n: usize) -> f64 {
    let k = transform.channels;
    let (mut xt, mut wt) = (x.to_vec(), w.to_vec());
    apply(transform, &mut xt, tokens).unwrap();
    transform_weight(transform, &mut wt, n).unwrap();
    let dot = |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum() };
    let (mut worst, mut largest) = (0.0f64, 1e-30f64);
    for t in 0..tokens {
        for o in 0..n {
            let exact = dot(&x[t * k..][..k], &w[o * k..][..k]);
            worst = worst.max((dot(&xt[t * k..][..k], &wt[o * k..][..k]) - exact).abs());
            largest = largest.max(exact.abs());
        }
    }
    worst / largest
}

#[test]
fn the_transformed_product_is_the_product() {
    let (tokens, k, n) = (150, 96, 70);
    let (x, w) = (activations(tokens, k, 1), normal(n * k, 2));
    let smooth = |j: usize| 0.25 + j as f32 / 32.0;
    for kind in KINDS {
        for permutations in 0..=2 {
            let wanted = TransformOptions { permutations, ..options(kind) };
            let mut transform = build(&x, tokens, k, &wanted, &RotationPools::new()).unwrap();
            transform.validate().unwrap();
            assert_eq!(transform.hadamard, kind == RotationKind::Hadamard);
            if kind != RotationKind::None {
                assert_eq!(
                    (transform.rotation_count(), transform.permutation_count()),
                    (permutations + 1, permutations)
                );
            }
            assert!(inequality(&transform, &x, tokens, &w, n) < 1e-5, "{kind:?} {permutations}");
            transform.inverse_smooth = Some((0..k).map(|j| 1.0 / smooth(j)).collect());
            assert!(inequality(&transform, &x, tokens, &w, n) < 1e-5, "{kind:?} {permutations} smoothed");
            let mut back = w.clone();
            transform_weight(&transform, &mut back, n).unwrap();
            undo_weight(&transform, &mut back, n).unwrap();
            for (i, (b, w)) in back.iter().zip(&w).enumerate() {
                assert!((b - w).abs() <= 1e-5 / smooth(i % k), "{kind:?} {permutations}: {b} for {w} at {i}");
            }
        }
    }
}

#[test]
fn smoothing_divides_activations_and_multiplies_weights() {
    let transform = Transform { inverse_smooth: Some(vec![0.5, 4.0]), ..Transform::identity(2) };
    let (mut x, mut w) = (vec![1.0, 1.0, 2.0, 2.0], vec![1.0, 1.0]);
    apply(&transform, &mut x, 2).unwrap();
    transform_weight(&transform, &mut w, 1).unwrap();
    assert_eq!((x, w.clone()), (vec![0.5, 4.0, 1.0, 8.0], vec![2.0, 0.25]));
    undo_weight(&transform, &mut w, 1).unwrap();
    assert_eq!(w, [1.0, 1.0]);
}

#[test]
fn the_transform_is_a_rotation_then_a_gather_then_a_rotation() {
    // Against the definition, entry by entry, with a rotation that is no symmetric matrix.
    let (b, k) = (2, 4);
    let transform = Transform {
        channels: k,
        block: b,
        rotations: vec![0.6, 0.8, -0.8, 0.6, 0.0, 1.0, -1.0, 0.0],
        permutations: vec![2, 0, 3, 1],
        ..Transform::default()
    };
    let mut x = vec![1.0, 0.0, 0.0, 10.0];
    apply(&transform, &mut x, 1).unwrap();
    // Rotated: [.6, .8, -8, 6]; gathered: [-8, .6, 6, .8]; rotated by [[0, 1], [-1, 0]]: [-b, a] of each pair.
    for (got, want) in x.iter().zip([-0.6, -8.0, -0.8, 6.0]) {
        assert!((got - want).abs() < 1e-6, "{x:?}");
    }
}

#[test]
fn each_step_sees_what_the_steps_before_it_did() {
    let (tokens, k) = (300, 64);
    let x = activations(tokens, k, 4);
    let pools = RotationPools::new();
    let wanted = TransformOptions { block: 16, permutations: 2, ..options(RotationKind::Paper) };
    let transform = build(&x, tokens, k, &wanted, &pools).unwrap();
    let mut so_far = x.clone();
    for i in 0..2 {
        rotate(&mut so_far, 16, transform.rotation(i));
        let outliers = channel_max(&so_far, tokens, k).unwrap();
        assert_eq!(transform.permutation(i), permute(PermutationKind::Zigzag, &outliers, 16, 0).unwrap(), "{i}");
        gather(&mut so_far, transform.permutation(i));
        let alone = TransformOptions { permutations: 0, ..wanted };
        assert_eq!(transform.rotation(i + 1), build(&so_far, tokens, k, &alone, &pools).unwrap().rotations, "{i}");
    }
    let identity: Vec<u32> = (0..k as u32).collect();
    rotate(&mut so_far, 16, transform.rotation(2));
    let spread = |x: &[f32]| {
        let means = block_means(&channel_max(x, tokens, k).unwrap(), &identity, 16).unwrap();
        means.iter().fold(0.0f64, |m, &v| m.max(v)) / means.iter().fold(f64::INFINITY, |m, &v| m.min(v))
    };
    assert!(spread(&so_far) < spread(&x), "blocks are more even than before");
}

#[test]
fn seeds_are_reproducible_and_threads_do_not_matter() {
    let (tokens, k) = (500, 128);
    let x = activations(tokens, k, 5);
    for kind in [RotationKind::Paper, RotationKind::Official, RotationKind::Random] {
        for permutation in [PermutationKind::Zigzag, PermutationKind::Random, PermutationKind::Anneal] {
            let run = |threads: usize, seed| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let wanted = TransformOptions { permutation, seed, ..options(kind) };
                pool.install(|| {
                    let transform = build(&x, tokens, k, &wanted, &RotationPools::new()).unwrap();
                    let mut y = x.clone();
                    apply(&transform, &mut y, tokens).unwrap();
                    (transform, y)
                })
            };
            let one = run(1, 9);
            assert!(one == run(2, 9) && one == run(3, 9), "{kind:?} {permutation:?}");
            assert!(one.0 != run(1, 10).0, "{kind:?} {permutation:?}");
        }
    }
}

#[test]
fn a_token_does_not_depend_on_the_others() {
    let (tokens, k) = (130, 64);
    let x = activations(tokens, k, 6);
    let transform = build(&x, tokens, k, &options(RotationKind::Random), &RotationPools::new()).unwrap();
    let mut all = x.clone();
    apply(&transform, &mut all, tokens).unwrap();
    for t in [0, 63, 64, 129] {
        let mut one = x[t * k..(t + 1) * k].to_vec();
        apply(&transform, &mut one, 1).unwrap();
        for (a, b) in one.iter().zip(&all[t * k..]) {
            assert!((a - b).abs() < 1e-4, "{a} {b}");
        }
    }
}

#[test]
fn blocks_are_the_largest_power_of_two_that_divides() {
    for (k, wanted, block) in [(576, 128, 64), (1536, 128, 128), (4096, 100, 64), (12, 128, 4), (4, 4, 4)] {
        assert_eq!(block_for(k, wanted).unwrap(), block);
    }
    for (k, wanted) in [(0, 128), (576, 0), (575, 128), (6, 128), (128, 3)] {
        assert!(matches!(block_for(k, wanted), Err(Error::Unsupported { .. })), "{k} {wanted}");
    }
}

#[test]
fn what_cannot_be_built_is_refused() {
    let pools = RotationPools::new();
    let x = activations(4, 32, 1);
    let good = options(RotationKind::Paper);
    let refuse = |x: &[f32], tokens, k, wanted| build(x, tokens, k, &wanted, &pools).unwrap_err();
    assert!(matches!(refuse(&x, 5, 32, good), Error::Length { .. }));
    assert!(matches!(refuse(&x, usize::MAX, 32, good), Error::Length { .. }));
    assert!(matches!(refuse(&[], 0, 32, good), Error::Unsupported { what: "tokens", .. }));
    assert!(matches!(
        refuse(&x, 4, 32, TransformOptions { steps: 0, ..good }),
        Error::Unsupported { what: "steps", .. }
    ));
    assert!(matches!(refuse(&x, 4, 32, TransformOptions { permutations: 3, ..good }), Error::Unsupported { .. }));
    assert!(matches!(refuse(&x, 4, 32, TransformOptions { block: 2, ..good }), Error::Unsupported { .. }));
    assert!(matches!(refuse(&x[..126], 7, 18, good), Error::Unsupported { .. }));
    let mut bad = x.clone();
    bad[40] = f32::NEG_INFINITY;
    assert!(matches!(refuse(&bad, 4, 32, options(RotationKind::None)), Error::NotFinite { operand: "x", row: 1 }));

    let mut transform = build(&x, 4, 32, &good, &pools).unwrap();
    assert!(matches!(apply(&transform, &mut [0.0; 31], 1), Err(Error::Length { .. })));
    transform.inverse_smooth = Some(vec![0.0; 32]);
    assert!(matches!(transform_weight(&transform, &mut [0.0; 32], 1), Err(Error::Unsupported { .. })));
    assert!(matches!(undo_weight(&transform, &mut [0.0; 32], 1), Err(Error::Unsupported { .. })));
    transform.permutations[0] = 32;
    assert!(apply(&transform, &mut [0.0; 32], 1).is_err());
}

#[test]
fn no_permutation_means_one_rotation() {
    let x = activations(10, 32, 1);
    let wanted =
        TransformOptions { permutation: PermutationKind::None, permutations: 2, ..options(RotationKind::Paper) };
    let transform = build(&x, 10, 32, &wanted, &RotationPools::new()).unwrap();
    assert_eq!((transform.rotation_count(), transform.permutation_count()), (1, 0));
    let fixed = TransformOptions { permutations: 0, ..options(RotationKind::Hadamard) };
    assert_eq!(build(&[], 0, 32, &fixed, &RotationPools::new()).unwrap().rotation_count(), 1, "needs no data");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_transform_keeps_the_product_and_the_norm(
        kind in 0usize..6,
        permutation in 0usize..3,
        permutations in 0usize..3,
        tokens in 1usize..90,
        quads in 1usize..24,
        seed in 0u64..1000,
    ) {
        let k = 4 * quads;
        let permutation = [PermutationKind::Zigzag, PermutationKind::Random, PermutationKind::Anneal][permutation];
        let (x, w) = (activations(tokens, k, seed), normal(3 * k, seed + 1));
        let wanted = TransformOptions { permutation, permutations, seed, ..options(KINDS[kind]) };
        let transform = build(&x, tokens, k, &wanted, &RotationPools::new()).unwrap();
        transform.validate().unwrap();
        prop_assert!(inequality(&transform, &x, tokens, &w, 3) < 1e-5);
        let mut y = x.clone();
        apply(&transform, &mut y, tokens).unwrap();
        let norm = |x: &[f32]| x.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
        for (x, y) in x.chunks_exact(k).zip(y.chunks_exact(k)) {
            prop_assert!((norm(y) / norm(x) - 1.0).abs() < 1e-5);
        }
    }
}
