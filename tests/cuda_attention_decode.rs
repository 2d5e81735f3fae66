//! Decode attention in CUDA against the oracle on what the cache holds: group sizes, contexts, shuffled pages, windows, several
//! sequences in a call, NaN, and a workspace that is left as it was found.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails this way")]

mod cuda;
mod layer;
mod oracle;

use cuda::{STREAM, download, upload};
use duquant::kernels::Error as KernelError;
use duquant::kernels::cuda::{
    Arch, AttentionDesc, AttentionOperands, AttentionPlan, Buffer, Dtype, Error, KvLayout, KvOperand, PAGE,
    QueryOperand, Sequence,
};
use duquant_reference as reference;
use layer::{Layer, Row, Shape, codes, decode};
use oracle::Random;

/// Rows of noise with an offset, a channel that stands out, rows of zeros, and values of very different sizes.
fn rows(random: &mut Random, tokens: usize, width: usize) -> Vec<f32> {
    let mut x = random.normals(tokens * width);
    for x in x.chunks_exact_mut(width) {
        x[width / 3] += 6.0;
        match random.below(13) {
            5 => x.fill(0.0),
            // Values of the row are in its last part.
            6 => x[3 * width / 4..].iter_mut().for_each(|x| *x *= 1e-3),
            7 => x[width - 5] = 3000.0,
            _ => {}
        }
    }
    x
}

/// Attention over a layer's cache.
struct Attention {
    plan: AttentionPlan,
    out: Buffer,
    workspace: Buffer,
}

impl Attention {
    fn new(layer: &Layer, context_max: usize, sequences: usize, window: Option<usize>, out: Dtype) -> Self {
        let rope = layer.plan.desc();
        let desc = AttentionDesc {
            heads: rope.heads,
            tokens_max: rope.tokens_max,
            sequences_max: sequences,
            context_max,
            window,
            out,
            cache: rope.cache,
        };
        let plan = AttentionPlan::plan(layer.device.as_ref(), &desc).unwrap();
        let out = Buffer::new(&layer.device, "out", plan.out_bytes()).unwrap();
        let workspace = Buffer::zeroed(&layer.device, "workspace", plan.workspace_bytes()).unwrap();
        Self { plan, out, workspace }
    }

    /// `[T, H D]`, from memory that held NaN.
    fn run(&self, layer: &Layer, sequences: &[Sequence]) -> Vec<f32> {
        let list = upload(&layer.device, sequences);
        let operands = AttentionOperands {
            queries: layer.queries(),
            cache: layer.cache.operand(),
            sequences: list.address(),
            page_table: layer.page_table.address(),
            out: self.out.address(),
            workspace: self.workspace.address(),
        };
        layer.device.fill(STREAM, self.out.address(), 0xff, self.out.bytes()).unwrap();
        let tokens: u32 = sequences.iter().map(|s| s.tokens).sum();
        let longest = sequences.iter().map(|s| s.tokens).max().unwrap_or(0);
        let (tokens, longest) = (tokens as usize, longest as usize);
        // SAFETY: the buffers are as large as the plan says.
        unsafe { self.plan.enqueue(layer.device.as_ref(), STREAM, tokens, sequences.len(), longest, &operands) }
            .unwrap();
        layer.device.synchronize(STREAM).unwrap();
        let left: Vec<u8> = download(&self.workspace, self.workspace.bytes() as usize);
        assert!(left.iter().all(|&byte| byte == 0), "the workspace is left zero");
        let dtype = self.plan.desc().out;
        let numbers = tokens * layer.shape.heads * layer.shape.head_dim;
        decode(dtype, &download(&self.out, numbers * dtype.bytes() as usize))
    }
}

/// Bound on the output's error for `n` keys over the largest value.
///
/// With `u = 2^-24`, `S = |q| |k| / sqrt(D)` over the largest rows, and weights that sum to one:
/// - a weight in half precision is off by `2^-12` of itself (`2^-9` in bfloat16); where it is subnormal, by `2^-25` of the largest
///   weighted scale or less, and `n` such weights meet codes of at most twice the largest value: `n 2^-23`;
/// - scores of codes are exact integers under three roundings, those of floating point sums of `D` products: an error `e` of
///   every score moves the output by `2 e`, in `2^x` as well as in `e^x`;
/// - sums of `n` weights and weighted values, rescaled now and then: `4 n u`; `2^x`, the division and merges: `64 u`.
fn bound(shape: &Shape, n: usize, s: f64, out: Dtype) -> f64 {
    let (u, n, d) = (2_f64.powi(-24), n as f64, shape.head_dim as f64);
    let bf16 = shape.value.is_none() && shape.float == Dtype::Bf16;
    let weight = 2_f64.powi(if bf16 { -9 } else { -12 });
    // The sum of weights is of unrounded ones, so that a bias of the rounded ones shows.
    let rounded = 2.0 * weight + n * 2_f64.powi(-23);
    let score = if shape.key.is_some() { 8.0 * s } else { (d + 8.0) * s };
    let stored = match out {
        Dtype::F32 => 0.0,
        Dtype::F16 => 2_f64.powi(-11),
        Dtype::Bf16 => 2_f64.powi(-8),
    };
    rounded + u * (2.0 * score + 4.0 * n + 64.0) + stored
}

fn largest_norm(rows: &[Vec<f64>]) -> f64 {
    rows.iter().map(|row| row.iter().map(|x| x * x).sum::<f64>().sqrt()).fold(0.0, f64::max)
}

/// Compares a call with the oracle on what queries and cache stand for.
fn check(layer: &Layer, window: Option<usize>, out: Dtype, call: &[Sequence], got: &[f32]) {
    let Shape { heads, kv_heads, head_dim: d, .. } = layer.shape;
    let tokens: usize = call.iter().map(|s| s.tokens as usize).sum();
    let (stored, queries) = (layer.stored(), layer.query_rows(tokens));
    assert_eq!(got.len(), tokens * heads * d);
    for sequence in call.iter().filter(|s| s.tokens > 0) {
        let (first, own) = (sequence.first as usize, sequence.tokens as usize);
        let context = sequence.position as usize + own;
        let wide = |rows: &[Row]| rows.iter().map(Row::wide).collect::<Vec<_>>();
        let cached = |values: bool| -> Vec<Vec<f64>> {
            (0..context)
                .flat_map(|t| (0..kv_heads).map(move |head| (t, head)))
                .map(|(t, head)| stored.row(values, layer.place(sequence, head, t)).wide())
                .collect()
        };
        let (q, k, v) = (wide(&queries[first * heads..(first + own) * heads]), cached(false), cached(true));
        let shape = reference::AttentionShape { heads, kv_heads, head_dim: d };
        let expected = reference::attention(&q.concat(), &k.concat(), &v.concat(), shape, window);
        let largest = v.iter().flatten().fold(0.0_f64, |max, x| max.max(x.abs()));
        let s = largest_norm(&q) * largest_norm(&k) / (d as f64).sqrt();
        let limit = bound(&layer.shape, context, s, out) * largest;
        for (i, (&got, expected)) in got[first * heads * d..].iter().zip(&expected).enumerate() {
            let (row, channel) = (i / d, i % d);
            assert!(
                (f64::from(got) - expected).abs() <= limit,
                "{:?} window {window:?} {sequence:?} row {row} channel {channel}: {got} for {expected} +- {limit:e}",
                layer.shape
            );
        }
    }
}

struct Case {
    shape: Shape,
    parts: Vec<(usize, usize)>,
    windows: Vec<Option<usize>>,
    out: Dtype,
}

/// Heads, key heads, channels, bits of keys and values.
fn shape(heads: usize, kv_heads: usize, head_dim: usize, key: u32, value: u32, float: Dtype) -> Shape {
    let affine = |bits: u32| if bits == 16 { None } else { codes(bits, 0.95) };
    Shape { heads, kv_heads, head_dim, key: affine(key), value: affine(value), input: Dtype::F32, float }
}

fn run(case: &Case, device: &std::sync::Arc<dyn duquant::kernels::cuda::Device>, seed: u64) {
    let mut random = Random::new(seed);
    let room = case.parts.iter().map(|(position, tokens)| position + tokens).max().unwrap();
    let tokens_max = case.parts.iter().map(|part| part.1).sum::<usize>().max(64);
    let layer = Layer::new(device, case.shape, case.parts.len(), room, tokens_max);
    let call = layer.fill(&case.parts, |tokens, width| rows(&mut random, tokens, width));
    for &window in &case.windows {
        let attention = Attention::new(&layer, room, case.parts.len(), window, case.out);
        check(&layer, window, case.out, &call, &attention.run(&layer, &call));
    }
}

const CONTEXTS: [(usize, usize); 6] = [(0, 1), (62, 1), (63, 1), (64, 1), (5, 0), (299, 1)];

#[test]
fn codes_of_four_bits() {
    for (_, device) in cuda::devices("codes_of_four_bits", &[Arch::Sm80]) {
        let (f16, parts) = (Dtype::F16, CONTEXTS.to_vec());
        for (i, (heads, kv_heads, d)) in [(8, 2, 128), (3, 1, 64), (3, 3, 64), (8, 1, 64)].into_iter().enumerate() {
            let shape = shape(heads, kv_heads, d, 4, 4, f16);
            let out = [Dtype::F32, Dtype::F16, Dtype::Bf16][i % 3];
            let windows = if i == 1 { vec![None, Some(1), Some(70), Some(200)] } else { vec![None] };
            run(&Case { shape, parts: parts.clone(), windows, out }, &device, i as u64);
        }
    }
}

#[test]
fn every_other_kind_of_cache() {
    for (_, device) in cuda::devices("every_other_kind_of_cache", &[Arch::Sm86]) {
        let (f16, bf16) = (Dtype::F16, Dtype::Bf16);
        for (i, (d, key, value, float)) in [
            (80, 4, 4, f16),
            (256, 4, 4, f16),
            (96, 8, 4, f16),
            (80, 8, 8, f16),
            (128, 16, 16, f16),
            (64, 16, 16, bf16),
        ]
        .into_iter()
        .enumerate()
        {
            let shape = shape(4, 2, d, key, value, float);
            let parts = vec![(0, 1), (64, 2), (171, 1)];
            run(&Case { shape, parts, windows: vec![None, Some(90)], out: Dtype::F32 }, &device, 10 + i as u64);
        }
    }
}

#[test]
fn a_few_tokens_at_once_and_many_parts() {
    for (name, device) in cuda::devices("a_few_tokens_at_once_and_many_parts", &[Arch::Sm90a]) {
        let f16 = Dtype::F16;
        // Eight heads of a group at four tokens are four row tiles; tokens of a tile see different keys.
        for (parts, window) in
            [(vec![(126, 4), (0, 3), (40, 0)], None), (vec![(700, 1)], None), (vec![(699, 3)], Some(130))]
        {
            let shape = shape(8, 1, 64, 4, 4, f16);
            run(&Case { shape, parts, windows: vec![window], out: Dtype::F32 }, &device, 20);
        }
        // One key head of one sequence over many pages takes many blocks, and says so.
        let layer = Layer::new(&device, shape(3, 3, 64, 4, 4, f16), 1, 1100, 64);
        let attention = Attention::new(&layer, 1100, 1, None, Dtype::F32);
        let name_of_kernel = attention.plan.kernel(8).unwrap();
        assert!(name_of_kernel.starts_with("attention_decode"), "{name}: {name_of_kernel}");
        let mut random = Random::new(21);
        let call = layer.fill(&[(1092, 8)], |tokens, width| rows(&mut random, tokens, width));
        let first = attention.run(&layer, &call);
        check(&layer, None, Dtype::F32, &call, &first);
        // The workspace serves again, and parts are merged in order, whichever comes last.
        assert_eq!(first, attention.run(&layer, &call), "{name}");
    }
}

#[test]
fn what_is_not_finite_spoils_what_sees_it() {
    for (_, device) in cuda::devices("what_is_not_finite_spoils_what_sees_it", &[Arch::Sm80]) {
        for (key, value) in [(4, 4), (16, 16)] {
            let (d, heads, kv_heads) = (64, 4, 2);
            let layer = Layer::new(&device, shape(heads, kv_heads, d, key, value, Dtype::F16), 2, 130, 64);
            let width = layer.shape.width();
            let parts = [(100, 3), (20, 1)];
            // Head of qkv and token of the first sequence that gets the bad number; rows that become NaN.
            type Spoiled = fn(usize, usize) -> bool;
            let cases: [(usize, usize, Option<usize>, Spoiled); 7] = [
                (4, 50, None, |t, h| t < 3 && h < 2),                // a key of the first key head
                (7, 50, None, |t, h| t < 3 && h >= 2),               // a value of the second
                (6, 101, None, |t, h| (1..3).contains(&t) && h < 2), // a value that the first token does not see
                (5, 102, None, |t, h| t == 2 && h >= 2),             // a key that only the last token sees
                (1, 101, None, |t, h| t == 1 && h == 1),             // a query
                (6, 50, Some(40), |_, _| false),                     // behind the window
                (6, 62, Some(40), |t, h| t < 2 && h < 2),            // seen by the tokens at 100 and 101
            ];
            for (head, token, window, spoiled) in cases {
                let attention = Attention::new(&layer, 130, 2, window, Dtype::F32);
                let both = [false, true].map(|bad| {
                    let (mut random, mut at) = (Random::new(30), 0);
                    let call = layer.fill(&parts, |tokens, width| {
                        let mut x = random.normals(tokens * width);
                        // The first sequence's 100 tokens come in calls of 64 and 36, the second's 20, and then the call.
                        let first = [0, 64, usize::MAX, 100][at];
                        at += 1;
                        if bad && (first..first.saturating_add(tokens)).contains(&token) {
                            x[(token - first) * width + head * 64 + 9] = f32::NAN;
                        }
                        x
                    });
                    attention.run(&layer, &call)
                });
                let [clean, bad] = &both;
                for (i, (clean, bad)) in clean.iter().zip(bad).enumerate() {
                    let (t, h, channel) = (i / d / heads, i / d % heads, i % d);
                    assert!(clean.is_finite());
                    // A value that is kept as a number spoils its own channel.
                    let own = value == 16 && head >= 6 && channel != 9;
                    let what = format!("bits {key}, head {head} token {token}: row {t}, head {h}, channel {channel}");
                    if spoiled(t, h) && !own {
                        assert!(bad.is_nan(), "{what}: {bad}");
                    } else {
                        assert_eq!(clean.to_bits(), bad.to_bits(), "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn misfits_are_errors() {
    for (_, device) in cuda::devices("misfits_are_errors", &[Arch::Sm80]) {
        let (key, value) = (codes(4, 0.9), codes(4, 0.9));
        let cache = KvLayout { kv_heads: 2, head_dim: 64, pages: 8, key, value, float: Dtype::F16 };
        let desc = AttentionDesc {
            heads: 6,
            tokens_max: 100,
            sequences_max: 3,
            context_max: 8 * PAGE,
            window: None,
            out: Dtype::F16,
            cache,
        };
        let plan = |desc: AttentionDesc| AttentionPlan::plan(device.as_ref(), &desc);
        let unsupported = |result: Result<AttentionPlan, Error>, field: &str| match result {
            Err(Error::Kernel(KernelError::Unsupported { what, .. })) => assert_eq!(what, field),
            other => panic!("{field}: {other:?}"),
        };
        unsupported(plan(AttentionDesc { window: Some(0), ..desc }), "window");
        unsupported(plan(AttentionDesc { heads: 3, ..desc }), "heads");
        unsupported(plan(AttentionDesc { tokens_max: 0, ..desc }), "tokens_max");
        unsupported(plan(AttentionDesc { sequences_max: 0, ..desc }), "sequences_max");
        unsupported(plan(AttentionDesc { sequences_max: 1 << 16, ..desc }), "sequences_max");
        unsupported(plan(AttentionDesc { context_max: 0, ..desc }), "context_max");
        unsupported(plan(AttentionDesc { cache: KvLayout { head_dim: 40, ..cache }, ..desc }), "head_dim");
        unsupported(plan(AttentionDesc { cache: KvLayout { value: None, ..cache }, ..desc }), "cache");
        unsupported(plan(AttentionDesc { cache: KvLayout { value: codes(8, 1.0), ..cache }, ..desc }), "cache");

        let plan = plan(desc).unwrap();
        let good = AttentionOperands {
            queries: QueryOperand { codes: 16, params: 16 },
            cache: KvOperand { keys: 16, values: 16, params: 16 },
            sequences: 16,
            page_table: 16,
            out: 16,
            workspace: 16,
        };
        // SAFETY: nothing is launched: the shape or an address is refused, or there is no token.
        let enqueue = |tokens: usize, sequences: usize, longest: usize, operands: &AttentionOperands| unsafe {
            plan.enqueue(device.as_ref(), STREAM, tokens, sequences, longest, operands)
        };
        assert!(enqueue(101, 1, 1, &good).is_err());
        assert!(enqueue(3, 4, 1, &good).is_err());
        assert!(enqueue(3, 1, 4, &good).is_err());
        assert_eq!(enqueue(0, 3, 0, &good), Ok(()));
        assert_eq!(enqueue(3, 0, 1, &good), Ok(()));
        let odd = AttentionOperands { out: 8, ..good };
        assert_eq!(enqueue(1, 1, 1, &odd), Err(Error::Alignment { operand: "out", alignment: 16, got: 8 }));
        assert!(plan.kernel(101).is_err());
    }
}
