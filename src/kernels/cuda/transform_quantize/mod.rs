//! The prologue of a W4A4 linear on a CUDA device: (RMSNorm or SwiGLU), smoothing, rotations and permutations, per-token
//! quantization, in one kernel.

mod desc;
mod operands;
mod pack;
mod tiling;

pub use desc::{TokenSource, TransformQuantizeDesc, TransformShape, TransformTarget};
pub use operands::{SourceOperand, TransformOutput};
pub use pack::TransformTables;

use super::checks::{check_address, check_range, unsupported};
use super::{Arch, Device, Dtype, Error, Function, Kernel, Launch, Stream, TokenForm, TokensLayout};
use crate::kernels::Transform;
use operands::{Args, Rotated, Sink, Source};
use std::sync::Arc;
use tiling::{PLAIN_THREADS, Rotation, Tiling};

/// `x -> x S^-1 R_0 P_0 R_1 ..` (eq. 5), then the per-token quantizer (eq. 1), in one kernel without workspace.
///
/// A token belongs to one block, from its first value to its codes, and these depend on the token alone: not on the tokens
/// beside it, nor on how many there are.
///
/// Without rotations all arithmetic is in `f32` in the order that [`Affine`](crate::kernels::Affine) gives: without norm and
/// SwiGLU, scales, zero points and codes are the CPU's bit for bit.
///
/// Rotations run on the tensor cores: a rotation's input, its matrix and its output are rounded to `f16` (a Hadamard's matrix
/// is exact), sums are in `f32`. With `u = 2^-11` an output `y_j = sum_k x_k r_kj` is off by at most
/// `sum_k |x_k| |r_kj| (2u + u^2) + u |y_j|` and the sums' `f32` rounding, besides `2^-21` for each value below `2^-10`. What the
/// quantizer gets is the last output so rounded, which [`TransformTarget::Float`] shows exactly in `f32`. Values up to 1,048,064
/// are in range, at every step.
///
/// A token whose transformed values hold NaN or infinity, leave that range on their way, or span more than `f32` can, gets scale
/// NaN, zero point 0, codes 0 and row sum 0, and NaN throughout as [`TransformTarget::Dequantized`]. As
/// [`TransformTarget::Float`] its values are what came of the arithmetic. A norm of finite values whose squares leave `f32` is 0,
/// as on the CPU.
#[derive(Debug, Clone)]
pub struct TransformQuantizePlan {
    desc: TransformQuantizeDesc,
    form: TokenForm,
    multiprocessors: u32,
    function: Arc<Function>,
    way: Way,
}

#[derive(Debug, Clone)]
enum Way {
    /// No rotation: a block a token.
    Plain,
    /// What fits into a block, by tokens a block: 1, 2, 4, 8.
    Rotated { rotation: Rotation, tilings: Vec<Tiling> },
}

impl TransformQuantizePlan {
    /// Chooses and loads the kernel for `desc`. Codes lie as the GEMM of this device reads them, [`TokenForm::of`].
    ///
    /// # Errors
    /// [`Error::Kernel`] for shapes that no [`Transform`] has, a rotation of more than 256 channels, a missing quantizer or
    /// settings outside [`Affine::new`](crate::kernels::Affine::new)'s; [`Error::Limit`] for a token that does not fit into a
    /// block; what [`Device::load`] gives.
    pub fn plan(device: &dyn Device, desc: &TransformQuantizeDesc) -> Result<Self, Error> {
        let bits = desc.affine.map_or(4, |affine| affine.bits);
        Self::plan_as(device, desc, TokenForm::of(device.chip().arch, bits))
    }

    /// As [`Self::plan`], with codes in another form.
    ///
    /// # Errors
    /// As [`Self::plan`]; [`Error::Kernel`] for more than 4 bits as [`TokenForm::Fragments4`].
    pub fn plan_as(device: &dyn Device, desc: &TransformQuantizeDesc, form: TokenForm) -> Result<Self, Error> {
        desc.check()?;
        if let Some(affine) = desc.affine
            && affine.bits > 4
            && form == TokenForm::Fragments4
            && desc.target == TransformTarget::Codes
        {
            return unsupported("bits", "at most 4 in a form of 4-bit codes", affine.bits);
        }
        let chip = device.chip();
        let (kernel, way) = if desc.shape.rotations == 0 {
            (plain_kernel(desc.input), Way::Plain)
        } else {
            let rotation = Rotation::of(&desc.shape)?;
            let tilings = tiling::fitting(chip.arch, &desc.shape, &rotation)?;
            (rotated_kernel(desc.input, &rotation), Way::Rotated { rotation, tilings })
        };
        let function = device.load(&kernel)?;
        Ok(Self { desc: *desc, form, multiprocessors: chip.multiprocessors, function, way })
    }

    /// What was planned.
    #[must_use]
    pub fn desc(&self) -> &TransformQuantizeDesc {
        &self.desc
    }

    /// How the codes lie.
    #[must_use]
    pub fn layout(&self) -> TokensLayout {
        TokensLayout { form: self.form, m_max: self.desc.m_max, k: self.desc.shape.channels }
    }

    /// Which kernel runs for `tokens` tokens, and how many of them a block takes.
    #[must_use]
    pub fn kernel(&self, tokens: usize) -> String {
        let kernel = &self.function.kernel;
        match &self.way {
            Way::Plain => format!("{kernel}, a token a block"),
            Way::Rotated { rotation, tilings } => {
                let tiling = tiling::choose(tilings, tokens, self.multiprocessors);
                let threads = tiling.threads(rotation, tokens, self.multiprocessors);
                let (tokens, kib) = (tiling.tokens(), tiling.shared(rotation, threads).div_ceil(1024));
                format!("{kernel}, {tokens} tokens a block of {threads} threads and {kib} KiB")
            }
        }
    }

    /// Uploads the rotations, permutations and factors of `transform`, after [`Transform::validate`].
    ///
    /// # Errors
    /// [`Error::Kernel`] for a transform that is not valid or has another shape than was planned; [`Error::OutOfMemory`].
    pub fn pack(&self, device: &Arc<dyn Device>, transform: &Transform) -> Result<TransformTables, Error> {
        transform.validate()?;
        let shape = TransformShape::of(transform);
        if shape != self.desc.shape {
            return unsupported("transform", format!("{:?}", self.desc.shape), format!("{shape:?}"));
        }
        match &self.way {
            Way::Plain => TransformTables::new(device, transform, None, &[]),
            Way::Rotated { rotation, tilings } => TransformTables::new(device, transform, Some(rotation), tilings),
        }
    }

    /// Enqueues `tokens` tokens: `source` in the planned type, the `tables` of a transform of the planned shape, and where the
    /// result goes, for the `T = tokens` of this call.
    ///
    /// # Safety
    /// The addresses must be the device's and hold what the shape says until the kernel has run, and so must the tables. The
    /// result must not overlap what is read.
    ///
    /// # Errors
    /// [`Error::Kernel`] for more tokens than planned, for a source, tables or an output other than planned;
    /// [`Error::Alignment`] for an address that is no multiple of 16.
    pub unsafe fn enqueue(
        &self,
        device: &dyn Device,
        stream: Stream,
        tokens: usize,
        source: SourceOperand,
        tables: &TransformTables,
        out: TransformOutput,
    ) -> Result<(), Error> {
        let desc = &self.desc;
        check_range("tokens", tokens, 0, desc.m_max)?;
        if tables.shape() != &desc.shape {
            return unsupported("tables", format!("{:?}", desc.shape), format!("{:?}", tables.shape()));
        }
        let span = match &self.way {
            Way::Plain => 8,
            Way::Rotated { rotation, .. } => rotation.span,
        };
        let source = Source::new(desc, tokens, source, tables.inverse_smooth(), span)?;
        let sink = Sink::new(desc, self.form, tokens, out)?;
        let launch = match &self.way {
            Way::Plain => {
                // Blocks for the tokens that fill up the last atom: codes are 0 there.
                let rows = if desc.target == TransformTarget::Codes { tokens.next_multiple_of(8) } else { tokens };
                Launch::new(&self.function, [rows as u32, 1, 1], PLAIN_THREADS, 128, &Args { source, sink })
            }
            Way::Rotated { rotation, tilings } => {
                let tiling = tiling::choose(tilings, tokens, self.multiprocessors);
                let threads = tiling.threads(rotation, tokens, self.multiprocessors);
                let arguments = Rotated::new(source, sink, tables, desc, rotation, tiling);
                let rows = if desc.target == TransformTarget::Codes { tokens.next_multiple_of(8) } else { tokens };
                let blocks = rows.div_ceil(tiling.tokens()) as u32;
                Launch::new(&self.function, [blocks, 1, 1], threads, tiling.shared(rotation, threads), &arguments)
            }
        };
        // SAFETY: the caller vouches for the addresses; every block stays in the rows of its tokens.
        unsafe { device.launch(stream, &launch) }
    }
}

fn plain_kernel(input: Dtype) -> Kernel {
    let defines = vec![("INPUT", input.define())];
    Kernel { file: "quantize_tokens.cu", entry: "quantize_tokens", defines, archs: &Arch::ALL, registers: 64 }
}

fn rotated_kernel(input: Dtype, rotation: &Rotation) -> Kernel {
    let defines =
        vec![("INPUT", input.define()), ("SIZE", rotation.size), ("HADAMARD", u32::from(rotation.butterflies))];
    // One block of 512 threads or two of 256 have a multiprocessor's registers.
    Kernel { file: "transform_quantize.cu", entry: "transform_quantize", defines, archs: &Arch::ALL, registers: 128 }
}

/// Every kernel of this family.
pub(super) fn kernels() -> Vec<Kernel> {
    let mut out = Vec::new();
    for input in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        out.push(plain_kernel(input));
        out.extend(Rotation::variants().map(|rotation| rotated_kernel(input, &rotation)));
    }
    out
}
