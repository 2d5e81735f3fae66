use super::super::tests::{
    NANS, check_spoilt, check_threads, checked_values, float, outliers, run, sylvester, tokens, transform,
};
use super::super::{Source, TransformQuantize};
use super::*;
use crate::kernels::Arithmetic;

const AFFINE: Affine = Affine { bits: 4, clip: 0.9, symmetric: false };

/// The plan, where this machine has the kernel.
#[allow(clippy::print_stdout, reason = "a test says so when it skips")]
fn fast(transform: &Transform, affine: Affine, m_max: usize) -> Option<TransformQuantize> {
    let isa = Isa::Avx512Vnni;
    if !Isa::available().contains(&isa) {
        println!("skipped: this machine has no AVX-512 VNNI");
        return None;
    }
    let plan = TransformQuantize::plan_with(transform, Some(affine), m_max, isa, Arithmetic::Fast).unwrap();
    assert_eq!(plan.kernel(), format!("transform_quantize avx512 vpdpwssd dense {}", transform.block));
    Some(plan)
}

/// One token in `f64`, and by how much each value may be off.
fn bounded(transform: &Transform, row: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let (k, b) = (transform.channels, transform.block);
    // Smoothing is one multiplication in `f32`, as it is in the kernel.
    let factor = |i: usize| transform.inverse_smooth.as_ref().map_or(1.0, |f| f[i]);
    let mut x: Vec<f64> = row.iter().enumerate().map(|(i, &x)| f64::from(x * factor(i))).collect();
    let mut off = vec![0.0; k];
    // Codes of orthogonal columns are at most so long.
    let length = LENGTH + (b as f64).sqrt() / 2.0;
    let largest = (2.0_f64.powi(31) - 1.0) / (b as f64).sqrt() / length - 1.0;
    for i in 0..transform.rotation_count() {
        if i > 0 {
            let order = transform.permutation(i - 1);
            x = order.iter().map(|&from| x[from as usize]).collect();
            off = order.iter().map(|&from| off[from as usize]).collect();
        }
        let r = transform.rotation(i);
        let (mut y, mut next) = (vec![0.0; k], vec![0.0; k]);
        for at in 0..k {
            let (first, j) = (at / b * b, at % b);
            let seen: Vec<f64> = (first..first + b).map(|i| x[i].abs() + off[i]).collect();
            let m = seen.iter().fold(2.0_f64.powi(-98), |m, &x| m.max(x));
            for i in 0..b {
                let r = f64::from(r[i * b + j]);
                y[at] += x[first + i] * r;
                let code = m / (2.0 * largest);
                // Three roundings of a code, three of a product.
                next[at] += (off[first + i] + code + seen[i] * 2.0_f64.powi(-21)) * r.abs();
                next[at] += (seen[i] + code) / (2.0 * LENGTH) * (1.0 + 1e-5);
            }
        }
        (x, off) = (y, next);
    }
    (x, off)
}

/// Values within the bound of the oracle, codes those of the values, and every token what it is alone.
fn check(transform: &Transform, affine: Affine, count: usize, x: &[f32]) {
    let Some(plan) = fast(transform, affine, count) else { return };
    let k = transform.channels;
    let what = format!("T {count} K {k} B {} rotations {}", transform.block, transform.rotation_count());
    let alone = fast(transform, affine, 1).unwrap();
    let values = checked_values(&plan, &alone, x, &what);
    for (t, (row, value)) in x.chunks_exact(k).zip(values.chunks_exact(k)).enumerate() {
        let (want, off) = bounded(transform, row);
        for (at, ((want, off), got)) in want.iter().zip(&off).zip(value).enumerate() {
            let error = (want - f64::from(*got)).abs();
            assert!(error <= *off, "{what}: token {t}, channel {at}: {got} is off {want} by {error}, not {off}");
        }
    }
}

#[test]
fn values_are_within_the_bound_and_tokens_on_their_own() {
    for (k, block) in
        [(16, 16), (96, 32), (96, 48), (128, 128), (384, 128), (576, 64), (640, 320), (1024, 512), (1536, 128)]
    {
        for permutations in 0..=2 {
            let transform = transform(k, block, permutations, false, permutations == 1);
            for count in [1, 2, 7, 17] {
                check(&transform, AFFINE, count, &tokens(count, k));
            }
        }
    }
    check(&transform(11_008, 128, 1, false, true), AFFINE, 3, &tokens(3, 11_008));
}

#[test]
fn every_width_and_mode() {
    for bits in 2..=COARSE_BITS {
        for symmetric in [false, true] {
            check(&transform(288, 96, 1, false, false), Affine { bits, clip: 1.0, symmetric }, 19, &tokens(19, 288));
        }
    }
}

#[test]
fn the_documented_bound_holds() {
    for block in [16, 128, 512] {
        let (count, k) = (20, 2 * block);
        let transform = transform(k, block, 0, false, false);
        let Some(plan) = fast(&transform, AFFINE, count) else { return };
        let x = tokens(count, k);
        let values = float(&plan, Source::Tokens(&x), count);
        for (x, values) in x.chunks_exact(block).zip(values.chunks_exact(block)) {
            let length = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            let b = block as f64;
            let bound = length * (2.0_f64.powi(-15) * b.sqrt() + 2.0_f64.powi(-18) * b);
            for (j, &value) in values.iter().enumerate() {
                let real: f64 = x
                    .iter()
                    .enumerate()
                    .map(|(k, &x)| f64::from(x) * f64::from(transform.rotations[k * block + j]))
                    .sum();
                assert!((real - f64::from(value)).abs() <= bound, "B {block}: {value} is not within {bound} of {real}");
            }
        }
    }
}

/// A block along a column gives the largest sum there is.
#[test]
fn the_largest_sums_fit() {
    for block in [16, 64, 128, 512] {
        let matrix = sylvester(block);
        let x: Vec<f32> =
            [3.0, -3.0, f32::MAX / 64.0, 1e-20].iter().flat_map(|v| matrix.iter().map(move |m| m * v)).collect();
        let rotated = Transform { hadamard: false, rotations: matrix, ..transform(block, block, 0, true, false) };
        check(&rotated, AFFINE, 4 * block, &x);
    }
    // A matrix that keeps no lengths, of columns of several.
    let mixed = [vec![40.0; 256], [1.0, -1.0].repeat(128 * 255)].concat();
    let rotated = Transform { rotations: mixed, ..transform(256, 256, 0, false, false) };
    let Some(plan) = fast(&rotated, AFFINE, 1) else { return };
    let x = [5.0; 256];
    for (j, y) in float(&plan, Source::Tokens(&x), 1).into_iter().enumerate() {
        let real: f64 = (0..256).map(|k| 5.0 * f64::from(rotated.rotations[k * 256 + j])).sum();
        assert!((real - f64::from(y)).abs() <= 2.0, "column {j}: {y} for {real}");
    }
}

#[test]
fn massive_outliers_beside_small_values() {
    let (count, k) = (20, 1024);
    let x = outliers(count, k);
    // And the edges of what codes hold.
    for scale in [1.0, 1e-42, 1e-38, 1e-34, 1e-30, 1e30] {
        let x: Vec<f32> = x.iter().map(|x| x * scale).collect();
        check(&transform(k, 128, 1, false, false), AFFINE, count, &x);
    }
}

#[test]
fn threads_change_nothing() {
    let Some(plan) = fast(&transform(1536, 128, 1, false, true), AFFINE, 70) else { return };
    check_threads(&plan, 70);
}

#[test]
fn sources_give_what_their_parts_give() {
    let (k, count) = (576, 13);
    let transform = transform(k, 64, 1, false, true);
    let Some(plan) = fast(&transform, AFFINE, count) else { return };
    let (x, gate_up) = (tokens(count, k), tokens(count, 2 * k));
    let weight: Vec<f32> = (0..k).map(|i| 0.5 + (i % 5) as f32).collect();
    let mut parts = vec![0.0; count * k];
    crate::kernels::cpu::rms_norm(&x, &weight, 1e-5, &mut parts).unwrap();
    let want = run(&plan, Source::Tokens(&parts), count);
    assert_eq!(run(&plan, Source::RmsNorm { x: &x, weight: &weight, epsilon: 1e-5 }, count), want);
    crate::kernels::cpu::silu_mul(&gate_up, count, k, &mut parts).unwrap();
    let want = run(&plan, Source::Tokens(&parts), count);
    assert_eq!(run(&plan, Source::SiluMul { gate_up: &gate_up }, count), want);
}

#[test]
fn a_token_that_is_not_finite_is_nan_and_touches_no_other() {
    let k = 256;
    for transform in [transform(k, 128, 1, false, false), transform(k, 64, 0, false, true)] {
        let Some(plan) = fast(&transform, AFFINE, 20) else { return };
        for bad in NANS.map(f32::from_bits).into_iter().chain([f32::INFINITY, f32::NEG_INFINITY]) {
            check_spoilt(&plan, 20, 8, bad);
        }
    }
}

#[test]
fn what_it_does_not_take_is_reproducible() {
    let wide = Affine { bits: COARSE_BITS + 1, ..AFFINE };
    for (transform, affine) in [
        (transform(48, 24, 1, false, false), Some(AFFINE)),
        (transform(1024, 1024, 0, true, false), Some(AFFINE)),
        (transform(128, 64, 1, true, false), Some(AFFINE)),
        (Transform::identity(64), Some(AFFINE)),
        (transform(64, 32, 1, false, false), Some(wide)),
        (transform(64, 32, 1, false, false), None),
    ] {
        let isa = Isa::Avx512Vnni;
        if !Isa::available().contains(&isa) {
            return;
        }
        let with = |arithmetic| TransformQuantize::plan_with(&transform, affine, 3, isa, arithmetic).unwrap();
        let (plain, fast) = (with(Arithmetic::Reproducible), with(Arithmetic::Fast));
        assert_eq!(fast.kernel(), plain.kernel());
        let source = tokens(3, transform.channels);
        assert!(float(&fast, Source::Tokens(&source), 3) == float(&plain, Source::Tokens(&source), 3));
    }
}
