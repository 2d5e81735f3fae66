//! Embedding and output head on a device.

use super::super::error::{At, Error};
use super::{STREAM, group};
use crate::checkpoint::{Checkpoint, Table, TableValues};
use crate::kernels::cuda::{
    Address, ArgmaxDesc, ArgmaxPlan, Buffer, Device, Dtype, EmbeddingDesc, EmbeddingPlan, Error as DeviceError,
    MatrixProduct, NextStep, Stream,
};
use std::sync::Arc;

/// Most rows of logits that are computed at a time: what evaluation asks for.
pub(super) const ROWS: usize = 128;

/// The embedding table and the output head, which may be the same memory.
///
/// Half precision and bfloat16 stay what they are, so that a head in another precision than the rest meets hidden states of its
/// own. Single precision is rounded to that of the rest; where the rest is in single precision all is widened to it.
pub(super) struct Tables {
    embedding: EmbeddingPlan,
    argmax: ArgmaxPlan,
    table: Buffer,
    /// `None` when it is the embedding's table.
    head: Option<Buffer>,
    head_type: Dtype,
    vocabulary: usize,
    hidden: usize,
}

impl Tables {
    /// Uploads both, for chunks of up to `m_max` tokens whose residual stream is in `float`.
    pub(super) fn load(
        device: &Arc<dyn Device>,
        checkpoint: &Checkpoint,
        m_max: usize,
        float: Dtype,
    ) -> Result<Self, Error> {
        let at = || "embedding".to_owned();
        let values = checkpoint.embedding()?;
        let (vocabulary, hidden, dtype) = (values.rows, values.columns, stored_as(&values, float));
        let desc = EmbeddingDesc { m_max, vocabulary, channels: hidden, table: dtype, output: float };
        let embedding = EmbeddingPlan::plan(device.as_ref(), &desc).at(at)?;
        let table = upload(device, "embedding", &values, dtype).at(at)?;
        drop(values);
        let at = || "output head".to_owned();
        let (head, head_type) = match checkpoint.head()? {
            Some(values) => {
                let dtype = stored_as(&values, float);
                (Some(upload(device, "output head", &values, dtype).at(at)?), dtype)
            }
            None => (None, dtype),
        };
        let desc = ArgmaxDesc { m_max: ROWS, columns: vocabulary, input: Dtype::F32 };
        let argmax = ArgmaxPlan::plan(device.as_ref(), &desc).at(at)?;
        Ok(Self { embedding, argmax, table, head, head_type, vocabulary, hidden })
    }

    pub(super) fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Type of the hidden states that the output head takes.
    pub(super) fn head_type(&self) -> Dtype {
        self.head_type
    }

    /// Bytes of a hidden state.
    pub(super) fn hidden_bytes(&self) -> u64 {
        self.hidden as u64 * self.head_type.bytes()
    }

    /// Bytes on the device.
    pub(super) fn bytes(&self) -> u64 {
        self.table.bytes() + self.head.as_ref().map_or(0, Buffer::bytes)
    }

    /// Bytes that [`Tables::greedy`] needs, zero before its first use and left zero.
    pub(super) fn workspace_bytes(&self) -> u64 {
        self.argmax.workspace_bytes()
    }

    /// Enqueues the rows of `tokens` tokens.
    ///
    /// # Safety
    /// `ids` must hold them, and `out` have room for as many rows.
    pub(super) unsafe fn embed(
        &self,
        device: &dyn Device,
        stream: Stream,
        tokens: usize,
        ids: Address,
        out: Address,
    ) -> Result<(), DeviceError> {
        // SAFETY: the caller's; the table is this one.
        unsafe { self.embedding.enqueue(device, stream, tokens, ids, self.table.address(), out) }
    }

    /// Enqueues the logits `[rows, vocabulary]`, in `f32`, of hidden states `x`.
    ///
    /// # Safety
    /// `x` must hold the hidden states, and `logits` have the room.
    pub(super) unsafe fn logits(
        &self,
        device: &dyn Device,
        rows: usize,
        x: Address,
        logits: Address,
    ) -> Result<(), DeviceError> {
        let product = MatrixProduct {
            tokens: rows,
            n: self.vocabulary,
            k: self.hidden,
            input: self.head_type,
            output: Dtype::F32,
            x,
            weight: self.head.as_ref().unwrap_or(&self.table).address(),
            bias: None,
            y: logits,
            accumulate: false,
        };
        // SAFETY: the caller's; the weight has these shapes.
        unsafe { device.matrix_product(STREAM, &product) }
    }

    /// Enqueues the choice of the likeliest token of each of `rows` rows of logits, at most [`ROWS`].
    ///
    /// # Safety
    /// As [`ArgmaxPlan::enqueue`].
    pub(super) unsafe fn greedy(
        &self,
        device: &dyn Device,
        rows: usize,
        logits: Address,
        ids: Address,
        next: Option<NextStep>,
        workspace: Address,
    ) -> Result<(), DeviceError> {
        // SAFETY: the caller's.
        unsafe { self.argmax.enqueue(device, STREAM, rows, logits, ids, next, workspace) }
    }
}

fn stored_as(table: &Table, float: Dtype) -> Dtype {
    match (&table.values, float) {
        (_, Dtype::F32) | (TableValues::F32(_), _) => float,
        (TableValues::F16(_), _) => Dtype::F16,
        (TableValues::Bf16(_), _) => Dtype::Bf16,
    }
}

fn upload(device: &Arc<dyn Device>, what: &str, table: &Table, dtype: Dtype) -> Result<Buffer, DeviceError> {
    let widened = match (&table.values, dtype) {
        (TableValues::F16(values), Dtype::F16) => return Buffer::upload(device, what, values),
        (TableValues::Bf16(values), Dtype::Bf16) => return Buffer::upload(device, what, values),
        (TableValues::F32(values), _) => return group::upload(device, what, values, dtype),
        (TableValues::F16(values), _) => values.iter().map(|x| x.to_f32()).collect::<Vec<_>>(),
        (TableValues::Bf16(values), _) => values.iter().map(|x| x.to_f32()).collect(),
    };
    group::upload(device, what, &widened, dtype)
}
