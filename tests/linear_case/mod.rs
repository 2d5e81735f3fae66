//! A linear as hosts run it, prologue and GEMM through one buffer of codes, and what must hold of any of them.

use super::cuda::{STREAM, download, gemm, upload};
use super::oracle::{self, Random, widen};
use super::transform_case::{EPSILON, bounds, decode, encode};
use duquant::kernels::cuda::{
    Buffer, Device, Dtype, GemmTile, GemmW4A4Desc, GemmW4A4Plan, PackedWeights, SourceOperand, TokenForm, TokenSource,
    TokensLayout, TokensOperand, TransformOutput, TransformQuantizeDesc, TransformQuantizePlan, TransformShape,
    TransformTarget,
};
use duquant::kernels::{Affine, Transform};
use duquant_reference as reference;
use proptest::prelude::*;
use std::sync::Arc;

/// What is compiled for a linear: the rest of it is drawn freely.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Variant {
    pub(crate) input: Dtype,
    /// Least and largest rotation block, and whether they are Hadamard matrices; none without rotations.
    pub(crate) rotation: Option<(usize, usize, bool)>,
    /// `None` for the plan's own choice.
    pub(crate) tile: Option<&'static str>,
    pub(crate) least_bits: u32,
    pub(crate) most_bits: u32,
}

/// A draw: everything follows from it.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    pub(crate) device: usize,
    pub(crate) variant: Variant,
    pub(crate) tokens: usize,
    /// Tokens beyond these that are planned for.
    pub(crate) spare: usize,
    pub(crate) channels: usize,
    pub(crate) n: usize,
    pub(crate) block: usize,
    pub(crate) rotations: usize,
    pub(crate) smooth: bool,
    pub(crate) source: TokenSource,
    pub(crate) affine: Affine,
    pub(crate) weight_bits: u32,
    pub(crate) codes: gemm::Codes,
    pub(crate) out: Dtype,
    pub(crate) bias: bool,
    pub(crate) accumulate: bool,
    pub(crate) seed: u64,
}

/// Sizes that break kernels, and any.
fn size(most: usize) -> impl Strategy<Value = usize> {
    let edges = [1, 2, 3, 7, 8, 9, 63, 64, 65, 127, 128, 129, 257].map(|edge: usize| edge.min(most));
    prop_oneof![2 => 1..=most.min(40), 2 => 1..=most, 1 => prop::sample::select(edges.to_vec())]
}

fn dtype() -> impl Strategy<Value = Dtype> {
    prop::sample::select(vec![Dtype::F32, Dtype::F16, Dtype::Bf16])
}

/// Linears of `variants` on `devices` devices, whose product is at most `work` multiplications.
pub(crate) fn linears(devices: usize, variants: &'static [Variant], work: usize) -> impl Strategy<Value = Linear> {
    let codes = prop::sample::select(gemm::KINDS.to_vec());
    let shape = (size(300), prop_oneof![Just(0), 0_usize..=80], size(2000), size(300), 0_usize..=256, 1_usize..=4);
    let source = prop::sample::select(vec![
        TokenSource::Tokens,
        TokenSource::RmsNorm { epsilon: EPSILON },
        TokenSource::SiluMul,
    ]);
    let bits = (0_u32..7, prop::sample::select(vec![1.0_f32, 0.9, 0.5, 0.37]), any::<bool>(), 2_u32..=4);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<u64>().no_shrink());
    (0..devices, prop::sample::select(variants), shape, source, bits, codes, dtype(), flags).prop_map(
        move |(device, variant, shape, source, bits, codes, out, (smooth, bias, accumulate, seed))| {
            let (tokens, spare, channels, n, block, rotations) = shape;
            // Streams take few tokens; what is too much work has fewer tokens, or fewer channels out.
            let most = variant.tile.and_then(|tile| tile.strip_prefix("stream:")?.parse().ok()).unwrap_or(300);
            let tokens = (tokens - 1) % most + 1;
            let n = n.min(work / (tokens * channels)).max(1);
            let tokens = tokens.min(work / (n * channels)).max(1);
            let (block, rotations, channels) = match variant.rotation {
                None => (1, 0, channels),
                Some((least, most, hadamard)) => {
                    let block = least + block % (most - least + 1);
                    let block =
                        if hadamard && !block.is_power_of_two() { block.next_power_of_two() / 2 } else { block };
                    (block, rotations, channels.next_multiple_of(block))
                }
            };
            let (bits, clip, symmetric, weight_bits) = bits;
            let affine = Affine::new(variant.least_bits + bits % (variant.most_bits - variant.least_bits + 1), clip);
            let affine = if symmetric { affine.unwrap().symmetric() } else { affine.unwrap() };
            let spare = spare.min(most - tokens);
            Linear {
                device,
                variant,
                tokens,
                spare,
                channels,
                n,
                block,
                rotations,
                smooth,
                source,
                affine,
                weight_bits,
                codes,
                out,
                bias,
                accumulate,
                seed,
            }
        },
    )
}

/// Tokens of every kind, row by row: ordinary, one sign, zeros, massive, tiny, huge, not finite.
fn draw(random: &mut Random, tokens: usize, width: usize) -> Vec<f32> {
    let mut x = random.normals(tokens * width);
    for row in x.chunks_mut(width) {
        let at = random.below(width);
        match random.below(20) {
            0 => row.fill(0.0),
            1 => row.iter_mut().for_each(|x| *x = x.abs()),
            2 => row.iter_mut().for_each(|x| *x = -x.abs() - 0.5),
            3 => row[at] = 1e4,
            4 => row[at] = -6.5e4,
            5 => row.iter_mut().for_each(|x| *x *= 1e-20),
            6 => row.fill(-0.0),
            7 => row[at] = 3e38,
            8 => (row[at], row[width - 1 - at]) = (3e38, -3e38),
            9 => row[at] = f32::NAN,
            10 => row[at] = f32::INFINITY,
            11 => row[at] = f32::NEG_INFINITY,
            12 => row.fill(1.25),
            13 => row.iter_mut().for_each(|x| *x *= 3e5),
            14 => row.iter_mut().for_each(|x| *x *= 1e-42),
            _ => {}
        }
    }
    x
}

fn transform(linear: &Linear, random: &mut Random) -> Transform {
    let Linear { channels, block, rotations, smooth, .. } = *linear;
    if rotations == 0 {
        let smooth = smooth.then(|| (0..channels).map(|_| (0.1 + 9.9 * random.uniform()) as f32).collect());
        return Transform { inverse_smooth: smooth, ..Transform::identity(channels) };
    }
    let hadamard = linear.variant.rotation.is_some_and(|(_, _, hadamard)| hadamard);
    if !hadamard {
        return random.transform(channels, block, rotations - 1, smooth);
    }
    let matrix = reference::hadamard_matrix(block);
    let mut transform = random.transform(channels, 1, 0, smooth);
    transform.block = block;
    transform.rotations = (0..rotations).flat_map(|_| matrix.iter().map(|&x| x as f32)).collect();
    transform.permutations = (1..rotations).flat_map(|_| random.permutation(channels)).collect();
    transform.hadamard = true;
    transform
}

/// Bytes behind what a kernel may write.
const CANARY: usize = 80;

/// A linear on a device, with its inputs.
struct Run<'a> {
    device: &'a Arc<dyn Device>,
    linear: &'a Linear,
    transform: Transform,
    x: Vec<f32>,
    norm: Vec<f32>,
}

/// What the prologue wrote.
struct Written {
    codes: Vec<u8>,
    params: Vec<[u32; 4]>,
}

impl Run<'_> {
    fn form(&self) -> TokenForm {
        TokenForm::of(self.device.chip().arch, self.linear.affine.bits)
    }

    fn prologue(&self, target: TransformTarget, out: TransformOutput) -> TransformQuantizePlan {
        let linear = self.linear;
        let desc = TransformQuantizeDesc {
            m_max: linear.tokens + linear.spare,
            shape: TransformShape::of(&self.transform),
            affine: Some(linear.affine),
            source: linear.source,
            input: linear.variant.input,
            target,
        };
        let device = self.device.as_ref();
        let plan = TransformQuantizePlan::plan(device, &desc).unwrap();
        let tables = plan.pack(self.device, &self.transform).unwrap();
        let x = upload(self.device, &encode(linear.variant.input, &self.x));
        let weight = upload(self.device, &self.norm);
        let source = match linear.source {
            TokenSource::Tokens => SourceOperand::Tokens(x.address()),
            TokenSource::RmsNorm { .. } => SourceOperand::RmsNorm { x: x.address(), weight: weight.address() },
            TokenSource::SiluMul => SourceOperand::SiluMul(x.address()),
        };
        // SAFETY: the buffers are as large as the shape says; they live until the device is done.
        unsafe { plan.enqueue(device, STREAM, linear.tokens, source, &tables, out) }.unwrap();
        device.synchronize(STREAM).unwrap();
        plan
    }

    /// The transformed tokens in `f32`.
    fn values(&self) -> Vec<f32> {
        let count = self.linear.tokens * self.linear.channels;
        let out = upload(self.device, &vec![0xff_u8; 4 * count + CANARY]);
        self.prologue(TransformTarget::Float(Dtype::F32), TransformOutput::Values(out.address()));
        let bytes: Vec<u8> = download(&out, 4 * count + CANARY);
        assert!(bytes[4 * count..].iter().all(|&byte| byte == 0xff), "values behind the last token");
        decode(Dtype::F32, &bytes[..4 * count])
    }

    /// Codes over poison, for the GEMM.
    fn codes(&self, codes: &Buffer, params: &Buffer) -> TokensLayout {
        let operand = TokensOperand { codes: codes.address(), params: params.address() };
        self.prologue(TransformTarget::Codes, TransformOutput::Codes(operand)).layout()
    }

    /// Unpacks what [`Run::codes`] wrote: nothing behind the tokens, and zeros where they fill up atoms.
    fn unpack(&self, layout: &TokensLayout, codes: &Buffer, params: &Buffer) -> Written {
        let (tokens, k) = (self.linear.tokens, self.linear.channels);
        let bytes: Vec<u8> = download(codes, layout.code_bytes() as usize);
        let used = TokensLayout { m_max: tokens, ..*layout }.code_bytes() as usize;
        assert!(bytes[used..].iter().all(|&byte| byte == 0xff), "codes behind the last token");
        let params: Vec<[u32; 4]> = download(params, layout.m_max);
        assert!(params[tokens..].iter().flatten().all(|&word| word == u32::MAX), "parameters behind the last token");
        let mask = if layout.form == TokenForm::Fragments4 { 15 } else { 255 };
        let mut out = Vec::with_capacity(tokens * k);
        for token in 0..tokens.next_multiple_of(8) {
            for channel in 0..k.next_multiple_of(128) {
                let (byte, bit) = layout.place(tokens, token, channel);
                let code = bytes[byte] >> bit & mask;
                if token < tokens && channel < k {
                    out.push(code);
                } else {
                    assert_eq!(code, 0, "padding at token {token}, channel {channel}");
                }
            }
        }
        Written { codes: out, params: params[..tokens].to_vec() }
    }

    /// The linear's input in `f64`, as the kernel reads it.
    fn real(&self) -> Vec<f64> {
        let (k, input) = (self.linear.channels, self.linear.variant.input);
        let x = widen(&decode(input, &encode(input, &self.x)));
        match self.linear.source {
            TokenSource::Tokens => x,
            TokenSource::RmsNorm { epsilon } => reference::rms_norm(&x, &widen(&self.norm), f64::from(epsilon)),
            TokenSource::SiluMul => x.chunks(2 * k).flat_map(|row| reference::swiglu(&row[..k], &row[k..])).collect(),
        }
    }

    /// Rows within the range of `f32` on their way, and with rotations of [`TransformQuantizePlan`], are near the oracle's; the
    /// others are not taken for numbers.
    fn check_values(&self, values: &[f32]) {
        let Linear { channels: k, source, rotations, .. } = *self.linear;
        let real = self.real();
        let width = self.x.len() / self.linear.tokens;
        let smooth = |i: usize| self.transform.inverse_smooth.as_ref().map_or(1.0, |smooth| f64::from(smooth[i]));
        for (t, row) in real.chunks(k).enumerate() {
            let got = &values[t * k..(t + 1) * k];
            let x = &self.x[t * width..(t + 1) * width];
            let read = decode(self.linear.variant.input, &encode(self.linear.variant.input, x));
            if read.iter().any(|x| !x.is_finite()) {
                assert!(got.iter().any(|x| !x.is_finite()), "token {t}: {read:?} gave {got:?}");
                continue;
            }
            let largest = read.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            // Squares beyond f32: the norm is documented as 0.
            if largest > 1e21 && matches!(source, TokenSource::RmsNorm { .. }) {
                assert!(got.iter().all(|&x| x == 0.0), "token {t}: {got:?}");
            }
            // Sums of squares near the end of f32, and exponentials beyond it.
            if source != TokenSource::Tokens && largest > 1e6 {
                continue;
            }
            let norm = row.iter().enumerate().map(|(i, x)| (x * smooth(i)).powi(2)).sum::<f64>().sqrt();
            if rotations > 0 && norm > 1.04e6 || norm > 1e38 {
                continue;
            }
            let before = if source == TokenSource::Tokens { 2e-7 } else { 4e-6 };
            let (exact, bound) = bounds(&self.transform, row, before);
            for (i, ((&got, exact), bound)) in got.iter().zip(exact).zip(bound).enumerate() {
                let off = (f64::from(got) - exact).abs();
                assert!(off <= bound + 1e-30, "token {t}, channel {i}: {got} is not {exact}");
            }
        }
        // What the rotations cannot hold is not finite in the end.
        if rotations > 0 && source == TokenSource::Tokens {
            for (t, row) in real.chunks(k).enumerate() {
                if row.iter().enumerate().any(|(i, x)| (x * smooth(i)).abs() > 1.05e6) {
                    assert!(values[t * k..(t + 1) * k].iter().any(|x| !x.is_finite()), "token {t} is out of range");
                }
            }
        }
    }

    /// The codes are the oracle's of the values. As the oracle's rows, tokens that are marked with the NaN that they are.
    fn check_codes(&self, values: &[f32], got: &Written) -> reference::QuantizedRows {
        let (tokens, k) = (self.linear.tokens, self.linear.channels);
        let mut rows = reference::QuantizedRows {
            rows: tokens,
            width: k,
            codes: got.codes.clone(),
            scale: Vec::new(),
            zero_point: Vec::new(),
            row_sum: Vec::new(),
        };
        for (t, &params) in got.params.iter().enumerate() {
            let (row, codes) = (&values[t * k..(t + 1) * k], &got.codes[t * k..(t + 1) * k]);
            let want = row
                .iter()
                .all(|x| x.is_finite())
                .then(|| reference::QuantizedRows::quantize(&widen(row), 1, k, &oracle::affine(&self.linear.affine)));
            match want.filter(|want| want.scale[0].is_finite()) {
                Some(want) => {
                    assert_eq!(codes, want.codes, "codes of token {t}");
                    let sum = want.row_sum[0] as u32;
                    let want = [want.scale[0].to_bits(), u32::from(want.zero_point[0]), sum, 0];
                    assert_eq!(params, want, "parameters of token {t}");
                }
                None => {
                    assert!(f32::from_bits(params[0]).is_nan(), "token {t} is not finite, its scale is {params:?}");
                    assert_eq!(params[1..], [0, 0, 0], "token {t}");
                    assert!(codes.iter().all(|&code| code == 0), "token {t}");
                }
            }
            rows.scale.push(f32::from_bits(params[0]));
            rows.zero_point.push(params[1] as u8);
            rows.row_sum.push(i64::from(params[2]));
        }
        rows
    }

    /// One product over `held`, with what is left behind it and in the workspace looked at.
    fn product(&self, plan: &GemmW4A4Plan, weights: &PackedWeights, x: TokensOperand, held: &[u8]) -> Vec<u8> {
        let workspace = Buffer::zeroed(self.device, "workspace", plan.workspace_bytes().max(16)).unwrap();
        let mut results = (0..2).map(|_| {
            let y = upload(self.device, &[held, &[0xa5; CANARY]].concat());
            let (device, tokens) = (self.device.as_ref(), self.linear.tokens);
            // SAFETY: the operands are as large as the plan says.
            unsafe { plan.enqueue(device, STREAM, tokens, x, weights.operand(), y.address(), workspace.address()) }
                .unwrap();
            let mut bytes: Vec<u8> = download(&y, held.len() + CANARY);
            let behind = bytes.split_off(held.len());
            assert!(behind.iter().all(|&byte| byte == 0xa5), "y behind the last token: {}", plan.kernel(tokens));
            let left: Vec<u8> = download(&workspace, plan.workspace_bytes() as usize);
            assert!(left.iter().all(|&byte| byte == 0), "the workspace is not left 0: {}", plan.kernel(tokens));
            bytes
        });
        let (first, second) = (results.next().unwrap(), results.next().unwrap());
        assert!(first == second, "a second run differs: {}", plan.kernel(self.linear.tokens));
        first
    }

    fn check_product(&self, rows: &reference::QuantizedRows, x: TokensOperand, random: &mut Random) {
        let Linear { tokens, spare, channels: k, n, out, bias, accumulate, .. } = *self.linear;
        let desc = GemmW4A4Desc {
            m_max: tokens + spare,
            n,
            k,
            weight_bits: self.linear.weight_bits,
            activation_bits: self.linear.affine.bits,
            out,
            bias,
            accumulate,
        };
        let device = self.device.as_ref();
        let tile: Option<GemmTile> = self.linear.variant.tile.map(|tile| tile.parse().unwrap());
        let matrix = gemm::draw_weight(n, k, desc.weight_bits, self.linear.codes, random);
        let want = reference::gemm_w4a4(rows, &oracle::matrix(&matrix), None).integers;

        let plain = GemmW4A4Desc { bias: false, accumulate: false, ..desc };
        let plan = GemmW4A4Plan::plan_integers(device, &plain, tile).unwrap();
        let weights = plan.pack(self.device, &matrix).unwrap();
        let got = self.product(&plan, &weights, x, &vec![0xaa; 4 * tokens * n]);
        for (i, (got, &want)) in got.chunks(4).map(bytemuck::pod_read_unaligned::<i32>).zip(&want).enumerate() {
            let kernel = plan.kernel(tokens);
            assert!(i64::from(got) == want, "{kernel}: token {}, channel {}: {got} for {want}", i / n, i % n);
        }

        let plan = match tile {
            Some(tile) => GemmW4A4Plan::plan_with(device, &desc, tile).unwrap(),
            None => GemmW4A4Plan::plan(device, &desc).unwrap(),
        };
        let bias = bias.then(|| random.normals(n));
        let weights = plan.pack_stacked(self.device, &[&matrix], bias.as_deref()).unwrap();
        let held = if accumulate { random.normals(tokens * n) } else { vec![f32::NAN; tokens * n] };
        let held = encode(out, &held);
        let got = decode(out, &self.product(&plan, &weights, x, &held));
        let held = decode(out, &held);
        for (i, &got) in got.iter().enumerate() {
            let (t, channel) = (i / n, i % n);
            let mut y = rows.scale[t] * matrix.scale[channel] * want[i] as f32;
            y += bias.as_ref().map_or(0.0, |bias| bias[channel]);
            if accumulate {
                y += held[i];
            }
            let y = decode(out, &encode(out, &[y]))[0];
            let same = got.to_bits() == y.to_bits() || got.is_nan() && y.is_nan();
            assert!(same, "{}: token {t}, channel {channel}: {got} for {y}", plan.kernel(tokens));
        }
    }
}

/// Everything that must hold of one linear.
pub(crate) fn check(device: &Arc<dyn Device>, linear: &Linear) {
    let mut random = Random::new(linear.seed);
    let transform = transform(linear, &mut random);
    let width = linear.channels * if linear.source == TokenSource::SiluMul { 2 } else { 1 };
    let x = draw(&mut random, linear.tokens, width);
    let norm = (0..linear.channels).map(|_| (0.2 + random.uniform()) as f32).collect();
    let run = Run { device, linear, transform, x, norm };

    let values = run.values();
    run.check_values(&values);
    let layout = TokensLayout { form: run.form(), m_max: linear.tokens + linear.spare, k: linear.channels };
    let poisoned = || {
        let codes = upload(device, &vec![0xff_u8; layout.code_bytes() as usize]);
        (codes, upload(device, &vec![0xff_u8; layout.param_bytes() as usize]))
    };
    let (codes, params) = poisoned();
    assert_eq!(run.codes(&codes, &params), layout);
    let written = run.unpack(&layout, &codes, &params);
    let rows = run.check_codes(&values, &written);
    let (again, params_again) = poisoned();
    run.codes(&again, &params_again);
    let bytes = |buffer: &Buffer| -> Vec<u8> { download(buffer, buffer.bytes() as usize) };
    assert!(bytes(&codes) == bytes(&again) && bytes(&params) == bytes(&params_again), "a second run differs");
    run.check_product(&rows, TokensOperand { codes: codes.address(), params: params.address() }, &mut random);
}
