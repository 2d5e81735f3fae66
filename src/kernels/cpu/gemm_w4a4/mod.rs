//! The packed INT4 GEMM: quantized tokens by a quantized weight, exact in `i32`, for prefill and decode.
//!
//! ```text
//! acc = sum_k qx[t,k] qw[n,k]     rs[t] = sum_k qx[t,k]     c[n] = sum_k qw[n,k] - K zw[n]
//! I   = acc - zw[n] rs[t] - zx[t] c[n]                      y = (sx[t] sw[n]) float(I) (+ bias[n]) (+ y)
//! ```

mod pack;
mod portable;
mod task;

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

#[cfg(test)]
mod tests;

pub use pack::PackedWeights;

use super::super::error::check_length;
use super::super::{Affine, Error, QuantizedMatrix};
use super::{Isa, QuantizedTokens};
use rayon::prelude::*;
use std::ops::Range;
use task::{Output, Task};

/// A GEMM `y[T, N] = x[T, K] W[N, K]^T` of quantized operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GemmW4A4Desc {
    /// Most tokens `T` of one call.
    pub m_max: usize,
    /// Output channels `N`.
    pub n: usize,
    /// Input channels `K`.
    pub k: usize,
    /// Bits of a weight code, 2 to 8. Up to 4 bits two codes share a byte.
    pub weight_bits: u32,
    /// Bits of an activation code, 2 to 8.
    pub activation_bits: u32,
}

/// What happens to a product before it is written: first the bias is added, then what `y` held.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Epilogue<'a> {
    /// Added to each token, `[N]`.
    pub bias: Option<&'a [f32]>,
    /// Whether `y` holds numbers to add to, as a residual does; otherwise it is overwritten.
    pub accumulate: bool,
}

/// A planned [`GemmW4A4Desc`] for one instruction set.
#[derive(Debug, Clone)]
pub struct GemmW4A4 {
    desc: GemmW4A4Desc,
    isa: Isa,
}

impl GemmW4A4 {
    /// Chooses the kernels for `desc` on `isa`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when bits are outside 2..=8, when `isa` is not on this machine, or when `k` is so large
    /// that an integer result could leave `i32` (`k * (2^wb - 1) * (2^ab - 1)` must stay below `2^31`: 9,544,371 for
    /// 4 by 4 bits, 33,025 for 8 by 8). From `k` = 74,565 on (4 by 4 bits) `float(I)` may round.
    pub fn plan(desc: &GemmW4A4Desc, isa: Isa) -> Result<Self, Error> {
        let weight_max = u64::from(Affine::new(desc.weight_bits, 1.0)?.max_code());
        let activation_max = u64::from(Affine::new(desc.activation_bits, 1.0)?.max_code());
        let k_max = i32::MAX as u64 / (weight_max * activation_max);
        if desc.k as u64 > k_max {
            return Err(Error::Unsupported {
                what: "k",
                expected: format!(
                    "at most {k_max} for {} by {} bits, so that sums fit 32-bit integers",
                    desc.weight_bits, desc.activation_bits
                ),
                got: desc.k.to_string(),
            });
        }
        let stride = desc.k.next_multiple_of(pack::BLOCK);
        let largest = desc.m_max.max(desc.n).checked_next_multiple_of(32).and_then(|rows| rows.checked_mul(stride));
        if largest.is_none_or(|bytes| bytes > isize::MAX as usize / 2)
            || desc.m_max.checked_mul(desc.n).is_none_or(|elements| elements > isize::MAX as usize / 4)
        {
            return Err(Error::Unsupported {
                what: "m_max, n and k",
                expected: "operands that fit the address space".into(),
                got: format!("{} by {} by {}", desc.m_max, desc.n, desc.k),
            });
        }
        if !Isa::available().contains(&isa) {
            let names: Vec<_> = Isa::available().iter().map(|isa| isa.name()).collect();
            return Err(Error::Unsupported { what: "isa", expected: names.join(", "), got: isa.name().into() });
        }
        Ok(Self { desc: *desc, isa })
    }

    /// What was planned.
    #[must_use]
    pub fn desc(&self) -> &GemmW4A4Desc {
        &self.desc
    }

    /// The kernel that runs for `tokens` tokens.
    #[must_use]
    pub fn kernel(&self, tokens: usize) -> &'static str {
        match self.isa {
            Isa::Portable => "portable",
            Isa::Neon => "neon udot",
            Isa::Avx2 => "avx2 vpmaddubsw",
            Isa::Avx512Vnni => "avx512 vpdpbusd",
            Isa::Amx if self.uses_amx(tokens) => "amx tdpbuud",
            Isa::Amx => "avx512 vpdpbusd",
        }
    }

    /// Packs one weight `[n, k]`.
    ///
    /// # Errors
    /// [`Error::Length`] or [`Error::Unsupported`] when the matrix is not what was planned or is not consistent.
    pub fn pack(&self, matrix: &QuantizedMatrix) -> Result<PackedWeights, Error> {
        self.pack_stacked(&[matrix])
    }

    /// Packs weights `[n_i, k]` one below the other, with `n` their sum: `q`, `k`, `v` or `gate`, `up` as one GEMM.
    ///
    /// # Errors
    /// As [`GemmW4A4::pack`], for each of them.
    pub fn pack_stacked(&self, matrices: &[&QuantizedMatrix]) -> Result<PackedWeights, Error> {
        pack::pack(&self.desc, matrices)
    }

    /// Bytes that `run` needs as workspace, any alignment.
    #[must_use]
    pub fn workspace_bytes(&self) -> usize {
        if self.uses_amx(self.desc.m_max) {
            self.desc.m_max.next_multiple_of(16) * self.desc.k.next_multiple_of(pack::BLOCK) + 63
        } else {
            0
        }
    }

    /// Computes `y [tokens, n]`, for the tokens that `x` holds. Allocates nothing. The result does not depend on
    /// threads or on the instruction set, bit for bit. Codes must keep to their bits and padding to code 0, as every
    /// quantizer of this crate leaves them; others give wrong numbers and nothing worse.
    ///
    /// # Errors
    /// [`Error::Length`] when `y`, the bias, the workspace or a field of `x` or `weights` does not have its length,
    /// [`Error::Unsupported`] when there are more than `m_max` tokens or the weights were packed for other bits.
    pub fn run(
        &self,
        weights: &PackedWeights,
        x: &QuantizedTokens,
        epilogue: Epilogue<'_>,
        y: &mut [f32],
        workspace: &mut [u8],
    ) -> Result<(), Error> {
        check_length("y", x.tokens().saturating_mul(self.desc.n), y.len())?;
        if let Some(bias) = epilogue.bias {
            check_length("bias", self.desc.n, bias.len())?;
        }
        let output = Output::Float { y: y.as_mut_ptr(), bias: epilogue.bias, accumulate: epilogue.accumulate };
        self.dispatch(weights, x, output, workspace)
    }

    /// Computes the integers `I [tokens, n]` alone, as `run` scales them: for tests against an oracle.
    ///
    /// # Errors
    /// As [`GemmW4A4::run`], with `integers` in the place of `y`.
    pub fn run_integer(
        &self,
        weights: &PackedWeights,
        x: &QuantizedTokens,
        integers: &mut [i32],
        workspace: &mut [u8],
    ) -> Result<(), Error> {
        check_length("integers", x.tokens().saturating_mul(self.desc.n), integers.len())?;
        self.dispatch(weights, x, Output::Integer(integers.as_mut_ptr()), workspace)
    }

    fn uses_amx(&self, tokens: usize) -> bool {
        self.isa == Isa::Amx && tokens >= AMX_TOKENS
    }

    /// Checks operands and runs; `output` has `x.tokens() * n` elements.
    fn dispatch(
        &self,
        weights: &PackedWeights,
        x: &QuantizedTokens,
        output: Output<'_>,
        workspace: &mut [u8],
    ) -> Result<(), Error> {
        let tokens = x.tokens();
        if tokens > self.desc.m_max {
            return Err(Error::Unsupported {
                what: "tokens",
                expected: format!("at most {} as planned", self.desc.m_max),
                got: tokens.to_string(),
            });
        }
        check_length("weights.n", self.desc.n, weights.n())?;
        check_length("weights.k", self.desc.k, weights.k())?;
        if weights.bits() != self.desc.weight_bits {
            return Err(Error::Unsupported {
                what: "weights.bits",
                expected: format!("{} as planned", self.desc.weight_bits),
                got: weights.bits().to_string(),
            });
        }
        check_length("x.k", self.desc.k, x.k())?;
        check_length("x.codes", x.capacity() * x.stride(), x.codes.len())?;
        check_length("x.scale", x.capacity(), x.scale.len())?;
        check_length("x.zero_point", x.capacity(), x.zero_point.len())?;
        check_length("x.row_sum", x.capacity(), x.row_sum.len())?;
        if workspace.len() < self.workspace_bytes() {
            return Err(Error::Length { operand: "workspace", expected: self.workspace_bytes(), got: workspace.len() });
        }
        if tokens == 0 || self.desc.n == 0 {
            return Ok(());
        }
        let task = Task {
            codes: &x.codes,
            stride: x.stride(),
            tokens,
            scale: &x.scale,
            zero_point: &x.zero_point,
            row_sum: &x.row_sum,
            #[cfg(target_arch = "x86_64")]
            activation_bits: self.desc.activation_bits,
            weights,
            output,
        };
        match self.isa {
            Isa::Portable => sweep(&task, portable::run),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => sweep(&task, avx2::run),
            #[cfg(target_arch = "x86_64")]
            Isa::Amx if self.uses_amx(tokens) => amx::run(&task, workspace),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni | Isa::Amx => sweep(&task, avx512::run),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => sweep(&task, neon::run),
            // `plan` refuses an instruction set that the machine lacks.
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512Vnni | Isa::Amx => sweep(&task, portable::run),
            #[cfg(not(target_arch = "aarch64"))]
            Isa::Neon => sweep(&task, portable::run),
        }
        Ok(())
    }
}

/// From so many tokens on tiles beat registers: few tokens fill a tile badly, but the weights are read once.
const AMX_TOKENS: usize = 5;

/// A kernel over a range of tokens, [`TOKENS`] at most, and one of panels.
type Kernel = unsafe fn(&Task, Range<usize>, Range<usize>);

/// Most tokens that [`sweep`] gives a kernel at once.
const TOKENS: usize = 64;

/// Runs `kernel` over all tokens and panels, in parallel where there is enough to do.
fn sweep(task: &Task, kernel: Kernel) {
    let panels = task.weights.panels();
    let panel_bytes = (task.weights.blocks() * task.weights.block_bytes()).max(1);
    let token_tiles = task.tokens.div_ceil(TOKENS);
    // A job streams some 64 KB of weights: long beside a fork and join, short beside a whole matrix.
    let width = (65_536 / panel_bytes).max(1).next_multiple_of(4);
    let panel_tiles = panels.div_ceil(width);
    let job = |job: usize| {
        let (t, p) = (job / panel_tiles * TOKENS, job % panel_tiles * width);
        // SAFETY: the jobs' rectangles are disjoint, and `plan` made sure that the machine has the instructions.
        unsafe { kernel(task, t..(t + TOKENS).min(task.tokens), p..(p + width).min(panels)) };
    };
    parallel(token_tiles * panel_tiles, job);
}

/// Runs `jobs` jobs, inline when there is one.
fn parallel(jobs: usize, job: impl Fn(usize) + Sync + Send) {
    if jobs <= 1 || rayon::current_num_threads() == 1 {
        (0..jobs).for_each(job);
    } else {
        (0..jobs).into_par_iter().for_each(job);
    }
}
