//! RMSNorm and SwiGLU's product on their own: the last norm of a model, and the floating-point baseline.

use super::checks::{check_address, check_range, unsupported};
use super::{Address, Arch, Device, Dtype, Error, Function, Kernel, Launch, Stream};
use bytemuck::{Pod, Zeroable};
use std::sync::Arc;

/// Threads of a block, which takes one token.
const THREADS: u32 = 256;

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
    fn check(&self) -> Result<(), Error> {
        check_range("channels", self.channels, 1, 1 << 24)?;
        check_range("m_max", self.m_max, 1, 1 << 24)
    }

    fn kernel(&self, entry: &'static str) -> Kernel {
        let defines = vec![("INPUT", self.input.define()), ("OUTPUT", self.output.define())];
        Kernel { file: "rms_norm.cu", entry, defines, archs: &Arch::ALL, registers: 64 }
    }
}

/// RMSNorm of each token: `out = x / sqrt(mean(x^2) + epsilon) * weight`, in `f32`. A token with NaN or infinity spoils its own
/// row and no other.
#[derive(Debug, Clone)]
pub struct RmsNormPlan {
    desc: RowsDesc,
    epsilon: f32,
    function: Arc<Function>,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct RmsNormArgs {
    x: Address,
    weight: Address,
    out: Address,
    channels: u32,
    epsilon: f32,
}

impl RmsNormPlan {
    /// Loads the kernel.
    ///
    /// # Errors
    /// [`Error::Kernel`] for an empty shape or an `epsilon` that is negative or not finite; what [`Device::load`] gives.
    pub fn plan(device: &dyn Device, desc: &RowsDesc, epsilon: f32) -> Result<Self, Error> {
        desc.check()?;
        if !(epsilon.is_finite() && epsilon >= 0.0) {
            return unsupported("epsilon", "a finite number of at least 0", epsilon);
        }
        Ok(Self { desc: *desc, epsilon, function: device.load(&desc.kernel("rms_norm"))? })
    }

    /// Which kernel runs for `tokens` tokens.
    #[must_use]
    pub fn kernel(&self, _tokens: usize) -> String {
        self.function.kernel.to_string()
    }

    /// Enqueues `tokens` tokens: `x` `[T, K]`, `weight` `[K]` in `f32`, `out` `[T, K]`, which may be `x`.
    ///
    /// # Safety
    /// The addresses must be the device's and hold what the shape says until the kernel has run.
    ///
    /// # Errors
    /// [`Error::Kernel`] for more tokens than planned, [`Error::Alignment`] for an address that is no multiple of 16.
    pub unsafe fn enqueue(
        &self,
        device: &dyn Device,
        stream: Stream,
        tokens: usize,
        x: Address,
        weight: Address,
        out: Address,
    ) -> Result<(), Error> {
        check_range("tokens", tokens, 0, self.desc.m_max)?;
        [("x", x), ("weight", weight), ("out", out)].into_iter().try_for_each(|(what, at)| check_address(what, at))?;
        let arguments = RmsNormArgs { x, weight, out, channels: self.desc.channels as u32, epsilon: self.epsilon };
        let launch = Launch::new(&self.function, [tokens as u32, 1, 1], THREADS, 128, &arguments);
        // SAFETY: the caller vouches for the addresses; the grid has a block a token, and a block stays in its row.
        unsafe { device.launch(stream, &launch) }
    }
}

/// SwiGLU's product: `out = silu(gate) * up` with `silu(x) = x / (1 + e^-x)`, in `f32`.
#[derive(Debug, Clone)]
pub struct SiluMulPlan {
    desc: RowsDesc,
    function: Arc<Function>,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct SiluMulArgs {
    gate_up: Address,
    out: Address,
    channels: u32,
    unused: u32,
}

impl SiluMulPlan {
    /// Loads the kernel.
    ///
    /// # Errors
    /// [`Error::Kernel`] for an empty shape; what [`Device::load`] gives.
    pub fn plan(device: &dyn Device, desc: &RowsDesc) -> Result<Self, Error> {
        desc.check()?;
        Ok(Self { desc: *desc, function: device.load(&desc.kernel("silu_mul_rows"))? })
    }

    /// Which kernel runs for `tokens` tokens.
    #[must_use]
    pub fn kernel(&self, _tokens: usize) -> String {
        self.function.kernel.to_string()
    }

    /// Enqueues `tokens` tokens: `gate_up` `[T, 2K]`, gate in the first `K` columns of each row, and `out` `[T, K]`.
    ///
    /// # Safety
    /// As [`RmsNormPlan::enqueue`].
    ///
    /// # Errors
    /// As [`RmsNormPlan::enqueue`].
    pub unsafe fn enqueue(
        &self,
        device: &dyn Device,
        stream: Stream,
        tokens: usize,
        gate_up: Address,
        out: Address,
    ) -> Result<(), Error> {
        check_range("tokens", tokens, 0, self.desc.m_max)?;
        [("gate_up", gate_up), ("out", out)].into_iter().try_for_each(|(what, at)| check_address(what, at))?;
        let arguments = SiluMulArgs { gate_up, out, channels: self.desc.channels as u32, unused: 0 };
        let launch = Launch::new(&self.function, [tokens as u32, 1, 1], THREADS, 0, &arguments);
        // SAFETY: as for RMSNorm.
        unsafe { device.launch(stream, &launch) }
    }
}

/// Every kernel of this file.
pub(super) fn kernels() -> Vec<Kernel> {
    let dtypes = [Dtype::F32, Dtype::F16, Dtype::Bf16];
    let mut out = Vec::new();
    for input in dtypes {
        for output in dtypes {
            let desc = RowsDesc { m_max: 1, channels: 1, input, output };
            out.extend(["rms_norm", "silu_mul_rows"].map(|entry| desc.kernel(entry)));
        }
    }
    out
}
