//! The prologue on wgpu is the oracle's: row sums bit for bit on the codes it wrote, scales bit for bit where nothing but
//! smoothing comes before the quantizer, codes but next to a tie, and there off by one at most.
//!
//! How far from a tie, in steps of the quantizer: 1e-4 without rotation, where only `1 / s` (2.5 ULP) differs; 1e-3 behind a
//! rotation, norm or SwiGLU in `f32`. Half-precision tokens are widened exactly, so against an oracle that is given the same
//! numbers the bound stays 1e-3. Against tokens `x` before they were rounded to half precision, each off by at most
//! `2^-11 |x_j| + 2^-25`, an orthogonal transform keeps norms, so that a transformed value is off by at most
//! `2^-11 |x| + sqrt(K) 2^-25` with `|x|` the norm of the (smoothed) token: that over `s` is the distance then. A
//! half-precision output is off by `2^-11 |y| + 2^-25` beside the f32 error.
#![cfg(feature = "wgpu")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails and reports this way")]

mod gpu;
mod oracle;

use duquant::kernels::wgpu::{
    BoundTransformQuantize, Dtype, Error, Gpu, QuantizedTokens, Recorder, SourceBinding, TokenSource, TransformOutput,
    TransformQuantizeDesc, TransformQuantizePlan, TransformShape, TransformTarget, TransformTiling,
};
use duquant::kernels::{Affine, Transform};
use duquant_reference as reference;
use gpu::gpu;
use half::f16;
use oracle::{Random, widen};

const TOKENS: [usize; 10] = [1, 2, 3, 7, 8, 9, 63, 64, 65, 257];

/// What stands before the transform, with its numbers.
#[derive(Clone, Copy, PartialEq)]
enum Before {
    Nothing,
    Norm,
    Silu,
}

struct Case<'a> {
    transform: &'a Transform,
    affine: Affine,
    before: Before,
    input: Dtype,
    tiling: TransformTiling,
    tokens: usize,
}

/// Rows of every kind: as LLMs have them, zeros, one sign, one value of 1e4 medians, tiny, wide.
fn draw(random: &mut Random, tokens: usize, k: usize) -> Vec<f32> {
    let mut x = random.normals(tokens * k);
    let shift = random.below(7);
    for (t, row) in x.chunks_mut(k).enumerate() {
        let at = random.below(k);
        match (t + shift) % 7 {
            0 => row.fill(0.0),
            1 => row.iter_mut().for_each(|x| *x = x.abs()),
            2 => row.iter_mut().for_each(|x| *x = -x.abs() - 0.5),
            3 => row[at] = 6700.0,
            4 => row.iter_mut().step_by(5).for_each(|x| *x *= 20.0),
            5 => row.iter_mut().for_each(|x| *x *= 1e-3),
            _ => {}
        }
    }
    x
}

/// The bytes of `x` on the device and the numbers that they stand for there.
fn encode(x: &[f32], dtype: Dtype) -> (Vec<u8>, Vec<f64>) {
    match dtype {
        Dtype::F32 => (bytemuck::cast_slice(x).to_vec(), widen(x)),
        Dtype::F16 => {
            let halves: Vec<f16> = x.iter().map(|&x| f16::from_f32(x)).collect();
            (bytemuck::cast_slice(&halves).to_vec(), halves.iter().map(|x| x.to_f64()).collect())
        }
    }
}

struct Ready {
    plan: TransformQuantizePlan,
    bound: BoundTransformQuantize,
    /// What the transform is given, in `f64`.
    real: Vec<f64>,
}

fn prepare(
    gpu: &Gpu,
    case: &Case<'_>,
    target: TransformTarget,
    out: TransformOutput<'_>,
    random: &mut Random,
) -> Ready {
    let (k, t) = (case.transform.channels, case.tokens);
    let source = match case.before {
        Before::Nothing => TokenSource::Tokens,
        Before::Norm => TokenSource::RmsNorm { epsilon: 1e-5 },
        Before::Silu => TokenSource::SiluMul,
    };
    let shape = TransformShape::of(case.transform);
    let affine = Some(case.affine);
    let desc = TransformQuantizeDesc { m_max: t, shape, affine, source, input: case.input, target };
    let plan = TransformQuantizePlan::plan_tiled(gpu, &desc, case.tiling).unwrap();
    let tables = plan.pack(gpu, case.transform).unwrap();
    let width = if case.before == Before::Silu { 2 * k } else { k };
    let mut x = draw(random, t, width);
    if case.before == Before::Silu {
        // Gates far out on both sides, where the exponential ends.
        x.iter_mut().step_by(97).for_each(|x| *x *= 60.0);
    }
    if case.input == Dtype::F16 {
        x.iter_mut().for_each(|x| *x = x.clamp(-6e4, 6e4));
    }
    let (bytes, x) = encode(&x, case.input);
    let x_buffer = gpu.upload("x", &bytes).unwrap();
    let weight: Vec<f32> = (0..k).map(|_| (0.2 + random.uniform()) as f32).collect();
    let weight_buffer = gpu.upload("weight", bytemuck::cast_slice(&weight)).unwrap();
    let (x_binding, weight_binding) = (x_buffer.as_entire_buffer_binding(), weight_buffer.as_entire_buffer_binding());
    let (source, real) = match case.before {
        Before::Nothing => (SourceBinding::Tokens(x_binding), x),
        Before::Norm => {
            let real = reference::rms_norm(&x, &widen(&weight), f64::from(1e-5_f32));
            (SourceBinding::RmsNorm { x: x_binding, weight: weight_binding }, real)
        }
        Before::Silu => {
            let halves =
                |first: usize| x.chunks(2 * k).flat_map(|row| row[first..first + k].to_vec()).collect::<Vec<_>>();
            (SourceBinding::SiluMul(x_binding), reference::swiglu(&halves(0), &halves(k)))
        }
    };
    let workspace = gpu.buffer("workspace", plan.workspace_bytes()).unwrap();
    let workspace = (plan.workspace_bytes() > 0).then(|| workspace.as_entire_buffer_binding());
    let bound = plan.bind(gpu, source, &tables, out, workspace).unwrap();
    Ready { plan, bound, real }
}

fn submit(gpu: &Gpu, bound: &BoundTransformQuantize, tokens: usize) {
    let mut encoder = gpu.encoder();
    bound.enqueue(&mut Recorder::new(&mut encoder), tokens).unwrap();
    gpu.submit(encoder).unwrap();
}

/// Codes `[T, stride]` and per token scale bits, zero point and row sum.
fn read(gpu: &Gpu, out: &QuantizedTokens) -> (Vec<u8>, Vec<[u32; 4]>) {
    let layout = out.layout();
    let codes = gpu.read(out.codes(), 0, layout.code_bytes()).unwrap();
    let params = gpu.read(out.params(), 0, layout.param_bytes()).unwrap();
    (codes, bytemuck::pod_collect_to_vec(&params))
}

fn check(gpu: &Gpu, case: &Case<'_>, seed: u64) {
    let mut random = Random::new(seed);
    let (k, t) = (case.transform.channels, case.tokens);
    let layout = duquant::kernels::wgpu::TokensLayout { m_max: t, k };
    let out = QuantizedTokens::new(gpu, layout).unwrap();
    let Ready { plan, bound, real } =
        prepare(gpu, case, TransformTarget::Codes, TransformOutput::Codes(out.binding()), &mut random);
    submit(gpu, &bound, t);
    let (codes, params) = read(gpu, &out);
    let place = format!("{}, [{t}, {k}], {:?}, seed {seed}", plan.kernel(t), case.affine);

    let real = oracle::transform(case.transform).apply(&real);
    let expected = reference::QuantizedRows::quantize(&real, t, k, &oracle::affine(&case.affine));
    let exact = case.transform.rotation_count() == 0 && case.before == Before::Nothing;
    let (bound, drift_bound) = if exact { (1e-4, 0.0) } else { (1e-3, 1e-5) };
    let from_tie = |steps: f64| ((steps - steps.floor()) - 0.5).abs();
    let largest = i64::from(case.affine.max_code());
    for token in 0..t {
        let row = &codes[token * layout.stride()..(token + 1) * layout.stride()];
        let [scale, zero_point, row_sum, unused] = params[token];
        let place = format!("{place}, token {token}");
        let scale = f64::from(f32::from_bits(scale));
        let drift = (scale / f64::from(expected.scale[token]) - 1.0).abs();
        assert!(drift <= drift_bound, "{place}: scale {scale} against {}", expected.scale[token]);
        assert_eq!(row_sum, row.iter().map(|&code| u32::from(code)).sum::<u32>(), "{place}: row sum");
        assert_eq!(unused, 0, "{place}");
        assert!(row[k..].iter().all(|&code| code == 0), "{place}: padding");
        let real = &real[token * k..(token + 1) * k];
        let extreme = |sign: f64| real.iter().fold(0.0_f64, |most, &x| most.max(sign * x));
        let minus_lo = if case.affine.symmetric { extreme(1.0).max(extreme(-1.0)) } else { extreme(-1.0) };
        let shift = i64::from(zero_point) - i64::from(expected.zero_point[token]);
        let at_tie = from_tie(f64::from(case.affine.clip) * minus_lo / scale) < bound;
        assert!(shift == 0 || (shift.abs() == 1 && at_tie), "{place}: zero point off by {shift}");
        for (channel, (&code, &x)) in row.iter().zip(real).enumerate() {
            let code = i64::from(code);
            let off = code - i64::from(expected.codes[token * k + channel]);
            let steps = x / scale;
            // Where the zero point moved, at a tie, the codes move with it: seen against the oracle with that zero point.
            let moved = (steps.round_ties_even() as i64 + i64::from(zero_point)).clamp(0, largest);
            let close = from_tie(steps) < bound;
            assert!(
                off == 0 || (off.abs() == 1 && close) || (shift != 0 && (code - moved).abs() <= i64::from(close)),
                "{place}, channel {channel}: code {code}, off by {off}, {steps} steps from zero"
            );
        }
    }
}

fn quantizer(i: usize) -> Affine {
    match i % 5 {
        0 | 3 => Affine::new(4, 0.9).unwrap(),
        1 => Affine::new(8, 1.0).unwrap().symmetric(),
        2 => Affine::new(2, 0.75).unwrap(),
        _ => Affine::new(8, 0.9).unwrap(),
    }
}

fn tiling(i: usize) -> TransformTiling {
    if i.is_multiple_of(2) { TransformTiling::Narrow } else { TransformTiling::Wide }
}

/// Runs `transform` over the lists of tokens; returns the number of cases.
fn sweep(gpu: &Gpu, transform: &Transform, before: Before, input: Dtype, tokens: &[usize], seed: usize) -> usize {
    for (i, &tokens) in tokens.iter().enumerate() {
        // The kernel is compiled anew for each tile, not for each quantizer.
        let case = Case { transform, affine: quantizer(seed + i), before, input, tiling: tiling(seed), tokens };
        check(gpu, &case, (1000 * seed + i) as u64);
    }
    tokens.len()
}

fn smoothing(random: &mut Random, k: usize) -> Transform {
    let factors = (0..k).map(|_| (0.1 + random.uniform()) as f32).collect();
    Transform { inverse_smooth: Some(factors), ..Transform::identity(k) }
}

fn hadamard(random: &mut Random, k: usize, block: usize, permutations: usize) -> Transform {
    let entry = 1.0 / (block as f32).sqrt();
    let sign = |i: usize| if ((i / block) & (i % block)).count_ones().is_multiple_of(2) { entry } else { -entry };
    let rotation: Vec<f32> = (0..block * block).map(sign).collect();
    let rotations = rotation.repeat(permutations + 1);
    let permutations = (0..permutations).flat_map(|_| random.permutation(k)).collect();
    Transform { channels: k, block, rotations, permutations, inverse_smooth: None, hadamard: true }
}

#[test]
fn codes_without_rotation() {
    let Some(gpu) = gpu("codes_without_rotation") else { return };
    let mut random = Random::new(1);
    let mut cases = 0;
    for (i, k) in [1, 63, 64, 65, 100, 129, 192, 255].into_iter().enumerate() {
        cases += sweep(&gpu, &Transform::identity(k), Before::Nothing, Dtype::F32, &TOKENS, i);
        cases += sweep(&gpu, &smoothing(&mut random, k), Before::Nothing, Dtype::F32, &TOKENS, i + 1);
    }
    for (i, k) in [576, 1000, 1536, 4097, 11_008, 13_824, 28_672].into_iter().enumerate() {
        cases += sweep(&gpu, &smoothing(&mut random, k), Before::Nothing, Dtype::F32, &[1, 2, 3, 8], i);
    }
    // More tokens than a dispatch has workgroups.
    cases += sweep(&gpu, &Transform::identity(3), Before::Nothing, Dtype::F32, &[65_600], 0);
    assert_eq!(cases, 189);
}

#[test]
fn codes_behind_dense_rotations() {
    let Some(gpu) = gpu("codes_behind_dense_rotations") else { return };
    let mut random = Random::new(2);
    let mut cases = 0;
    for (i, (k, block, permutations)) in
        [(64, 4, 0), (64, 16, 1), (96, 24, 2), (128, 128, 0), (192, 64, 1), (192, 96, 1), (256, 32, 2)]
            .into_iter()
            .enumerate()
    {
        for tile in 0..2 {
            let transform = random.transform(k, block, permutations, i % 2 == 0);
            cases += sweep(&gpu, &transform, Before::Nothing, Dtype::F32, &TOKENS, 2 * i + tile);
        }
    }
    for (i, (k, block, permutations)) in [
        (576, 64, 1),
        (1536, 128, 1),
        (4096, 128, 1),
        (4096, 128, 2),
        (11_008, 128, 1),
        (13_824, 64, 2),
        (28_672, 128, 1),
        (1024, 256, 0),
    ]
    .into_iter()
    .enumerate()
    {
        let transform = random.transform(k, block, permutations, false);
        for tile in 0..2 {
            cases += sweep(&gpu, &transform, Before::Nothing, Dtype::F32, &[1, 3], 2 * i + tile);
        }
    }
    // More tokens than the workspace holds at a time.
    let transform = random.transform(4096, 128, 1, false);
    cases += sweep(&gpu, &transform, Before::Nothing, Dtype::F32, &[65], 0);
    assert_eq!(cases, 173);
}

#[test]
fn codes_behind_hadamards() {
    let Some(gpu) = gpu("codes_behind_hadamards") else { return };
    let mut random = Random::new(3);
    let mut cases = 0;
    for (i, (k, block, permutations)) in
        [(64, 4, 0), (72, 8, 1), (96, 16, 2), (192, 32, 1), (192, 64, 0), (256, 128, 1)].into_iter().enumerate()
    {
        cases += sweep(&gpu, &hadamard(&mut random, k, block, permutations), Before::Nothing, Dtype::F32, &TOKENS, i);
    }
    for (i, (k, block)) in
        [(576, 64), (1536, 512), (4096, 128), (11_008, 256), (13_824, 512), (28_672, 128)].into_iter().enumerate()
    {
        cases += sweep(&gpu, &hadamard(&mut random, k, block, 1), Before::Nothing, Dtype::F32, &[1, 3], i);
    }
    assert_eq!(cases, 72);
}

#[test]
fn codes_behind_norms_and_swiglu_and_from_half_precision() {
    let Some(gpu) = gpu("codes_behind_norms_and_swiglu_and_from_half_precision") else { return };
    let mut random = Random::new(4);
    let mut cases = 0;
    let types: &[Dtype] = if gpu.has_f16() { &[Dtype::F32, Dtype::F16] } else { &[Dtype::F32] };
    for &input in types {
        for (i, before) in [Before::Norm, Before::Silu, Before::Nothing].into_iter().enumerate() {
            let rotated = random.transform(192, 64, 1, true);
            cases += sweep(&gpu, &rotated, before, input, &TOKENS, i);
            cases += sweep(&gpu, &smoothing(&mut random, 99), before, input, &TOKENS, i);
            let odd = random.transform(192, 96, 1, false);
            cases += sweep(&gpu, &odd, before, input, &TOKENS, i + 1);
            let large = random.transform(11_008, 128, 1, false);
            cases += sweep(&gpu, &large, before, input, &[1, 2], i);
        }
    }
    assert_eq!(cases, 96 * types.len());
}

#[test]
fn float_and_dequantized_outputs() {
    let Some(gpu) = gpu("float_and_dequantized_outputs") else { return };
    let mut random = Random::new(5);
    let types: &[Dtype] = if gpu.has_f16() { &[Dtype::F32, Dtype::F16] } else { &[Dtype::F32] };
    let transforms = [
        Transform::identity(99),
        random.transform(192, 64, 1, true),
        hadamard(&mut random, 256, 128, 1),
        random.transform(11_008, 128, 1, false),
    ];
    for (i, (transform, &dtype)) in transforms.iter().flat_map(|t| types.iter().map(move |d| (t, d))).enumerate() {
        let (k, tokens) = (transform.channels, if transform.channels > 1000 { 3 } else { 65 });
        let affine = Affine::new(4, 0.9).unwrap();
        let case = Case {
            transform,
            affine,
            before: Before::Nothing,
            input: Dtype::F32,
            tiling: tiling(i / types.len()),
            tokens,
        };
        for target in [TransformTarget::Float(dtype), TransformTarget::Dequantized(dtype)] {
            let buffer = gpu.buffer("out", (tokens * k) as u64 * dtype.bytes()).unwrap();
            let out = TransformOutput::Values(buffer.as_entire_buffer_binding());
            let ready = prepare(&gpu, &case, target, out, &mut Random::new(i as u64));
            submit(&gpu, &ready.bound, tokens);
            let bytes = gpu.read(&buffer, 0, buffer.size()).unwrap();
            let got: Vec<f64> = match dtype {
                Dtype::F32 => widen(&bytemuck::pod_collect_to_vec::<u8, f32>(&bytes)),
                Dtype::F16 => bytemuck::pod_collect_to_vec::<u8, u16>(&bytes)
                    .iter()
                    .map(|&x| f16::from_bits(x).to_f64())
                    .collect(),
            };
            let real = oracle::transform(transform).apply(&ready.real);
            let codes = reference::QuantizedRows::quantize(&real, tokens, k, &oracle::affine(&affine));
            let expected = if target == TransformTarget::Float(dtype) { real.clone() } else { codes.dequantize() };
            let rounding = if dtype == Dtype::F16 { (2.0_f64.powi(-11), 2.0_f64.powi(-25)) } else { (0.0, 0.0) };
            for (at, (got, want)) in got.iter().zip(&expected).enumerate() {
                let row = at / k * k..(at / k + 1) * k;
                let largest = real[row].iter().fold(0.0_f64, |most, x| most.max(x.abs()));
                let step = f64::from(codes.scale[at / k]);
                let close = 3e-6 * largest + want.abs() * rounding.0 * 1.001 + rounding.1;
                let at_tie = target != TransformTarget::Float(dtype)
                    && ((real[at] / step - (real[at] / step).floor()) - 0.5).abs() < 1e-3;
                let allowed = if at_tie { close + step * 1.001 } else { close };
                assert!((got - want).abs() <= allowed, "{target:?} {at}: {got} against {want}");
            }
        }
    }
}

#[test]
fn a_token_that_is_not_finite_is_nan_and_touches_no_other() {
    let Some(gpu) = gpu("a_token_that_is_not_finite_is_nan_and_touches_no_other") else { return };
    let mut random = Random::new(6);
    let (k, t) = (128, 20);
    let affine = Affine::new(4, 1.0).unwrap();
    for transform in [Transform::identity(k), random.transform(k, 64, 1, false), hadamard(&mut random, k, 64, 1)] {
        let shape = TransformShape::of(&transform);
        let desc = |target| TransformQuantizeDesc {
            m_max: t,
            shape,
            affine: Some(affine),
            source: TokenSource::Tokens,
            input: Dtype::F32,
            target,
        };
        let clean = random.normals(t * k);
        let run = |x: &[f32], tokens: usize| {
            let plan = TransformQuantizePlan::plan(&gpu, &desc(TransformTarget::Codes)).unwrap();
            let tables = plan.pack(&gpu, &transform).unwrap();
            let x = gpu.upload("x", bytemuck::cast_slice(x)).unwrap();
            let out = QuantizedTokens::new(&gpu, plan.desc().layout()).unwrap();
            let source = SourceBinding::Tokens(x.as_entire_buffer_binding());
            let bound = plan.bind(&gpu, source, &tables, TransformOutput::Codes(out.binding()), None).unwrap();
            submit(&gpu, &bound, tokens);
            read(&gpu, &out)
        };
        let (want, want_params) = run(&clean, t);
        // Fewer tokens: the same codes, and nothing behind them.
        let (fewer, fewer_params) = run(&clean, 5);
        assert_eq!((&fewer[..5 * k], &fewer_params[..5]), (&want[..5 * k], &want_params[..5]));
        assert!(fewer[5 * k..].iter().all(|&code| code == 0) && fewer_params[5..].iter().all(|row| *row == [0; 4]));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
            if bad == f32::MAX && transform.block > 0 {
                continue;
            }
            let mut x = clean.clone();
            x[7 * k + 5] = bad;
            x[7 * k + 6] = -bad;
            let (codes, params) = run(&x, t);
            assert!(f32::from_bits(params[7][0]).is_nan() && params[7][1..] == [0, 0, 0], "{bad}: {:?}", params[7]);
            for token in 0..t {
                let (got, want) = (&codes[token * k..(token + 1) * k], &want[token * k..(token + 1) * k]);
                if token == 7 {
                    assert!(got.iter().all(|&code| code == 0), "{bad}");
                } else {
                    assert_eq!((got, params[token]), (want, want_params[token]), "{bad}");
                }
            }
            let plan = TransformQuantizePlan::plan(&gpu, &desc(TransformTarget::Dequantized(Dtype::F32))).unwrap();
            let tables = plan.pack(&gpu, &transform).unwrap();
            let x = gpu.upload("x", bytemuck::cast_slice(&x)).unwrap();
            let out = gpu.buffer("out", (4 * t * k) as u64).unwrap();
            let source = SourceBinding::Tokens(x.as_entire_buffer_binding());
            let target = TransformOutput::Values(out.as_entire_buffer_binding());
            submit(&gpu, &plan.bind(&gpu, source, &tables, target, None).unwrap(), t);
            let values: Vec<f32> = bytemuck::pod_collect_to_vec(&gpu.read(&out, 0, out.size()).unwrap());
            for (token, row) in values.chunks(k).enumerate() {
                assert!(row.iter().all(|x| x.is_nan() == (token == 7)), "{bad}, token {token}");
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(gpu) = gpu("what_does_not_fit_is_refused") else { return };
    let mut random = Random::new(7);
    let transform = random.transform(11_008, 128, 1, false);
    let good = TransformQuantizeDesc {
        m_max: 4,
        shape: TransformShape::of(&transform),
        affine: Some(Affine::new(4, 0.9).unwrap()),
        source: TokenSource::Tokens,
        input: Dtype::F32,
        target: TransformTarget::Codes,
    };
    let plan = TransformQuantizePlan::plan(&gpu, &good).unwrap();
    assert!(plan.workspace_bytes() > 0 && plan.kernel(1).contains("workspace"), "{}", plan.kernel(1));
    let refused = |desc: TransformQuantizeDesc| TransformQuantizePlan::plan(&gpu, &desc).unwrap_err();
    let shape = good.shape;
    for shape in [
        TransformShape { channels: 0, block: 0, rotations: 0, ..shape },
        TransformShape { block: 100, ..shape },
        TransformShape { channels: 1024, block: 512, ..shape },
        TransformShape { channels: 66, block: 6, ..shape },
        TransformShape { channels: 96, block: 24, hadamard: true, ..shape },
        TransformShape { rotations: 9, ..shape },
    ] {
        assert!(matches!(refused(TransformQuantizeDesc { shape, ..good }), Error::Kernel(_)), "{shape:?}");
    }
    assert!(matches!(refused(TransformQuantizeDesc { m_max: 0, ..good }), Error::Kernel(_)));
    assert!(matches!(refused(TransformQuantizeDesc { affine: None, ..good }), Error::Kernel(_)));
    let affine = Some(Affine { bits: 9, clip: 0.9, symmetric: false });
    assert!(matches!(refused(TransformQuantizeDesc { affine, ..good }), Error::Kernel(_)));
    let source = TokenSource::RmsNorm { epsilon: f32::NAN };
    assert!(matches!(refused(TransformQuantizeDesc { source, ..good }), Error::Kernel(_)));
    assert!(matches!(refused(TransformQuantizeDesc { m_max: 1 << 24, ..good }), Error::Limit { .. }));
    let block = 1 << 16;
    let huge = TransformShape { channels: block, block, rotations: 1, hadamard: true, smooth: false };
    assert!(matches!(refused(TransformQuantizeDesc { shape: huge, ..good }), Error::Limit { .. }));

    // Tables of another shape, and numbers that are no transform.
    assert!(matches!(plan.pack(&gpu, &Transform::identity(11_008)), Err(Error::Kernel(_))));
    let mut broken = transform.clone();
    broken.permutations[0] = broken.permutations[1];
    assert!(matches!(plan.pack(&gpu, &broken), Err(Error::Kernel(_))));

    let tables = plan.pack(&gpu, &transform).unwrap();
    let x = gpu.buffer("x", 4 * 4 * 11_008 + 256).unwrap();
    let out = QuantizedTokens::new(&gpu, good.layout()).unwrap();
    let workspace = gpu.buffer("workspace", plan.workspace_bytes()).unwrap();
    let part = |offset, size| ::wgpu::BufferBinding { buffer: &x, offset, size: std::num::NonZeroU64::new(size) };
    let bind = |source, workspace| plan.bind(&gpu, source, &tables, TransformOutput::Codes(out.binding()), workspace);
    let whole = || Some(workspace.as_entire_buffer_binding());
    let bound = bind(SourceBinding::Tokens(part(256, 4 * 4 * 11_008)), whole()).unwrap();
    let short = bind(SourceBinding::Tokens(part(0, 4 * 4 * 11_008 - 4)), whole());
    assert!(matches!(short, Err(Error::Binding { operand: "source", .. })));
    let crooked = bind(SourceBinding::Tokens(part(4, 4 * 4 * 11_008)), whole());
    assert!(matches!(crooked, Err(Error::Alignment { operand: "source", got: 4, .. })));
    let without = bind(SourceBinding::Tokens(part(0, 4 * 4 * 11_008)), None);
    assert!(matches!(without, Err(Error::Binding { operand: "workspace", .. })));
    assert!(matches!(bind(SourceBinding::SiluMul(part(0, 4 * 4 * 11_008)), whole()), Err(Error::Kernel(_))));
    let mut encoder = gpu.encoder();
    assert!(matches!(bound.enqueue(&mut Recorder::new(&mut encoder), 5), Err(Error::Kernel(_))));
    bound.enqueue(&mut Recorder::new(&mut encoder), 0).unwrap();
}

#[test]
fn half_precision_without_the_feature_is_refused() {
    let Some(_gpu) = gpu("half_precision_without_the_feature_is_refused") else { return };
    // A host's device with nothing but what is needed.
    let mut descriptor = ::wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.flags = ::wgpu::InstanceFlags::empty();
    let instance = ::wgpu::Instance::new(descriptor);
    let adapter = pollster::block_on(instance.enumerate_adapters(::wgpu::Backends::PRIMARY)).remove(0);
    let descriptor = ::wgpu::DeviceDescriptor {
        required_features: ::wgpu::Features::IMMEDIATES,
        required_limits: ::wgpu::Limits { max_immediate_size: 64, ..::wgpu::Limits::default() },
        ..::wgpu::DeviceDescriptor::default()
    };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).unwrap();
    let plain = Gpu::from_host(device, queue).unwrap();
    let mut desc = TransformQuantizeDesc {
        m_max: 4,
        shape: TransformShape { channels: 4096, block: 128, rotations: 2, hadamard: false, smooth: false },
        affine: Some(Affine::new(4, 0.9).unwrap()),
        source: TokenSource::Tokens,
        input: Dtype::F16,
        target: TransformTarget::Codes,
    };
    let refused = TransformQuantizePlan::plan(&plain, &desc);
    assert!(matches!(refused, Err(Error::MissingFeature { ref feature, .. }) if feature == "SHADER_F16"));
    // The default limits, 16 KiB of workgroup memory and 8 bindings, are enough for both tiles.
    desc.input = Dtype::F32;
    for tiling in [TransformTiling::Narrow, TransformTiling::Wide] {
        TransformQuantizePlan::plan_tiled(&plain, &desc, tiling).unwrap();
    }
    desc.target = TransformTarget::Float(Dtype::F16);
    assert!(matches!(TransformQuantizePlan::plan(&plain, &desc), Err(Error::MissingFeature { .. })));
}
