//! `gemm_float` on wgpu: sums in `f32` within the bound of any order of summation, in every tile, type and epilogue; weights in
//! parts; and what the device cannot do is refused.
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

use duquant::kernels::Error as KernelError;
use duquant::kernels::cpu::{FloatValues, FloatWeights};
use duquant::kernels::wgpu::{
    Dtype, Error, GemmFloatDesc, GemmFloatPlan, Gpu, GpuOptions, Product, Recorder, Steps, Table, Tile, TuneShape, tune,
};
use duquant_reference as reference;
use gpu::gpu;
use half::{bf16, f16};
use oracle::{Random, widen};

fn desc(m_max: usize, n: usize, k: usize) -> GemmFloatDesc {
    GemmFloatDesc { m_max, n, k, x: Dtype::F32, weight: Dtype::F32, out: Dtype::F32, bias: false, accumulate: false }
}

fn only(tile: &str) -> Table {
    let steps = Steps::new(vec![(usize::MAX, tile.parse::<Tile>().unwrap())]).unwrap();
    Table { product: Product::Dot, w4a4: steps.clone(), float: steps }
}

fn tables(gpu: &Gpu) -> Vec<Table> {
    vec![gpu.tiles().clone(), only("stream:2x2x8"), only("tiled:64x64/4x4"), only("tiled:16x32/2x4")]
}

/// Rounds to `dtype`, as a kernel is to read it.
fn round(dtype: Dtype, x: Vec<f32>) -> Vec<f32> {
    match dtype {
        Dtype::F32 => x,
        Dtype::F16 => x.into_iter().map(|x| f16::from_f32(x).to_f32()).collect(),
    }
}

fn encode(dtype: Dtype, x: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F32 => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Dtype::F16 => x.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
    }
}

fn decode(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        Dtype::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
    }
}

fn run(
    gpu: &Gpu,
    plan: &GemmFloatPlan,
    x: &[f32],
    weights: &[FloatWeights<'_>],
    bias: Option<&[f32]>,
    held: &[f32],
    tokens: usize,
) -> Vec<f32> {
    let desc = plan.desc();
    let packed = plan.pack(gpu, weights, bias).unwrap();
    let x = gpu.upload("x", &encode(desc.x, x)).unwrap();
    let held = encode(desc.out, held);
    let y = gpu.upload("y", &held).unwrap();
    let bound = plan.bind(gpu, x.as_entire_buffer_binding(), &packed.bindings(), y.as_entire_buffer_binding()).unwrap();
    let mut encoder = gpu.encoder();
    bound.enqueue(&mut Recorder::new(&mut encoder), tokens).unwrap();
    gpu.submit(encoder).unwrap();
    let mut out = gpu.read(&y, 0, held.len().next_multiple_of(4) as u64).unwrap();
    out.truncate(held.len());
    decode(desc.out, &out)
}

/// Rows as adversaries like them: zeros, one sign, one value 1e4 times the median, noise.
fn rows(count: usize, k: usize, random: &mut Random) -> Vec<f32> {
    let mut out = random.normals(count * k);
    for row in out.chunks_mut(k) {
        match random.below(5) {
            0 => row.fill(0.0),
            1 => row.iter_mut().for_each(|x| *x = x.abs()),
            2 => row[random.below(k)] = 6745.0,
            _ => {}
        }
    }
    out
}

fn check(gpu: &Gpu, plan: &GemmFloatPlan, seed: u64) {
    let &GemmFloatDesc { m_max, n, k, x: x_type, weight, out, bias, accumulate } = plan.desc();
    let mut random = Random::new(seed);
    let x = round(x_type, rows(m_max, k, &mut random));
    let w = round(weight, random.normals(n * k));
    let b = bias.then(|| random.normals(n));
    let held = round(out, random.normals(m_max * n));
    let weights = [FloatWeights { values: FloatValues::F32(&w), n, k }];
    let got = run(gpu, plan, &x, &weights, b.as_deref(), &held, m_max);
    let wide = b.as_deref().map(widen);
    let want = reference::gemm_float(&widen(&x), &widen(&w), wide.as_deref(), m_max, n, k);
    let size = |v: &[f32]| v.iter().map(|x| f64::from(x.abs())).collect::<Vec<_>>();
    let sizes = reference::gemm_float(&size(&x), &size(&w), b.as_deref().map(size).as_deref(), m_max, n, k);
    for i in 0..m_max * n {
        let before = if accumulate { f64::from(held[i]) } else { 0.0 };
        let exact = want[i] + before;
        if out == Dtype::F16 && exact.abs() > 60_000.0 {
            continue;
        }
        // Each term goes through at most K + 2 roundings, in any order of summation; halves round once more.
        let bound = (k as f64 + 3.0) * 2.0_f64.powi(-24) * (sizes[i] + before.abs());
        let half = if out == Dtype::F16 { exact.abs() * 2.0_f64.powi(-11) + 2.0_f64.powi(-25) } else { 0.0 };
        let error = (f64::from(got[i]) - exact).abs();
        assert!(
            error <= bound * 1.001 + half,
            "{} {:?} at {i}: {} for {exact}",
            plan.kernel(m_max),
            plan.desc(),
            got[i]
        );
    }
}

const TOKENS: [usize; 10] = [1, 2, 3, 7, 8, 9, 63, 64, 65, 257];

#[test]
fn sums_are_those_of_the_oracle_in_every_tile() {
    let Some(gpu) = gpu("sums_are_those_of_the_oracle_in_every_tile") else { return };
    let mut random = Random::new(1);
    let mut cases = 0;
    for table in &tables(&gpu) {
        for tokens in TOKENS {
            for i in 0..13 {
                let n = 1 + random.below(if i % 3 == 0 { 140 } else { 40 });
                let k = [64, 63 + random.below(70), 576, 4 * (1 + random.below(30)), 1 + random.below(9)][i % 5];
                let mut desc = desc(tokens, n, k);
                match i % 4 {
                    1 => desc = GemmFloatDesc { weight: Dtype::F16, bias: true, accumulate: true, ..desc },
                    2 if gpu.has_f16() => {
                        desc = GemmFloatDesc { x: Dtype::F16, weight: Dtype::F16, out: Dtype::F16, ..desc }
                    }
                    _ => {}
                }
                check(&gpu, &GemmFloatPlan::plan_with(&gpu, &desc, table).unwrap(), random.next());
                cases += 1;
            }
        }
        for (tokens, k) in
            [(1, 11_008), (8, 13_824), (3, 28_672), (9, 28_672), (9, 28_671), (2, 28_673), (2, 1536), (7, 4096)]
        {
            check(&gpu, &GemmFloatPlan::plan_with(&gpu, &desc(tokens, 5, k), table).unwrap(), random.next());
            cases += 1;
        }
    }
    println!("{cases} cases");
    assert!(cases >= 500);
}

#[test]
fn a_weight_in_parts_is_the_same_weight() {
    let Some(gpu) = gpu("a_weight_in_parts_is_the_same_weight") else { return };
    for (n, k, limit) in [(300, 64, 8192), (300, 64, 17_000), (97, 30, 4096)] {
        for tokens in [1, 5, 33] {
            let desc = GemmFloatDesc { bias: true, accumulate: true, ..desc(tokens, n, k) };
            let plan = GemmFloatPlan::plan_parts(&gpu, &desc, gpu.tiles(), limit).unwrap();
            assert!(plan.parts().len() > 2, "{:?}", plan.parts());
            check(&gpu, &plan, 3);
        }
    }
    // The head of SmolLM2 in halves, under a limit that cuts it.
    let head = GemmFloatDesc { weight: Dtype::F16, ..desc(1, 49_152, 576) };
    let plan = GemmFloatPlan::plan_parts(&gpu, &head, gpu.tiles(), 16 << 20).unwrap();
    assert_eq!(plan.parts().len(), 4);
    check(&gpu, &plan, 4);
}

#[test]
fn stacked_weights_of_other_types_are_one_and_unused_tokens_are_left_alone() {
    let Some(gpu) = gpu("stacked_weights_of_other_types_are_one_and_unused_tokens_are_left_alone") else { return };
    let mut random = Random::new(5);
    let (k, tokens) = (66, 3);
    let plan = GemmFloatPlan::plan(&gpu, &desc(6, 70, k)).unwrap();
    let halves: Vec<f16> = random.normals(33 * k).into_iter().map(f16::from_f32).collect();
    let brains: Vec<bf16> = random.normals(37 * k).into_iter().map(bf16::from_f32).collect();
    let x = random.normals(6 * k);
    let weights = [
        FloatWeights { values: FloatValues::F16(&halves), n: 33, k },
        FloatWeights { values: FloatValues::Bf16(&brains), n: 37, k },
    ];
    let got = run(&gpu, &plan, &x, &weights, None, &[-2.5; 6 * 70], tokens);
    let wide: Vec<f64> = halves.iter().map(|x| x.to_f64()).chain(brains.iter().map(|x| x.to_f64())).collect();
    let want = reference::gemm_float(&widen(&x[..tokens * k]), &wide, None, tokens, 70, k);
    for (i, &got) in got.iter().enumerate() {
        let want = want.get(i).copied().unwrap_or(-2.5);
        assert!((f64::from(got) - want).abs() < 1e-4, "{i}: {got} for {want}");
    }
    let hosts = plan.pack_host(&weights).unwrap();
    assert_eq!(hosts.iter().map(Vec::len).collect::<Vec<_>>(), [plan.desc().part_bytes(&plan.parts()[0]) as usize]);
    for desc in [desc(0, 8, 64), desc(4, 0, 64)] {
        check(&gpu, &GemmFloatPlan::plan(&gpu, &desc).unwrap(), 1);
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let Some(gpu) = gpu("what_cannot_be_is_refused") else { return };
    let good = desc(4, 64, 128);
    let limits = gpu.limits();
    let limit = |error: Error| match error {
        Error::Limit { limit, got, what, .. } => assert!(got > limit, "{what}"),
        other => panic!("{other}"),
    };
    let refused = |desc: GemmFloatDesc| GemmFloatPlan::plan(&gpu, &desc).err().expect("an error");
    assert!(matches!(
        refused(GemmFloatDesc { k: 0, ..good }),
        Error::Kernel(KernelError::Unsupported { what: "k", .. })
    ));
    assert!(matches!(refused(GemmFloatDesc { n: usize::MAX, ..good }), Error::Kernel(_)));
    if limits.max_storage_buffer_binding_size < 1 << 31 {
        limit(refused(GemmFloatDesc { m_max: 1 << 20, n: 1 << 20, ..good }));
        limit(refused(GemmFloatDesc { m_max: 1 << 20, k: 1 << 20, ..good }));
    }
    limit(GemmFloatPlan::plan_parts(&gpu, &good, gpu.tiles(), 1000).err().expect("an error"));
    limit(GemmFloatPlan::plan_with(&gpu, &good, &only("tiled:1024x1024/1x1")).err().expect("an error"));
    if limits.max_compute_workgroups_per_dimension == 65_535 {
        let many = GemmFloatDesc { m_max: 65_536, n: 1, k: 64, ..good };
        limit(GemmFloatPlan::plan_with(&gpu, &many, &only("stream:1x1x1")).err().expect("an error"));
    }
    let plan = GemmFloatPlan::plan(&gpu, &good).unwrap();
    let w = vec![0.0; 64 * 128];
    let weights = |n, k| [FloatWeights { values: FloatValues::F32(&w), n, k }];
    assert!(plan.pack(&gpu, &weights(63, 128), None).is_err());
    assert!(plan.pack(&gpu, &weights(128, 64), None).is_err());
    assert!(plan.pack(&gpu, &weights(64, 128), Some(&[0.0; 64])).is_err());
    assert!(plan.pack(&gpu, &[], None).is_err());
    let packed = plan.pack(&gpu, &weights(64, 128), None).unwrap();
    let x = gpu.buffer("x", 4 * 4 * 128).unwrap();
    let y = gpu.buffer("y", 4 * 4 * 64 + 256).unwrap();
    let whole = |buffer| wgpu::BufferBinding { buffer, offset: 0, size: None };
    let bind = |x, y| plan.bind(&gpu, x, &packed.bindings(), y);
    let size = std::num::NonZeroU64::new(2044);
    let small = bind(wgpu::BufferBinding { buffer: &x, offset: 0, size }, whole(&y)).expect_err("an error");
    assert_eq!(small, Error::Binding { operand: "x", expected: 2048, got: 2044 });
    let off = bind(whole(&x), wgpu::BufferBinding { buffer: &y, offset: 8, size: None }).expect_err("an error");
    let alignment = limits.min_storage_buffer_offset_alignment;
    assert_eq!(off, Error::Alignment { operand: "y", alignment, got: 8 });
    assert!(plan.bind(&gpu, whole(&x), &[], whole(&y)).is_err());
    let bound = bind(whole(&x), whole(&y)).unwrap();
    let mut encoder = gpu.encoder();
    assert!(bound.enqueue(&mut Recorder::new(&mut encoder), 5).is_err());
    assert!(plan.kernel(4).starts_with("gemm_f32 "), "{}", plan.kernel(4));
}

#[test]
fn tuning_gives_a_table_that_plans_take() {
    let Some(gpu) = gpu("tuning_gives_a_table_that_plans_take") else { return };
    assert!(tune(&gpu, &[]).is_err());
    let missing = GpuOptions { tiles: Some("/nowhere/tiles".into()), ..GpuOptions::default() };
    assert!(matches!(Gpu::open(&missing), Err(Error::Device { .. })));
    if !gpu.has_timestamps() || std::env::var_os("DUQUANT_TEST_TUNER").is_none() {
        println!("skipped the tuner itself: set DUQUANT_TEST_TUNER, it compiles some 200 kernels");
        return;
    }
    let table = tune(&gpu, &[TuneShape { n: 40, k: 72 }]).unwrap();
    assert_eq!(Table::from_text(&table.to_text()).unwrap(), table);
    check(&gpu, &GemmFloatPlan::plan_with(&gpu, &desc(9, 40, 72), &table).unwrap(), 1);
}
