//! RMSNorm and SwiGLU's product on their own: the last norm of a model, and the floating-point baseline.

use super::arithmetic::PRELUDES;
use super::pipelines::{Access, Bound, Kernel, Operand, Shader, Variant};
use super::plan_checks::{
    check_bindings, check_dtype, check_range, check_tokens, prelude, row_grid, row_workgroup, unsupported,
};
use super::{Dtype, Error, Gpu, Recorder};
use ::wgpu::BufferBinding;
use std::sync::Arc;

static RMS_NORM: Shader = Shader {
    name: "rms_norm",
    sources: &[include_str!("../../../shaders/rms_norm.wgsl")],
    bindings: &[Access::Read, Access::Read, Access::Write],
    immediates: 12,
};
static SILU_MUL: Shader = Shader {
    name: "silu_mul",
    sources: &[include_str!("../../../shaders/silu.wgsl"), include_str!("../../../shaders/silu_mul.wgsl")],
    bindings: &[Access::Read, Access::Write],
    immediates: 8,
};

static RMS_NORM_REPRODUCIBLE: Shader = Shader {
    sources: &[
        include_str!("../../../shaders/reproducible.wgsl"),
        include_str!("../../../shaders/rms_norm_reproducible.wgsl"),
    ],
    ..RMS_NORM
};
static SILU_MUL_REPRODUCIBLE: Shader = Shader {
    sources: &[include_str!("../../../shaders/reproducible.wgsl"), include_str!("../../../shaders/silu_mul.wgsl")],
    ..SILU_MUL
};

/// The fast kernels and the reproducible ones.
static RMS_NORMS: [&Shader; 2] = [&RMS_NORM, &RMS_NORM_REPRODUCIBLE];
static SILU_MULS: [&Shader; 2] = [&SILU_MUL, &SILU_MUL_REPRODUCIBLE];

/// Shape and types of an operation on the rows of `[T, K]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowsDesc {
    /// Most tokens.
    pub m_max: usize,
    /// Channels `K` of an output row.
    pub channels: usize,
    /// Type of `x` or `gate_up`.
    pub input: Dtype,
    /// Type of `out`.
    pub output: Dtype,
}

impl RowsDesc {
    fn values(&self) -> u64 {
        self.m_max as u64 * self.channels as u64
    }

    fn compile(&self, gpu: &Gpu, shaders: [&'static Shader; 2], input_rows: u64) -> Result<Arc<Kernel>, Error> {
        check_range("channels", self.channels, 1, 1 << 24)?;
        check_range("m_max", self.m_max, 1, 1 << 24)?;
        check_dtype(gpu, self.input)?;
        check_dtype(gpu, self.output)?;
        let input = input_rows * self.values() * self.input.bytes();
        check_bindings(gpu, &[("x", input), ("out", self.values() * self.output.bytes())])?;
        let fused = gpu.reproducible();
        let shader = shaders[usize::from(fused.is_some())];
        gpu.kernel(shader, &variant([self.input, self.output], row_workgroup(gpu), fused))
    }
}

/// RMSNorm of each token: `out = x / sqrt(mean(x^2) + epsilon) * weight`, in `f32`, the mean summed by a tree, or as the CPU
/// does it where the device is asked for [`Arithmetic::Reproducible`](super::Arithmetic). A token with NaN or infinity spoils
/// its own row and no other.
#[derive(Debug)]
pub struct RmsNormPlan {
    desc: RowsDesc,
    epsilon: f32,
    kernel: Arc<Kernel>,
}

/// An [`RmsNormPlan`] with its operands.
#[derive(Debug, Clone)]
pub struct BoundRmsNorm {
    bound: Bound,
    desc: RowsDesc,
    epsilon: f32,
    grid: u32,
}

impl RmsNormPlan {
    /// Compiles the kernel.
    ///
    /// # Errors
    /// [`Error::Kernel`] for an empty shape or an `epsilon` that is negative or not finite, [`Error::MissingFeature`] for
    /// half precision without `SHADER_F16`, [`Error::Limit`] for operands too large to bind.
    pub fn plan(gpu: &Gpu, desc: &RowsDesc, epsilon: f32) -> Result<Self, Error> {
        if !(epsilon.is_finite() && epsilon >= 0.0) {
            return unsupported("epsilon", "a finite number of at least 0", epsilon);
        }
        Ok(Self { desc: *desc, epsilon, kernel: desc.compile(gpu, RMS_NORMS, 1)? })
    }

    /// Which kernel runs for `tokens` tokens.
    #[must_use]
    pub fn kernel(&self, _tokens: usize) -> &str {
        RMS_NORM.name
    }

    /// Joins the kernel with `x` `[T, K]`, `weight` `[K]` in `f32` and `out` `[T, K]`.
    ///
    /// # Errors
    /// [`Error::Binding`], [`Error::Alignment`] or [`Error::Limit`] for a buffer that does not fit.
    pub fn bind(
        &self,
        gpu: &Gpu,
        x: BufferBinding<'_>,
        weight: BufferBinding<'_>,
        out: BufferBinding<'_>,
    ) -> Result<BoundRmsNorm, Error> {
        let desc = self.desc;
        let operands = [
            Operand { name: "x", binding: x, bytes: desc.values() * desc.input.bytes() },
            Operand { name: "weight", binding: weight, bytes: 4 * desc.channels as u64 },
            Operand { name: "out", binding: out, bytes: desc.values() * desc.output.bytes() },
        ];
        let bound = gpu.bind(&self.kernel, &operands)?;
        Ok(BoundRmsNorm { bound, desc, epsilon: self.epsilon, grid: row_grid(gpu, desc.m_max) })
    }
}

impl BoundRmsNorm {
    /// Records the first `tokens` tokens.
    ///
    /// # Errors
    /// [`Error::Kernel`] for more tokens than planned.
    pub fn enqueue(&self, recorder: &mut Recorder<'_>, tokens: usize) -> Result<(), Error> {
        check_tokens(tokens, self.desc.m_max)?;
        let params = [tokens as u32, self.desc.channels as u32, self.epsilon.to_bits()];
        recorder.dispatch(&self.bound, bytemuck::cast_slice(&params), [self.grid.min(tokens as u32), 1, 1]);
        Ok(())
    }
}

/// SwiGLU's product: `out = silu(gate) * up` with `silu(x) = x / (1 + e^-x)`, in `f32`; with the CPU's exponential where the
/// device is asked for [`Arithmetic::Reproducible`](super::Arithmetic).
#[derive(Debug)]
pub struct SiluMulPlan {
    desc: RowsDesc,
    kernel: Arc<Kernel>,
}

/// A [`SiluMulPlan`] with its operands.
#[derive(Debug, Clone)]
pub struct BoundSiluMul {
    bound: Bound,
    desc: RowsDesc,
    grid: u32,
}

impl SiluMulPlan {
    /// Compiles the kernel.
    ///
    /// # Errors
    /// As [`RmsNormPlan::plan`].
    pub fn plan(gpu: &Gpu, desc: &RowsDesc) -> Result<Self, Error> {
        Ok(Self { desc: *desc, kernel: desc.compile(gpu, SILU_MULS, 2)? })
    }

    /// Which kernel runs for `tokens` tokens.
    #[must_use]
    pub fn kernel(&self, _tokens: usize) -> &str {
        SILU_MUL.name
    }

    /// Joins the kernel with `gate_up` `[T, 2K]`, gate in the first `K` columns of each row, and `out` `[T, K]`.
    ///
    /// # Errors
    /// As [`RmsNormPlan::bind`].
    pub fn bind(&self, gpu: &Gpu, gate_up: BufferBinding<'_>, out: BufferBinding<'_>) -> Result<BoundSiluMul, Error> {
        let desc = self.desc;
        let operands = [
            Operand { name: "gate_up", binding: gate_up, bytes: 2 * desc.values() * desc.input.bytes() },
            Operand { name: "out", binding: out, bytes: desc.values() * desc.output.bytes() },
        ];
        Ok(BoundSiluMul { bound: gpu.bind(&self.kernel, &operands)?, desc, grid: row_grid(gpu, desc.m_max) })
    }
}

impl BoundSiluMul {
    /// Records the first `tokens` tokens.
    ///
    /// # Errors
    /// [`Error::Kernel`] for more tokens than planned.
    pub fn enqueue(&self, recorder: &mut Recorder<'_>, tokens: usize) -> Result<(), Error> {
        check_tokens(tokens, self.desc.m_max)?;
        let params = [tokens as u32, self.desc.channels as u32];
        recorder.dispatch(&self.bound, bytemuck::cast_slice(&params), [self.grid.min(tokens as u32), 1, 1]);
        Ok(())
    }
}

fn variant([input, output]: [Dtype; 2], workgroup: u32, fused: Option<&str>) -> Variant {
    let prelude = prelude(&[("Value", input), ("Out", output)]) + fused.unwrap_or_default();
    Variant { prelude, constants: vec![("WORKGROUP", f64::from(workgroup))] }
}

pub(super) fn variants() -> Vec<(&'static Shader, Variant)> {
    let mut out = Vec::new();
    for input in [Dtype::F32, Dtype::F16] {
        for output in [Dtype::F32, Dtype::F16] {
            for workgroup in [64, 256] {
                for fused in [None, Some(PRELUDES[0]), Some(PRELUDES[1])] {
                    let kind = usize::from(fused.is_some());
                    let variant = variant([input, output], workgroup, fused);
                    out.extend([RMS_NORMS[kind], SILU_MULS[kind]].map(|shader| (shader, variant.clone())));
                }
            }
        }
    }
    out
}
