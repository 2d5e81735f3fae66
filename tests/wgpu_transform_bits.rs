//! Asked for the CPU's arithmetic, the prologue, RMSNorm and SwiGLU's product on wgpu give the CPU backend's bits: codes,
//! scales, zero points, row sums and every value.
#![cfg(feature = "wgpu")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails and reports this way, or says why it is skipped"
)]

mod gpu;
mod oracle;

use duquant::kernels::cpu;
use duquant::kernels::wgpu::{
    Arithmetic, Dtype, Gpu, QuantizedTokens, Recorder, RmsNormPlan, RowsDesc, SiluMulPlan, SourceBinding, TokenSource,
    TokensLayout, TransformOutput, TransformQuantizeDesc, TransformQuantizePlan, TransformShape, TransformTarget,
    TransformTiling,
};
use duquant::kernels::{Affine, Transform};
use gpu::{TestGpu, gpu_with};
use half::f16;
use oracle::Random;

const EPSILON: f32 = 1e-5;

fn reproducible(test: &str) -> Option<TestGpu> {
    gpu_with(test, Arithmetic::Reproducible)
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Before {
    Nothing,
    Norm,
    Silu,
}

const SOURCES: [Before; 3] = [Before::Nothing, Before::Norm, Before::Silu];

/// Rows as LLMs have them, and rows made to break the order of a sum or to lie on ties.
fn draw(random: &mut Random, tokens: usize, k: usize) -> Vec<f32> {
    let mut x = random.normals(tokens * k);
    let shift = random.below(12);
    for (t, row) in x.chunks_mut(k).enumerate() {
        let at = random.below(k);
        match (t + shift) % 12 {
            0 => row.fill(0.0),
            1 => row.iter_mut().for_each(|x| *x = x.abs()),
            2 => row.iter_mut().for_each(|x| *x = -x.abs() - 0.5),
            3 => row[at] = 6700.0,
            4 => row.iter_mut().step_by(5).for_each(|x| *x *= 20.0),
            5 => row.iter_mut().for_each(|x| *x *= 1e-3),
            // Halves of the step of four bits without clipping, up to the last bit.
            6 => {
                row.iter_mut().for_each(|x| *x = (*x * 4.0).round().clamp(-15.0, 14.0) * 0.5);
                (row[0], row[k - 1]) = (-7.5, 7.5);
            }
            // Large values that cancel, with small ones between them.
            7 => row.chunks_mut(4).for_each(|quad| {
                if let [a, b, ..] = quad {
                    (*a, *b) = (1.0e6 + *a, -1.0e6 + *b);
                }
            }),
            // Fourteen decades in a row.
            8 => row.iter_mut().enumerate().for_each(|(i, x)| *x *= 10.0_f32.powi((i % 15) as i32 - 7)),
            9 => row.fill(0.1),
            10 => row.iter_mut().for_each(|x| *x *= 1e4),
            _ => {}
        }
    }
    x
}

/// Sources of the transform on both sides.
struct Inputs {
    before: Before,
    input: Dtype,
    x: Vec<f32>,
    weight: Vec<f32>,
}

impl Inputs {
    fn draw(random: &mut Random, before: Before, input: Dtype, tokens: usize, k: usize) -> Self {
        let width = if before == Before::Silu { 2 * k } else { k };
        let mut x = draw(random, tokens, width);
        if before == Before::Silu {
            // Gates far out on both sides, where the exponential ends.
            x.iter_mut().step_by(97).for_each(|x| *x *= 60.0);
        }
        if input == Dtype::F16 {
            x.iter_mut().for_each(|x| *x = f16::from_f32(x.clamp(-6e4, 6e4)).to_f32());
        }
        let weight = (0..k).map(|_| (0.2 + random.uniform()) as f32).collect();
        Self { before, input, x, weight }
    }

    fn cpu(&self) -> cpu::Source<'_> {
        let (x, weight) = (&self.x, &self.weight);
        match self.before {
            Before::Nothing => cpu::Source::Tokens(x),
            Before::Norm => cpu::Source::RmsNorm { x, weight, epsilon: EPSILON },
            Before::Silu => cpu::Source::SiluMul { gate_up: x },
        }
    }

    fn source(&self) -> TokenSource {
        match self.before {
            Before::Nothing => TokenSource::Tokens,
            Before::Norm => TokenSource::RmsNorm { epsilon: EPSILON },
            Before::Silu => TokenSource::SiluMul,
        }
    }
}

struct Case<'a> {
    transform: &'a Transform,
    affine: Affine,
    tiling: TransformTiling,
    tokens: usize,
}

impl Case<'_> {
    /// Runs the plan for `target` into `out` and names the kernel.
    fn run(&self, gpu: &Gpu, inputs: &Inputs, target: TransformTarget, out: TransformOutput<'_>) -> String {
        let desc = TransformQuantizeDesc {
            m_max: self.tokens,
            shape: TransformShape::of(self.transform),
            affine: Some(self.affine),
            source: inputs.source(),
            input: inputs.input,
            target,
        };
        let plan = TransformQuantizePlan::plan_tiled(gpu, &desc, self.tiling).unwrap();
        let tables = plan.pack(gpu, self.transform).unwrap();
        let halves: Vec<u16> = inputs.x.iter().map(|&x| f16::from_f32(x).to_bits()).collect();
        let half = inputs.input == Dtype::F16;
        let x = if half { bytemuck::cast_slice(&halves) } else { bytemuck::cast_slice(&inputs.x) };
        let x = gpu.upload("x", x).unwrap();
        let weight = gpu.upload("weight", bytemuck::cast_slice(&inputs.weight)).unwrap();
        let (x, weight) = (x.as_entire_buffer_binding(), weight.as_entire_buffer_binding());
        let source = match inputs.before {
            Before::Nothing => SourceBinding::Tokens(x),
            Before::Norm => SourceBinding::RmsNorm { x, weight },
            Before::Silu => SourceBinding::SiluMul(x),
        };
        let workspace = gpu.buffer("workspace", plan.workspace_bytes()).unwrap();
        let workspace = (plan.workspace_bytes() > 0).then(|| workspace.as_entire_buffer_binding());
        let bound = plan.bind(gpu, source, &tables, out, workspace).unwrap();
        let mut encoder = gpu.encoder();
        bound.enqueue(&mut Recorder::new(&mut encoder), self.tokens).unwrap();
        gpu.submit(encoder).unwrap();
        plan.kernel(self.tokens).to_owned()
    }

    /// Codes and their parameters, floating point and dequantized, against the CPU's. Returns the number of values compared.
    fn check(&self, gpu: &Gpu, inputs: &Inputs) -> usize {
        let (k, tokens) = (self.transform.channels, self.tokens);
        self.check_codes(gpu, inputs);
        let plan = cpu::TransformQuantize::plan(self.transform, Some(self.affine), tokens, cpu::Isa::best()).unwrap();
        let mut workspace = vec![0.0; plan.workspace_len()];
        for target in [TransformTarget::Float(Dtype::F32), TransformTarget::Dequantized(Dtype::F32)] {
            let mut want = vec![0.0; tokens * k];
            if target == TransformTarget::Float(Dtype::F32) {
                plan.run_float(inputs.cpu(), tokens, &mut want, &mut workspace).unwrap();
            } else {
                plan.run_dequantized(inputs.cpu(), tokens, &mut want, &mut workspace).unwrap();
            }
            let out = gpu.buffer("out", (4 * tokens * k) as u64).unwrap();
            let name = self.run(gpu, inputs, target, TransformOutput::Values(out.as_entire_buffer_binding()));
            let place = format!("{name}, {:?} [{tokens}, {k}] {:?}, {target:?}", inputs.before, self.affine);
            same_bits(&read(gpu, &out, tokens * k), &want, k, &place);
        }
        3 * tokens * k
    }

    fn check_codes(&self, gpu: &Gpu, inputs: &Inputs) {
        let (k, tokens) = (self.transform.channels, self.tokens);
        let plan = cpu::TransformQuantize::plan(self.transform, Some(self.affine), tokens, cpu::Isa::best()).unwrap();
        let mut workspace = vec![0.0; plan.workspace_len()];
        let mut want = cpu::QuantizedTokens::new(tokens, k);
        plan.run(inputs.cpu(), tokens, &mut want, &mut workspace).unwrap();
        let layout = TokensLayout { m_max: tokens, k };
        let out = QuantizedTokens::new(gpu, layout).unwrap();
        let name = self.run(gpu, inputs, TransformTarget::Codes, TransformOutput::Codes(out.binding()));
        let codes = gpu.read(out.codes(), 0, layout.code_bytes()).unwrap();
        let params = gpu.read(out.params(), 0, layout.param_bytes()).unwrap();
        let params: Vec<[u32; 4]> = bytemuck::pod_collect_to_vec(&params);
        for t in 0..tokens {
            let place = format!("{name}, {:?} [{tokens}, {k}] {:?}, token {t}", inputs.before, self.affine);
            let [scale, zero_point, row_sum, _] = params[t];
            let (got_scale, want_scale) = (f32::from_bits(scale), want.scale[t]);
            let same = scale == want_scale.to_bits() || (got_scale.is_nan() && want_scale.is_nan());
            assert!(same, "{place}: scale {got_scale} against {want_scale}");
            assert_eq!((zero_point as i32, row_sum as i32), (want.zero_point[t], want.row_sum[t]), "{place}");
            let got = &codes[t * layout.stride()..t * layout.stride() + k];
            let off = got.iter().zip(want.row(t)).filter(|(a, b)| a != b).count();
            assert_eq!(off, 0, "{place}: codes that differ");
        }
    }
}

fn read(gpu: &Gpu, buffer: &::wgpu::Buffer, count: usize) -> Vec<f32> {
    bytemuck::pod_collect_to_vec(&gpu.read(buffer, 0, 4 * count as u64).unwrap())
}

fn differ(got: f32, want: f32) -> bool {
    got.to_bits() != want.to_bits() && !(got.is_nan() && want.is_nan())
}

fn same_bits(got: &[f32], want: &[f32], k: usize, place: &str) {
    assert_eq!(got.len(), want.len());
    let off: Vec<usize> = (0..got.len()).filter(|&i| differ(got[i], want[i])).collect();
    let some: Vec<_> = off.iter().take(5).map(|&i| (i / k, i % k, got[i], want[i])).collect();
    assert!(
        off.is_empty(),
        "{place}: {} of {} values differ: (token, channel, got, want) {some:?}",
        off.len(),
        got.len()
    );
}

fn quantizer(i: usize) -> Affine {
    match i % 5 {
        0 => Affine::new(4, 0.9).unwrap(),
        1 => Affine::new(8, 1.0).unwrap().symmetric(),
        2 => Affine::new(4, 1.0).unwrap(),
        3 => Affine::new(2, 0.75).unwrap(),
        _ => Affine::new(8, 0.9).unwrap(),
    }
}

fn tiling(i: usize) -> TransformTiling {
    if i.is_multiple_of(2) { TransformTiling::Narrow } else { TransformTiling::Wide }
}

/// All sources, in turn with the tiles of both kinds of device.
fn sweep(gpu: &Gpu, transform: &Transform, input: Dtype, tokens: &[usize], seed: usize) -> usize {
    let mut compared = 0;
    for (i, &tokens) in tokens.iter().enumerate() {
        for (j, before) in SOURCES.into_iter().enumerate() {
            let case = Case { transform, affine: quantizer(seed + i + j), tiling: tiling(seed + j), tokens };
            let mut random = Random::new((100 * seed + 10 * i + j) as u64);
            compared += case.check(gpu, &Inputs::draw(&mut random, before, input, tokens, transform.channels));
        }
    }
    compared
}

fn smoothing(random: &mut Random, k: usize) -> Option<Vec<f32>> {
    Some((0..k).map(|_| (0.1 + random.uniform()) as f32).collect())
}

fn hadamard(random: &mut Random, k: usize, block: usize, permutations: usize) -> Transform {
    let entry = 1.0 / (block as f32).sqrt();
    let sign = |i: usize| if ((i / block) & (i % block)).count_ones().is_multiple_of(2) { entry } else { -entry };
    let rotation: Vec<f32> = (0..block * block).map(sign).collect();
    let rotations = rotation.repeat(permutations + 1);
    let inverse_smooth = smoothing(random, k);
    let permutations = (0..permutations).flat_map(|_| random.permutation(k)).collect();
    Transform { channels: k, block, rotations, permutations, inverse_smooth, hadamard: true }
}

#[test]
fn without_rotation() {
    let Some(gpu) = reproducible("without_rotation") else { return };
    let mut random = Random::new(1);
    let mut compared = 0;
    for (i, k) in [1, 17, 63, 99, 576, 1536, 4097].into_iter().enumerate() {
        let smooth = Transform { inverse_smooth: smoothing(&mut random, k), ..Transform::identity(k) };
        compared += sweep(&gpu, &Transform::identity(k), Dtype::F32, &[1, 24], i);
        compared += sweep(&gpu, &smooth, Dtype::F32, &[13], i + 1);
    }
    assert_eq!(compared, 2_185_038);
}

#[test]
fn behind_dense_rotations() {
    let Some(gpu) = reproducible("behind_dense_rotations") else { return };
    let mut random = Random::new(2);
    let mut compared = 0;
    for (i, (k, block, permutations)) in
        [(64, 4, 0), (64, 16, 1), (96, 24, 2), (192, 96, 1), (256, 32, 2), (512, 256, 0)].into_iter().enumerate()
    {
        let transform = random.transform(k, block, permutations, i % 2 == 0);
        compared += sweep(&gpu, &transform, Dtype::F32, &[1, 13], i);
    }
    // More tokens than the workspace holds at a time.
    compared += sweep(&gpu, &random.transform(4096, 128, 2, false), Dtype::F32, &[40], 0);
    // SmolLM2's and LLaMA's.
    for (i, (k, block, permutations)) in
        [(576, 64, 0), (576, 64, 1), (576, 64, 2), (1536, 64, 1), (1536, 128, 1), (4096, 128, 1), (11_008, 128, 2)]
            .into_iter()
            .enumerate()
    {
        let transform = random.transform(k, block, permutations, i % 2 == 0);
        compared += sweep(&gpu, &transform, Dtype::F32, if k < 4096 { &[1, 33] } else { &[3] }, i);
    }
    assert_eq!(compared, 3_500_352);
}

#[test]
fn behind_hadamards() {
    let Some(gpu) = reproducible("behind_hadamards") else { return };
    let mut random = Random::new(3);
    let mut compared = 0;
    for (i, (k, block, permutations)) in [
        (64, 4, 0),
        (72, 8, 1),
        (96, 16, 2),
        (192, 32, 1),
        (576, 64, 1),
        (1536, 128, 2),
        (1536, 512, 0),
        (4096, 128, 1),
        (11_008, 256, 1),
    ]
    .into_iter()
    .enumerate()
    {
        let transform = hadamard(&mut random, k, block, permutations);
        compared += sweep(&gpu, &transform, Dtype::F32, if k < 4096 { &[1, 25] } else { &[3] }, i);
    }
    assert_eq!(compared, 1_360_656);
}

#[test]
fn from_half_precision() {
    let Some(gpu) = reproducible("from_half_precision") else { return };
    if !gpu.has_f16() {
        println!("skipped from_half_precision: no SHADER_F16");
        return;
    }
    let mut random = Random::new(7);
    let dense = random.transform(576, 64, 1, true);
    let compared = sweep(&gpu, &dense, Dtype::F16, &[1, 25], 0)
        + sweep(&gpu, &hadamard(&mut random, 576, 64, 1), Dtype::F16, &[25], 1)
        + sweep(&gpu, &Transform::identity(99), Dtype::F16, &[25], 2);
    assert_eq!(compared, 286_659);
}

#[test]
fn tokens_that_are_not_finite() {
    let Some(gpu) = reproducible("tokens_that_are_not_finite") else { return };
    let mut random = Random::new(4);
    let k = 576;
    for transform in [Transform::identity(k), random.transform(k, 64, 1, true), hadamard(&mut random, k, 64, 1)] {
        for before in SOURCES {
            let case = Case { transform: &transform, affine: quantizer(0), tiling: TransformTiling::Narrow, tokens: 6 };
            let mut inputs = Inputs::draw(&mut random, before, Dtype::F32, 6, k);
            let width = inputs.x.len() / 6;
            inputs.x[width] = f32::NAN;
            inputs.x[3 * width + 7] = f32::INFINITY;
            inputs.x[4 * width + width - 1] = f32::NEG_INFINITY;
            case.check_codes(&gpu, &inputs);
        }
    }
}

#[test]
fn rms_norm() {
    let Some(gpu) = reproducible("rms_norm") else { return };
    let mut random = Random::new(5);
    let mut compared = 0;
    for k in [1, 15, 16, 17, 64, 100, 129, 576, 1536, 4096, 4097, 11_008] {
        for tokens in [1, 2, 36] {
            let x = draw(&mut random, tokens, k);
            let weight = random.normals(k);
            let mut want = vec![0.0; x.len()];
            cpu::rms_norm(&x, &weight, EPSILON, &mut want).unwrap();
            let desc = RowsDesc { m_max: tokens, channels: k, input: Dtype::F32, output: Dtype::F32 };
            let plan = RmsNormPlan::plan(&gpu, &desc, EPSILON).unwrap();
            let x = gpu.upload("x", bytemuck::cast_slice(&x)).unwrap();
            let weight = gpu.upload("weight", bytemuck::cast_slice(&weight)).unwrap();
            let out = gpu.buffer("out", 4 * want.len() as u64).unwrap();
            let [x, weight, to] = [&x, &weight, &out].map(|buffer| buffer.as_entire_buffer_binding());
            let bound = plan.bind(&gpu, x, weight, to).unwrap();
            let mut encoder = gpu.encoder();
            bound.enqueue(&mut Recorder::new(&mut encoder), tokens).unwrap();
            gpu.submit(encoder).unwrap();
            same_bits(&read(&gpu, &out, want.len()), &want, k, &format!("rms_norm [{tokens}, {k}]"));
            compared += want.len();
        }
    }
    assert_eq!(compared, 844_545);
}

/// SwiGLU's product on the device and on the CPU.
fn silu_mul(gpu: &Gpu, gate_up: &[f32], tokens: usize, k: usize) -> [Vec<f32>; 2] {
    let mut want = vec![0.0; tokens * k];
    cpu::silu_mul(gate_up, tokens, k, &mut want).unwrap();
    let desc = RowsDesc { m_max: tokens, channels: k, input: Dtype::F32, output: Dtype::F32 };
    let plan = SiluMulPlan::plan(gpu, &desc).unwrap();
    let gate_up = gpu.upload("gate_up", bytemuck::cast_slice(gate_up)).unwrap();
    let out = gpu.buffer("out", 4 * want.len() as u64).unwrap();
    let [from, to] = [&gate_up, &out].map(|buffer| buffer.as_entire_buffer_binding());
    let bound = plan.bind(gpu, from, to).unwrap();
    let mut encoder = gpu.encoder();
    bound.enqueue(&mut Recorder::new(&mut encoder), tokens).unwrap();
    gpu.submit(encoder).unwrap();
    [read(gpu, &out, tokens * k), want]
}

#[test]
fn swiglu() {
    let Some(gpu) = reproducible("swiglu") else { return };
    let mut random = Random::new(6);
    let mut compared = 0;
    for k in [1, 15, 16, 17, 99, 1536, 11_008] {
        for tokens in [1, 2, 36] {
            let gate_up = draw(&mut random, tokens, 2 * k);
            let [got, want] = silu_mul(&gpu, &gate_up, tokens, k);
            same_bits(&got, &want, k, &format!("silu_mul [{tokens}, {k}]"));
            compared += want.len();
        }
    }
    // The whole number line, evenly in its bits.
    let (tokens, k) = (1024, 1024);
    let bits = |i: usize| (i as u32).wrapping_mul((1_u64 << 32).div_ceil((tokens * k) as u64) as u32).wrapping_add(977);
    let row = |t: usize| (0..k).map(move |i| f32::from_bits(bits(t * k + i))).chain((0..k).map(|_| 1.0));
    let gate_up: Vec<f32> = (0..tokens).flat_map(row).collect();
    let [got, want] = silu_mul(&gpu, &gate_up, tokens, k);
    same_bits(&got, &want, k, "silu of the number line");
    // Densely where the exponential is neither 0 nor infinite.
    let row = |t: usize| {
        let x = move |i: usize| ((t * k + i) as f32 / (tokens * k) as f32 - 0.5) * 200.0;
        (0..k).map(x).chain((0..k).map(|_| 1.0))
    };
    let gate_up: Vec<f32> = (0..tokens).flat_map(row).collect();
    let [got, want] = silu_mul(&gpu, &gate_up, tokens, k);
    same_bits(&got, &want, k, "silu of -100 to 100");
    assert_eq!(compared + 2 * tokens * k, 2_592_140);
}
