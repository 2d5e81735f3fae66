//! What the tests of `rope_hadamard_quantize` and `attention` in CUDA share: one layer's memory, pages in a shuffled order, and what
//! lies in them.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    reason = "each test file takes what it needs; a test fails this way"
)]

use crate::cuda::{STREAM, download, upload};
use crate::oracle::Random;
use duquant::kernels::Affine;
use duquant::kernels::cpu::{RopeStretch, RopeTable, rope_inverse_frequencies};
use duquant::kernels::cuda::{
    Buffer, Device, Dtype, KvCache, KvLayout, PAGE, QueryOperand, RopeHadamardQuantizeDesc,
    RopeHadamardQuantizeOperands, RopeHadamardQuantizePlan, Sequence, rope_buffer,
};
use half::{bf16, f16};
use std::sync::Arc;

/// Asymmetric settings.
pub(crate) fn codes(bits: u32, clip: f32) -> Option<Affine> {
    Some(Affine { bits, clip, symmetric: false })
}

/// Heads and cache of a layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) key: Option<Affine>,
    pub(crate) value: Option<Affine>,
    pub(crate) input: Dtype,
    pub(crate) float: Dtype,
}

impl Shape {
    pub(crate) fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    pub(crate) fn frequencies(&self) -> Vec<f64> {
        rope_inverse_frequencies(self.head_dim, 10000.0, &RopeStretch::None).unwrap()
    }

    pub(crate) fn cache(&self, pages: usize) -> KvLayout {
        let Self { kv_heads, head_dim, key, value, float, .. } = *self;
        KvLayout { kv_heads, head_dim, pages, key, value, float }
    }
}

/// One row of a head on the device.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    /// Codes, or numbers.
    pub(crate) values: Vec<f32>,
    /// Scale, zero point and sum of codes, where there are codes.
    pub(crate) params: Option<(f32, u32, u32)>,
}

impl Row {
    /// The numbers that it stands for, as the CPU backend computes them.
    pub(crate) fn real(&self) -> Vec<f32> {
        let Some((scale, zero_point, _)) = self.params else { return self.values.clone() };
        self.values.iter().map(|code| scale * (code - zero_point as f32)).collect()
    }

    pub(crate) fn wide(&self) -> Vec<f64> {
        self.real().iter().map(|&x| f64::from(x)).collect()
    }
}

pub(crate) fn encode(dtype: Dtype, x: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F32 => bytemuck::cast_slice(x).to_vec(),
        Dtype::F16 => x.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        Dtype::Bf16 => x.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
    }
}

pub(crate) fn decode(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::F32 => bytes.chunks(4).map(bytemuck::pod_read_unaligned).collect(),
        Dtype::F16 => bytes.chunks(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Dtype::Bf16 => bytes.chunks(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
    }
}

/// What the device holds, read back once.
pub(crate) struct Stored {
    shape: Shape,
    keys: Vec<u8>,
    values: Vec<u8>,
    params: Vec<u32>,
}

impl Stored {
    /// A row by its number among `[pages, Hkv, 64]`.
    pub(crate) fn row(&self, values: bool, row: usize) -> Row {
        let Shape { head_dim: d, key, value, float, .. } = self.shape;
        let (affine, bytes) = if values { (value, &self.values) } else { (key, &self.keys) };
        let Some(affine) = affine else {
            let values = decode(float, &bytes[row * d * 2..(row + 1) * d * 2]);
            return Row { values, params: None };
        };
        let codes = if affine.bits <= 4 {
            // The documented order: nibble i of a word is channel 2 i, nibble 4 + i channel 2 i + 1.
            let row = &bytes[row * d / 2..(row + 1) * d / 2];
            (0..d)
                .map(|c| {
                    let nibble = c % 8 / 2 + 4 * (c % 2);
                    let word: u32 = bytemuck::pod_read_unaligned(&row[c / 8 * 4..c / 8 * 4 + 4]);
                    (word >> (4 * nibble) & 15) as f32
                })
                .collect()
        } else {
            bytes[row * d..(row + 1) * d].iter().map(|&code| f32::from(code)).collect()
        };
        let params = &self.params[4 * row + 2 * usize::from(values)..];
        Row { values: codes, params: Some((f32::from_bits(params[0]), params[1] & 0xffff, params[1] >> 16)) }
    }

    /// Whether a row is as [`Layer::new`] left it: nobody has written to it.
    pub(crate) fn untouched(&self, row: usize) -> bool {
        let fresh = |bytes: &[u8], bits: u32| {
            let size = self.shape.head_dim * bits as usize / 8;
            bytes[row * size..(row + 1) * size].iter().all(|&byte| byte == 0xff)
        };
        let layout = self.shape.cache(1);
        let params = self.shape.key.is_none() || self.params[4 * row..4 * row + 4] == [u32::MAX; 4];
        params && fresh(&self.keys, layout.key_bits()) && fresh(&self.values, layout.value_bits())
    }

    /// Rows of the cache, whoever owns them.
    pub(crate) fn rows(&self) -> usize {
        self.keys.len() * 8 / (self.shape.head_dim * self.shape.cache(1).key_bits() as usize)
    }
}

/// One layer's memory for a few sequences.
pub(crate) struct Layer {
    pub(crate) device: Arc<dyn Device>,
    pub(crate) shape: Shape,
    pub(crate) plan: RopeHadamardQuantizePlan,
    pub(crate) cache: KvCache,
    pub(crate) pages: Vec<u32>,
    pub(crate) page_table: Buffer,
    pub(crate) query_codes: Buffer,
    pub(crate) query_params: Buffer,
    rope: Buffer,
    room: usize,
}

impl Layer {
    /// Room for `sequences` sequences of `room` tokens each, at most `tokens_max` a call. The cache holds NaN and 0xff.
    pub(crate) fn new(
        device: &Arc<dyn Device>,
        shape: Shape,
        sequences: usize,
        room: usize,
        tokens_max: usize,
    ) -> Self {
        let per_sequence = room.div_ceil(PAGE);
        let pages = sequences * per_sequence + 2;
        let desc = RopeHadamardQuantizeDesc {
            heads: shape.heads,
            tokens_max,
            sequences_max: sequences,
            positions: room,
            input: shape.input,
            cache: shape.cache(pages),
        };
        let plan = RopeHadamardQuantizePlan::plan(device.as_ref(), &desc).unwrap();
        let table = RopeTable::new(shape.head_dim, &shape.frequencies(), room).unwrap();
        let pages = Random::new(77).permutation(pages)[..sequences * per_sequence].to_vec();
        let cache = KvCache::new(device, desc.cache).unwrap();
        for buffer in [cache.keys(), cache.values(), cache.params()] {
            device.fill(STREAM, buffer.address(), 0xff, buffer.bytes()).unwrap();
        }
        Self {
            device: Arc::clone(device),
            shape,
            cache,
            page_table: upload(device, &pages),
            pages,
            query_codes: Buffer::new(device, "queries", plan.queries().code_bytes()).unwrap(),
            query_params: Buffer::new(device, "query parameters", plan.queries().param_bytes().max(16)).unwrap(),
            rope: rope_buffer(device, &table).unwrap(),
            plan,
            room,
        }
    }

    /// Sequences of `(position, tokens)`, their rows one behind the other.
    pub(crate) fn sequences(&self, parts: &[(usize, usize)]) -> Vec<Sequence> {
        let per_sequence = self.room.div_ceil(PAGE);
        let mut first = 0;
        let of = |(i, &(position, tokens)): (usize, &(usize, usize))| {
            let table = (i * per_sequence) as u32;
            let sequence = Sequence { first, tokens: tokens as u32, position: position as u32, table };
            first += tokens as u32;
            sequence
        };
        parts.iter().enumerate().map(of).collect()
    }

    pub(crate) fn queries(&self) -> QueryOperand {
        QueryOperand { codes: self.query_codes.address(), params: self.query_params.address() }
    }

    /// Runs `rope_hadamard_quantize` on `x`, whole rows; returns `x` in its type's precision.
    pub(crate) fn append(&self, x: &[f32], sequences: &[Sequence]) -> Vec<f32> {
        let bytes = encode(self.shape.input, x);
        let (qkv, list) = (upload(&self.device, &bytes), upload(&self.device, sequences));
        let operands = RopeHadamardQuantizeOperands {
            qkv: qkv.address(),
            rope: self.rope.address(),
            sequences: list.address(),
            page_table: self.page_table.address(),
            queries: self.queries(),
            cache: self.cache.operand(),
        };
        let tokens = x.len() / self.shape.width();
        // SAFETY: the buffers are as large as the shape says.
        unsafe { self.plan.enqueue(self.device.as_ref(), STREAM, tokens, sequences.len(), &operands) }.unwrap();
        self.device.synchronize(STREAM).unwrap();
        decode(self.shape.input, &bytes)
    }

    /// Fills the first `position` tokens of each sequence, and appends its tokens in one call; returns what the call was.
    pub(crate) fn fill(
        &self,
        parts: &[(usize, usize)],
        mut rows: impl FnMut(usize, usize) -> Vec<f32>,
    ) -> Vec<Sequence> {
        let width = self.shape.width();
        let tokens_max = self.plan.desc().tokens_max;
        let call = self.sequences(parts);
        for sequence in &call {
            for first in (0..sequence.position).step_by(tokens_max) {
                let tokens = (sequence.position - first).min(tokens_max as u32);
                let part = Sequence { first: 0, tokens, position: first, table: sequence.table };
                self.append(&rows(tokens as usize, width), &[part]);
            }
        }
        let tokens = parts.iter().map(|part| part.1).sum();
        self.append(&rows(tokens, width), &call);
        call
    }

    /// Rows `[T, H]` of the last call's queries.
    pub(crate) fn query_rows(&self, tokens: usize) -> Vec<Row> {
        let Shape { heads, head_dim: d, key, float, .. } = self.shape;
        let rows = tokens * heads;
        if key.is_none() {
            let all = decode(float, &download(&self.query_codes, rows * d * 2));
            return all.chunks(d).map(|row| Row { values: row.to_vec(), params: None }).collect();
        }
        let (codes, params): (Vec<u8>, Vec<u32>) =
            (download(&self.query_codes, rows * d), download(&self.query_params, rows * 4));
        let row = |(codes, params): (&[u8], &[u32])| Row {
            values: codes.iter().map(|&code| f32::from(code)).collect(),
            params: Some((f32::from_bits(params[0]), params[1], params[2])),
        };
        codes.chunks(d).zip(params.chunks(4)).map(row).collect()
    }

    pub(crate) fn stored(&self) -> Stored {
        let read = |buffer: &Buffer| download(buffer, buffer.bytes() as usize);
        let params = download(self.cache.params(), self.cache.params().bytes() as usize / 4);
        Stored { shape: self.shape, keys: read(self.cache.keys()), values: read(self.cache.values()), params }
    }

    /// Number among `[pages, Hkv, 64]` of a token and head of a sequence.
    pub(crate) fn place(&self, sequence: &Sequence, head: usize, position: usize) -> usize {
        let page = self.pages[sequence.table as usize + position / PAGE] as usize;
        (page * self.shape.kv_heads + head) * PAGE + position % PAGE
    }
}
