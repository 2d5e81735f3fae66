//! Promises that hold for every input, across modules.

use crate::testing::{Random, abs_max, close};
use crate::*;
use proptest::prelude::*;

const MODES: [GreedyMode; 3] = [GreedyMode::Paper, GreedyMode::Official, GreedyMode::Left];

/// A row that is ordinary, all zero, of one sign, with a massive outlier, tiny or huge.
fn row() -> impl Strategy<Value = Vec<f32>> {
    let ordinary = || prop::collection::vec(-10.0_f32..10.0, 1..80);
    prop_oneof![
        ordinary(),
        (1_usize..80).prop_map(|n| vec![0.0; n]),
        ordinary().prop_map(|row| row.iter().map(|x| x.abs()).collect()),
        ordinary().prop_map(|row| row.iter().map(|x| -x.abs()).collect()),
        (ordinary(), any::<prop::sample::Index>()).prop_map(|(mut row, at)| {
            let at = at.index(row.len());
            row[at] = -2774.0;
            row
        }),
        ordinary().prop_map(|row| row.iter().map(|x| x * 1e-9).collect()),
        ordinary().prop_map(|row| row.iter().map(|x| x * 1e36).collect()),
    ]
}

fn affine() -> impl Strategy<Value = Affine> {
    (2_u32..=8, 0.3_f32..=1.0, any::<bool>()).prop_map(|(bits, clip, symmetric)| Affine { bits, clip, symmetric })
}

proptest! {
    #[test]
    fn codes_fit_their_bits_and_reals_come_back(row in row(), affine in affine()) {
        let (codes, params) = affine.quantize_row(&row);
        prop_assert!(params.scale >= 1e-8 && params.scale.is_finite());
        prop_assert!(params.zero_point <= affine.max_code());
        // Zero is exact.
        prop_assert_eq!(params.dequantize(params.zero_point), 0.0);
        prop_assert_eq!(affine.code(0.0, &params), params.zero_point);
        let scale = f64::from(params.scale);
        let lowest = params.dequantize(0);
        let highest = params.dequantize(affine.max_code());
        for (&x, &code) in row.iter().zip(&codes) {
            prop_assert!(code <= affine.max_code());
            let (x, back) = (f64::from(x), params.dequantize(code));
            // Half a step inside the range of codes; outside, the nearest end.
            let nearest = x.clamp(lowest, highest);
            prop_assert!((back - nearest).abs() <= 0.5001 * scale + 1e-5 * nearest.abs(), "{x} became {back}");
        }
        // Unclipped, the range of codes leaves out less than a step on either side.
        if affine.clip == 1.0 {
            prop_assert!(row.iter().all(|&x| f64::from(x) > lowest - scale && f64::from(x) < highest + scale));
        }
    }

    #[test]
    fn codes_keep_the_order(row in row(), affine in affine()) {
        let (codes, _) = affine.quantize_row(&row);
        for i in 1..row.len() {
            if row[i - 1] <= row[i] {
                prop_assert!(codes[i - 1] <= codes[i]);
            }
        }
    }

    #[test]
    fn zero_is_a_code_whatever_the_sign(row in row(), bits in 2_u32..=8) {
        let affine = Affine::new(bits, 1.0);
        let (_, params) = affine.quantize_row(&row);
        if row.iter().all(|&x| x >= 0.0) {
            prop_assert_eq!(params.zero_point, 0);
        }
        if row.iter().all(|&x| x <= 0.0) && row.iter().any(|&x| x < -1e-6) {
            prop_assert_eq!(params.zero_point, affine.max_code());
        }
    }

    #[test]
    fn packing_round_trips(bits in 2_u32..=8, raw in prop::collection::vec(any::<u8>(), 0..70)) {
        let codes: Vec<u8> = raw.iter().map(|byte| byte >> (8 - bits)).collect();
        let words = pack_row(&codes, bits);
        prop_assert_eq!(words.len(), row_words(codes.len(), bits));
        prop_assert_eq!(&unpack_row(&words, bits, codes.len()), &codes);
        // The padding holds code 0.
        let capacity = words.len() * if bits <= 4 { 8 } else { 4 };
        let padded = unpack_row(&words, bits, capacity);
        prop_assert!(padded[codes.len()..].iter().all(|&code| code == 0));
    }

    #[test]
    fn zigzag_is_a_bijection_and_balances(
        blocks in 1_usize..9,
        block in 1_usize..17,
        seed: u64,
        equal in any::<bool>(),
    ) {
        let mut random = Random::new(seed);
        let channels = blocks * block;
        let outliers: Vec<f64> =
            (0..channels).map(|_| if equal { random.below(3) as f64 } else { random.normal().abs() }).collect();
        let permutation = zigzag_permutation(&outliers, block);
        prop_assert!(is_bijection(&permutation));
        prop_assert_eq!(gather(&gather(&outliers, &permutation), &inverse_permutation(&permutation)), outliers.clone());

        // Contiguous blocks of sorted channels are the worst partition there is.
        let mut sorted: Vec<usize> = (0..channels).collect();
        sorted.sort_by(|&a, &b| outliers[b].total_cmp(&outliers[a]));
        let zigzag = block_mean_variance(&outliers, &permutation, block);
        let contiguous = block_mean_variance(&outliers, &sorted, block);
        prop_assert!(zigzag <= contiguous + 1e-12, "{zigzag} against {contiguous}");

        // Theorem 2: M_b <= O^(b) + (2^n K - 1)(2^(n-1) - 1) / 2^n delta, with 2^n channels in a block.
        let magnitudes: Vec<f64> = sorted.iter().map(|&channel| outliers[channel]).collect();
        let delta = magnitudes.windows(2).map(|pair| pair[0] - pair[1]).fold(0.0, f64::max);
        let means = block_means(&outliers, &permutation, block);
        let slack = (channels as f64 - 1.0) * (block as f64 / 2.0 - 1.0).max(0.0) / block as f64 * delta;
        for (b, mean) in means.iter().enumerate() {
            prop_assert!(*mean <= magnitudes[b] + slack + 1e-12);
        }
        // And tighter, for pairs of rounds: block means lie within (K - 1) / 2 of the largest gap.
        if block % 2 == 0 {
            let max = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let min = means.iter().copied().fold(f64::INFINITY, f64::min);
            prop_assert!(max - min <= (blocks as f64 - 1.0) / 2.0 * delta + 1e-12);
        }
    }

    #[test]
    fn swapping_channels_between_blocks_keeps_the_norm(channels in 1_usize..40, rows in 0_usize..4, seed: u64) {
        let mut random = Random::new(seed);
        let (x, permutation) = (random.normals(rows * channels), random.permutation(channels));
        let mut before = x.clone();
        let mut after = gather(&x, &permutation);
        before.sort_by(f64::total_cmp);
        after.sort_by(f64::total_cmp);
        prop_assert_eq!(before, after);
    }

    #[test]
    fn rope_keeps_norms_and_sees_only_distances(
        half in 1_usize..17,
        query_at in 0_usize..500,
        key_at in 0_usize..500,
        shift in 0_usize..1000,
        seed: u64,
    ) {
        let mut random = Random::new(seed);
        let frequencies = inverse_frequencies(2 * half, 10_000.0, RopeScaling::None);
        let (q, k) = (random.normals(2 * half), random.normals(2 * half));
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let turned = rope(&q, query_at, &frequencies);
        prop_assert!((dot(&turned, &turned) - dot(&q, &q)).abs() < 1e-10 * dot(&q, &q).max(1.0));
        let score = |shift| dot(&rope(&q, query_at + shift, &frequencies), &rope(&k, key_at + shift, &frequencies));
        prop_assert!((score(shift) - score(0)).abs() < 1e-9);
    }

    #[test]
    fn softmax_is_a_distribution(scores in prop::collection::vec(-800.0_f64..800.0, 1..50), shift in -500.0_f64..500.0) {
        let weights = softmax(&scores);
        prop_assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        prop_assert!(weights.iter().all(|&w| (0.0..=1.0).contains(&w)));
        let shifted: Vec<f64> = scores.iter().map(|x| x + shift).collect();
        close(&softmax(&shifted), &weights, 1e-10);
    }

    #[test]
    fn attention_stays_between_the_values(
        kv_heads in 1_usize..4,
        group in 1_usize..4,
        positions in 1_usize..10,
        window in prop::option::of(1_usize..12),
        seed: u64,
    ) {
        let mut random = Random::new(seed);
        let shape = AttentionShape { heads: kv_heads * group, kv_heads, head_dim: 4 };
        let tokens = 1 + random.below(positions);
        let q = random.normals(tokens * shape.heads * 4);
        let k = random.normals(positions * kv_heads * 4);
        // The first channel of every value is 1, so every output's first channel is the sum of the weights.
        let mut v = random.normals(positions * kv_heads * 4);
        v.iter_mut().step_by(4).for_each(|x| *x = 1.0);
        let out = attention(&q, &k, &v, shape, window);
        prop_assert!(out.iter().step_by(4).all(|sum| (sum - 1.0).abs() < 1e-12));
        prop_assert!(abs_max(&out) <= abs_max(&v) + 1e-12);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn gemm_is_the_product_of_the_dequantized(
        tokens in 0_usize..5,
        n in 0_usize..6,
        k in 0_usize..70,
        bits in (2_u32..=8, 2_u32..=8),
        symmetric in any::<bool>(),
        seed: u64,
    ) {
        let mut random = Random::new(seed);
        let (mut x, mut w) = (random.normals(tokens * k), random.normals(n * k));
        // The first token is zero, the first output channel of one sign.
        x.iter_mut().take(k).for_each(|x| *x = 0.0);
        w.iter_mut().take(k).for_each(|w| *w = w.abs());
        let bias = random.normals(n);
        let x = QuantizedRows::quantize(&x, tokens, k, &Affine::new(bits.0, 0.9));
        let w = QuantizedMatrix::quantize(&w, n, k, &Affine { bits: bits.1, clip: 0.8, symmetric });
        let out = gemm_w4a4(&x, &w, Some(&bias));
        let expected = gemm_float(&x.dequantize(), &w.dequantize(), Some(&bias), tokens, n, k);
        close(&out.y, &expected, 1e-12);
        for t in 0..tokens {
            for row in 0..n {
                let direct: i64 = (0..k)
                    .map(|i| {
                        (i64::from(x.codes[t * k + i]) - i64::from(x.zero_point[t]))
                            * (i64::from(w.codes[row * k + i]) - i64::from(w.zero_point[row]))
                    })
                    .sum();
                prop_assert_eq!(out.integers[t * n + row], direct);
            }
        }
    }

    #[test]
    fn a_transform_keeps_the_output(
        tokens in 0_usize..5,
        n in 1_usize..5,
        blocks in 1_usize..5,
        block in 1_usize..13,
        permutations in 0_usize..3,
        smooth in any::<bool>(),
        seed: u64,
    ) {
        let mut random = Random::new(seed);
        let channels = blocks * block;
        let (x, w) = (random.normals(tokens * channels), random.normals(n * channels));
        let transform = Transform {
            channels,
            block,
            rotations: (0..=permutations).map(|_| random.orthogonal(block)).collect(),
            permutations: (0..permutations).map(|_| random.permutation(channels)).collect(),
            inverse_smooth: smooth.then(|| (0..channels).map(|_| 0.1 + random.uniform()).collect()),
        };
        let transformed = transform.apply_to_weight(&w);
        let got = gemm_float(&transform.apply(&x), &transformed, None, tokens, n, channels);
        close(&got, &gemm_float(&x, &w, None, tokens, n, channels), 1e-11);
        close(&transform.undo_on_weight(&transformed), &w, 1e-11);
    }

    #[test]
    fn greedy_never_raises_the_peak(
        rows in 1_usize..30,
        n in 1_usize..17,
        steps in 0_usize..12,
        mode in prop::sample::select(&MODES[..]),
        seed: u64,
    ) {
        let mut random = Random::new(seed);
        let x = random.activations(rows, n);
        let found = greedy_rotation(&x, rows, n, steps, mode, &mut |_| random.orthogonal(n - 1));
        prop_assert!(found.peaks[found.best_step] <= found.peaks[0]);
        prop_assert!(orthogonality_error(&found.rotation, n) < 1e-10);
        let y = rotate_blocks(&x, &found.rotation, n);
        let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>();
        prop_assert!((norm(&y) - norm(&x)).abs() < 1e-9 * norm(&x));
        if mode != GreedyMode::Official {
            // Theorem 1: the largest magnitude over all channels does not rise.
            prop_assert!(abs_max(&y) <= abs_max(&x) + 1e-9);
        }
    }

    #[test]
    fn smoothing_scales_are_positive_and_balance(k in 1_usize..20, alpha in 0.0_f64..=1.0, seed: u64) {
        let mut random = Random::new(seed);
        let act: Vec<f64> = (0..k).map(|_| 0.1 + 100.0 * random.uniform()).collect();
        let weight: Vec<f64> = (0..k).map(|_| 0.1 + random.uniform()).collect();
        let scale = smoothing_scale(&act, &weight, alpha);
        for j in 0..k {
            prop_assert!(scale[j] >= 0.01 && scale[j].is_finite());
            // alpha = 1/2 gives both sides the same maximum: act / s = w s.
            let half = smoothing_scale(&act[j..=j], &weight[j..=j], 0.5)[0];
            prop_assert!((act[j] / half - weight[j] * half).abs() < 1e-9 * act[j]);
        }
    }
}
