use super::*;
use crate::kernels::RowParams;

pub(super) struct Noise(pub(super) u64);

impl Noise {
    pub(super) fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(super) fn normal(&mut self) -> f64 {
        (-2.0 * self.next().max(1e-300).ln()).sqrt() * (2.0 * std::f64::consts::PI * self.next()).cos()
    }
}

/// An orthogonal matrix: Gram-Schmidt of noise.
fn orthogonal(n: usize, noise: &mut Noise) -> Vec<f32> {
    let mut rows: Vec<Vec<f64>> = Vec::new();
    while rows.len() < n {
        let mut row: Vec<f64> = (0..n).map(|_| noise.normal()).collect();
        for _ in 0..2 {
            for other in &rows {
                let dot: f64 = row.iter().zip(other).map(|(a, b)| a * b).sum();
                row.iter_mut().zip(other).for_each(|(a, b)| *a -= dot * b);
            }
        }
        let norm = row.iter().map(|a| a * a).sum::<f64>().sqrt();
        rows.push(row.iter().map(|a| a / norm).collect());
    }
    rows.concat().iter().map(|&x| x as f32).collect()
}

pub(super) fn sylvester(n: usize) -> Vec<f32> {
    let entry = 1.0 / (n as f32).sqrt();
    (0..n * n).map(|i| if ((i / n) & (i % n)).count_ones().is_multiple_of(2) { entry } else { -entry }).collect()
}

pub(super) fn transform(channels: usize, block: usize, permutations: usize, hadamard: bool, smooth: bool) -> Transform {
    let mut noise = Noise((channels * 1000 + block * 10 + permutations) as u64);
    let rotations = (0..=permutations)
        .flat_map(|_| if hadamard { sylvester(block) } else { orthogonal(block, &mut noise) })
        .collect();
    let permutations = (0..permutations)
        .flat_map(|_| {
            let mut order: Vec<u32> = (0..channels as u32).collect();
            for i in (1..channels).rev() {
                order.swap(i, (noise.next() * (i + 1) as f64) as usize);
            }
            order
        })
        .collect();
    let inverse_smooth = smooth.then(|| (0..channels).map(|i| 0.5 + (i % 7) as f32 * 0.25).collect());
    Transform { channels, block, rotations, permutations, inverse_smooth, hadamard }
}

/// Tokens of every kind: normal, zeros, positive, negative, a massive outlier, a few large channels, tiny.
pub(super) fn tokens(count: usize, k: usize) -> Vec<f32> {
    let mut noise = Noise((count * 7 + k) as u64);
    let mut x: Vec<f32> = (0..count * k).map(|_| (noise.normal() * 0.06) as f32).collect();
    for (t, x) in x.chunks_exact_mut(k).enumerate() {
        match t % 7 {
            1 => x.fill(0.0),
            2 => x.iter_mut().for_each(|x| *x = x.abs()),
            3 => x.iter_mut().for_each(|x| *x = -x.abs()),
            4 => x[k / 3] = 600.0,
            5 => x.iter_mut().step_by(17).for_each(|x| *x *= 50.0),
            6 => x.iter_mut().for_each(|x| *x *= 1e-12),
            _ => {}
        }
    }
    x
}

/// The transform in `f64`.
fn oracle(transform: &Transform, x: &[f64]) -> Vec<f64> {
    let (k, b) = (transform.channels, transform.block);
    let mut x = x.to_vec();
    if let Some(factor) = &transform.inverse_smooth {
        x.iter_mut().zip(factor).for_each(|(x, &f)| *x *= f64::from(f));
    }
    for i in 0..transform.rotation_count() {
        if i > 0 {
            x = transform.permutation(i - 1).iter().map(|&from| x[from as usize]).collect();
        }
        let r = transform.rotation(i);
        let mut y = vec![0.0; k];
        for (x, y) in x.chunks_exact(b).zip(y.chunks_exact_mut(b)) {
            for j in 0..b {
                y[j] = (0..b).map(|i| x[i] * f64::from(r[i * b + j])).sum();
            }
        }
        x = y;
    }
    x
}

/// Codes may differ from the oracle's only next to a tie, and by one.
fn check_codes(want: &[f64], got: &[u8], affine: &Affine, params: &RowParams, what: &str) {
    let top = f64::from(affine.max_code());
    for (i, (&want, &got)) in want.iter().zip(got).enumerate() {
        let scaled = want * f64::from(params.inverse_scale);
        let code = (scaled.round_ties_even() + f64::from(params.zero_point)).clamp(0.0, top);
        let off = (f64::from(got) - code).abs();
        let to_tie = (scaled - scaled.floor() - 0.5).abs();
        assert!(off == 0.0 || (off == 1.0 && to_tie < 1e-3), "{what}: channel {i}: {scaled} gave {got}, not {code}");
    }
}

pub(super) fn run(plan: &TransformQuantize, source: Source<'_>, count: usize) -> QuantizedTokens {
    let mut out = QuantizedTokens::new(count, plan.channels());
    let mut workspace = vec![f32::NAN; plan.workspace_len()];
    plan.run(source, count, &mut out, &mut workspace).unwrap();
    out
}

pub(super) fn float(plan: &TransformQuantize, source: Source<'_>, count: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; count * plan.channels()];
    let mut workspace = vec![f32::NAN; plan.workspace_len()];
    plan.run_float(source, count, &mut out, &mut workspace).unwrap();
    out
}

/// The values of the tokens `x`, whose codes are those of the quantizer on them, and which are the same for a token alone. `alone`
/// is the same plan for one token.
pub(super) fn checked_values(plan: &TransformQuantize, alone: &TransformQuantize, x: &[f32], what: &str) -> Vec<f32> {
    let (k, affine) = (plan.channels(), plan.affine().unwrap());
    let count = x.len() / k;
    let values = float(plan, Source::Tokens(x), count);
    let got = run(plan, Source::Tokens(x), count);
    let mut back = vec![0.0; count * k];
    plan.run_dequantized(Source::Tokens(x), count, &mut back, &mut vec![f32::NAN; plan.workspace_len()]).unwrap();
    for t in 0..count {
        let range = t * k..(t + 1) * k;
        let (row, value) = (&x[range.clone()], &values[range.clone()]);
        let mut codes = vec![0; k];
        let params = affine.quantize_row(value, &mut codes).unwrap();
        assert_eq!(got.row(t), codes, "{what}: token {t}: codes of the values");
        assert_eq!(got.scale[t], params.scale, "{what}");
        assert_eq!(got.zero_point[t], i32::from(params.zero_point), "{what}");
        assert_eq!(got.row_sum[t], codes.iter().map(|&c| i32::from(c)).sum::<i32>(), "{what}");
        for (back, &code) in back[range].iter().zip(&codes) {
            assert_eq!(*back, params.scale * (f32::from(code) - f32::from(params.zero_point)), "{what}");
        }
        assert!(got.codes[t * got.stride() + k..(t + 1) * got.stride()].iter().all(|&c| c == 0), "{what}");
        assert!(float(alone, Source::Tokens(row), 1) == value, "{what}: token {t} has other bits alone");
        let single = run(alone, Source::Tokens(row), 1);
        assert_eq!(single.row(0), got.row(t), "{what}: token {t} has other codes alone");
        assert_eq!((single.scale[0], single.row_sum[0]), (got.scale[t], got.row_sum[t]), "{what}");
    }
    values
}

/// Small values with one massive outlier a token.
pub(super) fn outliers(count: usize, k: usize) -> Vec<f32> {
    let mut noise = Noise(3);
    let mut x: Vec<f32> = (0..count * k).map(|_| (noise.normal() * 0.01) as f32).collect();
    for (t, x) in x.chunks_exact_mut(k).enumerate() {
        x[(t * 97) % k] = if t % 2 == 0 { 1e4 } else { -1e4 };
    }
    x
}

/// One, two and three threads give the same.
pub(super) fn check_threads(plan: &TransformQuantize, count: usize) {
    let x = tokens(count, plan.channels());
    let results: Vec<QuantizedTokens> = [1, 2, 3]
        .into_iter()
        .map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| run(plan, Source::Tokens(&x), count))
        })
        .collect();
    assert!(results.iter().all(|r| *r == results[0]));
}

/// NaNs of any bits, those included that lie in the lower half of an `f32` or carry into the sign when rounded.
pub(super) const NANS: [u32; 5] = [0x7f80_0001, 0x7fff_ffff, 0xffff_ffff, 0xff80_8000, 0x7fc0_0000];

/// A value `bad` makes the token `spoilt` NaN, and touches no other.
pub(super) fn check_spoilt(plan: &TransformQuantize, count: usize, spoilt: usize, bad: f32) {
    let k = plan.channels();
    let clean = run(plan, Source::Tokens(&tokens(count, k)), count);
    let mut x = tokens(count, k);
    x[spoilt * k + 5] = bad;
    let got = run(plan, Source::Tokens(&x), count);
    assert!(got.scale[spoilt].is_nan() && got.zero_point[spoilt] == 0, "{bad} {:x}", bad.to_bits());
    assert!(got.row(spoilt).iter().all(|&c| c == 0) && got.row_sum[spoilt] == 0);
    let values = float(plan, Source::Tokens(&x), count);
    assert!(values[spoilt * k..(spoilt + 1) * k].iter().any(|x| !x.is_finite()));
    for t in (0..count).filter(|&t| t != spoilt) {
        let parts = |x: &QuantizedTokens| (x.row(t).to_vec(), x.scale[t], x.zero_point[t], x.row_sum[t]);
        assert_eq!(parts(&got), parts(&clean), "{bad} spoils token {t}");
    }
}

fn check(transform: &Transform, affine: Affine, counts: &[usize]) {
    let k = transform.channels;
    for &count in counts {
        let x = tokens(count, k);
        let mut first: Option<(QuantizedTokens, Vec<f32>)> = None;
        for &isa in Isa::available() {
            if isa == Isa::Portable && count * k * transform.block > 10_000_000 {
                continue;
            }
            let what = format!("{isa:?} T {count} K {k} B {} bits {}", transform.block, affine.bits);
            let plan = TransformQuantize::plan(transform, Some(affine), count, isa).unwrap();
            let got = run(&plan, Source::Tokens(&x), count);
            let mut workspace = vec![0.0; plan.workspace_len()];
            let mut float = vec![0.0; count * k];
            plan.run_float(Source::Tokens(&x), count, &mut float, &mut workspace).unwrap();
            let mut back = vec![0.0; count * k];
            plan.run_dequantized(Source::Tokens(&x), count, &mut back, &mut workspace).unwrap();
            for t in 0..count {
                let row = &x[t * k..(t + 1) * k];
                let wide: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
                let want = oracle(transform, &wide);
                let size = want.iter().fold(0.0, |a: f64, x| a.max(x.abs()));
                let float = &float[t * k..(t + 1) * k];
                for (want, got) in want.iter().zip(float) {
                    assert!((want - f64::from(*got)).abs() <= 2e-6 * size, "{what}: {want} {got}");
                }
                let mut codes = vec![0; k];
                let params = affine.quantize_row(float, &mut codes).unwrap();
                assert_eq!(got.row(t), codes, "{what}: the codes are those of the float path");
                assert_eq!(got.scale[t], params.scale, "{what}");
                assert_eq!(got.zero_point[t], i32::from(params.zero_point), "{what}");
                assert_eq!(got.row_sum[t], codes.iter().map(|&c| i32::from(c)).sum::<i32>(), "{what}");
                check_codes(&want, got.row(t), &affine, &params, &what);
                for (back, &code) in back[t * k..(t + 1) * k].iter().zip(&codes) {
                    assert_eq!(*back, params.scale * (f32::from(code) - f32::from(params.zero_point)), "{what}");
                }
                assert!(got.codes[t * got.stride() + k..(t + 1) * got.stride()].iter().all(|&c| c == 0));
            }
            let (codes, floats) = first.get_or_insert_with(|| (got.clone(), float.clone()));
            assert!(*codes == got && *floats == float, "{what}: bits differ from another instruction set");
        }
    }
}

const COUNTS: [usize; 8] = [1, 2, 3, 7, 8, 9, 63, 65];

#[test]
fn without_a_transform_codes_are_the_affines() {
    for k in [1, 64, 100, 576] {
        for bits in [2, 4, 8] {
            check(&Transform::identity(k), Affine { bits, clip: 0.9, symmetric: bits == 2 }, &COUNTS);
        }
    }
}

#[test]
fn rotations_and_permutations_match_f64() {
    for (k, block) in [(64, 4), (64, 16), (128, 64), (576, 64), (1536, 128)] {
        for permutations in 0..=2 {
            let counts: &[usize] = if k > 128 { &[1, 9, 65] } else { &COUNTS };
            let affine = Affine { bits: 4, clip: 0.9, symmetric: false };
            check(&transform(k, block, permutations, false, permutations == 1), affine, counts);
        }
    }
}

#[test]
fn hadamards_match_f64() {
    for (k, block) in [(64, 4), (20, 4), (72, 8), (576, 64), (1536, 128), (768, 256), (1024, 512)] {
        let affine = Affine { bits: 4, clip: 0.9, symmetric: true };
        check(&transform(k, block, 1, true, true), affine, &[1, 3, 17]);
    }
}

#[test]
fn odd_blocks_and_every_width_work() {
    check(&transform(60, 12, 1, false, true), Affine { bits: 3, clip: 1.0, symmetric: false }, &COUNTS);
    check(&transform(300, 100, 1, false, false), Affine { bits: 6, clip: 0.7, symmetric: true }, &[1, 7, 20]);
    check(&transform(7, 1, 2, false, false), Affine { bits: 5, clip: 0.9, symmetric: false }, &[5]);
    for bits in 2..=8 {
        for symmetric in [false, true] {
            check(&transform(128, 16, 1, false, false), Affine { bits, clip: 0.9, symmetric }, &[9]);
        }
    }
}

#[test]
fn a_7b_down_projection() {
    check(&transform(11008, 128, 1, false, true), Affine { bits: 4, clip: 0.9, symmetric: false }, &[1, 3]);
}

#[test]
fn sources_give_what_their_parts_give() {
    let (count, k) = (9, 576);
    let affine = Affine { bits: 4, clip: 0.9, symmetric: false };
    let transform = transform(k, 64, 1, false, true);
    let x = tokens(count, k);
    let gate_up = tokens(count, 2 * k);
    let weight: Vec<f32> = (0..k).map(|i| 0.5 + (i % 5) as f32).collect();
    let plan = TransformQuantize::plan(&transform, Some(affine), count, Isa::best()).unwrap();
    let mut normed = vec![0.0; count * k];
    crate::kernels::cpu::rms_norm(&x, &weight, 1e-5, &mut normed).unwrap();
    let want = run(&plan, Source::Tokens(&normed), count);
    assert_eq!(run(&plan, Source::RmsNorm { x: &x, weight: &weight, epsilon: 1e-5 }, count), want);
    let mut product = vec![0.0; count * k];
    crate::kernels::cpu::silu_mul(&gate_up, count, k, &mut product).unwrap();
    let want = run(&plan, Source::Tokens(&product), count);
    assert_eq!(run(&plan, Source::SiluMul { gate_up: &gate_up }, count), want);
}

#[test]
fn threads_and_neighbours_change_nothing() {
    let (count, k) = (65, 1536);
    let affine = Affine { bits: 4, clip: 0.9, symmetric: false };
    let transform = transform(k, 128, 1, false, true);
    let x = tokens(count, k);
    let plan = TransformQuantize::plan(&transform, Some(affine), count, Isa::best()).unwrap();
    let mut results = Vec::new();
    for threads in [1, 2, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        results.push(pool.install(|| run(&plan, Source::Tokens(&x), count)));
    }
    assert!(results.iter().all(|r| *r == results[0]));
    for t in 0..count {
        let alone = run(&plan, Source::Tokens(&x[t * k..(t + 1) * k]), 1);
        assert_eq!(alone.row(0), results[0].row(t));
        assert_eq!(alone.scale[0], results[0].scale[t]);
    }
}

#[test]
fn a_token_that_is_not_finite_is_nan_and_touches_no_other() {
    let k = 128;
    let affine = Affine { bits: 4, clip: 0.9, symmetric: false };
    for transform in [transform(k, 64, 1, false, false), transform(k, 64, 1, true, false), Transform::identity(k)] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
            if bad == f32::MAX && transform.block > 0 {
                // A rotation may bring the range back below the largest number.
                continue;
            }
            let mut x = tokens(20, k);
            x[7 * k + 5] = bad;
            x[7 * k + 6] = -bad;
            let plan = TransformQuantize::plan(&transform, Some(affine), 20, Isa::best()).unwrap();
            let clean = run(&plan, Source::Tokens(&tokens(20, k)), 20);
            let got = run(&plan, Source::Tokens(&x), 20);
            assert!(got.scale[7].is_nan() && got.zero_point[7] == 0 && got.row_sum[7] == 0, "{bad}");
            assert!(got.row(7).iter().all(|&c| c == 0));
            for t in (0..20).filter(|&t| t != 7) {
                assert_eq!(
                    (got.row(t), got.scale[t], got.row_sum[t]),
                    (clean.row(t), clean.scale[t], clean.row_sum[t])
                );
            }
        }
    }
}

#[test]
fn wrong_operands_are_errors() {
    let affine = Affine { bits: 4, clip: 0.9, symmetric: false };
    let plan = TransformQuantize::plan(&transform(64, 16, 1, false, false), Some(affine), 4, Isa::best()).unwrap();
    let mut workspace = vec![0.0; plan.workspace_len()];
    let x = vec![1.0; 64 * 8];
    let mut out = QuantizedTokens::new(4, 64);
    assert!(plan.run(Source::Tokens(&x[..64]), 1, &mut out, &mut workspace).is_ok());
    assert!(plan.run(Source::Tokens(&x[..64 * 5]), 5, &mut out, &mut workspace).is_err(), "beyond m_max");
    assert!(plan.run(Source::Tokens(&x[..63]), 1, &mut out, &mut workspace).is_err());
    assert!(plan.run(Source::Tokens(&x[..64]), 1, &mut out, &mut []).is_err());
    assert!(plan.run(Source::Tokens(&x[..64]), 1, &mut QuantizedTokens::new(4, 65), &mut workspace).is_err());
    assert!(plan.run(Source::Tokens(&x[..256]), 4, &mut QuantizedTokens::new(3, 64), &mut workspace).is_err());
    let norm = Source::RmsNorm { x: &x[..64], weight: &x[..63], epsilon: 1e-5 };
    assert!(plan.run(norm, 1, &mut out, &mut workspace).is_err());
    assert!(plan.run(Source::SiluMul { gate_up: &x[..64] }, 1, &mut out, &mut workspace).is_err());
    assert!(plan.run_float(Source::Tokens(&x[..64]), 1, &mut [0.0; 65], &mut workspace).is_err());
    assert!(plan.run(Source::Tokens(&[]), 0, &mut out, &mut workspace).is_ok());
    let mut short = QuantizedTokens::new(4, 64);
    short.row_sum.clear();
    assert!(plan.run(Source::Tokens(&x[..64]), 1, &mut short, &mut workspace).is_err());
    let float = TransformQuantize::plan(&Transform::identity(64), None, 4, Isa::best()).unwrap();
    assert!(float.run(Source::Tokens(&x[..64]), 1, &mut out, &mut workspace).is_err());
    assert!(float.run_dequantized(Source::Tokens(&x[..64]), 1, &mut [0.0; 64], &mut workspace).is_err());
    let bad = Affine { bits: 9, clip: 0.9, symmetric: false };
    assert!(TransformQuantize::plan(&Transform::identity(64), Some(bad), 4, Isa::best()).is_err());
    assert!(TransformQuantize::plan(&Transform::identity(0), Some(affine), 4, Isa::best()).is_err());
}
