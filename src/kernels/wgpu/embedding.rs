//! Rows of an embedding table by token id.

use super::pipelines::{Access, Bound, Kernel, Operand, Shader, Variant};
use super::plan_checks::{
    check_bindings, check_dtype, check_range, check_tokens, prelude, row_grid, row_workgroup, unsupported,
};
use super::{Dtype, Error, Gpu, Recorder};
use ::wgpu::BufferBinding;
use std::ops::Range;
use std::sync::Arc;

static EMBEDDING: Shader = Shader {
    name: "embedding",
    sources: &[include_str!("../../../shaders/embedding.wgsl")],
    bindings: &[Access::Read, Access::Read, Access::Write],
    immediates: 20,
};

/// Type of the entries of an embedding table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TableDtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision; unpacked by the kernel, so that no feature is needed.
    #[default]
    F16,
    /// The upper half of a single.
    Bf16,
}

impl TableDtype {
    /// Bytes of one entry.
    #[must_use]
    pub fn bytes(self) -> u64 {
        if self == Self::F32 { 4 } else { 2 }
    }
}

/// What to plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbeddingDesc {
    /// Most tokens.
    pub m_max: usize,
    /// Rows `V` of the table.
    pub vocabulary: usize,
    /// Columns `K` of the table.
    pub channels: usize,
    /// Type of the table.
    pub table: TableDtype,
    /// Type of `out`.
    pub output: Dtype,
}

/// `out[t] = table[ids[t]]`. An id of `V` or more gives a row of zeros.
///
/// A table larger than one binding may be is bound in [`Self::parts`], each read by a dispatch of its own.
#[derive(Debug, Clone)]
pub struct EmbeddingPlan {
    desc: EmbeddingDesc,
    parts: Vec<Range<usize>>,
    kernel: Arc<Kernel>,
}

/// An [`EmbeddingPlan`] with its operands.
#[derive(Debug, Clone)]
pub struct BoundEmbedding {
    parts: Vec<(Bound, Range<usize>)>,
    desc: EmbeddingDesc,
    grid: u32,
}

impl EmbeddingPlan {
    /// Compiles the kernel and cuts the table into parts.
    ///
    /// # Errors
    /// [`Error::Kernel`] for an empty shape, [`Error::MissingFeature`] for a half-precision output without `SHADER_F16`,
    /// [`Error::Limit`] for `out` or a few rows of the table too large to bind.
    pub fn plan(gpu: &Gpu, desc: &EmbeddingDesc) -> Result<Self, Error> {
        Self::plan_in_parts(gpu, desc, gpu.limits().max_storage_buffer_binding_size)
    }

    /// As [`Self::plan`], with parts of at most `part_bytes`, for hosts whose table lies in several smaller buffers.
    ///
    /// # Errors
    /// As [`Self::plan`].
    pub fn plan_in_parts(gpu: &Gpu, desc: &EmbeddingDesc, part_bytes: u64) -> Result<Self, Error> {
        check_range("channels", desc.channels, 1, 1 << 24)?;
        check_range("vocabulary", desc.vocabulary, 1, 1 << 24)?;
        check_range("m_max", desc.m_max, 1, 1 << 24)?;
        check_dtype(gpu, desc.output)?;
        check_bindings(gpu, &[("out", desc.out_bytes())])?;
        let limits = gpu.limits();
        let limit = part_bytes.min(limits.max_storage_buffer_binding_size);
        // A part in the middle of a buffer starts where the device can bind.
        let alignment = u64::from(limits.min_storage_buffer_offset_alignment).max(4);
        let row_bytes = desc.channels as u64 * desc.table.bytes();
        let multiple = alignment >> row_bytes.trailing_zeros().min(alignment.trailing_zeros());
        let whole = desc.vocabulary as u64;
        let rows = if whole * row_bytes <= limit { whole } else { limit / row_bytes / multiple * multiple };
        if rows == 0 {
            let what = format!("{multiple} rows of {} channels", desc.channels);
            let limit_name = "max_storage_buffer_binding_size";
            return Err(Error::Limit { what, limit_name, limit, got: multiple * row_bytes });
        }
        let rows = rows as usize;
        let parts =
            (0..desc.vocabulary).step_by(rows).map(|first| first..(first + rows).min(desc.vocabulary)).collect();
        let kernel = gpu.kernel(&EMBEDDING, &variant(desc.table, desc.output, row_workgroup(gpu)))?;
        Ok(Self { desc: *desc, parts, kernel })
    }

    /// Which kernel runs for `tokens` tokens.
    #[must_use]
    pub fn kernel(&self, _tokens: usize) -> &str {
        EMBEDDING.name
    }

    /// The same plan for at most `m_max` tokens, where those are fewer: its operands are smaller.
    #[must_use]
    pub fn limited(&self, m_max: usize) -> Self {
        let mut plan = self.clone();
        plan.desc.m_max = m_max.clamp(1, plan.desc.m_max);
        plan
    }

    /// The rows of the table that each binding holds, in order. All but the last begin and end at bytes that a device can
    /// bind, so that they may be parts of one buffer.
    #[must_use]
    pub fn parts(&self) -> &[Range<usize>] {
        &self.parts
    }

    /// Joins the kernel with `ids` `[T]` of `u32`, one binding of the table's rows for each of [`Self::parts`], and `out`
    /// `[T, K]`.
    ///
    /// # Errors
    /// [`Error::Binding`], [`Error::Alignment`] or [`Error::Limit`] for a buffer that does not fit, [`Error::Kernel`] for
    /// another number of parts.
    pub fn bind(
        &self,
        gpu: &Gpu,
        ids: BufferBinding<'_>,
        table: &[BufferBinding<'_>],
        out: BufferBinding<'_>,
    ) -> Result<BoundEmbedding, Error> {
        let desc = self.desc;
        if table.len() != self.parts.len() {
            return unsupported("table", format!("{} parts", self.parts.len()), table.len());
        }
        let mut parts = Vec::with_capacity(table.len());
        for (rows, binding) in self.parts.iter().zip(table) {
            let bytes = (rows.len() * desc.channels) as u64 * desc.table.bytes();
            let operands = [
                Operand { name: "ids", binding: ids.clone(), bytes: 4 * desc.m_max as u64 },
                Operand { name: "table", binding: binding.clone(), bytes: bytes.next_multiple_of(4) },
                Operand { name: "out", binding: out.clone(), bytes: desc.out_bytes() },
            ];
            parts.push((gpu.bind(&self.kernel, &operands)?, rows.clone()));
        }
        Ok(BoundEmbedding { parts, desc, grid: row_grid(gpu, desc.m_max) })
    }
}

impl BoundEmbedding {
    /// Records the first `tokens` tokens.
    ///
    /// # Errors
    /// [`Error::Kernel`] for more tokens than planned.
    pub fn enqueue(&self, recorder: &mut Recorder<'_>, tokens: usize) -> Result<(), Error> {
        check_tokens(tokens, self.desc.m_max)?;
        for (bound, rows) in &self.parts {
            let params = [tokens, self.desc.channels, rows.start, rows.len(), self.desc.vocabulary].map(|x| x as u32);
            recorder.dispatch(bound, bytemuck::cast_slice(&params), [self.grid.min(tokens as u32), 1, 1]);
        }
        Ok(())
    }
}

impl EmbeddingDesc {
    fn out_bytes(&self) -> u64 {
        self.m_max as u64 * self.channels as u64 * self.output.bytes()
    }
}

fn variant(table: TableDtype, output: Dtype, workgroup: u32) -> Variant {
    let table = match table {
        TableDtype::F32 => 0.0,
        TableDtype::F16 => 1.0,
        TableDtype::Bf16 => 2.0,
    };
    let constants = vec![("WORKGROUP", f64::from(workgroup)), ("TABLE", table)];
    Variant { prelude: prelude(&[("Out", output)]), constants }
}

pub(super) fn variants() -> Vec<(&'static Shader, Variant)> {
    let mut out = Vec::new();
    for table in [TableDtype::F32, TableDtype::F16, TableDtype::Bf16] {
        for output in [Dtype::F32, Dtype::F16] {
            out.extend([64, 256].map(|workgroup| (&EMBEDDING, variant(table, output, workgroup))));
        }
    }
    out
}
