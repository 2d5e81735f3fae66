//! Embedding and output head on a device.

use super::super::error::{At, Error};
use crate::checkpoint::{Checkpoint, Table, TableValues};
use crate::kernels::cpu::{FloatValues, FloatWeights};
use crate::kernels::wgpu::{
    ArgmaxDesc, ArgmaxPlan, BoundArgmax, BoundEmbedding, Dtype, EmbeddingDesc, EmbeddingPlan, Error as DeviceError,
    GemmFloatBound, GemmFloatDesc, GemmFloatPlan, Gpu, PackedFloatWeights, Recorder, TableDtype,
};
use ::wgpu::{Buffer, BufferBinding};

/// Most rows of logits that are computed at a time: what evaluation asks for.
const ROWS: u64 = 128;

/// The embedding table and the output head, which may be the same numbers in another layout.
pub(super) struct Tables {
    embedding: EmbeddingPlan,
    embedding_parts: Vec<Buffer>,
    head: GemmFloatPlan,
    head_weights: PackedFloatWeights,
    vocabulary: usize,
    hidden: usize,
}

impl Tables {
    /// Uploads both, for chunks of up to `m_max` tokens.
    pub(super) fn load(gpu: &Gpu, checkpoint: &Checkpoint, m_max: usize) -> Result<Self, Error> {
        let at = || "embedding".to_owned();
        let table = checkpoint.embedding()?;
        let dtype = match &table.values {
            TableValues::F32(_) => TableDtype::F32,
            TableValues::F16(_) => TableDtype::F16,
            TableValues::Bf16(_) => TableDtype::Bf16,
        };
        let (vocabulary, hidden) = (table.rows, table.columns);
        let desc = EmbeddingDesc { m_max, vocabulary, channels: hidden, table: dtype, output: Dtype::F32 };
        let embedding = EmbeddingPlan::plan(gpu, &desc).at(at)?;
        let row_bytes = hidden * dtype.bytes() as usize;
        let embedding_parts = embedding
            .parts()
            .iter()
            .map(|rows| gpu.upload("embedding", &bytes(&table)[rows.start * row_bytes..rows.end * row_bytes]).at(at))
            .collect::<Result<_, _>>()?;

        let at = || "output head".to_owned();
        let table = checkpoint.head()?.unwrap_or(table);
        let (values, weight) = match &table.values {
            TableValues::F32(values) => (FloatValues::F32(values), Dtype::F32),
            TableValues::F16(values) => (FloatValues::F16(values), if gpu.has_f16() { Dtype::F16 } else { Dtype::F32 }),
            // Half precision cannot hold their range.
            TableValues::Bf16(values) => (FloatValues::Bf16(values), Dtype::F32),
        };
        let fit = gpu.limits().max_storage_buffer_binding_size / (4 * vocabulary.max(1) as u64);
        let m_max = fit.clamp(1, ROWS) as usize;
        let (x, out) = (Dtype::F32, Dtype::F32);
        let desc = GemmFloatDesc { m_max, n: vocabulary, k: hidden, x, weight, out, bias: false, accumulate: false };
        let head = GemmFloatPlan::plan(gpu, &desc).at(at)?;
        let weights = [FloatWeights { values, n: vocabulary, k: hidden }];
        let head_weights = head.pack(gpu, &weights, None).at(at)?;
        Ok(Self { embedding, embedding_parts, head, head_weights, vocabulary, hidden })
    }

    pub(super) fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Bytes on the device.
    pub(super) fn bytes(&self) -> u64 {
        let head: u64 = self.head.parts().iter().map(|part| self.head.desc().part_bytes(part)).sum();
        head + self.embedding_parts.iter().map(Buffer::size).sum::<u64>()
    }

    /// Joins the gather with the ids and the residual stream of a state, of `rows` rows.
    pub(super) fn bind(
        &self,
        gpu: &Gpu,
        rows: usize,
        ids: &Buffer,
        residual: &Buffer,
    ) -> Result<BoundEmbedding, Error> {
        let parts: Vec<BufferBinding<'_>> = self.embedding_parts.iter().map(Buffer::as_entire_buffer_binding).collect();
        self.embedding
            .limited(rows)
            .bind(gpu, ids.as_entire_buffer_binding(), &parts, residual.as_entire_buffer_binding())
            .at(|| "embedding".into())
    }
}

/// The output head of a state, with the choice of the likeliest token.
pub(super) struct Head {
    rows: usize,
    input: Buffer,
    logits: Buffer,
    tokens: Buffer,
    workspace: Buffer,
    gemm: GemmFloatBound,
    argmax: BoundArgmax,
}

impl Head {
    /// For up to `rows` rows of logits at a time, as far as the device can bind them.
    pub(super) fn new(gpu: &Gpu, tables: &Tables, rows: usize) -> Result<Self, Error> {
        let at = || "output head".to_owned();
        let head = tables.head.limited(rows.max(1));
        let rows = head.desc().m_max;
        let input = gpu.buffer("head input", 4 * rows as u64 * tables.hidden as u64).at(at)?;
        let logits = gpu.buffer("logits", 4 * rows as u64 * tables.vocabulary as u64).at(at)?;
        let tokens = gpu.buffer("chosen tokens", 4 * rows as u64).at(at)?;
        let (from, to) = (input.as_entire_buffer_binding(), logits.as_entire_buffer_binding());
        let gemm = head.bind(gpu, from, &tables.head_weights.bindings(), to).at(at)?;
        let desc = ArgmaxDesc { m_max: rows, columns: vec![tables.vocabulary], input: Dtype::F32 };
        let plan = ArgmaxPlan::plan(gpu, &desc).at(at)?;
        let workspace = gpu.buffer("argmax", plan.workspace_bytes()).at(at)?;
        let (scores, ids) = (logits.as_entire_buffer_binding(), tokens.as_entire_buffer_binding());
        let argmax = plan.bind(gpu, &[scores], ids, workspace.as_entire_buffer_binding()).at(at)?;
        Ok(Self { rows, input, logits, tokens, workspace, gemm, argmax })
    }

    /// Rows of logits that one recording gives at most.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// `[rows, vocabulary]`.
    pub(super) fn logits(&self) -> &Buffer {
        &self.logits
    }

    /// The tokens that `record_argmax` chose, `[rows]`.
    pub(super) fn tokens(&self) -> &Buffer {
        &self.tokens
    }

    /// Bytes of inputs and outputs, and of what the choice needs for itself.
    pub(super) fn bytes(&self) -> (u64, u64) {
        (self.input.size() + self.logits.size() + self.tokens.size(), self.workspace.size())
    }

    /// Records the logits of `rows` of `hidden` (of `width` channels), at most [`Head::rows`] of them.
    pub(super) fn record(
        &self,
        recorder: &mut Recorder<'_>,
        hidden: &Buffer,
        rows: &[usize],
        width: usize,
    ) -> Result<(), DeviceError> {
        let bytes = 4 * width as u64;
        let mut to = 0;
        // Rows that stand together are one copy.
        for run in rows.chunk_by(|a, b| a + 1 == *b) {
            let count = run.len() as u64 * bytes;
            recorder.copy(hidden, run[0] as u64 * bytes, &self.input, to, count);
            to += count;
        }
        self.gemm.enqueue(recorder, rows.len())
    }

    /// Records the choice of the likeliest token of each of the first `rows` rows of logits.
    pub(super) fn record_argmax(&self, recorder: &mut Recorder<'_>, rows: usize) -> Result<(), DeviceError> {
        self.argmax.enqueue(recorder, rows)
    }
}

fn bytes(table: &Table) -> &[u8] {
    match &table.values {
        TableValues::F32(values) => bytemuck::cast_slice(values),
        TableValues::F16(values) => bytemuck::cast_slice(values),
        TableValues::Bf16(values) => bytemuck::cast_slice(values),
    }
}
