use super::super::tests::{
    NANS, Noise, check_spoilt, check_threads, checked_values, float, outliers, run, tokens, transform,
};
use super::*;
use crate::kernels::Arithmetic;
use crate::kernels::cpu::Isa;

const AFFINE: Affine = Affine { bits: 4, clip: 0.9, symmetric: false };

/// The plan, where this machine has the kernel.
#[allow(clippy::print_stdout, reason = "a test says so when it skips")]
fn fast(transform: &Transform, affine: Affine, m_max: usize) -> Option<TransformQuantize> {
    if !crate::kernels::cpu::isa::amx_bf16() {
        println!("skipped: this machine has no AMX-BF16");
        return None;
    }
    let plan = TransformQuantize::plan_with(transform, Some(affine), m_max, Isa::Amx, Arithmetic::Fast).unwrap();
    assert_eq!(plan.kernel(), format!("transform_quantize amx-bf16 dense {}", transform.block));
    Some(plan)
}

/// One token in `f64`, and by how much each value may be off where the token is off by `relative`.
fn bounded(transform: &Transform, fine: bool, row: &[f32], relative: f64) -> (Vec<f64>, Vec<f64>) {
    let (k, b) = (transform.channels, transform.block);
    // Smoothing is one multiplication in `f32`, as it is in the kernel.
    let factor = |i: usize| transform.inverse_smooth.as_ref().map_or(1.0, |f| f[i]);
    let mut x: Vec<f64> = row.iter().enumerate().map(|(i, &x)| f64::from(x * factor(i))).collect();
    let mut off: Vec<f64> = x.iter().map(|x| x.abs() * relative).collect();
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
            for i in 0..b {
                let (x, off, r) = (x[first + i], off[first + i], f64::from(r[i * b + j]));
                y[at] += x * r;
                next[at] += (off + error_bound(b, fine) * (x.abs() + off)) * r.abs();
            }
            // What tiles take for zero.
            next[at] += b as f64 * 2.0_f64.powi(-120);
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
        if t < 40 || t + 2 > count {
            let (want, off) = bounded(transform, affine.bits > COARSE_BITS, row, 0.0);
            for (at, ((want, off), got)) in want.iter().zip(&off).zip(value).enumerate() {
                let error = (want - f64::from(*got)).abs();
                assert!(error <= *off, "{what}: token {t}, channel {at}: {got} is off {want} by {error}, not {off}");
            }
        }
    }
}

#[test]
fn values_are_within_the_bound_and_tokens_on_their_own() {
    for (k, block) in
        [(32, 32), (96, 32), (128, 128), (384, 128), (576, 64), (640, 320), (1024, 512), (1536, 128), (2304, 128)]
    {
        for permutations in 0..=2 {
            let transform = transform(k, block, permutations, false, permutations == 1);
            for count in [1, 2, 15, 16, 17, 33] {
                check(&transform, AFFINE, count, &tokens(count, k));
            }
        }
    }
}

#[test]
fn real_shapes() {
    check(&transform(4096, 128, 1, false, false), AFFINE, 18, &tokens(18, 4096));
    check(&transform(11_008, 128, 1, false, true), AFFINE, 3, &tokens(3, 11_008));
    check(&transform(256, 128, 1, false, false), AFFINE, 513, &tokens(513, 256));
}

#[test]
fn every_width_and_mode() {
    for bits in 2..=8 {
        for symmetric in [false, true] {
            for clip in [1.0, LEAST_CLIP] {
                check(&transform(288, 96, 1, false, false), Affine { bits, clip, symmetric }, 19, &tokens(19, 288));
            }
        }
    }
}

#[test]
fn massive_outliers_beside_small_values() {
    let (count, k) = (20, 1024);
    let x = outliers(count, k);
    check(&transform(k, 128, 1, false, false), AFFINE, count, &x);
    // The edges of what tiles hold.
    for scale in [1e-38, 1e-30, 1e30] {
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
fn every_division_covers_each_token_once() {
    for threads in [1, 2, 5, 64] {
        for tokens in (0..80).chain([511, 512, 513, 2048]) {
            let division = Division::new(tokens, threads);
            let mut seen = vec![0; tokens];
            for job in 0..division.jobs() {
                let (first, count) = division.job(job);
                assert!((1..=TILE_TOKENS).contains(&count));
                seen[first..first + count].iter_mut().for_each(|seen| *seen += 1);
            }
            assert!(seen.iter().all(|&seen| seen == 1), "{tokens} tokens on {threads} threads");
        }
    }
}

#[test]
fn tokens_make_tiles_where_that_ends_sooner() {
    // Tokens, threads, and how many jobs they are.
    for (tokens, threads, jobs) in [
        (1, 1, 1),
        (4, 1, 4),
        (16, 1, 1),
        (17, 1, 2),
        (8, 2, 8),
        (16, 2, 1),
        (32, 2, 2),
        (20, 2, 5),
        (16, 16, 16),
        (512, 2, 32),
    ] {
        assert_eq!(Division::new(tokens, threads).jobs(), jobs, "{tokens} tokens on {threads} threads");
    }
}

#[test]
fn bfloat16_is_the_nearest() {
    use super::round::round;
    for (x, bits) in [
        (0.0, 0),
        (-1.0, 0xbf80),
        (1.0 + 2.0_f32.powi(-8), 0x3f81), // a tie, away from zero
        (1.0 + 2.0_f32.powi(-8) - f32::EPSILON, 0x3f80),
        (f32::MAX, 0x7f80),
        (f32::NEG_INFINITY, 0xff80),
        (f32::NAN, 0x7fc0),
    ] {
        assert_eq!(round(x), bits, "{x}");
    }
    let mut noise = Noise(5);
    for _ in 0..1000 {
        let x = noise.normal() as f32;
        let y = f32::from_bits(u32::from(round(x)) << 16);
        assert!((x - y).abs() <= x.abs() / 256.0, "{x} becomes {y}");
        let (high, low) = super::round::split(x);
        let sum = f32::from_bits(u32::from(high) << 16) + f32::from_bits(u32::from(low) << 16);
        assert!(high == round(x) && (x - sum).abs() <= x.abs() / 65_536.0, "{x} becomes {sum}");
    }
}

#[test]
fn sources_give_what_their_parts_give() {
    // One thread: whole tiles of tokens, a tile with empty lanes, and tokens one by one.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    for (k, block, count) in [(576, 64, 35), (576, 64, 13), (96, 32, 16), (1024, 128, 16), (576, 64, 1), (2304, 128, 2)]
    {
        for smooth in [false, true] {
            let transform = transform(k, block, 1, false, smooth);
            let Some(plan) = fast(&transform, AFFINE, count) else { return };
            let run = |source: Source<'_>| pool.install(|| run(&plan, source, count));
            let x = tokens(count, k);
            let gate_up = tokens(count, 2 * k);
            let weight: Vec<f32> = (0..k).map(|i| 0.5 + (i % 5) as f32).collect();
            let mut parts = vec![0.0; count * k];
            crate::kernels::cpu::rms_norm(&x, &weight, 1e-5, &mut parts).unwrap();
            let want = run(Source::Tokens(&parts));
            assert_eq!(run(Source::RmsNorm { x: &x, weight: &weight, epsilon: 1e-5 }), want, "K {k} T {count}");
            // SiLU is a faster one here: within its bound, and codes are those of the values.
            crate::kernels::cpu::silu_mul(&gate_up, count, k, &mut parts).unwrap();
            let source = Source::SiluMul { gate_up: &gate_up };
            let (values, got) = (pool.install(|| float(&plan, source, count)), run(source));
            let alone = fast(&transform, AFFINE, 1).unwrap();
            for (t, (value, part)) in values.chunks_exact(k).zip(parts.chunks_exact(k)).enumerate() {
                let (want, off) = bounded(&transform, false, part, 2.0_f64.powi(-16));
                let within =
                    want.iter().zip(&off).zip(value).all(|((want, off), &y)| (want - f64::from(y)).abs() <= *off);
                assert!(within, "K {k} T {count}: token {t}");
                let mut codes = vec![0; k];
                AFFINE.quantize_row(value, &mut codes).unwrap();
                assert_eq!(got.row(t), codes, "K {k} T {count}: token {t}");
                let row = Source::SiluMul { gate_up: &gate_up[2 * t * k..2 * (t + 1) * k] };
                assert!(float(&alone, row, 1) == value, "K {k} T {count}: token {t} has other bits alone");
            }
        }
    }
}

#[test]
fn a_token_that_is_not_finite_is_nan_and_touches_no_other() {
    let k = 256;
    let bad = NANS.map(f32::from_bits).into_iter();
    let bad = bad.chain([f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN]);
    for transform in [transform(k, 128, 1, false, false), transform(k, 64, 0, false, true)] {
        for count in [20, 2] {
            let Some(plan) = fast(&transform, AFFINE, count) else { return };
            bad.clone().for_each(|bad| check_spoilt(&plan, count, count - 1, bad));
        }
    }
}

#[test]
fn what_tiles_do_not_take_is_reproducible() {
    let small = Affine { clip: 1e-6, bits: 8, ..AFFINE };
    for (transform, affine) in [
        (transform(48, 24, 1, false, false), AFFINE),
        (transform(128, 64, 1, true, false), AFFINE),
        (Transform::identity(64), AFFINE),
        (transform(64, 32, 1, false, false), small),
    ] {
        for &isa in Isa::available() {
            let with = |arithmetic| TransformQuantize::plan_with(&transform, Some(affine), 3, isa, arithmetic).unwrap();
            let (plain, fast) = (with(Arithmetic::Reproducible), with(Arithmetic::Fast));
            assert_eq!(fast.kernel(), plain.kernel());
            let x = tokens(3, transform.channels);
            assert_eq!(run(&fast, Source::Tokens(&x), 3), run(&plain, Source::Tokens(&x), 3));
        }
    }
    // Other instruction sets have no such kernel.
    let transform = transform(64, 32, 1, false, false);
    for &isa in Isa::available().iter().filter(|&&isa| isa != Isa::Amx) {
        let plan = TransformQuantize::plan_with(&transform, Some(AFFINE), 3, isa, Arithmetic::Fast).unwrap();
        assert!(!plan.kernel().contains("amx"), "{}", plan.kernel());
    }
}

#[test]
fn silu_is_right_to_some_bits() {
    if !crate::kernels::cpu::isa::amx_bf16() {
        return;
    }
    let of = |x: f32| {
        let mut out = [0.0_f32; 16];
        // SAFETY: machines with AMX have AVX-512; 16 values.
        unsafe {
            let y = silu::silu(std::arch::x86_64::_mm512_set1_ps(x));
            std::arch::x86_64::_mm512_storeu_ps(out.as_mut_ptr(), y);
        }
        out[11]
    };
    let steps = (-60_000..60_000).map(|i| i as f32 / 500.0);
    let edges =
        [0.0, -0.0, 1e-40, -1e-40, f32::MIN_POSITIVE, 87.3, -87.3, 88.8, -88.8, 1e30, -1e30, f32::MAX, f32::MIN];
    for x in steps.chain(edges) {
        let (got, exact) = (f64::from(of(x)), f64::from(x) / (1.0 + (-f64::from(x)).exp()));
        let bound = 2.0_f64.powi(-17) * exact.abs() + 2.0_f64.powi(-120);
        assert!((got - exact).abs() <= bound, "silu({x}) = {exact}, got {got}");
    }
    for x in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
        assert!(!of(x).is_finite());
    }
}
