//! The token of the largest logit, on the device: greedy decoding needs no round trip to the host.

use super::pipelines::{Access, Bound, Kernel, Operand, Shader, Variant};
use super::plan_checks::{
    check_bindings, check_dtype, check_range, check_tokens, prelude, row_grid, row_workgroup, unsupported,
};
use super::{Dtype, Error, Gpu, Recorder};
use ::wgpu::BufferBinding;
use std::sync::Arc;

static ARGMAX: Shader = Shader {
    name: "argmax",
    sources: &[include_str!("../../../shaders/argmax.wgsl")],
    bindings: &[Access::Read, Access::Write],
    immediates: 24,
};
static MERGE: Shader = Shader {
    name: "argmax_merge",
    sources: &[include_str!("../../../shaders/argmax_merge.wgsl")],
    bindings: &[Access::Read, Access::Write],
    immediates: 8,
};

/// Columns that a workgroup goes through, at least.
const SEGMENT: usize = 2048;

/// What to plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArgmaxDesc {
    /// Most tokens.
    pub m_max: usize,
    /// Columns of each part of the logits; a part is `[T, columns]` in memory of its own. One part is the plain case.
    pub columns: Vec<usize>,
    /// Type of the logits.
    pub input: Dtype,
}

/// `ids[t] = ` the first index of the largest of token `t`'s logits, counted over all parts.
///
/// NaN is never chosen, and a token whose logits are all NaN gets 0. Both zeros are the same number. One dispatch a part finds
/// a candidate in each segment of the columns, one more chooses among them.
#[derive(Debug)]
pub struct ArgmaxPlan {
    desc: ArgmaxDesc,
    segments: Vec<usize>,
    search: Arc<Kernel>,
    merge: Arc<Kernel>,
    workgroup: u32,
}

/// An [`ArgmaxPlan`] with its operands.
#[derive(Debug, Clone)]
pub struct BoundArgmax {
    parts: Vec<(Bound, [u32; 5])>,
    merge: Bound,
    m_max: usize,
    slots: u32,
    grid: u32,
    workgroup: u32,
}

impl ArgmaxPlan {
    /// Compiles the kernels.
    ///
    /// # Errors
    /// [`Error::Kernel`] for an empty shape, [`Error::MissingFeature`] for half precision without `SHADER_F16`,
    /// [`Error::Limit`] for operands too large to bind.
    pub fn plan(gpu: &Gpu, desc: &ArgmaxDesc) -> Result<Self, Error> {
        let workgroup = row_workgroup(gpu);
        let dimension = gpu.limits().max_compute_workgroups_per_dimension as usize;
        check_range("m_max", desc.m_max, 1, dimension.saturating_mul(workgroup as usize).min(1 << 24))?;
        check_range("parts", desc.columns.len(), 1, 1 << 12)?;
        check_dtype(gpu, desc.input)?;
        for &columns in &desc.columns {
            check_range("columns", columns, 1, 1 << 24)?;
            check_bindings(gpu, &[("logits", desc.part_bytes(columns))])?;
        }
        check_range("vocabulary", desc.columns.iter().sum(), 1, 1 << 30)?;
        let segments = desc.columns.iter().map(|columns| columns.div_ceil(SEGMENT).min(64)).collect();
        let search = gpu.kernel(&ARGMAX, &search_variant(desc.input, workgroup))?;
        let merge = gpu.kernel(&MERGE, &merge_variant(workgroup))?;
        let plan = Self { desc: desc.clone(), segments, search, merge, workgroup };
        check_bindings(gpu, &[("workspace", plan.workspace_bytes())])?;
        Ok(plan)
    }

    /// Which kernel runs for `tokens` tokens.
    #[must_use]
    pub fn kernel(&self, _tokens: usize) -> &str {
        ARGMAX.name
    }

    /// Bytes of device memory for the candidates.
    #[must_use]
    pub fn workspace_bytes(&self) -> u64 {
        8 * self.desc.m_max as u64 * self.segments.iter().sum::<usize>() as u64
    }

    /// Joins the kernels with one binding of `logits` a part, `ids` `[T]` of `u32`, and [`Self::workspace_bytes`].
    ///
    /// # Errors
    /// [`Error::Binding`], [`Error::Alignment`] or [`Error::Limit`] for a buffer that does not fit, [`Error::Kernel`] for
    /// another number of parts.
    pub fn bind(
        &self,
        gpu: &Gpu,
        logits: &[BufferBinding<'_>],
        ids: BufferBinding<'_>,
        workspace: BufferBinding<'_>,
    ) -> Result<BoundArgmax, Error> {
        let desc = &self.desc;
        if logits.len() != desc.columns.len() {
            return unsupported("logits", format!("{} parts", desc.columns.len()), logits.len());
        }
        let slots: usize = self.segments.iter().sum();
        let candidates = |workspace| Operand { name: "workspace", binding: workspace, bytes: self.workspace_bytes() };
        let mut parts = Vec::with_capacity(logits.len());
        let (mut first, mut slot) = (0, 0);
        for ((binding, &columns), &segments) in logits.iter().zip(&desc.columns).zip(&self.segments) {
            let part = Operand { name: "logits", binding: binding.clone(), bytes: desc.part_bytes(columns) };
            let bound = gpu.bind(&self.search, &[part, candidates(workspace.clone())])?;
            parts.push((bound, [columns, first, segments, slot, slots].map(|x| x as u32)));
            first += columns;
            slot += segments;
        }
        let ids = Operand { name: "ids", binding: ids, bytes: 4 * desc.m_max as u64 };
        let merge = gpu.bind(&self.merge, &[candidates(workspace), ids])?;
        let (m_max, grid) = (desc.m_max, row_grid(gpu, desc.m_max));
        Ok(BoundArgmax { parts, merge, m_max, slots: slots as u32, grid, workgroup: self.workgroup })
    }
}

impl BoundArgmax {
    /// Records the first `tokens` tokens.
    ///
    /// # Errors
    /// [`Error::Kernel`] for more tokens than planned.
    pub fn enqueue(&self, recorder: &mut Recorder<'_>, tokens: usize) -> Result<(), Error> {
        check_tokens(tokens, self.m_max)?;
        let tokens = tokens as u32;
        for (bound, [columns, first, segments, slot, slots]) in &self.parts {
            let params = [tokens, *columns, *first, *segments, *slot, *slots];
            recorder.dispatch(bound, bytemuck::cast_slice(&params), [*segments, self.grid.min(tokens), 1]);
        }
        let params = [tokens, self.slots];
        recorder.dispatch(&self.merge, bytemuck::cast_slice(&params), [tokens.div_ceil(self.workgroup), 1, 1]);
        Ok(())
    }
}

impl ArgmaxDesc {
    fn part_bytes(&self, columns: usize) -> u64 {
        self.m_max as u64 * columns as u64 * self.input.bytes()
    }
}

fn search_variant(input: Dtype, workgroup: u32) -> Variant {
    Variant { prelude: prelude(&[("Value", input)]), constants: vec![("WORKGROUP", f64::from(workgroup))] }
}

fn merge_variant(workgroup: u32) -> Variant {
    Variant { prelude: String::new(), constants: vec![("WORKGROUP", f64::from(workgroup))] }
}

pub(super) fn variants() -> Vec<(&'static Shader, Variant)> {
    let mut out = Vec::new();
    for workgroup in [64, 256] {
        out.extend([Dtype::F32, Dtype::F16].map(|input| (&ARGMAX, search_variant(input, workgroup))));
        out.push((&MERGE, merge_variant(workgroup)));
    }
    out
}
