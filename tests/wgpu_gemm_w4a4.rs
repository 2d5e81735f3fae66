//! `gemm_w4a4` on wgpu: integers are those of the oracle bit for bit in every tile, outputs follow the documented formula, and
//! what the device cannot do is refused.
#![cfg(feature = "wgpu")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails and reports this way"
)]

mod gpu;
mod oracle;

use duquant::kernels::cpu::QuantizedTokens as HostTokens;
use duquant::kernels::wgpu::{
    Dtype, Error, GemmW4A4Desc, GemmW4A4Plan, Gpu, PackedWeights, Product, QuantizedTokens, Recorder, Steps, Table,
    Tile,
};
use duquant::kernels::{Affine, Error as KernelError, QuantizedMatrix};
use duquant_reference as reference;
use gpu::gpu;
use half::f16;
use oracle::Random;

/// How the codes of an operand come to be.
#[derive(Debug, Clone, Copy)]
enum Codes {
    Any,
    /// Nothing but the largest code: the largest sums.
    Largest,
    /// The largest code or 0, with such zero points: the largest corrections.
    Extremes,
    /// Quantized from numbers: zeros, one sign, one value 1e4 times the median, noise.
    Quantized,
}

const KINDS: [Codes; 4] = [Codes::Any, Codes::Largest, Codes::Extremes, Codes::Quantized];

fn draw(codes: Codes, largest: u8, random: &mut Random) -> u8 {
    match codes {
        Codes::Any | Codes::Quantized => random.below(usize::from(largest) + 1) as u8,
        Codes::Largest => largest,
        Codes::Extremes => largest * (random.next() & 1) as u8,
    }
}

/// A row of numbers as adversaries like them.
fn numbers(k: usize, random: &mut Random) -> Vec<f32> {
    let mut row = random.normals(k);
    match random.below(5) {
        0 => row.fill(0.0),
        1 => row.iter_mut().for_each(|x| *x = x.abs()),
        2 => row.iter_mut().for_each(|x| *x = -x.abs()),
        3 if k > 0 => row[random.below(k)] = 6745.0,
        _ => {}
    }
    row
}

fn row(codes: Codes, k: usize, bits: u32, random: &mut Random) -> (Vec<u8>, f32, u8) {
    let largest = ((1_u32 << bits) - 1) as u8;
    if let Codes::Quantized = codes {
        let mut out = vec![0; k];
        let params = Affine::new(bits, 0.9).unwrap().quantize_row(&numbers(k, random), &mut out).unwrap();
        return (out, params.scale, params.zero_point);
    }
    let out = (0..k).map(|_| draw(codes, largest, random)).collect();
    (out, (0.001 + random.uniform()) as f32, draw(codes, largest, random))
}

fn weight(n: usize, k: usize, bits: u32, codes: Codes, random: &mut Random) -> QuantizedMatrix {
    let (mut packed, mut scale, mut zero_point) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..n {
        let (row, s, z) = row(codes, k, bits, random);
        packed.extend(reference::pack_row(&row, bits).iter().flat_map(|word| word.to_le_bytes()));
        scale.push(s);
        zero_point.push(z);
    }
    QuantizedMatrix { n, k, bits, packed, scale, zero_point }
}

fn tokens(count: usize, k: usize, bits: u32, codes: Codes, random: &mut Random) -> HostTokens {
    let mut x = HostTokens::new(count, k);
    x.set_tokens(count).unwrap();
    let stride = x.stride();
    for t in 0..count {
        let (row, scale, zero_point) = row(codes, k, bits, random);
        x.codes[t * stride..t * stride + k].copy_from_slice(&row);
        x.row_sum[t] = row.iter().map(|&code| i32::from(code)).sum();
        x.scale[t] = scale;
        x.zero_point[t] = i32::from(zero_point);
    }
    x
}

fn upload(gpu: &Gpu, desc: &GemmW4A4Desc, x: &HostTokens) -> QuantizedTokens {
    let layout = desc.tokens();
    let out = QuantizedTokens::new(gpu, layout).unwrap();
    let (mut codes, mut params) = (vec![0; layout.code_bytes() as usize], Vec::new());
    for t in 0..x.tokens() {
        codes[t * layout.stride()..t * layout.stride() + x.k()].copy_from_slice(x.row(t));
        params.extend([x.scale[t].to_bits(), x.zero_point[t] as u32, x.row_sum[t] as u32, 0xdead_beef]);
    }
    gpu.queue().write_buffer(out.codes(), 0, &codes);
    gpu.queue().write_buffer(out.params(), 0, bytes(&params));
    out
}

fn bytes(words: &[u32]) -> &[u8] {
    bytemuck::cast_slice(words)
}

/// Runs `plan` on `held` and returns the bytes of `y`.
fn run(gpu: &Gpu, plan: &GemmW4A4Plan, weights: &PackedWeights, x: &HostTokens, held: &[u8]) -> Vec<u8> {
    let tokens = upload(gpu, plan.desc(), x);
    let y = gpu.upload("y", held).unwrap();
    let bound = plan.bind(gpu, &tokens.binding(), &weights.binding(), y.as_entire_buffer_binding()).unwrap();
    let mut encoder = gpu.encoder();
    bound.enqueue(&mut Recorder::new(&mut encoder), x.tokens()).unwrap();
    gpu.submit(encoder).unwrap();
    let mut out = gpu.read(&y, 0, held.len().next_multiple_of(4) as u64).unwrap();
    out.truncate(held.len());
    out
}

fn desc(m_max: usize, n: usize, k: usize) -> GemmW4A4Desc {
    GemmW4A4Desc { m_max, n, k, weight_bits: 4, activation_bits: 4, out: Dtype::F32, bias: false, accumulate: false }
}

/// A table of one tile.
fn only(product: Product, tile: &str) -> Table {
    let steps = Steps::new(vec![(usize::MAX, tile.parse::<Tile>().unwrap())]).unwrap();
    Table { product, w4a4: steps.clone(), float: steps }
}

/// The device's own table and each kind of tile with each kind of product.
fn tables(gpu: &Gpu) -> Vec<Table> {
    vec![
        gpu.tiles().clone(),
        only(Product::Dot, "stream:1x1x8"),
        only(Product::Dot, "stream:4x2x1"),
        only(Product::Dot, "tiled:64x64/4x4"),
        only(Product::Dot, "tiled:32x32/2x2"),
        only(Product::Pairs, "stream:2x1x4"),
        only(Product::Pairs, "tiled:32x64/4x4"),
    ]
}

/// One shape against the oracle: the integers, and the output in the type and with the epilogue of `desc`.
fn check(gpu: &Gpu, table: &Table, desc: &GemmW4A4Desc, codes: Codes, floats: bool, seed: u64) {
    let mut random = Random::new(seed);
    let matrix = weight(desc.n, desc.k, desc.weight_bits, codes, &mut random);
    let x = tokens(desc.m_max, desc.k, desc.activation_bits, codes, &mut random);
    let plain = GemmW4A4Desc { out: Dtype::F32, bias: false, accumulate: false, ..*desc };
    let plan = GemmW4A4Plan::plan_integers(gpu, &plain, table).unwrap();
    let place = format!("{} {desc:?} {codes:?} seed {seed}", plan.kernel(desc.m_max));
    let want = reference::gemm_w4a4(&oracle::rows(&x), &oracle::matrix(&matrix), None);
    let count = desc.m_max * desc.n;
    let packed = plan.pack(gpu, &matrix, None).unwrap();
    let got = run(gpu, &plan, &packed, &x, &vec![0xaa; 4 * count]);
    let got: Vec<i64> = got.chunks_exact(4).map(|b| i64::from(i32::from_le_bytes(b.try_into().unwrap()))).collect();
    assert!(got == want.integers, "{place}: integers differ");
    if !floats {
        return;
    }
    let plan = GemmW4A4Plan::plan_with(gpu, desc, table).unwrap();
    let bias = desc.bias.then(|| random.normals(desc.n));
    let held = random.normals(count);
    let held: Vec<u8> = match desc.out {
        Dtype::F32 => held.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Dtype::F16 => held.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
    };
    let packed = plan.pack(gpu, &matrix, bias.as_deref()).unwrap();
    let got = values(desc.out, &run(gpu, &plan, &packed, &x, &held));
    let held = values(desc.out, &held);
    for i in 0..count {
        let (t, n) = (i / desc.n, i % desc.n);
        let product = (x.scale[t] * matrix.scale[n]) * want.integers[i] as f32;
        let bias = bias.as_ref().map_or(0.0, |bias| bias[n]);
        let before = if desc.accumulate { held[i] } else { 0.0 };
        if desc.out == Dtype::F32 && !desc.bias && !desc.accumulate {
            assert_eq!(got[i].to_bits(), product.to_bits(), "{place} at {i}");
            continue;
        }
        // WGSL may fuse a multiplication with the addition behind it: one rounding less, never one more.
        let exact = f64::from(product) + f64::from(bias) + f64::from(before);
        let size = f64::from(product.abs() + bias.abs() + before.abs());
        let half = if desc.out == Dtype::F16 { exact.abs() * 2.0_f64.powi(-11) + 2.0_f64.powi(-25) } else { 0.0 };
        if desc.out == Dtype::F16 && exact.abs() > 65_000.0 {
            continue;
        }
        let error = (f64::from(got[i]) - exact).abs();
        assert!(error <= half + size * 2.0_f64.powi(-22), "{place} at {i}: {} for {exact}", got[i]);
    }
}

fn values(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        Dtype::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
    }
}

const TOKENS: [usize; 10] = [1, 2, 3, 7, 8, 9, 63, 64, 65, 257];

#[test]
fn integers_are_those_of_the_oracle_in_every_tile() {
    let Some(gpu) = gpu("integers_are_those_of_the_oracle_in_every_tile") else { return };
    let mut random = Random::new(1);
    let mut cases = 0;
    for (which, table) in tables(&gpu).iter().enumerate() {
        for tokens in TOKENS {
            for kind in KINDS {
                for small in [true, false] {
                    let n = 1 + random.below(if small { 40 } else { 140 });
                    let k = if small { 64 + random.below(100) } else { [576, 64, 320, 1000][random.below(4)] };
                    // 8 and 5 bits flush pairs within and behind a block, 4 bits behind eight.
                    let activation_bits = [4, 4, 8, 5][cases % 4];
                    let weight_bits = if activation_bits == 4 { [4, 2, 3][random.below(3)] } else { 4 };
                    let mut desc = GemmW4A4Desc { weight_bits, activation_bits, ..desc(tokens, n, k) };
                    let floats = activation_bits == 4 && weight_bits == 4 && (which == 0 || small);
                    if floats && tokens % 2 == 1 {
                        desc = GemmW4A4Desc { out: Dtype::F32, bias: true, accumulate: true, ..desc };
                    } else if floats && tokens == 8 && gpu.has_f16() {
                        desc = GemmW4A4Desc { out: Dtype::F16, bias: true, accumulate: true, ..desc };
                    }
                    check(&gpu, table, &desc, kind, floats, random.next());
                    cases += 1;
                }
            }
        }
    }
    println!("{cases} cases");
    assert!(cases >= 500);
}

#[test]
fn long_rows_are_exact() {
    let Some(gpu) = gpu("long_rows_are_exact") else { return };
    let mut random = Random::new(2);
    for table in &tables(&gpu) {
        for (i, k) in [64, 576, 1536, 11_008, 13_824, 28_672, 28_671, 4097, 1].into_iter().enumerate() {
            let tokens = [1, 8, 2, 9, 3, 7][i % 6];
            let activation_bits = if k % 2 == 0 { 4 } else { 8 };
            let desc = GemmW4A4Desc { activation_bits, ..desc(tokens, 3 + 2 * (i % 3), k) };
            check(&gpu, table, &desc, KINDS[1 + i % 3], false, random.next());
        }
    }
    check(&gpu, gpu.tiles(), &desc(257, 5, 11_008), Codes::Largest, false, 3);
}

#[test]
fn outputs_in_half_precision_with_every_epilogue() {
    let Some(gpu) = gpu("outputs_in_half_precision_with_every_epilogue") else { return };
    for out in [Dtype::F32, Dtype::F16] {
        for (bias, accumulate) in [(false, false), (true, false), (false, true), (true, true)] {
            let desc = GemmW4A4Desc { out, bias, accumulate, ..desc(9, 37, 130) };
            if out == Dtype::F32 || gpu.has_f16() {
                check(&gpu, gpu.tiles(), &desc, Codes::Any, true, 7);
            }
        }
    }
}

#[test]
fn stacked_weights_are_one_matrix_and_unused_tokens_are_left_alone() {
    let Some(gpu) = gpu("stacked_weights_are_one_matrix_and_unused_tokens_are_left_alone") else { return };
    let mut random = Random::new(5);
    let (a, b) = (weight(33, 100, 4, Codes::Any, &mut random), weight(40, 100, 4, Codes::Any, &mut random));
    let mut both = QuantizedMatrix { n: 73, ..a.clone() };
    both.packed.extend(&b.packed);
    both.scale.extend(&b.scale);
    both.zero_point.extend(&b.zero_point);
    let plan = GemmW4A4Plan::plan(&gpu, &desc(12, 73, 100)).unwrap();
    let stacked = plan.pack_host(&[&a, &b], None).unwrap();
    assert_eq!(stacked, plan.pack_host(&[&both], None).unwrap());
    assert_eq!((stacked.codes.len() as u64, stacked.channels.len() as u64), {
        (plan.desc().weight_bytes(), plan.desc().channel_bytes())
    });
    // 5 of 12 tokens: what lies behind them stays.
    let packed = plan.pack_stacked(&gpu, &[&a, &b], None).unwrap();
    let x = tokens(5, 100, 4, Codes::Any, &mut random);
    let got = values(Dtype::F32, &run(&gpu, &plan, &packed, &x, bytemuck::cast_slice(&vec![-1.5_f32; 12 * 73])));
    let want = reference::gemm_w4a4(&oracle::rows(&x), &oracle::matrix(&both), None);
    for (i, &got) in got.iter().enumerate() {
        let want = want.y.get(i).map_or(-1.5, |&y| y);
        assert!((f64::from(got) - want).abs() <= 1e-6 * want.abs(), "{i}: {got} for {want}");
    }
    // Nothing to do is nothing done.
    for desc in [desc(0, 8, 64), desc(4, 0, 64)] {
        check(&gpu, gpu.tiles(), &desc, Codes::Any, true, 1);
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let Some(gpu) = gpu("what_cannot_be_is_refused") else { return };
    let good = desc(4, 64, 128);
    let refused = |desc: GemmW4A4Desc| GemmW4A4Plan::plan(&gpu, &desc).err().expect("an error");
    let unsupported = |what: &str, error: Error| match error {
        Error::Kernel(KernelError::Unsupported { what: got, .. }) => assert!(got.contains(what), "{got}"),
        other => panic!("{other}"),
    };
    unsupported("weight_bits", refused(GemmW4A4Desc { weight_bits: 5, ..good }));
    unsupported("weight_bits", refused(GemmW4A4Desc { weight_bits: 1, ..good }));
    unsupported("bits", refused(GemmW4A4Desc { activation_bits: 9, ..good }));
    unsupported("k", refused(GemmW4A4Desc { k: 9_544_372, ..good }));
    unsupported("m_max and n", refused(GemmW4A4Desc { n: usize::MAX, k: 1, ..good }));
    let binding = gpu.limits().max_storage_buffer_binding_size;
    let limit = |error: Error| match error {
        Error::Limit { limit, got, what, .. } => assert!(got > limit, "{what}"),
        other => panic!("{other}"),
    };
    if binding < 1 << 31 {
        limit(refused(GemmW4A4Desc { m_max: 1 << 20, n: 1 << 20, ..good }));
        limit(refused(GemmW4A4Desc { m_max: 1, n: 1 << 22, k: 1 << 12, ..good }));
    }
    // A tile of one token and more tokens than a dimension has workgroups; workgroups that are too large.
    let narrow = only(Product::Dot, "stream:1x1x1");
    let many = GemmW4A4Desc { m_max: 65_536, n: 1, k: 64, ..good };
    if gpu.limits().max_compute_workgroups_per_dimension == 65_535 {
        limit(GemmW4A4Plan::plan_with(&gpu, &many, &narrow).err().expect("an error"));
    }
    let vast = only(Product::Dot, "tiled:1024x1024/1x1");
    limit(GemmW4A4Plan::plan_with(&gpu, &good, &vast).err().expect("an error"));
    let steps = Steps::new(vec![(usize::MAX, Tile::Stream { tokens: 0, panels: 1, slices: 1 })]).unwrap();
    let unsound = Table { product: Product::Dot, w4a4: steps.clone(), float: steps };
    unsupported("tile", GemmW4A4Plan::plan_with(&gpu, &good, &unsound).err().expect("an error"));

    let plan = GemmW4A4Plan::plan(&gpu, &good).unwrap();
    let mut random = Random::new(9);
    let matrix = weight(64, 128, 4, Codes::Any, &mut random);
    assert!(plan.pack(&gpu, &weight(63, 128, 4, Codes::Any, &mut random), None).is_err());
    assert!(plan.pack(&gpu, &weight(64, 127, 4, Codes::Any, &mut random), None).is_err());
    assert!(plan.pack(&gpu, &weight(64, 128, 3, Codes::Any, &mut random), None).is_err());
    assert!(plan.pack(&gpu, &matrix, Some(&[0.0; 64])).is_err());
    let mut broken = matrix.clone();
    broken.packed.pop();
    assert!(plan.pack(&gpu, &broken, None).is_err());

    let packed = plan.pack(&gpu, &matrix, None).unwrap();
    let x = QuantizedTokens::new(&gpu, good.tokens()).unwrap();
    let y = gpu.buffer("y", 4 * 4 * 64 + 256).unwrap();
    let at = |offset: u64, size: Option<u64>| {
        let size = size.and_then(std::num::NonZeroU64::new);
        wgpu::BufferBinding { buffer: &y, offset, size }
    };
    let bind = |y: wgpu::BufferBinding<'_>| plan.bind(&gpu, &x.binding(), &packed.binding(), y);
    let small = bind(at(0, Some(1020))).expect_err("an error");
    assert_eq!(small, Error::Binding { operand: "y", expected: 1024, got: 1020 });
    let alignment = gpu.limits().min_storage_buffer_offset_alignment;
    let off = bind(at(4, None)).expect_err("an error");
    assert_eq!(off, Error::Alignment { operand: "y", alignment, got: 4 });
    let other = QuantizedTokens::new(&gpu, duquant::kernels::wgpu::TokensLayout { m_max: 3, k: 128 }).unwrap();
    let short = plan.bind(&gpu, &other.binding(), &packed.binding(), at(0, None)).expect_err("an error");
    assert_eq!(short, Error::Binding { operand: "x.codes", expected: 512, got: 384 });
    let bound = bind(at(0, None)).unwrap();
    let mut encoder = gpu.encoder();
    let error = bound.enqueue(&mut Recorder::new(&mut encoder), 5).expect_err("an error");
    unsupported("tokens", error);
    assert!(plan.kernel(4).starts_with("gemm_w4a4 "), "{}", plan.kernel(4));
}
