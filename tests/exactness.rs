//! Integers are exact: on every instruction set of this machine the GEMM equals the oracle in `i64` bit for bit, and the
//! prologue's codes are those of the oracle.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails and reports this way"
)]

mod oracle;

use duquant::kernels::cpu::{Epilogue, GemmW4A4, GemmW4A4Desc, Isa, QuantizedTokens, Source, TransformQuantize};
use duquant::kernels::{Affine, Arithmetic, QuantizedMatrix, Transform};
use duquant_reference as reference;
use oracle::{Random, widen};
use proptest::prelude::*;

/// How the codes of an operand are drawn.
#[derive(Debug, Clone, Copy)]
enum Codes {
    Any,
    /// Nothing but the largest code: the largest sums.
    Largest,
    /// The largest code against zero point 0 or the largest, row by row: the largest corrections.
    Extremes,
}

fn draw(codes: Codes, largest: u8, random: &mut Random) -> u8 {
    match codes {
        Codes::Any => random.below(usize::from(largest) + 1) as u8,
        Codes::Largest => largest,
        Codes::Extremes => largest * (random.next() & 1) as u8,
    }
}

/// A weight straight from codes, so that every code and zero point occurs whatever a quantizer would give.
fn weight(n: usize, k: usize, bits: u32, codes: Codes, random: &mut Random) -> QuantizedMatrix {
    let largest = ((1_u32 << bits) - 1) as u8;
    let row_bytes = QuantizedMatrix::row_bytes_of(k, bits);
    let mut packed = Vec::with_capacity(n * row_bytes);
    for _ in 0..n {
        let row: Vec<u8> = (0..k).map(|_| draw(codes, largest, random)).collect();
        packed.extend(reference::pack_row(&row, bits).iter().flat_map(|word| word.to_le_bytes()));
    }
    let scale = (0..n).map(|_| (0.001 + random.uniform()) as f32).collect();
    let zero_point = (0..n).map(|_| draw(codes, largest, random)).collect();
    let matrix = QuantizedMatrix { n, k, bits, packed, scale, zero_point };
    matrix.validate().unwrap();
    matrix
}

fn tokens(count: usize, k: usize, bits: u32, codes: Codes, random: &mut Random) -> QuantizedTokens {
    let largest = ((1_u32 << bits) - 1) as u8;
    let mut x = QuantizedTokens::new(count, k);
    x.set_tokens(count).unwrap();
    let stride = x.stride();
    for t in 0..count {
        let row = &mut x.codes[t * stride..t * stride + k];
        row.iter_mut().for_each(|code| *code = draw(codes, largest, random));
        x.row_sum[t] = row.iter().map(|&code| i32::from(code)).sum();
        x.scale[t] = (0.001 + random.uniform()) as f32;
        x.zero_point[t] = i32::from(draw(codes, largest, random));
    }
    x
}

/// Integers bit for bit; outputs as the one f32 formula that is documented.
fn check_gemm((t, n, k): (usize, usize, usize), (weight_bits, activation_bits): (u32, u32), codes: Codes, seed: u64) {
    let mut random = Random::new(seed);
    let matrix = weight(n, k, weight_bits, codes, &mut random);
    let x = tokens(t, k, activation_bits, codes, &mut random);
    let bias = random.normals(n);
    let held = random.normals(t * n);
    let expected = reference::gemm_w4a4(&oracle::rows(&x), &oracle::matrix(&matrix), Some(&widen(&bias)));
    for &isa in Isa::available() {
        let desc = GemmW4A4Desc { m_max: t, n, k, weight_bits, activation_bits };
        let plan = GemmW4A4::plan(&desc, isa).unwrap();
        let packed = plan.pack(&matrix).unwrap();
        let place = format!("{} [{t}, {k}] x [{n}, {k}], {weight_bits} x {activation_bits} bits", plan.kernel(t));
        // Neither the workspace nor the output has to be clean.
        let mut workspace = vec![0xa5_u8; plan.workspace_bytes()];
        let mut integers = vec![i32::MIN; t * n];
        plan.run_integer(&packed, &x, &mut integers, &mut workspace).unwrap();
        let widened: Vec<i64> = integers.iter().map(|&i| i64::from(i)).collect();
        assert_eq!(widened, expected.integers, "{place}");

        let mut y = vec![f32::NAN; t * n];
        plan.run(&packed, &x, Epilogue::default(), &mut y, &mut workspace).unwrap();
        for (at, (&y, &integer)) in y.iter().zip(&integers).enumerate() {
            let formula = x.scale[at / n] * matrix.scale[at % n] * integer as f32;
            assert_eq!(y.to_bits(), formula.to_bits(), "{place}, output {at}: {y} against {formula}");
        }
        let mut y = held.clone();
        let epilogue = Epilogue { bias: Some(&bias), accumulate: true };
        plan.run(&packed, &x, epilogue, &mut y, &mut workspace).unwrap();
        let sum: Vec<f64> = expected.y.iter().zip(&held).map(|(y, &held)| y + f64::from(held)).collect();
        assert!(oracle::relative_error(&widen(&y), &sum) < 1e-6, "{place}: bias and residual");
    }
}

#[test]
fn gemm_at_the_edges_of_every_tile() {
    // Around the tiles of each kernel: 16 tokens, 16 and 32 channels, 64 input channels, and a single one of everything.
    for (seed, shape) in [
        (1, 1, 1),
        (1, 31, 63),
        (2, 33, 64),
        (3, 17, 65),
        (5, 1, 129),
        (15, 16, 128),
        (16, 32, 576),
        (17, 47, 127),
        (33, 96, 192),
        (64, 65, 1536),
        (130, 35, 1000),
    ]
    .into_iter()
    .enumerate()
    {
        check_gemm(shape, (4, 4), Codes::Any, seed as u64);
        check_gemm(shape, (4, 8), Codes::Any, seed as u64);
        check_gemm(shape, (8, 8), Codes::Extremes, seed as u64);
    }
}

#[test]
fn gemm_with_the_largest_sums() {
    // 11,008 channels of 15 x 15, and 8 x 8 bits up to where i32 ends.
    check_gemm((2, 18, 11_008), (4, 4), Codes::Largest, 1);
    check_gemm((17, 18, 11_008), (4, 4), Codes::Extremes, 2);
    check_gemm((17, 3, 33_025), (8, 8), Codes::Largest, 3);
    check_gemm((1, 3, 33_025), (8, 8), Codes::Extremes, 4);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn gemm_is_the_oracle_bit_for_bit(
        t in 1_usize..40,
        n in 1_usize..80,
        k in 1_usize..400,
        weight_bits in 2_u32..=8,
        activation_bits in 2_u32..=8,
        codes in prop_oneof![Just(Codes::Any), Just(Codes::Largest), Just(Codes::Extremes)],
        seed: u64,
    ) {
        check_gemm((t, n, k), (weight_bits, activation_bits), codes, seed);
    }

    #[test]
    fn codes_without_rotation_are_the_oracles_bit_for_bit(
        t in 1_usize..20,
        k in 1_usize..200,
        bits in 2_u32..=8,
        clip in 0.5_f32..=1.0,
        symmetric: bool,
        smooth: bool,
        seed: u64,
    ) {
        let mut random = Random::new(seed);
        let x = random.activations(t, k);
        let smoothing = smooth.then(|| (0..k).map(|_| (0.1 + random.uniform()) as f32).collect());
        let transform = Transform { inverse_smooth: smoothing, ..Transform::identity(k) };
        let mut settings = Affine::new(bits, clip).unwrap();
        if symmetric {
            settings = settings.symmetric();
        }
        let expected =
            reference::transform_quantize(&widen(&x), t, &oracle::transform(&transform), &oracle::affine(&settings));
        for &isa in Isa::available() {
            let got = quantize(&transform, settings, Source::Tokens(&x), t, isa);
            prop_assert_eq!(oracle::rows(&got), expected.clone(), "{}", isa.name());
        }
    }

    #[test]
    fn codes_behind_rotations_leave_the_oracle_at_ties_alone(
        t in 1_usize..12,
        blocks in 1_usize..5,
        block in prop_oneof![Just(4_usize), Just(16), Just(24), Just(64), Just(128)],
        permutations in 0_usize..3,
        smooth: bool,
        bits in 2_u32..=8,
        seed: u64,
    ) {
        let mut random = Random::new(seed);
        let transform = random.transform(blocks * block, block, permutations, smooth);
        let x = random.activations(t, blocks * block);
        check_prologue(&transform, Source::Tokens(&x), &widen(&x), t, Affine::new(bits, 0.9).unwrap());
    }

    #[test]
    fn fast_codes_are_the_oracles_of_their_own_values(
        t in 1_usize..40,
        blocks in 1_usize..20,
        block in prop_oneof![Just(32_usize), Just(64), Just(96), Just(128), Just(24)],
        permutations in 0_usize..3,
        smooth: bool,
        bits in 2_u32..=8,
        seed: u64,
    ) {
        let mut random = Random::new(seed);
        let mut transform = random.transform(blocks * block, block, permutations, smooth);
        // The bound is on what is rotated, and lengths must not change in front of it.
        transform.inverse_smooth = transform.inverse_smooth.map(|factors| vec![0.5; factors.len()]);
        let x = random.activations(t, blocks * block);
        check_fast(&transform, &x, t, Affine::new(bits, 0.9).unwrap());
    }
}

/// With [`Arithmetic::Fast`] codes are the oracle's of the kernel's own values bit for bit, and those values lie within the
/// documented bound: the length of a block times `2^-14`, or times 0.008 with 6 bits or fewer (16-bit integers stay well below).
fn check_fast(transform: &Transform, x: &[f32], t: usize, settings: Affine) {
    let k = transform.channels;
    let plan = TransformQuantize::plan_with(transform, Some(settings), t, Isa::best(), Arithmetic::Fast).unwrap();
    let mut workspace = vec![f32::NAN; plan.workspace_len()];
    let mut values = vec![f32::NAN; t * k];
    plan.run_float(Source::Tokens(x), t, &mut values, &mut workspace).unwrap();
    let mut got = QuantizedTokens::new(t, k);
    plan.run(Source::Tokens(x), t, &mut got, &mut workspace).unwrap();
    let values = widen(&values);
    let expected = reference::QuantizedRows::quantize(&values, t, k, &oracle::affine(&settings));
    assert_eq!(oracle::rows(&got), expected, "{}", plan.kernel());
    let real = oracle::transform(transform).apply(&widen(x));
    for (token, (real, values)) in real.chunks(k).zip(values.chunks(k)).enumerate() {
        let length = real.iter().map(|x| x * x).sum::<f64>().sqrt();
        // Lengths stay what they are in every rotation, and each adds its error.
        let each = if settings.bits > 6 { 2.0_f64.powi(-14) } else { 0.008 };
        let bound = length * transform.rotation_count() as f64 * each * 1.001 + 1e-35;
        for (real, value) in real.iter().zip(values) {
            assert!((real - value).abs() <= bound, "{}, token {token}: {value} against {real}", plan.kernel());
        }
    }
}

fn quantize(transform: &Transform, settings: Affine, source: Source<'_>, t: usize, isa: Isa) -> QuantizedTokens {
    let plan = TransformQuantize::plan(transform, Some(settings), t, isa).unwrap();
    let mut out = QuantizedTokens::new(t, transform.channels);
    plan.run(source, t, &mut out, &mut vec![f32::NAN; plan.workspace_len()]).unwrap();
    out
}

/// Against the oracle on `x` in f64: the same scale up to rounding, and the same codes but where the real number lies
/// within a thousandth of a tie. On every instruction set the same bits.
fn check_prologue(transform: &Transform, source: Source<'_>, x: &[f64], t: usize, settings: Affine) {
    let k = transform.channels;
    let real = oracle::transform(transform).apply(x);
    let expected = reference::QuantizedRows::quantize(&real, t, k, &oracle::affine(&settings));
    let first = quantize(transform, settings, source, t, Isa::Portable);
    for &isa in Isa::available() {
        let got = quantize(transform, settings, source, t, isa);
        assert_eq!(oracle::rows(&got), oracle::rows(&first), "{} differs from portable", isa.name());
    }
    for token in 0..t {
        let scale = f64::from(first.scale[token]);
        let drift = (scale / f64::from(expected.scale[token]) - 1.0).abs();
        assert!(drift < 1e-5, "token {token}: scale {scale} against {}", expected.scale[token]);
        let from_tie = |steps: f64| ((steps - steps.floor()) - 0.5).abs();
        // The zero point rounds too; where it is the neighbour, the codes of the token move with it.
        let lowest = real[token * k..(token + 1) * k].iter().fold(0.0_f64, |min, &x| min.min(x));
        let shift = first.zero_point[token] - i32::from(expected.zero_point[token]);
        let at_tie = from_tie(f64::from(settings.clip) * lowest / scale) < 1e-3;
        assert!(shift == 0 || (shift.abs() == 1 && at_tie), "token {token}: zero point off by {shift}");
        for (at, &code) in first.row(token).iter().enumerate() {
            let at = token * k + at;
            let off = i32::from(code) - i32::from(expected.codes[at]);
            let steps = real[at] / scale;
            assert!(
                off == 0 || (off.abs() == 1 && (shift != 0 || from_tie(steps) < 1e-3)),
                "token {token}: code {code} against {}, {steps} steps from zero",
                expected.codes[at]
            );
        }
        assert_eq!(first.row_sum[token], first.row(token).iter().map(|&code| i32::from(code)).sum::<i32>());
    }
}

#[test]
fn prologues_of_real_shapes() {
    // Hidden and FFN widths of SmolLM2 and LLaMA2-7B, with the norm and the SwiGLU in front.
    let mut random = Random::new(9);
    let settings = Affine::new(4, 0.9).unwrap();
    for (k, block) in [(576, 64), (1536, 128), (4096, 128), (11_008, 128)] {
        let transform = random.transform(k, block, 1, k == 576);
        let t = 3;
        let x = random.activations(t, k);
        check_prologue(&transform, Source::Tokens(&x), &widen(&x), t, settings);

        let norm: Vec<f32> = (0..k).map(|_| (0.2 + random.uniform()) as f32).collect();
        let normed = reference::rms_norm(&widen(&x), &widen(&norm), 1e-5);
        check_prologue(&transform, Source::RmsNorm { x: &x, weight: &norm, epsilon: 1e-5 }, &normed, t, settings);

        let gate_up = random.activations(t, 2 * k);
        let (mut gate, mut up) = (Vec::new(), Vec::new());
        for row in gate_up.chunks(2 * k) {
            gate.extend(widen(&row[..k]));
            up.extend(widen(&row[k..]));
        }
        let product = reference::swiglu(&gate, &up);
        check_prologue(&transform, Source::SiluMul { gate_up: &gate_up }, &product, t, settings);
    }
}
