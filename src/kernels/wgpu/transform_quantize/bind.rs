//! A transform's numbers on the device, and the kernel joined with the host's buffers.

use super::{TokenSource, TransformQuantizePlan, TransformShape, TransformTarget};
use crate::kernels::wgpu::pipelines::{Bound, Operand};
use crate::kernels::wgpu::plan_checks::{check_tokens, unsupported};
use crate::kernels::wgpu::{Error, Gpu, Recorder, TokensBinding};
use crate::kernels::{Affine, Transform};
use ::wgpu::{Buffer, BufferBinding};

/// The numbers of one [`Transform`] in device memory.
#[derive(Debug)]
pub struct TransformTables {
    shape: TransformShape,
    rotations: Buffer,
    permutations: Buffer,
    inverse_smooth: Buffer,
    /// Stand in for a weight and a workspace where none is needed.
    absent: Buffer,
    scratch: Buffer,
}

/// The host's memory with the tokens, in the type that the plan names.
#[derive(Debug, Clone)]
pub enum SourceBinding<'a> {
    /// `[T, K]`.
    Tokens(BufferBinding<'a>),
    /// Operands of the norm.
    RmsNorm {
        /// `[T, K]`.
        x: BufferBinding<'a>,
        /// `[K]` in `f32`.
        weight: BufferBinding<'a>,
    },
    /// `[T, 2K]`.
    SiluMul(BufferBinding<'a>),
}

/// The host's memory for what the kernel writes.
#[derive(Debug, Clone)]
pub enum TransformOutput<'a> {
    /// For [`TransformTarget::Codes`].
    Codes(TokensBinding<'a>),
    /// `[T, K]`, for the other targets.
    Values(BufferBinding<'a>),
}

/// A [`TransformQuantizePlan`] with its operands, ready to be recorded.
#[derive(Debug, Clone)]
pub struct BoundTransformQuantize {
    bound: Bound,
    m_max: usize,
    workgroups: usize,
    params: Params,
}

/// As the shader declares it.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Params {
    tokens: u32,
    symmetric: u32,
    clip: f32,
    levels: f32,
    inverse_levels: f32,
    epsilon: f32,
}

impl TransformTables {
    /// The shape of the transform.
    #[must_use]
    pub fn shape(&self) -> &TransformShape {
        &self.shape
    }

    /// Bytes of device memory.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.rotations.size() + self.permutations.size() + self.inverse_smooth.size()
    }
}

impl TransformQuantizePlan {
    /// Uploads the rotations, permutations and factors of `transform`, after [`Transform::validate`].
    ///
    /// # Errors
    /// [`Error::Kernel`] for a transform that is not valid or has another shape than was planned, and as
    /// [`Gpu::upload`].
    pub fn pack(&self, gpu: &Gpu, transform: &Transform) -> Result<TransformTables, Error> {
        transform.validate()?;
        let shape = TransformShape::of(transform);
        if shape != self.desc.shape {
            return unsupported("transform", format!("{:?}", self.desc.shape), format!("{shape:?}"));
        }
        // A Hadamard kernel computes its matrix.
        let rotations: &[f32] = if shape.hadamard { &[] } else { &transform.rotations };
        let smooth = transform.inverse_smooth.as_deref().unwrap_or_default();
        let upload = |label: &str, data: &[u8]| gpu.upload(label, if data.is_empty() { &[0; 16] } else { data });
        Ok(TransformTables {
            shape,
            rotations: upload("rotations", bytemuck::cast_slice(rotations))?,
            permutations: upload("permutations", bytemuck::cast_slice(&transform.permutations))?,
            inverse_smooth: upload("inverse_smooth", bytemuck::cast_slice(smooth))?,
            absent: gpu.buffer("absent", 16)?,
            scratch: gpu.buffer("scratch", 16)?,
        })
    }

    /// Joins the kernel with its operands: the tokens `source` in the planned type, the `tables` of a transform of the
    /// planned shape, and where the result goes. `workspace` is [`Self::workspace_bytes`] of device memory, `None` when
    /// that is 0; what it holds does not matter, and kernels recorded into one encoder may share it.
    ///
    /// # Errors
    /// [`Error::Binding`], [`Error::Alignment`] or [`Error::Limit`] for a buffer that does not fit, [`Error::Kernel`] for
    /// a source, an output, tables or a missing workspace other than planned.
    pub fn bind<'a>(
        &self,
        gpu: &Gpu,
        source: SourceBinding<'a>,
        tables: &'a TransformTables,
        out: TransformOutput<'a>,
        workspace: Option<BufferBinding<'a>>,
    ) -> Result<BoundTransformQuantize, Error> {
        let desc = &self.desc;
        if tables.shape != desc.shape {
            return unsupported("tables", format!("{:?}", desc.shape), format!("{:?}", tables.shape));
        }
        let (values, source_bytes) = (desc.source, desc.source_bytes());
        // What a variant does not use is still declared, and bound to something that is there anyway.
        let absent = tables.absent.as_entire_buffer_binding();
        let k = desc.shape.channels as u64;
        let (x, weight, weight_bytes) = match (source, values) {
            (SourceBinding::Tokens(x), TokenSource::Tokens) => (x, absent, 16),
            (SourceBinding::RmsNorm { x, weight }, TokenSource::RmsNorm { .. }) => (x, weight, 4 * k),
            (SourceBinding::SiluMul(x), TokenSource::SiluMul) => (x, absent, 16),
            (source, _) => return unsupported("source", format!("{values:?}"), source.name()),
        };
        let workspace = match (workspace, self.workspace_bytes()) {
            (_, 0) => tables.scratch.as_entire_buffer_binding(),
            (Some(workspace), _) => workspace,
            (None, bytes) => return Err(Error::Binding { operand: "workspace", expected: bytes, got: 0 }),
        };
        let whole = |name, buffer: &'a Buffer| Operand {
            name,
            binding: buffer.as_entire_buffer_binding(),
            bytes: buffer.size(),
        };
        let mut operands = vec![
            Operand { name: "source", binding: x, bytes: source_bytes },
            Operand { name: "weight", binding: weight, bytes: weight_bytes },
            whole("rotations", &tables.rotations),
            whole("permutations", &tables.permutations),
            whole("inverse_smooth", &tables.inverse_smooth),
            Operand { name: "workspace", binding: workspace, bytes: self.workspace_bytes().max(16) },
        ];
        match (out, desc.target) {
            (TransformOutput::Codes(TokensBinding { codes, params }), TransformTarget::Codes) => {
                operands.push(Operand { name: "codes", binding: codes, bytes: desc.out_bytes() });
                operands.push(Operand { name: "params", binding: params, bytes: desc.layout().param_bytes() });
            }
            (TransformOutput::Values(out), TransformTarget::Float(_) | TransformTarget::Dequantized(_)) => {
                operands.push(Operand { name: "out", binding: out, bytes: desc.out_bytes() });
            }
            (TransformOutput::Codes(_), target) => return unsupported("out", format!("{target:?}"), "codes"),
            (TransformOutput::Values(_), target) => return unsupported("out", format!("{target:?}"), "values"),
        }
        let affine = desc.affine.unwrap_or(Affine { bits: 8, clip: 1.0, symmetric: false });
        let levels = f32::from(affine.max_code());
        let params = Params {
            tokens: 0,
            symmetric: affine.symmetric.into(),
            clip: affine.clip,
            levels,
            inverse_levels: 1.0 / levels,
            epsilon: if let TokenSource::RmsNorm { epsilon } = values { epsilon } else { 0.0 },
        };
        let bound = gpu.bind(&self.kernel, &operands)?;
        Ok(BoundTransformQuantize { bound, m_max: desc.m_max, workgroups: self.tile.workgroups, params })
    }
}

impl BoundTransformQuantize {
    /// Records the first `tokens` tokens.
    ///
    /// # Errors
    /// [`Error::Kernel`] for more tokens than planned.
    pub fn enqueue(&self, recorder: &mut Recorder<'_>, tokens: usize) -> Result<(), Error> {
        check_tokens(tokens, self.m_max)?;
        let params = Params { tokens: tokens as u32, ..self.params };
        recorder.dispatch(&self.bound, bytemuck::bytes_of(&params), [tokens.min(self.workgroups) as u32, 1, 1]);
        Ok(())
    }
}

impl SourceBinding<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::Tokens(_) => "Tokens",
            Self::RmsNorm { .. } => "RmsNorm",
            Self::SiluMul(_) => "SiluMul",
        }
    }
}
