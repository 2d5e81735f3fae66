//! A paged cache and the queries of a call, written by the test as the layouts say, with what they stand for.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    reason = "each test file takes what it needs; a test fails this way"
)]

use crate::cuda::{STREAM, download, upload};
use crate::oracle::Random;
use duquant::kernels::Affine;
use duquant::kernels::cuda::{
    AttentionDesc, AttentionOperands, AttentionPlan, Device, Dtype, KvLayout, KvOperand, PAGE, QueryOperand, Sequence,
};
use duquant_reference as reference;
use half::{bf16, f16};
use std::sync::Arc;

/// Heads, cache and output of a test. 16 bits are floating point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Case {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) key: u32,
    pub(crate) value: u32,
    pub(crate) float: Dtype,
    pub(crate) window: Option<usize>,
    pub(crate) out: Dtype,
}

impl Default for Case {
    fn default() -> Self {
        let (float, out) = (Dtype::F16, Dtype::F32);
        Self { heads: 1, kv_heads: 1, head_dim: 64, key: 4, value: 4, float, window: None, out }
    }
}

impl Case {
    pub(crate) fn layout(&self, pages: usize) -> KvLayout {
        let affine = |bits: u32| (bits < 16).then_some(Affine { bits, clip: 1.0, symmetric: false });
        let Self { kv_heads, head_dim, float, .. } = *self;
        KvLayout { kv_heads, head_dim, pages, key: affine(self.key), value: affine(self.value), float }
    }

    /// What rounding the output loses.
    pub(crate) fn out_error(&self) -> f64 {
        match self.out {
            Dtype::F32 => 0.0,
            Dtype::F16 => 2_f64.powi(-11),
            Dtype::Bf16 => 2_f64.powi(-8),
        }
    }
}

/// A sequence of a call: where its tokens are among the call's, how many, and how many came before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub(crate) first: usize,
    pub(crate) tokens: usize,
    pub(crate) position: usize,
}

impl Span {
    /// Of `(tokens, position)`.
    pub(crate) fn new(lengths: &[(usize, usize)]) -> Vec<Self> {
        let mut first = 0;
        let mut next = |&(tokens, position): &(usize, usize)| {
            let span = Self { first, tokens, position };
            first += tokens;
            span
        };
        lengths.iter().map(&mut next).collect()
    }

    pub(crate) fn lengths(spans: &[Self]) -> Vec<(usize, usize)> {
        spans.iter().map(|span| (span.tokens, span.position)).collect()
    }
}

/// A head of a token: codes with their scale and zero point, or numbers.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) scale: f32,
    pub(crate) zero_point: u32,
    pub(crate) codes: Vec<u32>,
    pub(crate) numbers: Vec<f32>,
}

impl Row {
    /// Codes of all sizes, or normal numbers, with values of about `size`.
    pub(crate) fn random(random: &mut Random, d: usize, bits: u32, size: f32) -> Self {
        if bits == 16 {
            let numbers = random.normals(d).into_iter().map(|x| x * size).collect();
            return Self { scale: 1.0, zero_point: 0, codes: Vec::new(), numbers };
        }
        let levels = 1_usize << bits;
        let codes = (0..d).map(|_| random.below(levels) as u32).collect();
        let zero_point = random.below(levels) as u32;
        // Four deviations either way take all codes.
        let scale = size * (0.5 + random.uniform() as f32) * 4.0 / levels as f32;
        Self { scale, zero_point, codes, numbers: Vec::new() }
    }

    pub(crate) fn sum(&self) -> u32 {
        self.codes.iter().sum()
    }

    /// What the row stands for.
    pub(crate) fn real(&self, float: Dtype) -> Vec<f64> {
        if self.codes.is_empty() {
            return self.numbers.iter().map(|&x| f64::from(through(float, x))).collect();
        }
        let (scale, zero_point) = (f64::from(self.scale), f64::from(self.zero_point));
        self.codes.iter().map(|&c| scale * (f64::from(c) - zero_point)).collect()
    }

    /// As it lies in the cache.
    fn cached(&self, bits: u32, float: Dtype) -> Vec<u8> {
        match bits {
            4 => self
                .codes
                .chunks(8)
                .flat_map(|c| {
                    let word = (0..4).fold(0, |word, i| word | c[2 * i] << (4 * i) | c[2 * i + 1] << (16 + 4 * i));
                    word.to_le_bytes()
                })
                .collect(),
            8 => self.codes.iter().map(|&c| c as u8).collect(),
            _ => self.numbers.iter().flat_map(|&x| bits16(float, x).to_le_bytes()).collect(),
        }
    }
}

fn bits16(float: Dtype, x: f32) -> u16 {
    if float == Dtype::Bf16 { bf16::from_f32(x).to_bits() } else { f16::from_f32(x).to_bits() }
}

fn through(float: Dtype, x: f32) -> f32 {
    if float == Dtype::Bf16 { bf16::from_f32(x).to_f32() } else { f16::from_f32(x).to_f32() }
}

/// Rows of one sequence: `queries[token][head]`, `keys[position][kv_head]`, `values[position][kv_head]`.
pub(crate) struct Rows {
    pub(crate) queries: Vec<Vec<Row>>,
    pub(crate) keys: Vec<Vec<Row>>,
    pub(crate) values: Vec<Vec<Row>>,
}

/// Everything that a call reads.
pub(crate) struct Memory {
    pub(crate) spans: Vec<Span>,
    pub(crate) sequences: Vec<Rows>,
    table: Vec<u32>,
    pages: usize,
}

impl Memory {
    pub(crate) fn new(case: &Case, spans: &[Span], random: &mut Random) -> Self {
        let d = case.head_dim;
        let sequences = spans
            .iter()
            .map(|span| {
                let mut rows = |tokens: usize, heads: usize, bits: u32, size: f32| -> Vec<Vec<Row>> {
                    (0..tokens).map(|_| (0..heads).map(|_| Row::random(random, d, bits, size)).collect()).collect()
                };
                let context = span.position + span.tokens;
                Rows {
                    queries: rows(span.tokens, case.heads, case.key, 0.25),
                    keys: rows(context, case.kv_heads, case.key, 0.5),
                    values: rows(context, case.kv_heads, case.value, 1.0),
                }
            })
            .collect();
        let used: usize = spans.iter().map(|span| (span.position + span.tokens).div_ceil(PAGE)).sum();
        // Some pages are nobody's.
        let pages = used + 3;
        let table = random.permutation(pages)[..used].to_vec();
        Self { spans: spans.to_vec(), sequences, table, pages }
    }

    /// Multiplies what a head of a token stands for.
    pub(crate) fn scale(rows: &mut [Vec<Row>], token: usize, head: usize, factor: f32) {
        let row = &mut rows[token][head];
        row.scale *= factor;
        row.numbers.iter_mut().for_each(|x| *x *= factor);
    }

    /// The oracle's output for a sequence, `[T, H D]`, with `change` applied to each value.
    pub(crate) fn attention(&self, case: &Case, span: &Span, rows: &Rows, change: impl Fn(f64) -> f64) -> Vec<f64> {
        let real =
            |rows: &[Vec<Row>]| -> Vec<f64> { rows.iter().flatten().flat_map(|row| row.real(case.float)).collect() };
        if span.tokens == 0 {
            return Vec::new();
        }
        let Case { heads, kv_heads, head_dim, .. } = *case;
        let shape = reference::AttentionShape { heads, kv_heads, head_dim };
        let values: Vec<f64> = real(&rows.values).into_iter().map(change).collect();
        reference::attention(&real(&rows.queries), &real(&rows.keys), &values, shape, case.window)
    }

    /// The largest score's bound `|q| |k| / sqrt(D)`, and the widest range of a value row's codes (or largest value).
    pub(crate) fn largest(&self, case: &Case, rows: &Rows) -> (f64, f64) {
        let norm = |rows: &[Vec<Row>]| {
            let norms = rows.iter().flatten().map(|row| row.real(case.float).iter().map(|x| x * x).sum::<f64>().sqrt());
            norms.fold(0.0, f64::max)
        };
        let range = rows.values.iter().flatten().map(|row| match case.value {
            16 => row.numbers.iter().fold(0.0_f64, |max, &x| max.max(f64::from(x.abs()))),
            bits => f64::from(row.scale) * f64::from((1_u32 << bits) - 1),
        });
        (norm(&rows.queries) * norm(&rows.keys) / (case.head_dim as f64).sqrt(), range.fold(0.0, f64::max))
    }

    /// Runs the plan for `case` and returns `[T, H D]`. Whatever the sequences do not hold is NaN.
    pub(crate) fn run(&self, device: &Arc<dyn Device>, case: &Case) -> Vec<f32> {
        let layout = case.layout(self.pages);
        let tokens = self.spans.iter().map(|span| span.tokens).sum();
        let longest = self.spans.iter().map(|span| span.tokens).max().unwrap_or(0);
        let context_max = self.spans.iter().map(|span| span.position + span.tokens).max().unwrap_or(1);
        let desc = AttentionDesc {
            heads: case.heads,
            tokens_max: tokens,
            sequences_max: self.spans.len(),
            context_max,
            window: case.window,
            out: case.out,
            cache: layout,
        };
        let plan = AttentionPlan::plan(device.as_ref(), &desc).unwrap();
        assert!(plan.kernel(longest).unwrap().starts_with("attention_prefill"), "{}", plan.kernel(longest).unwrap());

        let (keys, values, params, sequences) = self.cache(case, &layout);
        let (codes, query_params) = self.queries(case);
        let up = |bytes: &[u8]| upload(device, if bytes.is_empty() { &[0; 16] } else { bytes });
        let buffers = [keys, values, params, codes, query_params].map(|bytes| up(&bytes));
        let [keys, values, params, codes, query_params] = &buffers;
        let (d_sequences, table) = (upload(device, &sequences), upload(device, &self.table));
        let out = upload(device, &vec![0xff_u8; plan.out_bytes() as usize]);
        let workspace = upload(device, &vec![0_u8; plan.workspace_bytes().max(16) as usize]);
        let operands = AttentionOperands {
            queries: QueryOperand { codes: codes.address(), params: query_params.address() },
            cache: KvOperand { keys: keys.address(), values: values.address(), params: params.address() },
            sequences: d_sequences.address(),
            page_table: table.address(),
            out: out.address(),
            workspace: workspace.address(),
        };
        // SAFETY: the buffers are as large as the layouts say, and the sequences lie in them.
        unsafe { plan.enqueue(device.as_ref(), STREAM, tokens, self.spans.len(), longest, &operands) }.unwrap();
        let bytes: Vec<u8> = download(&out, plan.out_bytes() as usize);
        decode(case.out, &bytes)
    }

    /// Keys, values, params and sequences as they lie in memory.
    fn cache(&self, case: &Case, layout: &KvLayout) -> (Vec<u8>, Vec<u8>, Vec<u8>, Vec<Sequence>) {
        let mut keys = vec![0xff; layout.key_bytes() as usize];
        let mut values = vec![0xff; layout.value_bytes() as usize];
        let mut params = vec![0xff; layout.param_bytes() as usize];
        let mut sequences = Vec::new();
        let mut begin = 0;
        for (span, rows) in self.spans.iter().zip(&self.sequences) {
            let context = span.position + span.tokens;
            for (position, head) in (0..context).flat_map(|p| (0..case.kv_heads).map(move |h| (p, h))) {
                let page = self.table[begin + position / PAGE] as usize;
                let at = (page * case.kv_heads + head) * PAGE + position % PAGE;
                let (key, value) = (&rows.keys[position][head], &rows.values[position][head]);
                put(&mut keys, at, &key.cached(case.key, case.float));
                put(&mut values, at, &value.cached(case.value, case.float));
                if !params.is_empty() {
                    let of = |row: &Row| [row.scale.to_bits(), row.zero_point | row.sum() << 16];
                    let words = [of(key), of(value)].concat();
                    put(&mut params, at, bytemuck::cast_slice(&words));
                }
            }
            let [first, tokens, position, table] =
                [span.first, span.tokens, span.position, begin].map(|x| u32::try_from(x).unwrap());
            sequences.push(Sequence { first, tokens, position, table });
            begin += context.div_ceil(PAGE);
        }
        (keys, values, params, sequences)
    }

    fn queries(&self, case: &Case) -> (Vec<u8>, Vec<u8>) {
        let rows = || self.sequences.iter().flat_map(|rows| rows.queries.iter().flatten());
        if case.key == 16 {
            return (rows().flat_map(|row| row.cached(16, case.float)).collect(), Vec::new());
        }
        let words = rows().flat_map(|row| [row.scale.to_bits(), row.zero_point, row.sum(), 0xffff_ffff]);
        (rows().flat_map(|row| row.cached(8, case.float)).collect(), words.flat_map(u32::to_le_bytes).collect())
    }
}

fn put(memory: &mut [u8], row: usize, bytes: &[u8]) {
    memory[row * bytes.len()..(row + 1) * bytes.len()].copy_from_slice(bytes);
}

fn decode(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::F32 => bytes.chunks(4).map(bytemuck::pod_read_unaligned).collect(),
        Dtype::F16 => bytes.chunks(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Dtype::Bf16 => bytes.chunks(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
    }
}
