//! A server in small: sequences that share one paged cache and come in calls of any mix, and what each of their tokens should get.
#![allow(dead_code, clippy::unwrap_used, clippy::panic, reason = "a test fails this way")]

use crate::cuda::{STREAM, download, upload};
use crate::layer::{Layer, Row, Shape, Stored, decode};
use crate::oracle::Random;
use duquant::kernels::cuda::{AttentionDesc, AttentionOperands, AttentionPlan, Buffer, Device, Dtype, Sequence};
use std::sync::Arc;

/// Which numbers come, beside plain noise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Numbers {
    Noise,
    /// Rows of zeros, constants, one sign, tiny ones, and single channels that dwarf all others.
    Odd,
    /// One head of all tokens is so many times as large.
    LargeHead(f32),
    /// As `Odd`, and some rows hold NaN or infinity.
    NotFinite,
}

/// Tokens of `qkv`, whole rows.
pub(crate) fn rows(random: &mut Random, shape: &Shape, tokens: usize, numbers: Numbers) -> Vec<f32> {
    let (d, heads) = (shape.head_dim, shape.heads + 2 * shape.kv_heads);
    let large = if shape.key.is_none() && shape.float == Dtype::F16 { 50.0 } else { 3500.0 };
    let mut x = random.normals(tokens * shape.width());
    for (i, row) in x.chunks_exact_mut(d).enumerate() {
        let kind = random.below(24);
        if let Numbers::LargeHead(factor) = numbers {
            // A key head of the first sequence's kind; which one depends on the shape alone, so that it stays the same.
            if i % heads == (shape.width() / 7) % heads {
                row.iter_mut().for_each(|x| *x *= factor);
            }
            continue;
        }
        if numbers == Numbers::Noise {
            continue;
        }
        match kind {
            0 => row.fill(0.0),
            1 => row.fill([1.0, -2.5, 1e-3][random.below(3)]),
            2 => row.iter_mut().for_each(|x| *x = x.abs() + 0.1),
            3 => row.iter_mut().for_each(|x| *x = -x.abs() - 0.1),
            4 => row.iter_mut().for_each(|x| *x *= 1e-20),
            5 | 6 => row[random.below(d)] = large,
            7 => row.iter_mut().for_each(|x| *x *= large / 10.0),
            8 if numbers == Numbers::NotFinite && random.below(6) == 0 => {
                row[random.below(d)] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][random.below(3)];
            }
            _ => {}
        }
    }
    x
}

/// Attention over a layer's cache.
pub(crate) struct Attention {
    pub(crate) plan: AttentionPlan,
    out: Buffer,
    workspace: Buffer,
}

impl Attention {
    pub(crate) fn new(layer: &Layer, context_max: usize, sequences: usize, window: Option<usize>, out: Dtype) -> Self {
        let rope = layer.plan.desc();
        let (heads, tokens_max, cache) = (rope.heads, rope.tokens_max, rope.cache);
        let desc = AttentionDesc { heads, tokens_max, sequences_max: sequences, context_max, window, out, cache };
        let plan = AttentionPlan::plan(layer.device.as_ref(), &desc).unwrap();
        let out = Buffer::new(&layer.device, "out", plan.out_bytes()).unwrap();
        let workspace = Buffer::zeroed(&layer.device, "workspace", plan.workspace_bytes()).unwrap();
        Self { plan, out, workspace }
    }

    /// The whole output, of which only tokens of the call's sequences are written; the rest is NaN.
    pub(crate) fn run(&self, layer: &Layer, sequences: &[Sequence], tokens: usize, longest: usize) -> Vec<f32> {
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
        let device: &Arc<dyn Device> = &layer.device;
        // SAFETY: the buffers are as large as the plan says.
        unsafe { self.plan.enqueue(device.as_ref(), STREAM, tokens, sequences.len(), longest, &operands) }.unwrap();
        device.synchronize(STREAM).unwrap();
        let left: Vec<u8> = download(&self.workspace, self.workspace.bytes() as usize);
        assert!(left.iter().all(|&byte| byte == 0), "the workspace is left zero");
        let all: Vec<u8> = download(&self.out, self.plan.out_bytes() as usize);
        let row = layer.shape.heads * layer.shape.head_dim * self.plan.desc().out.bytes() as usize;
        let mut own = vec![false; self.plan.desc().tokens_max];
        sequences.iter().for_each(|s| own[s.first as usize..(s.first + s.tokens) as usize].fill(true));
        for (t, (bytes, own)) in all.chunks(row).zip(own).enumerate() {
            assert!(own || bytes.iter().all(|&byte| byte == 0xff), "token {t} belongs to no sequence");
        }
        decode(self.plan.desc().out, &all[..tokens * row])
    }

    /// Whether so many tokens a sequence take the prefill kernel.
    pub(crate) fn is_prefill(&self, longest: usize) -> bool {
        self.plan.kernel(longest).unwrap().starts_with("attention_prefill")
    }
}

fn norm(row: &[f64]) -> f64 {
    row.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// What a query of one head should get.
struct Expected {
    out: Vec<f64>,
    /// The same of the values' magnitudes.
    size: Vec<f64>,
    low: Vec<f64>,
    high: Vec<f64>,
    /// The largest value, over which zero points are counted too.
    range: f64,
    /// `|q| |k| / sqrt(D)` of the largest key.
    score: f64,
}

/// A scalar softmax in `f64` over the keys and values that the query sees.
fn softmax(q: &[f64], seen: &[(&[f64], &[f64])], range: f64) -> Expected {
    let d = q.len();
    let root = (d as f64).sqrt();
    let dot = |k: &[f64]| q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() / root;
    let scores: Vec<f64> = seen.iter().map(|(k, _)| dot(k)).collect();
    let top = scores.iter().fold(f64::NEG_INFINITY, |top, &x| top.max(x));
    let weights: Vec<f64> = scores.iter().map(|x| (x - top).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let (mut out, mut size) = (vec![0.0; d], vec![0.0; d]);
    let (mut low, mut high) = (vec![f64::INFINITY; d], vec![f64::NEG_INFINITY; d]);
    for (weight, (_, v)) in weights.iter().zip(seen) {
        for c in 0..d {
            out[c] += weight / sum * v[c];
            size[c] += weight / sum * v[c].abs();
            (low[c], high[c]) = (low[c].min(v[c]), high[c].max(v[c]));
        }
    }
    let score = norm(q) * seen.iter().map(|(k, _)| norm(k)).fold(0.0, f64::max) / root;
    Expected { out, size, low, high, range, score }
}

/// Bounds of both kernels. With `u = 2^-24` and weights that sum to one:
/// - a weight in half precision is off by `2^-11` of itself (bfloat16 `2^-8`); one that is subnormal there by `2^-25` of the largest
///   term, and `n` of those meet codes of at most twice the range: `n 2^-23`;
/// - scores of codes are exact integers under a few roundings, those of floating point sums of `D` products: an error `e` of every
///   score moves the output by `2 e`; the value's scale may enter as a logarithm that is right to `2^-22` of itself;
/// - `2^x`, sums and rescaling: `n` additions of codes and of zero points, `8 n u`;
/// - the output is rounded, and in half precision never finer than `2^-25`.
///
/// Whatever the scores, the output lies between the smallest and the largest value that is seen, but for all of the above without
/// the scores' error.
fn bounds(shape: &Shape, out: Dtype, n: usize, expected: &Expected, c: usize) -> (f64, f64) {
    let (u, n, d) = (2_f64.powi(-24), n as f64, shape.head_dim as f64);
    let bf16 = shape.value.is_none() && shape.float == Dtype::Bf16;
    let rounded = 2_f64.powi(if bf16 { -8 } else { -11 });
    let (stored, least) = match out {
        Dtype::F32 => (0.0, 1e-30),
        Dtype::F16 => (2_f64.powi(-11), 2_f64.powi(-25)),
        Dtype::Bf16 => (2_f64.powi(-8), 1e-30),
    };
    let of_score = if shape.key.is_some() { 8.0 } else { d + 8.0 };
    let sums = (8.0 * n + 64.0) * u + n * 2_f64.powi(-23);
    let score = 2.0 * of_score * u * expected.score + 2.0 * 2_f64.powi(-22) * (64.0 + 2.0 * expected.score);
    let near = (1.05 * rounded + stored) * expected.size[c] + expected.range * (sums + score) + least;
    let largest = expected.low[c].abs().max(expected.high[c].abs());
    (near, (1.05 * rounded + stored) * largest + expected.range * sums + least)
}

/// A value's full range, which zero points count towards, or its largest number.
fn range_of(row: &Row, wide: &[f64], bits: u32) -> f64 {
    let codes = row.params.map_or(0.0, |(scale, ..)| f64::from(scale) * f64::from((1_u32 << bits) - 1));
    wide.iter().map(|x| x.abs()).filter(|x| x.is_finite()).fold(codes, f64::max)
}

/// Checks `got`, the call's output, against what lies in the cache; returns how many numbers were compared.
pub(crate) fn check(
    layer: &Layer,
    attention: &Attention,
    stored: &Stored,
    call: &[Sequence],
    tokens: usize,
    got: &[f32],
) -> usize {
    let Shape { heads, kv_heads, head_dim: d, value, .. } = layer.shape;
    let AttentionDesc { window, out, .. } = *attention.plan.desc();
    let prefill = attention.is_prefill(call.iter().map(|s| s.tokens).max().unwrap_or(0) as usize);
    let queries = layer.query_rows(tokens);
    let mut compared = 0;
    for sequence in call.iter().filter(|s| s.tokens > 0) {
        let context = (sequence.position + sequence.tokens) as usize;
        for head in 0..kv_heads {
            let read = |values, t| stored.row(values, layer.place(sequence, head, t));
            let keys: Vec<Vec<f64>> = (0..context).map(|t| read(false, t).wide()).collect();
            let value_rows: Vec<Row> = (0..context).map(|t| read(true, t)).collect();
            let values: Vec<Vec<f64>> = value_rows.iter().map(Row::wide).collect();
            let bits = value.map_or(0, |affine| affine.bits);
            let ranges: Vec<f64> = value_rows.iter().zip(&values).map(|(r, v)| range_of(r, v, bits)).collect();
            let bad: Vec<bool> = (0..d).map(|c| values.iter().any(|v| !v[c].is_finite())).collect();
            let group = heads / kv_heads;
            for (token, in_group) in (0..sequence.tokens as usize).flat_map(|t| (0..group).map(move |g| (t, g))) {
                let behind = sequence.position as usize + token + 1;
                let first = window.map_or(0, |window| behind.saturating_sub(window));
                let row = (sequence.first as usize + token) * heads + head * group + in_group;
                let seen: Vec<(&[f64], &[f64])> =
                    (first..behind).map(|t| (keys[t].as_slice(), values[t].as_slice())).collect();
                let range = ranges[first..behind].iter().fold(0.0, |max: f64, &x| max.max(x));
                let expected = softmax(&queries[row].wide(), &seen, range);
                for c in 0..d {
                    compared += 1;
                    let (got, wanted) = (f64::from(got[row * d + c]), expected.out[c]);
                    let what = || {
                        format!(
                            "{:?} window {window:?} out {out:?} prefill {prefill} {sequence:?} token {token} head {} \
                             channel {c}: {got} for {wanted}",
                            layer.shape,
                            head * group + in_group
                        )
                    };
                    if !wanted.is_finite() {
                        assert!(!got.is_finite(), "{}", what());
                        continue;
                    }
                    // Documented: a number of the cache that is not finite may reach others of its page in a long call.
                    if prefill && value.is_none() && bad[c] && !got.is_finite() {
                        continue;
                    }
                    // Half precision ends here.
                    if out == Dtype::F16 && wanted.abs() > 65_000.0 {
                        continue;
                    }
                    let (near, between) = bounds(&layer.shape, out, behind - first, &expected, c);
                    assert!((got - wanted).abs() <= near, "{} +- {near:e}", what());
                    let (low, high) = (expected.low[c] - between, expected.high[c] + between);
                    assert!((low..=high).contains(&got), "{}, which is not in {low} to {high}", what());
                }
            }
        }
    }
    compared
}
