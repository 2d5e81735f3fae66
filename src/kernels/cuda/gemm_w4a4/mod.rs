//! The packed INT4 GEMM: quantized tokens by a quantized weight, exact in 32-bit integers.
//!
//! ```text
//! acc = sum_k qx[t,k] qw[n,k]     rs[t] = sum_k qx[t,k]     c[n] = sum_k qw[n,k] - K zw[n]
//! I   = acc - zw[n] rs[t] - zx[t] c[n]                      y = (sx[t] sw[n]) float(I) + bias[n] (+ y)
//! ```
//!
//! Weights are the left operand of the matrix instructions and tokens the right one, whose tiles are 8 wide: a call with few
//! tokens wastes little. One packed layout ([`HostWeights`]) serves all chips and all numbers of tokens.

mod pack;
mod sm8x;
mod sm8x_choice;
mod sm90;
mod sm90_schedule;
mod tile;

pub use pack::{HostWeights, PackedWeights, WeightsOperand};
pub use tile::GemmTile;

use super::checks::{check_address, check_range, unsupported};
use super::{Address, Arch, Device, Dtype, Error, Kernel, Launch, Stream, TokenForm, TokensLayout, TokensOperand};
use crate::kernels::{Affine, QuantizedMatrix};
use std::sync::Arc;

/// A GEMM `y[T, N] = x[T, K] W[N, K]^T` of quantized operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GemmW4A4Desc {
    /// Most tokens `T` of one call.
    pub m_max: usize,
    /// Output channels `N`.
    pub n: usize,
    /// Input channels `K`.
    pub k: usize,
    /// Bits of a weight code, 2 to 4.
    pub weight_bits: u32,
    /// Bits of an activation code, 2 to 8.
    pub activation_bits: u32,
    /// Type of `y`. Half precision overflows to infinity from 65,520 on.
    pub out: Dtype,
    /// Whether a bias is added to each token; it is packed with the weights.
    pub bias: bool,
    /// Whether `y` holds numbers to add to, as a residual does; otherwise it is overwritten.
    pub accumulate: bool,
}

impl GemmW4A4Desc {
    fn check(&self) -> Result<(), Error> {
        check_range("m_max", self.m_max, 1, 1 << 24)?;
        check_range("n", self.n, 1, 1 << 24)?;
        check_range("weight_bits", self.weight_bits as usize, 2, 4)?;
        let activation_max = u64::from(Affine::new(self.activation_bits, 1.0)?.max_code());
        let k_max = i32::MAX as u64 / (activation_max * ((1 << self.weight_bits) - 1));
        if self.k == 0 || self.k as u64 > k_max {
            let bits = format!("{} by {} bits", self.weight_bits, self.activation_bits);
            return unsupported("k", format!("1 to {k_max} for {bits}, so that sums fit 32-bit integers"), self.k);
        }
        check_range("m_max * n", self.m_max * self.n, 1, 1 << 40)?;
        check_range("bytes of weights", self.weight_bytes() as usize, 1, 1 << 40)
    }
}

/// What a plan writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    Float(Dtype),
    Integers,
}

impl Output {
    /// What the sources call it: `DTYPE_..` of `types.cuh`, or `OUTPUT_INTEGERS` of `gemm_w4a4.cuh`.
    pub(super) fn define(self) -> u32 {
        match self {
            Self::Float(dtype) => dtype.define(),
            Self::Integers => 3,
        }
    }
}

/// Addresses of one call, checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operands {
    pub(super) tokens: TokensOperand,
    pub(super) weights: WeightsOperand,
    pub(super) y: Address,
    pub(super) workspace: Address,
}

/// The kernels of one kind of tensor core, by the number of tokens.
#[derive(Debug, Clone)]
enum Family {
    /// Ampere and Ada: `mma.sync` in INT4 or INT8.
    Mma(sm8x::Ladder),
    /// Hopper: `wgmma` in INT8.
    Wgmma(sm90::Ladder),
}

impl Family {
    fn new(device: &dyn Device, desc: &GemmW4A4Desc, output: Output, tile: Option<GemmTile>) -> Result<Self, Error> {
        match device.chip().arch {
            Arch::Sm80 | Arch::Sm86 | Arch::Sm89 => sm8x::Ladder::new(device, desc, output, tile).map(Self::Mma),
            Arch::Sm90a => sm90::Ladder::new(device, desc, output, tile).map(Self::Wgmma),
        }
    }

    fn workspace_bytes(&self) -> u64 {
        match self {
            Self::Mma(ladder) => ladder.workspace_bytes(),
            Self::Wgmma(ladder) => ladder.workspace_bytes(),
        }
    }

    fn kernel(&self, tokens: usize) -> String {
        match self {
            Self::Mma(ladder) => ladder.kernel(tokens),
            Self::Wgmma(ladder) => ladder.kernel(tokens),
        }
    }

    fn launch(&self, tokens: usize, operands: &Operands) -> Launch {
        match self {
            Self::Mma(ladder) => ladder.launch(tokens, operands),
            Self::Wgmma(ladder) => ladder.launch(tokens, operands),
        }
    }
}

/// A planned [`GemmW4A4Desc`].
#[derive(Debug, Clone)]
pub struct GemmW4A4Plan {
    desc: GemmW4A4Desc,
    arch: Arch,
    family: Family,
}

impl GemmW4A4Plan {
    /// Chooses and loads the kernels of `desc` for every number of tokens up to `m_max`.
    ///
    /// # Errors
    /// [`Error::Kernel`] when bits are out of range, the shape is empty or larger than 2^24, or `k` so large that sums could
    /// leave `i32` (`k * (2^wb - 1) * (2^ab - 1)` must stay below `2^31`); what [`Device::load`] gives.
    pub fn plan(device: &dyn Device, desc: &GemmW4A4Desc) -> Result<Self, Error> {
        Self::plan_output(device, desc, Output::Float(desc.out), None)
    }

    /// As [`GemmW4A4Plan::plan`] with one tile for all numbers of tokens: for tests and for tuning.
    ///
    /// # Errors
    /// As [`GemmW4A4Plan::plan`], and [`Error::Kernel`] for a tile that the chip has no kernel for, or that takes fewer tokens
    /// than `m_max`.
    pub fn plan_with(device: &dyn Device, desc: &GemmW4A4Desc, tile: GemmTile) -> Result<Self, Error> {
        Self::plan_output(device, desc, Output::Float(desc.out), Some(tile))
    }

    /// A plan that writes the integers `I [T, N]` (`i32`) where others write `y`, without bias or residual: for tests
    /// against an oracle.
    ///
    /// # Errors
    /// As [`GemmW4A4Plan::plan_with`].
    pub fn plan_integers(device: &dyn Device, desc: &GemmW4A4Desc, tile: Option<GemmTile>) -> Result<Self, Error> {
        Self::plan_output(device, desc, Output::Integers, tile)
    }

    fn plan_output(
        device: &dyn Device,
        desc: &GemmW4A4Desc,
        output: Output,
        tile: Option<GemmTile>,
    ) -> Result<Self, Error> {
        desc.check()?;
        let family = Family::new(device, desc, output, tile)?;
        Ok(Self { desc: *desc, arch: device.chip().arch, family })
    }

    /// What was planned.
    #[must_use]
    pub fn desc(&self) -> &GemmW4A4Desc {
        &self.desc
    }

    /// How its tokens lie.
    #[must_use]
    pub fn tokens(&self) -> TokensLayout {
        let form = TokenForm::of(self.arch, self.desc.activation_bits);
        TokensLayout { form, m_max: self.desc.m_max, k: self.desc.k }
    }

    /// The kernel that runs for `tokens` tokens, with its tile.
    #[must_use]
    pub fn kernel(&self, tokens: usize) -> String {
        self.family.kernel(tokens)
    }

    /// Bytes of the workspace, which is 0 before its first use and is left 0. Calls that may overlap need one each.
    #[must_use]
    pub fn workspace_bytes(&self) -> u64 {
        self.family.workspace_bytes()
    }

    /// Packs one weight `[n, k]` without bias into device memory.
    ///
    /// # Errors
    /// As [`GemmW4A4Plan::pack_stacked`].
    pub fn pack(&self, device: &Arc<dyn Device>, matrix: &QuantizedMatrix) -> Result<PackedWeights, Error> {
        self.pack_stacked(device, &[matrix], None)
    }

    /// Packs weights `[n_i, k]` one below the other, with `n` their sum (`q`, `k`, `v` or `gate`, `up` as one GEMM), and the
    /// bias `[n]` where one was planned.
    ///
    /// # Errors
    /// [`Error::Kernel`] when a matrix or the bias is not what was planned, [`Error::OutOfMemory`].
    pub fn pack_stacked(
        &self,
        device: &Arc<dyn Device>,
        matrices: &[&QuantizedMatrix],
        bias: Option<&[f32]>,
    ) -> Result<PackedWeights, Error> {
        self.pack_host(matrices, bias)?.upload(device)
    }

    /// As [`GemmW4A4Plan::pack_stacked`], into the host's memory.
    ///
    /// # Errors
    /// [`Error::Kernel`] when a matrix or the bias is not what was planned.
    pub fn pack_host(&self, matrices: &[&QuantizedMatrix], bias: Option<&[f32]>) -> Result<HostWeights, Error> {
        pack::pack(&self.desc, matrices, bias)
    }

    /// Enqueues the product for `tokens` tokens: `x` as [`GemmW4A4Plan::tokens`] says, `weights` of a plan of the same `n`,
    /// `k` and bias, `y` `[T, N]`, and [`GemmW4A4Plan::workspace_bytes`] of `workspace` (0 will do where that is 0).
    ///
    /// # Safety
    /// The addresses must be the device's and hold what the plan says until the kernel has run; the workspace must be 0 when
    /// the kernel starts, and no other kernel may use it meanwhile.
    ///
    /// # Errors
    /// [`Error::Kernel`] for more tokens than planned, [`Error::Alignment`] for an address that is no multiple of 16.
    pub unsafe fn enqueue(
        &self,
        device: &dyn Device,
        stream: Stream,
        tokens: usize,
        x: TokensOperand,
        weights: WeightsOperand,
        y: Address,
        workspace: Address,
    ) -> Result<(), Error> {
        check_range("tokens", tokens, 0, self.desc.m_max)?;
        for (what, address) in [
            ("x.codes", x.codes),
            ("x.params", x.params),
            ("weights.weights", weights.weights),
            ("weights.channels", weights.channels),
            ("y", y),
        ] {
            check_address(what, address)?;
        }
        if self.workspace_bytes() > 0 {
            check_address("workspace", workspace)?;
        }
        if tokens == 0 {
            return Ok(());
        }
        let launch = self.family.launch(tokens, &Operands { tokens: x, weights, y, workspace });
        // SAFETY: the caller vouches for the addresses, and the ladder's kernels stay in the shapes of the plan.
        unsafe { device.launch(stream, &launch) }
    }
}

/// Every kernel of the family.
pub(super) fn kernels() -> Vec<Kernel> {
    [sm8x::kernels(), sm90::kernels()].concat()
}
