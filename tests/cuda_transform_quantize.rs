//! The prologue in CUDA against the oracle.
//!
//! Its values (`TransformTarget::Float`) lie within a bound that is derived from the roundings to `f16`; its codes, zero points,
//! scales and row sums are, bit for bit, the oracle's quantizer of those values. Without rotation, norm and SwiGLU all of it is
//! the CPU's, bit for bit.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails this way")]

mod cuda;
mod oracle;
mod transform_case;

use duquant::kernels::cuda::{
    Arch, Buffer, Device, Dtype, Error, SourceOperand, TokenForm, TokenSource, TokensOperand, TransformOutput,
    TransformQuantizeDesc, TransformQuantizePlan, TransformShape, TransformTarget,
};
use duquant::kernels::{Affine, Transform};
use duquant_reference as reference;
use oracle::{Random, widen};
use std::sync::Arc;
use transform_case::{Case, EPSILON, bounds, draw};

const TOKENS: [usize; 10] = [1, 2, 3, 7, 8, 9, 63, 64, 65, 257];
const NORM: TokenSource = TokenSource::RmsNorm { epsilon: EPSILON };

fn quantizer(i: usize) -> Affine {
    match i % 5 {
        0 | 3 => Affine::new(4, 0.9).unwrap(),
        1 => Affine::new(3, 1.0).unwrap().symmetric(),
        2 => Affine::new(2, 0.75).unwrap(),
        _ => Affine::new(4, 1.0).unwrap(),
    }
}

/// The quantizer number `i` and a form that its codes fit.
fn settings(i: usize) -> (Affine, TokenForm) {
    match i % 4 {
        0 => (quantizer(i / 4), TokenForm::Fragments4),
        1 => (Affine::new(8, 0.9).unwrap(), TokenForm::Fragments8),
        2 => (quantizer(i / 4), TokenForm::Tiles8),
        _ => (Affine::new(5 + i as u32 / 4 % 3, 1.0).unwrap(), TokenForm::Tiles8),
    }
}

fn hadamard(random: &mut Random, channels: usize, block: usize, permutations: usize) -> Transform {
    let matrix = reference::hadamard_matrix(block);
    let mut transform = random.transform(channels, 1, 0, false);
    transform.block = block;
    transform.rotations = (0..=permutations).flat_map(|_| matrix.iter().map(|&x| x as f32)).collect();
    transform.permutations = (0..permutations).flat_map(|_| random.permutation(channels)).collect();
    transform.hadamard = true;
    transform
}

/// Checks one call of each target; the kernel's name.
fn check(name: &str, device: &Arc<dyn Device>, case: &Case<'_>, seed: u64) -> String {
    let mut random = Random::new(seed);
    let (k, t) = (case.transform.channels, case.tokens);
    let x = draw(&mut random, t, case.width());
    let weight: Vec<f32> = (0..k).map(|_| (0.2 + random.uniform()) as f32).collect();
    let values = case.values(device, TransformTarget::Float(Dtype::F32), &x, &weight);
    let (got, kernel) = case.codes(device, &x, &weight);
    let place =
        format!("{name}: {kernel}, [{t}, {k}] {case:?} seed {seed}", case = (case.source, case.input, case.form));

    // The source in f32, and silu's exponential to a few units.
    let before = if case.source == TokenSource::Tokens { 2e-7 } else { 4e-6 };
    let (exact, bound) = bounds(case.transform, &case.real(&x, &weight), before);
    let mut square = (0.0, 0.0);
    for (i, ((&value, &exact), &bound)) in values.iter().zip(&exact).zip(&bound).enumerate() {
        let off = (f64::from(value) - exact).abs();
        assert!(off <= bound, "{place}: token {}, channel {}: {value} is not {exact}", i / k, i % k);
        square = (square.0 + off * off, square.1 + exact * exact);
    }
    // An orthogonal transform keeps the sum of squares: roundings of u / sqrt(3) each in input, matrix and result.
    let roundings = case.transform.rotation_count() as f64 * 3.0 + 0.01;
    assert!(square.0.sqrt() <= roundings * 2.0_f64.powi(-11) * square.1.sqrt(), "{place}: {square:?}");

    let expected = reference::QuantizedRows::quantize(&widen(&values), t, k, &oracle::affine(&case.affine));
    for token in 0..t {
        let row = &got.codes[token * got.stride..(token + 1) * got.stride];
        assert_eq!(row[..k], expected.codes[token * k..(token + 1) * k], "{place}: token {token}");
        let sum = expected.row_sum[token] as u32;
        let params = [expected.scale[token].to_bits(), u32::from(expected.zero_point[token]), sum, 0];
        assert_eq!(got.params[token], params, "{place}: token {token}");
    }
    for (i, &code) in got.codes.iter().enumerate() {
        let (token, channel) = (i / got.stride, i % got.stride);
        assert!(code == 0 || (token < t && channel < k), "{place}: padding at token {token}, channel {channel}");
    }
    kernel
}

fn sweep(
    name: &str,
    device: &Arc<dyn Device>,
    transform: &Transform,
    (source, input): (TokenSource, Dtype),
    tokens: &[usize],
    seed: usize,
) -> Vec<String> {
    let each = tokens.iter().enumerate().map(|(i, &tokens)| {
        let (affine, form) = settings(seed + i);
        check(name, device, &Case { transform, affine, source, input, form, tokens }, (10 * seed + i) as u64)
    });
    each.collect()
}

#[test]
fn two_rotations_of_128_with_a_permutation_between() {
    let name = "two_rotations_of_128_with_a_permutation_between";
    for (name, device) in cuda::devices(name, &[Arch::Sm80, Arch::Sm86, Arch::Sm90a]) {
        let mut random = Random::new(1);
        let small = random.transform(256, 128, 1, true);
        let kernels = sweep(&name, &device, &small, (TokenSource::Tokens, Dtype::F16), &TOKENS, 0);
        for tokens in [1, 2, 4, 8] {
            let word = format!(", {tokens} tokens a block");
            // The host's chips have few multiprocessors, so that these numbers of tokens reach every tiling.
            assert!(!name.contains("host") || kernels.iter().any(|kernel| kernel.contains(&word)), "{kernels:?}");
        }
        sweep(&name, &device, &random.transform(4096, 128, 1, false), (NORM, Dtype::F16), &[1, 9], 1);
        // A token's codes do not depend on how many there are, nor on how many a block takes.
        let (affine, form) = settings(0);
        let case = Case { transform: &small, affine, source: NORM, input: Dtype::F16, form, tokens: 65 };
        let (x, weight) = (draw(&mut random, 65, 256), random.normals(256));
        let ((all, many), (one, few)) =
            (case.codes(&device, &x, &weight), Case { tokens: 1, ..case }.codes(&device, &x[..256], &weight));
        assert!(!name.contains("host") || many != few, "{many}; {few}");
        assert_eq!((&all.codes[..256], all.params[0]), (&one.codes[..256], one.params[0]), "{name}");
        sweep(&name, &device, &random.transform(1536, 128, 1, true), (TokenSource::SiluMul, Dtype::F16), &[3, 8], 2);
    }
}

#[test]
fn rows_that_are_long() {
    for (name, device) in cuda::devices("rows_that_are_long", &[Arch::Sm80, Arch::Sm86, Arch::Sm90a]) {
        let mut random = Random::new(2);
        for (k, tokens) in [(11_008, 1), (11_008, 26), (28_672, 2)] {
            if tokens > 2 && name.contains("sm_90a") {
                continue;
            }
            let transform = random.transform(k, 128, 1, false);
            sweep(&name, &device, &transform, (TokenSource::SiluMul, Dtype::F16), &[tokens], k + tokens);
        }
    }
}

#[test]
fn other_blocks_and_numbers_of_rotations() {
    for (name, device) in cuda::devices("other_blocks_and_numbers_of_rotations", &[Arch::Sm80]) {
        let mut random = Random::new(3);
        let plain = TokenSource::Tokens;
        // (K, B, permutations): blocks of odd and small sizes several to a tile, one rotation, three and four.
        for (i, (k, block, permutations)) in
            [(77, 7, 1), (100, 4, 1), (24, 8, 0), (576, 16, 3), (96, 32, 2), (2, 1, 1), (330, 11, 2), (192, 24, 1)]
                .into_iter()
                .enumerate()
        {
            let transform = random.transform(k, block, permutations, i % 2 == 0);
            sweep(&name, &device, &transform, (plain, Dtype::F32), &[1, 2, 9, 65], 3 * i);
            sweep(&name, &device, &transform, ([NORM, TokenSource::SiluMul][i % 2], Dtype::F32), &[3, 17], i);
        }
        for (i, (k, block, permutations)) in
            [(64, 64, 1), (576, 64, 1), (144, 48, 2), (111, 37, 1)].into_iter().enumerate()
        {
            let transform = random.transform(k, block, permutations, i % 2 == 1);
            sweep(&name, &device, &transform, (plain, Dtype::Bf16), &[1, 7, 8, 33], i);
        }
        for (i, (k, block, permutations)) in [(512, 256, 1), (384, 192, 2), (130, 130, 0)].into_iter().enumerate() {
            let transform = random.transform(k, block, permutations, i % 2 == 1);
            sweep(&name, &device, &transform, (plain, Dtype::F32), &[2, 11], i);
        }
        let transform = random.transform(600, 120, 2, true);
        sweep(&name, &device, &transform, (NORM, Dtype::F16), &[2, 19], 5);
    }
}

#[test]
fn hadamard_matrices_by_sums_and_differences() {
    for (name, device) in cuda::devices("hadamard_matrices_by_sums_and_differences", &[Arch::Sm86]) {
        let mut random = Random::new(4);
        for (i, (k, block, permutations)) in
            [(4096, 128, 1), (384, 128, 0), (32, 32, 0), (96, 32, 2), (512, 256, 1), (64, 8, 1), (34, 2, 1)]
                .into_iter()
                .enumerate()
        {
            let transform = hadamard(&mut random, k, block, permutations);
            let tokens: &[usize] = if k > 1000 { &[1, 10] } else { &[1, 3, 9, 65] };
            sweep(&name, &device, &transform, (TokenSource::Tokens, Dtype::F32), tokens, i);
            sweep(&name, &device, &transform, ([TokenSource::SiluMul, NORM][i % 2], Dtype::F32), &[2], i);
        }
    }
}

#[test]
fn without_rotation_everything_is_the_cpus() {
    for (name, device) in cuda::devices("without_rotation_everything_is_the_cpus", &[Arch::Sm80, Arch::Sm90a]) {
        let mut random = Random::new(5);
        for (i, k) in [1, 77, 100, 128, 576, 4096].into_iter().enumerate() {
            let smooth = (i % 2 == 0).then(|| random.normals(k).iter().map(|x| 0.1 + x.abs()).collect());
            let transform = Transform { inverse_smooth: smooth, ..Transform::identity(k) };
            let tokens: &[usize] = if k > 200 { &[1, 9] } else { &TOKENS };
            for (j, input) in [Dtype::F32, Dtype::F16, Dtype::Bf16].into_iter().enumerate() {
                let tokens = if j == 0 { tokens } else { &[1, 9] };
                sweep(&name, &device, &transform, (TokenSource::Tokens, input), tokens, i + j);
            }
            sweep(&name, &device, &transform, (NORM, Dtype::F16), &[1, 9], i);
            sweep(&name, &device, &transform, (TokenSource::SiluMul, Dtype::F32), &[2, 8], i);
        }
        // The quantizer of the CPU on the same f32 values: check() has shown that the device's are the oracle's of its values,
        // which are the tokens themselves here.
        let transform = Transform::identity(300);
        let x = draw(&mut random, 20, 300);
        let affine = Affine::new(4, 0.9).unwrap();
        let case = Case {
            transform: &transform,
            affine,
            source: TokenSource::Tokens,
            input: Dtype::F32,
            form: TokenForm::Fragments4,
            tokens: 20,
        };
        let (got, _) = case.codes(&device, &x, &[]);
        for (t, row) in x.chunks(300).enumerate() {
            let mut codes = vec![0; 300];
            let params = affine.quantize_row(row, &mut codes).unwrap();
            assert_eq!(got.codes[t * got.stride..][..300], codes, "{name}: token {t}");
            assert_eq!(got.params[t][..2], [params.scale.to_bits(), u32::from(params.zero_point)], "{name}: token {t}");
        }
    }
}

#[test]
fn targets_of_values_in_every_type() {
    for (name, device) in cuda::devices("targets_of_values_in_every_type", &[Arch::Sm80]) {
        let mut random = Random::new(6);
        let affine = Affine::new(4, 0.9).unwrap();
        for transform in
            [Transform::identity(99), random.transform(256, 128, 1, true), random.transform(77, 7, 1, false)]
        {
            let (k, t) = (transform.channels, 13);
            let x = draw(&mut random, t, k);
            let input = if transform.block == 128 { Dtype::F16 } else { Dtype::F32 };
            let (source, form) = (TokenSource::Tokens, TokenForm::Fragments4);
            let case = Case { transform: &transform, affine, source, input, form, tokens: t };
            let values = case.values(&device, TransformTarget::Float(Dtype::F32), &x, &[]);
            let codes = reference::QuantizedRows::quantize(&widen(&values), t, k, &oracle::affine(&affine));
            let dequantized: Vec<f32> = (0..t * k)
                .map(|i| codes.scale[i / k] * (f32::from(codes.codes[i]) - f32::from(codes.zero_point[i / k])))
                .collect();
            for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
                for (target, want) in
                    [(TransformTarget::Float(dtype), &values), (TransformTarget::Dequantized(dtype), &dequantized)]
                {
                    let got = case.values(&device, target, &x, &[]);
                    let want = transform_case::decode(dtype, &transform_case::encode(dtype, want));
                    assert_eq!(got, want, "{name}: {target:?} of {:?}", case.desc(target).shape);
                }
            }
        }
    }
}

#[test]
fn a_token_that_is_not_finite_is_nan_and_touches_no_other() {
    let name = "a_token_that_is_not_finite_is_nan_and_touches_no_other";
    for (name, device) in cuda::devices(name, &[Arch::Sm80]) {
        let mut random = Random::new(7);
        let (k, t) = (256, 12);
        let affine = Affine::new(4, 1.0).unwrap();
        let hadamard = hadamard(&mut random, k, 128, 1);
        for transform in [Transform::identity(k), random.transform(k, 16, 1, false), hadamard] {
            let (source, input, form) = (TokenSource::Tokens, Dtype::F32, TokenForm::Fragments4);
            let case = Case { transform: &transform, affine, source, input, form, tokens: t };
            let clean = random.normals(t * k);
            let (want, kernel) = case.codes(&device, &clean, &[]);
            // Fewer tokens: the same codes, whatever a block takes.
            let (fewer, _) = Case { tokens: 3, ..case }.codes(&device, &clean[..3 * k], &[]);
            assert_eq!(fewer.codes[..3 * k], want.codes[..3 * k], "{name}: {kernel}");
            assert_eq!(fewer.params, want.params[..3], "{name}: {kernel}");
            // 1e7 is in the range of f32, and not in that of the rotations.
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 1e7] {
                if bad == 1e7 && transform.block == 0 {
                    continue;
                }
                let mut x = clean.clone();
                x[7 * k + 5] = bad;
                x[7 * k + 6] = -bad;
                let (got, _) = case.codes(&device, &x, &[]);
                let values = case.values(&device, TransformTarget::Dequantized(Dtype::F32), &x, &[]);
                assert!(f32::from_bits(got.params[7][0]).is_nan(), "{name}: {kernel}, {bad}");
                assert_eq!(got.params[7][1..], [0, 0, 0], "{name}: {kernel}, {bad}");
                for token in 0..t {
                    let row = token * k..(token + 1) * k;
                    if token == 7 {
                        assert!(got.codes[row.clone()].iter().all(|&code| code == 0), "{name}: {kernel}, {bad}");
                    } else {
                        assert_eq!(got.codes[row.clone()], want.codes[row.clone()], "{name}: {kernel}, {bad}");
                        assert_eq!(got.params[token], want.params[token], "{name}: {kernel}, {bad}");
                    }
                    assert!(values[row].iter().all(|x| x.is_nan() == (token == 7)), "{name}: {kernel}, {bad}");
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    for (_, device) in cuda::devices("what_does_not_fit_is_refused", &[Arch::Sm86]) {
        let mut random = Random::new(8);
        let transform = random.transform(64, 32, 1, false);
        let good = TransformQuantizeDesc {
            m_max: 4,
            shape: TransformShape::of(&transform),
            affine: Some(Affine::new(4, 0.9).unwrap()),
            source: TokenSource::Tokens,
            input: Dtype::F32,
            target: TransformTarget::Codes,
        };
        let refused = |desc: TransformQuantizeDesc| TransformQuantizePlan::plan(device.as_ref(), &desc).unwrap_err();
        let shape = good.shape;
        for shape in [
            TransformShape { channels: 0, block: 0, rotations: 0, ..shape },
            TransformShape { block: 100, ..shape },
            TransformShape { channels: 1024, block: 512, ..shape },
            TransformShape { channels: 96, block: 24, hadamard: true, ..shape },
            TransformShape { rotations: 9, ..shape },
            TransformShape { rotations: 0, hadamard: true, ..shape },
        ] {
            assert!(matches!(refused(TransformQuantizeDesc { shape, ..good }), Error::Kernel(_)), "{shape:?}");
        }
        assert!(matches!(refused(TransformQuantizeDesc { m_max: 0, ..good }), Error::Kernel(_)));
        assert!(matches!(refused(TransformQuantizeDesc { affine: None, ..good }), Error::Kernel(_)));
        let affine = Some(Affine { bits: 9, clip: 0.9, symmetric: false });
        assert!(matches!(refused(TransformQuantizeDesc { affine, ..good }), Error::Kernel(_)));
        let source = TokenSource::RmsNorm { epsilon: f32::NAN };
        assert!(matches!(refused(TransformQuantizeDesc { source, ..good }), Error::Kernel(_)));
        let shape = TransformShape { channels: 1 << 20, ..shape };
        assert!(matches!(refused(TransformQuantizeDesc { shape, ..good }), Error::Limit { .. }));
        let eight = TransformQuantizeDesc { affine: Some(Affine::new(8, 1.0).unwrap()), ..good };
        let form = TransformQuantizePlan::plan_as(device.as_ref(), &eight, TokenForm::Fragments4);
        assert!(matches!(form, Err(Error::Kernel(_))));

        let plan = TransformQuantizePlan::plan(device.as_ref(), &good).unwrap();
        assert!(matches!(plan.pack(&device, &Transform::identity(64)), Err(Error::Kernel(_))));
        let mut broken = transform.clone();
        broken.permutations[0] = broken.permutations[1];
        assert!(matches!(plan.pack(&device, &broken), Err(Error::Kernel(_))));
        let tables = plan.pack(&device, &transform).unwrap();
        let memory = Buffer::zeroed(&device, "memory", 1 << 16).unwrap();
        let at = memory.address();
        let codes = |codes| TransformOutput::Codes(TokensOperand { codes, params: at + 32_768 });
        let run = |tokens, source, out| {
            // SAFETY: the buffer has room for all of it; what is refused is not enqueued.
            unsafe { plan.enqueue(device.as_ref(), cuda::STREAM, tokens, source, &tables, out) }
        };
        let x = SourceOperand::Tokens(at);
        assert!(matches!(run(5, x, codes(at + 16_384)), Err(Error::Kernel(_))));
        assert!(matches!(run(4, SourceOperand::SiluMul(at), codes(at + 16_384)), Err(Error::Kernel(_))));
        assert!(matches!(run(4, x, TransformOutput::Values(at + 16_384)), Err(Error::Kernel(_))));
        let crooked = run(4, SourceOperand::Tokens(at + 4), codes(at + 16_384));
        assert!(matches!(crooked, Err(Error::Alignment { operand: "source", .. })));
        assert!(matches!(run(4, x, codes(at + 8)), Err(Error::Alignment { operand: "codes", .. })));
        run(0, x, codes(at + 16_384)).unwrap();
        run(4, x, codes(at + 16_384)).unwrap();
    }
}
