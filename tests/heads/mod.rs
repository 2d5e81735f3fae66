//! What the tests of `rope_hadamard_quantize` and `attention` on a wgpu adapter share: one layer's memory and what lies in it.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    reason = "each test file takes what it needs; a test fails this way"
)]

use duquant::kernels::Affine;
use duquant::kernels::cpu::{RopeStretch, RopeTable, rope_inverse_frequencies};
use duquant::kernels::wgpu::{
    AttentionDesc, AttentionOperands, AttentionPlan, Dtype, Error, Gpu, KvCache, KvLayout, QueryLayout, Recorder,
    RopeHadamardQuantizeDesc, RopeHadamardQuantizeOperands, RopeHadamardQuantizePlan, rope_buffer,
};
use half::f16;
use wgpu::Buffer;

/// Asymmetric settings.
pub(crate) fn codes(bits: u32, clip: f32) -> Option<Affine> {
    Some(Affine { bits, clip, symmetric: false })
}

/// Heads and cache of a layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) heads: usize,
    pub(crate) input: Dtype,
    pub(crate) cache: KvLayout,
}

impl Shape {
    pub(crate) fn new(
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        key: Option<Affine>,
        value: Option<Affine>,
    ) -> Self {
        let cache = KvLayout { kv_heads, head_dim, capacity: 1, key, value, float: Dtype::F32 };
        Self { heads, input: Dtype::F32, cache }
    }

    pub(crate) fn capacity(mut self, capacity: usize) -> Self {
        self.cache.capacity = capacity;
        self
    }

    pub(crate) fn f16(mut self) -> Self {
        self.cache.float = Dtype::F16;
        self.input = Dtype::F16;
        self
    }

    pub(crate) fn width(&self) -> usize {
        (self.heads + 2 * self.cache.kv_heads) * self.cache.head_dim
    }

    pub(crate) fn frequencies(&self) -> Vec<f64> {
        rope_inverse_frequencies(self.cache.head_dim, 10000.0, &RopeStretch::None).unwrap()
    }
}

/// One row of a head on the device.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// Codes, or numbers.
    pub(crate) values: Vec<f64>,
    pub(crate) scale: f32,
    pub(crate) zero_point: u32,
    pub(crate) sum: u32,
}

impl Row {
    fn codes(codes: Vec<u32>, scale: u32, zero_point: u32, sum: u32) -> Self {
        let values = codes.into_iter().map(f64::from).collect();
        Self { values, scale: f32::from_bits(scale), zero_point, sum }
    }

    fn numbers(values: Vec<f64>) -> Self {
        Self { values, scale: 1.0, zero_point: 0, sum: 0 }
    }

    /// The numbers that the row stands for.
    pub(crate) fn real(&self) -> Vec<f64> {
        self.values.iter().map(|x| f64::from(self.scale) * (x - f64::from(self.zero_point))).collect()
    }
}

/// The memory of one layer.
pub(crate) struct Layer {
    pub(crate) shape: Shape,
    pub(crate) layout: QueryLayout,
    pub(crate) cache: KvCache,
    pub(crate) queries: Buffer,
    pub(crate) rope: Buffer,
    pub(crate) plan: RopeHadamardQuantizePlan,
}

pub(crate) fn words(gpu: &Gpu, buffer: &Buffer, bytes: u64) -> Vec<u32> {
    let bytes = gpu.read(buffer, 0, bytes).unwrap();
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
}

/// Numbers of a buffer of f32 or f16.
pub(crate) fn numbers(gpu: &Gpu, buffer: &Buffer, count: usize, dtype: Dtype) -> Vec<f64> {
    let bytes = gpu.read(buffer, 0, (count as u64 * dtype.bytes()).next_multiple_of(4)).unwrap();
    let mut all = floats(&bytes, dtype);
    all.truncate(count);
    all
}

fn floats(bytes: &[u8], dtype: Dtype) -> Vec<f64> {
    match dtype {
        Dtype::F32 => bytes.chunks_exact(4).map(|x| f64::from(f32::from_le_bytes(x.try_into().unwrap()))).collect(),
        Dtype::F16 => bytes.chunks_exact(2).map(|x| f64::from(f16::from_le_bytes(x.try_into().unwrap()))).collect(),
    }
}

impl Layer {
    /// A layer whose cache holds nothing but 0xa5 yet.
    pub(crate) fn new(gpu: &Gpu, shape: Shape, tokens_max: usize) -> Result<Self, Error> {
        let Shape { heads, input, cache: layout } = shape;
        let plan =
            RopeHadamardQuantizePlan::plan(gpu, &RopeHadamardQuantizeDesc { heads, tokens_max, input, cache: layout })?;
        let cache = KvCache::new(gpu, layout)?;
        for buffer in [cache.keys(), cache.values(), cache.params()] {
            gpu.queue().write_buffer(buffer, 0, &vec![0xa5; buffer.size() as usize]);
        }
        let table = RopeTable::new(layout.head_dim, &shape.frequencies(), layout.capacity).unwrap();
        let queries = gpu.buffer("queries", plan.queries().bytes())?;
        Ok(Self { shape, layout: plan.queries(), cache, queries, rope: rope_buffer(gpu, &table)?, plan })
    }

    /// The input as the device has it, and in its type's precision.
    pub(crate) fn upload(&self, gpu: &Gpu, x: &[f32]) -> (Buffer, Vec<f32>) {
        let mut x = x.to_vec();
        let bytes: Vec<u8> = match self.shape.input {
            Dtype::F32 => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Dtype::F16 => {
                x.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32());
                x.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect()
            }
        };
        let all = self.layout.tokens_max as u64 * self.shape.width() as u64 * self.shape.input.bytes();
        let buffer = gpu.buffer("qkv", all).unwrap();
        gpu.queue().write_buffer(&buffer, 0, &bytes);
        (buffer, x)
    }

    /// Runs `rope_hadamard_quantize` on `x`, whole rows, from `position` on; returns `x` in its type's precision.
    pub(crate) fn append(&self, gpu: &Gpu, x: &[f32], position: usize) -> Vec<f32> {
        let (qkv, x) = self.upload(gpu, x);
        let operands = RopeHadamardQuantizeOperands {
            qkv: qkv.as_entire_buffer_binding(),
            rope: self.rope.as_entire_buffer_binding(),
            queries: self.queries.as_entire_buffer_binding(),
            cache: self.cache.binding(),
        };
        let bound = self.plan.bind(gpu, &operands).unwrap();
        let mut encoder = gpu.encoder();
        bound.enqueue(&mut Recorder::new(&mut encoder), x.len() / self.shape.width(), position).unwrap();
        gpu.submit(encoder).unwrap();
        x
    }

    /// Rows `[T, H]` of the last call's queries.
    pub(crate) fn query_rows(&self, gpu: &Gpu, tokens: usize) -> Vec<Row> {
        let d = self.shape.cache.head_dim;
        let rows = tokens * self.shape.heads;
        if !self.layout.quantized {
            let all = numbers(gpu, &self.queries, rows * d, Dtype::F32);
            return all.chunks_exact(d).map(|row| Row::numbers(row.to_vec())).collect();
        }
        let all = words(gpu, &self.queries, (rows * (d + 16)) as u64);
        all.chunks_exact(d / 4 + 4)
            .map(|row| {
                let (codes, params) = row.split_at(d / 4);
                Row::codes(unpack(codes, 8), params[0], params[1], params[2])
            })
            .collect()
    }

    /// Rows `[Hkv, capacity]` of keys or values.
    pub(crate) fn cache_rows(&self, gpu: &Gpu, values: bool) -> Vec<Row> {
        let KvLayout { kv_heads, head_dim: d, capacity, key, value, float } = self.shape.cache;
        let (affine, buffer) = if values { (value, self.cache.values()) } else { (key, self.cache.keys()) };
        let rows = kv_heads * capacity;
        let Some(affine) = affine else {
            let all = numbers(gpu, buffer, rows * d, float);
            return all.chunks_exact(d).map(|row| Row::numbers(row.to_vec())).collect();
        };
        let bits = if affine.bits <= 4 { 4 } else { 8 };
        let all = words(gpu, buffer, (rows * d * bits / 8) as u64);
        let params = words(gpu, self.cache.params(), 16 * rows as u64);
        all.chunks_exact(d * bits / 32)
            .zip(params.chunks_exact(4))
            .map(|(row, params)| {
                let params = &params[2 * usize::from(values)..];
                Row::codes(unpack(row, bits), params[0], params[1] & 0xffff, params[1] >> 16)
            })
            .collect()
    }
}

/// Codes of a row, in the order of channels.
fn unpack(words: &[u32], bits: usize) -> Vec<u32> {
    let bytes = |word: u32| word.to_le_bytes().map(u32::from);
    words
        .iter()
        .flat_map(|&word| match bits {
            4 => [bytes(word & 0x0f0f_0f0f), bytes((word >> 4) & 0x0f0f_0f0f)].concat(),
            _ => bytes(word).to_vec(),
        })
        .collect()
}

/// Attention over a layer's cache.
pub(crate) struct Attention {
    pub(crate) plan: AttentionPlan,
    pub(crate) out: Buffer,
    pub(crate) workspace: Buffer,
}

impl Attention {
    pub(crate) fn new(gpu: &Gpu, layer: &Layer, window: Option<usize>, out: Dtype) -> Result<Self, Error> {
        let (tokens_max, heads, cache) = (layer.layout.tokens_max, layer.shape.heads, layer.shape.cache);
        let plan = AttentionPlan::plan(gpu, &AttentionDesc { heads, tokens_max, window, out, cache })?;
        let out = gpu.buffer("out", plan.out_bytes())?;
        let workspace = gpu.buffer("workspace", plan.workspace_bytes())?;
        Ok(Self { plan, out, workspace })
    }

    /// The output of the layer's last `tokens` queries, which start at `position`.
    pub(crate) fn run(&self, gpu: &Gpu, layer: &Layer, tokens: usize, position: usize) -> Vec<f64> {
        let operands = AttentionOperands {
            queries: layer.queries.as_entire_buffer_binding(),
            cache: layer.cache.binding(),
            out: self.out.as_entire_buffer_binding(),
            workspace: self.workspace.as_entire_buffer_binding(),
        };
        let bound = self.plan.bind(gpu, &operands).unwrap();
        let mut encoder = gpu.encoder();
        bound.enqueue(&mut Recorder::new(&mut encoder), tokens, position).unwrap();
        gpu.submit(encoder).unwrap();
        numbers(gpu, &self.out, tokens * layer.shape.heads * layer.shape.cache.head_dim, self.plan.desc().out)
    }
}
