//! `attention` on a wgpu adapter against the oracle on the codes that the device wrote.
#![cfg(feature = "wgpu")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails and reports this way")]

mod gpu;
mod heads;
mod oracle;

use duquant::kernels::wgpu::{AttentionDesc, AttentionOperands, AttentionPlan, Dtype, Error, KvLayout, Recorder};
use duquant::kernels::{Affine, Error as KernelError};
use duquant_reference as reference;
use heads::{Attention, Layer, Row, Shape, codes};
use oracle::Random;

/// Rows of noise with an offset, a channel that stands out, and rows of zeros.
fn rows(random: &mut Random, tokens: usize, width: usize) -> Vec<f32> {
    let mut x = random.normals(tokens * width);
    for (t, x) in x.chunks_exact_mut(width).enumerate() {
        x[width / 3] += 6.0;
        if t % 13 == 5 {
            x.fill(0.0);
        }
    }
    x
}

fn real(rows: &[Row]) -> Vec<Vec<f64>> {
    rows.iter().map(Row::real).collect()
}

fn largest_norm(rows: &[Vec<f64>]) -> f64 {
    rows.iter().map(|row| row.iter().map(|x| x * x).sum::<f64>().sqrt()).fold(0.0, f64::max)
}

/// What a layer's cache stands for, read back from the device.
struct Stored {
    keys: Vec<Vec<f64>>,
    values: Vec<Vec<f64>>,
}

impl Stored {
    fn read(gpu: &gpu::TestGpu, layer: &Layer) -> Self {
        Self { keys: real(&layer.cache_rows(gpu, false)), values: real(&layer.cache_rows(gpu, true)) }
    }

    /// The first `tokens` tokens as `[S, Hkv D]`.
    fn tokens(rows: &[Vec<f64>], layout: &KvLayout, tokens: usize) -> Vec<f64> {
        (0..tokens)
            .flat_map(|t| (0..layout.kv_heads).flat_map(move |head| rows[head * layout.capacity + t].iter().copied()))
            .collect()
    }
}

/// Bound on the output's error for `context` keys, over the largest value.
///
/// With `u = 2^-24`, `S = |q| |k| / sqrt(D)` over the largest rows and weights that sum to one, an error `e` of every score
/// moves the output by at most `2 e`.
/// - Scores of codes are exact integers under four roundings: `4 u S`. Those of `f32` add up `D` products: `(D + 2) u S`.
///   The difference to the maximum is rounded once: `2 u S`.
/// - Sums of weights and of weighted values are `n` additions each, and as many again for rescaling: `4 n u` at most. Sums of
///   codes and of zero points are kept apart; each is at most twice the largest value: `8 n u` more.
/// - exp is off by at most `3 + 2 |x|` ULP, of up to `2 u` each: weighted by `e^-|x|` over `n` keys that is at most
///   `2 u (3 + 2 (1 + ln n))`.
/// - What is left (the scale folded in, the division, the merge) is below `32 u`.
///
/// The first two would need all roundings to point the same way, which hides a key too many among a thousand; what is
/// asserted is a twentieth of them.
fn bound(layout: &KvLayout, context: usize, queries: &[Vec<f64>], keys: &[Vec<f64>], out: Dtype) -> f64 {
    let (u, n, d) = (2_f64.powi(-24), context as f64, layout.head_dim as f64);
    let s = largest_norm(queries) * largest_norm(keys) / d.sqrt();
    let score = if layout.key.is_some() { 4.0 * s } else { (d + 2.0) * s };
    let sums = 2.0 * (score + 2.0 * s) + 12.0 * n;
    let exp = 2.0 * 2.0 * (5.0 + 2.0 * n.ln());
    let f16 = if out == Dtype::F16 { 2_f64.powi(-10) } else { 0.0 };
    u * (sums / 20.0 + exp + 32.0) + f16
}

struct Case<'a> {
    gpu: &'a gpu::TestGpu,
    layer: &'a Layer,
    stored: &'a Stored,
    /// The layer's input, `[capacity, (H + 2 Hkv) D]`.
    x: &'a [f32],
}

impl Case<'_> {
    /// Runs `tokens` queries at `position` and compares with the oracle; returns the error as a part of the bound.
    fn check(&self, attention: &Attention, tokens: usize, position: usize) -> f64 {
        let Self { gpu, layer, stored, x } = self;
        let (shape, layout) = (layer.shape, layer.shape.cache);
        let desc = attention.plan.desc();
        let what = format!("{shape:?} window {:?} T={tokens} at {position}", desc.window);
        // The keys and values are written once more, the same; the queries are what is wanted.
        layer.append(gpu, &x[position * shape.width()..(position + tokens) * shape.width()], position);
        let queries = real(&layer.query_rows(gpu, tokens));
        let got = attention.run(gpu, layer, tokens, position);
        let context = position + tokens;
        let (keys, values) =
            (Stored::tokens(&stored.keys, &layout, context), Stored::tokens(&stored.values, &layout, context));
        let heads =
            reference::AttentionShape { heads: shape.heads, kv_heads: layout.kv_heads, head_dim: layout.head_dim };
        let expected = reference::attention(&queries.concat(), &keys, &values, heads, desc.window);
        let seen: Vec<Vec<f64>> = keys.chunks(layout.head_dim).map(<[f64]>::to_vec).collect();
        let largest = values.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
        let bound = largest * bound(&layout, context, &queries, &seen, desc.out) + 1e-30;
        let mut worst = 0.0_f64;
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let part = (got - expected).abs() / bound;
            assert!(part <= 1.0, "{what}: at {i} {got} for {expected}, bound {bound}");
            worst = worst.max(part);
        }
        worst
    }
}

/// Every head dimension, container and mix, with ratios of query to key heads from 1 to 8 and above.
fn shapes() -> Vec<Shape> {
    let symmetric = Some(Affine { bits: 4, clip: 0.9, symmetric: true });
    vec![
        Shape::new(3, 1, 64, codes(4, 0.9), codes(4, 0.9)),
        Shape::new(2, 2, 80, codes(4, 0.9), codes(4, 1.0)),
        Shape::new(8, 1, 96, codes(4, 0.9), codes(4, 0.9)),
        Shape::new(4, 2, 128, codes(4, 0.9), codes(4, 0.9)),
        Shape::new(4, 1, 64, codes(8, 1.0), codes(8, 1.0)),
        Shape::new(5, 1, 80, codes(6, 1.0), symmetric),
        Shape::new(2, 1, 96, codes(2, 0.7), codes(3, 0.9)),
        Shape::new(7, 1, 128, symmetric, codes(5, 0.9)),
        Shape::new(6, 2, 64, None, None),
        Shape::new(6, 1, 80, None, None).f16(),
        Shape::new(1, 1, 96, None, codes(4, 0.9)),
        Shape::new(2, 2, 128, codes(4, 0.9), None).f16(),
        Shape::new(12, 1, 64, codes(4, 0.9), codes(4, 0.9)),
        Shape::new(5, 1, 256, codes(4, 0.9), codes(4, 0.9)),
    ]
}

#[test]
fn output_is_the_oracles_on_the_devices_codes() {
    let Some(gpu) = gpu::gpu("output_is_the_oracles_on_the_devices_codes") else { return };
    let mut random = Random::new(11);
    let (mut cases, mut worst) = (0, [0.0_f64; 2]);
    for (i, shape) in shapes().into_iter().enumerate() {
        let shape = shape.capacity(1100);
        let layer = Layer::new(&gpu, shape, 257).unwrap();
        let x = rows(&mut random, 1100, shape.width());
        let chunk = 257 * shape.width();
        // The whole cache, in chunks; what was written once is written again, the same, by each case.
        let x: Vec<f32> = x.chunks(chunk).enumerate().flat_map(|(c, x)| layer.append(&gpu, x, 257 * c)).collect();
        let stored = Stored::read(&gpu, &layer);
        let case = Case { gpu: &gpu, layer: &layer, stored: &stored, x: &x };
        let out = if i % 3 == 2 { Dtype::F16 } else { Dtype::F32 };
        for window in [None, Some(1 + random.below(90)), Some(256 + random.below(300))] {
            let attention = Attention::new(&gpu, &layer, window, out).unwrap();
            let mut run = |tokens: usize, position: usize| {
                let worst = &mut worst[usize::from(out == Dtype::F16)];
                *worst = worst.max(case.check(&attention, tokens, position));
                cases += 1;
            };
            // Prompts, chunks of a prompt, single and few tokens behind one: at the start, at the edges of spans and tiles.
            for tokens in [1, 2, 3, 7, 8, 9] {
                run(tokens, 0);
            }
            run([63, 64, 65, 257][i % 4], 0);
            run([63, 64, 65][i % 3], random.below(300));
            for context in [255, 256, 257, 512, 1099] {
                run(1, context);
            }
            run(2 + random.below(3), random.below(1000));
            run(5 + random.below(30), random.below(1000));
        }
    }
    assert!(cases >= 500, "{cases} cases");
    println!("{cases} cases, largest error over its bound: {worst:.3?} (f32, f16 out)");
}

#[test]
fn huge_scores_do_not_overflow() {
    let Some(gpu) = gpu::gpu("huge_scores_do_not_overflow") else { return };
    let mut random = Random::new(12);
    for (key, value) in [(codes(4, 1.0), codes(4, 1.0)), (None, None)] {
        let shape = Shape::new(2, 1, 64, key, value).capacity(70);
        let layer = Layer::new(&gpu, shape, 70).unwrap();
        for size in [100.0, 3e3, 1e6] {
            let mut x = random.normals(70 * shape.width());
            x.iter_mut().for_each(|x| *x *= size);
            layer.append(&gpu, &x, 0);
            let attention = Attention::new(&gpu, &layer, None, Dtype::F32).unwrap();
            let largest = real(&layer.cache_rows(&gpu, true)).concat().iter().fold(0.0_f64, |max, x| max.max(x.abs()));
            for (tokens, position) in [(70, 0), (1, 69)] {
                layer.append(&gpu, &x[position * shape.width()..], position);
                let out = attention.run(&gpu, &layer, tokens, position);
                assert!(out.iter().all(|y| y.abs() <= 1.001 * largest), "{key:?} {size} {tokens}");
            }
        }
    }
}

#[test]
fn a_scale_that_is_nan_reaches_only_those_that_see_it() {
    let Some(gpu) = gpu::gpu("a_scale_that_is_nan_reaches_only_those_that_see_it") else { return };
    let shape = Shape::new(4, 2, 64, codes(4, 0.9), codes(4, 0.9)).capacity(40);
    let layer = Layer::new(&gpu, shape, 40).unwrap();
    let clean = rows(&mut Random::new(13), 40, shape.width());
    let attention = Attention::new(&gpu, &layer, None, Dtype::F32).unwrap();
    layer.append(&gpu, &clean, 0);
    let before = attention.run(&gpu, &layer, 40, 0);
    // Channel 5 of key head 0, and of value head 0, of token 17.
    for channel in [4 * 64 + 5, 6 * 64 + 5] {
        let mut x = clean.clone();
        x[17 * shape.width() + channel] = f32::NAN;
        layer.append(&gpu, &x, 0);
        let after = attention.run(&gpu, &layer, 40, 0);
        for (i, (before, after)) in before.iter().zip(&after).enumerate() {
            let (t, head) = (i / 256, i % 256 / 64);
            if t >= 17 && head < 2 {
                assert!(after.is_nan(), "token {t} head {head}: {after}");
            } else {
                assert_eq!(before, after, "token {t} head {head}");
            }
        }
        layer.append(&gpu, &x[39 * shape.width()..], 39);
        let last = attention.run(&gpu, &layer, 1, 39);
        assert!(last[..128].iter().all(|x| x.is_nan()) && last[128..].iter().all(|x| x.is_finite()));
    }
}

#[test]
fn misfits_are_errors() {
    let Some(gpu) = gpu::gpu("misfits_are_errors") else { return };
    let cache = KvLayout {
        kv_heads: 2,
        head_dim: 64,
        capacity: 8,
        key: codes(4, 0.9),
        value: codes(4, 0.9),
        float: Dtype::F32,
    };
    let desc = AttentionDesc { heads: 4, tokens_max: 8, window: None, out: Dtype::F32, cache };
    let plan = |desc: AttentionDesc| AttentionPlan::plan(&gpu, &desc);
    let unsupported = |result: Result<AttentionPlan, Error>, field: &str| match result {
        Err(Error::Kernel(KernelError::Unsupported { what, .. })) => assert_eq!(what, field),
        other => panic!("{field}: {other:?}"),
    };
    unsupported(plan(AttentionDesc { window: Some(0), ..desc }), "window");
    unsupported(plan(AttentionDesc { heads: 3, ..desc }), "heads");
    unsupported(plan(AttentionDesc { tokens_max: 9, ..desc }), "tokens_max");
    unsupported(plan(AttentionDesc { tokens_max: 0, ..desc }), "tokens_max");
    unsupported(plan(AttentionDesc { cache: KvLayout { head_dim: 40, ..cache }, ..desc }), "head_dim");
    let huge = plan(AttentionDesc { cache: KvLayout { capacity: 1 << 30, ..cache }, ..desc });
    assert!(matches!(huge, Err(Error::Limit { limit_name: "max_storage_buffer_binding_size", .. })), "{huge:?}");
    let few = KvLayout { kv_heads: 1, head_dim: 16, ..cache };
    let many = plan(AttentionDesc { heads: 20_000, tokens_max: 4, cache: few, ..desc });
    let name = "max_compute_workgroups_per_dimension";
    assert!(matches!(&many, Err(Error::Limit { limit_name, got: 80_000, .. }) if *limit_name == name), "{many:?}");

    let layer = Layer::new(&gpu, Shape { heads: 4, input: Dtype::F32, cache }, 8).unwrap();
    let attention = Attention::new(&gpu, &layer, None, Dtype::F32).unwrap();
    assert_eq!((attention.plan.kernel(1), attention.plan.kernel(8)), ("attention_decode", "attention_prefill"));
    let good = AttentionOperands {
        queries: layer.queries.as_entire_buffer_binding(),
        cache: layer.cache.binding(),
        out: attention.out.as_entire_buffer_binding(),
        workspace: attention.workspace.as_entire_buffer_binding(),
    };
    let bound = attention.plan.bind(&gpu, &good).unwrap();
    let small = gpu.buffer("small", 16).unwrap();
    let result =
        attention.plan.bind(&gpu, &AttentionOperands { out: small.as_entire_buffer_binding(), ..good.clone() });
    assert_eq!(result.map(|_| ()), Err(Error::Binding { operand: "out", expected: 8 * 4 * 64 * 4, got: 16 }));
    let wide = gpu.buffer("wide", 1 << 16).unwrap();
    let shifted = wgpu::BufferBinding { buffer: &wide, offset: 8, size: None };
    let result = attention.plan.bind(&gpu, &AttentionOperands { queries: shifted, ..good });
    assert!(matches!(result.map(|_| ()), Err(Error::Alignment { operand: "queries", got: 8, .. })));

    let mut encoder = gpu.encoder();
    let mut recorder = Recorder::new(&mut encoder);
    assert!(bound.enqueue(&mut recorder, 9, 0).is_err());
    assert!(bound.enqueue(&mut recorder, 8, 1).is_err());
    assert_eq!(bound.enqueue(&mut recorder, 0, 0), Ok(()));
    // Rows of several sequences.
    assert!(bound.enqueue_at(&mut recorder, 7, 2, 0).is_err());
    assert!(bound.enqueue_at(&mut recorder, usize::MAX, 2, 0).is_err());
    assert_eq!(bound.enqueue_at(&mut recorder, 6, 2, 0), Ok(()));
    unsupported(plan(desc).unwrap().with_rows(&gpu, 7), "rows");
    let huge = plan(desc).unwrap().with_rows(&gpu, 1 << 30);
    assert!(matches!(huge, Err(Error::Limit { limit_name: "max_storage_buffer_binding_size", .. })), "{huge:?}");
    assert_eq!(plan(desc).unwrap().with_rows(&gpu, 20).unwrap().out_bytes(), 20 * 4 * 64 * 4);
}
