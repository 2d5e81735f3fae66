//! The prologue of a W4A4 linear: (RMSNorm or SwiGLU), smoothing, rotations and permutations, per-token quantization.

#[cfg(target_arch = "x86_64")]
mod amx_bf16;
mod tile;
#[cfg(target_arch = "x86_64")]
mod vnni;

#[cfg(test)]
mod tests;

use super::aligned::Aligned;
use super::lanes::{LANES, Level};
use super::tiles::{self, SharedMut};
use super::{Isa, QuantizedTokens};
use crate::kernels::error::check_length;
use crate::kernels::{Affine, Arithmetic, Error, Transform};
use tile::{Sink, Tile};

/// Where the tokens `[T, K]` come from.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// They are there: `[T, K]`.
    Tokens(&'a [f32]),
    /// The RMSNorm of each row of `x`: `x / sqrt(mean(x^2) + epsilon) * weight`.
    RmsNorm {
        /// `[T, K]`.
        x: &'a [f32],
        /// `[K]`.
        weight: &'a [f32],
        /// Added to the mean square.
        epsilon: f32,
    },
    /// `silu(gate) * up`.
    SiluMul {
        /// `[T, 2K]`, gate in the first `K` columns of each row.
        gate_up: &'a [f32],
    },
}

impl Source<'_> {
    fn check(&self, tokens: usize, k: usize) -> Result<(), Error> {
        match self {
            Source::Tokens(x) => check_length("tokens", tokens * k, x.len()),
            Source::RmsNorm { x, weight, .. } => {
                check_length("x", tokens * k, x.len())?;
                check_length("weight", k, weight.len())
            }
            Source::SiluMul { gate_up } => check_length("gate_up", 2 * tokens * k, gate_up.len()),
        }
    }
}

/// `x -> x S^-1 R_0 P_0 R_1 ..` (eq. 5), then the per-token quantizer (eq. 1), planned for one linear's input.
///
/// A few tokens at a time stay in the workspace from the first step to their codes. The codes of a token depend on the
/// token alone: not on the tokens beside it, nor on the threads.
///
/// With [`Arithmetic::Reproducible`] they do not depend on the instruction set either: each output of a rotation is one
/// chain of fused multiply-adds in the order of the input channels (a Hadamard: butterflies of strides 1, 2, 4, .. and one
/// multiplication) on all of them. On a machine without fused multiply-add the portable kernel calls the library's and is
/// slow.
///
/// With [`Arithmetic::Fast`] there are other ways to do dense rotations; [`Self::kernel`] says which one runs. The norm, the
/// product (a faster one beside tiles) and the quantizer are the same operations as ever. Bounds are those of one rotation.
/// - AMX-BF16, where the machine has it, for blocks of a multiple of 32, up to 512. Before codes of up to 6 bits `x` and `R` are
///   rounded to bfloat16, and an output is within `0.008 sum_k |x_k| |R_kj|` of the real number; else each is the sum of two
///   bfloat16, and it is within `2^-14 sum_k |x_k| |R_kj|`. Tiles take numbers below `2^-126` for zero.
/// - Otherwise AVX-512 VNNI, for blocks of a multiple of 16, up to 512, and codes of up to 6 bits. `x` and `R` become integers of 16
///   bits, those of `x` by the largest value of the block, and with an orthogonal `R` an output is within
///   `(2^-15 sqrt(B) + 2^-18 B) |x|` of the real number, `|x|` the length of the token's block. Values below `2^-112` or so
///   may count as zero.
///
/// A token whose transformed values hold NaN or infinity, or span more than `f32` can, gets scale NaN, zero point 0, codes
/// 0 and row sum 0: everything computed from it is NaN, and nothing else is touched. On AMX-BF16 a value beyond 3.39e38,
/// the largest bfloat16, counts as infinity.
#[derive(Debug, Clone)]
pub struct TransformQuantize {
    channels: usize,
    block: usize,
    rotations: usize,
    /// Rotations as strips of 16 columns, `[rotation][strip][B][16]`; empty for a Hadamard.
    strips: Aligned<f32>,
    permutations: Vec<u32>,
    inverse_smooth: Option<Vec<f32>>,
    affine: Option<Affine>,
    m_max: usize,
    tile: usize,
    level: Level,
    /// Where the rotations run on AMX-BF16; then there are no strips.
    #[cfg(target_arch = "x86_64")]
    amx: Option<amx_bf16::AmxBf16>,
    /// Where they run in 16-bit integers, likewise.
    #[cfg(target_arch = "x86_64")]
    vnni: Option<vnni::Vnni>,
}

/// Most bits of codes before which fast rotations round to bfloat16 or to 16-bit integers. Two bfloat16, each off by `2^-8` at most,
/// leave an output off by some `2^-9` of its like; steps of 6 bits are a tenth of it, where a token's range is seven deviations,
/// and their noise 14 times that. Integers leave less, unless a few values of a block are far larger than all others.
#[cfg(target_arch = "x86_64")]
const COARSE_BITS: u32 = 6;

/// Multiply-adds below which everything stays on the calling thread.
const INLINE_WORK: usize = 1 << 20;

impl TransformQuantize {
    /// [`Self::plan_with`] [`Arithmetic::Reproducible`]: the same codes on every instruction set.
    ///
    /// # Errors
    /// As [`Self::plan_with`].
    pub fn plan(transform: &Transform, affine: Option<Affine>, m_max: usize, isa: Isa) -> Result<Self, Error> {
        Self::plan_with(transform, affine, m_max, isa, Arithmetic::Reproducible)
    }

    /// Plans `transform` for up to `m_max` tokens; `affine` is `None` where the activations stay in floating point.
    ///
    /// [`Self::kernel`] says what became of [`Arithmetic::Fast`]: where there is no faster kernel, the reproducible one runs.
    ///
    /// # Errors
    /// Those of [`Transform::validate`], and [`Error::Unsupported`] for no channels, for settings outside
    /// [`Affine::new`]'s, and for an instruction set that this machine lacks.
    pub fn plan_with(
        transform: &Transform,
        affine: Option<Affine>,
        m_max: usize,
        isa: Isa,
        arithmetic: Arithmetic,
    ) -> Result<Self, Error> {
        transform.validate()?;
        let level = Level::new(isa)?;
        if let Some(affine) = affine {
            Affine::new(affine.bits, affine.clip)?;
        }
        let (channels, block) = (transform.channels, transform.block);
        if channels == 0 || channels > i32::MAX as usize / 2 {
            let expected = "1 to 2^30".into();
            return Err(Error::Unsupported { what: "channels", expected, got: channels.to_string() });
        }
        let rotations = transform.rotation_count();
        #[cfg(target_arch = "x86_64")]
        let fast = arithmetic == Arithmetic::Fast;
        #[cfg(target_arch = "x86_64")]
        let amx = if fast && isa == Isa::Amx { amx_bf16::AmxBf16::plan(transform, affine) } else { None };
        #[cfg(target_arch = "x86_64")]
        let vnni = if fast && amx.is_none() { vnni::Vnni::plan(transform, affine, isa) } else { None };
        #[cfg(target_arch = "x86_64")]
        let elsewhere = amx.is_some() || vnni.is_some();
        // Other machines have one way.
        #[cfg(not(target_arch = "x86_64"))]
        let (elsewhere, _) = (false, arithmetic);
        let in_strips = !(transform.hadamard || elsewhere);
        let mut strips = Aligned::new(if in_strips { rotations * packed_len(block) } else { 0 });
        if in_strips {
            for i in 0..rotations {
                let packed = &mut strips.as_mut_slice()[i * packed_len(block)..(i + 1) * packed_len(block)];
                for (k, row) in transform.rotation(i).chunks_exact(block).enumerate() {
                    for (strip, values) in row.chunks(LANES).enumerate() {
                        let at = (strip * block + k) * LANES;
                        packed[at..at + values.len()].copy_from_slice(values);
                    }
                }
            }
        }
        Ok(Self {
            channels,
            block,
            rotations,
            strips,
            permutations: transform.permutations.clone(),
            inverse_smooth: transform.inverse_smooth.clone(),
            affine,
            m_max,
            // Two buffers of a tile stay well inside a second-level cache.
            tile: ((1 << 15) / channels).clamp(1, 16),
            level,
            #[cfg(target_arch = "x86_64")]
            amx,
            #[cfg(target_arch = "x86_64")]
            vnni,
        })
    }

    /// Input channels `K`.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// The activation quantizer; `None` where activations stay in floating point.
    #[must_use]
    pub fn affine(&self) -> Option<Affine> {
        self.affine
    }

    /// Bytes of rotations, permutations and factors that it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let factors = self.inverse_smooth.as_deref().map_or(0, size_of_val);
        #[cfg(target_arch = "x86_64")]
        let factors = factors
            + self.amx.as_ref().map_or(0, amx_bf16::AmxBf16::bytes)
            + self.vnni.as_ref().map_or(0, vnni::Vnni::bytes);
        size_of_val(self.strips.as_slice()) + size_of_val(self.permutations.as_slice()) + factors
    }

    /// What this plan runs, for logs: the instruction set and how it rotates.
    #[must_use]
    pub fn kernel(&self) -> String {
        #[cfg(target_arch = "x86_64")]
        if self.amx.is_some() {
            return format!("transform_quantize amx-bf16 dense {}", self.block);
        }
        #[cfg(target_arch = "x86_64")]
        if self.vnni.is_some() {
            return format!("transform_quantize avx512 vpdpwssd dense {}", self.block);
        }
        let rotation = match (self.rotations, self.strips.as_slice().is_empty()) {
            (0, _) => "no rotation".into(),
            (_, true) => format!("hadamard {}", self.block),
            _ => format!("dense {}", self.block),
        };
        let isa = match self.level.isa() {
            Isa::Amx | Isa::Avx512Vnni => Isa::Avx512Vnni.name(),
            Isa::Avx2 => Isa::Avx2.name(),
            Isa::Neon | Isa::Portable => Isa::Portable.name(),
        };
        format!("transform_quantize {isa} {rotation}")
    }

    /// Length in `f32` of the workspace that lets every thread of the current pool work at `m_max` tokens. A shorter one
    /// costs threads, down to an error below that of one thread.
    #[must_use]
    pub fn workspace_len(&self) -> usize {
        tiles::workspace_len(self.tile_len(), self.jobs(self.m_max))
    }

    /// Most jobs that some tokens are cut into.
    fn jobs(&self, tokens: usize) -> usize {
        #[cfg(target_arch = "x86_64")]
        if self.amx.is_some() {
            return tokens;
        }
        tokens.div_ceil(self.tile)
    }

    fn tile_len(&self) -> usize {
        #[cfg(target_arch = "x86_64")]
        if let Some(amx) = &self.amx {
            return amx.scratch_len(self.m_max);
        }
        2 * self.tile * self.channels.next_multiple_of(LANES)
    }

    /// Transforms and quantizes the first `tokens` tokens of `source` into `out`, whose count it sets.
    ///
    /// # Errors
    /// [`Error::Length`] for operands that disagree with the plan, [`Error::Unsupported`] for more tokens than the plan
    /// or `out` holds, or for a plan without quantizer.
    pub fn run(
        &self,
        source: Source<'_>,
        tokens: usize,
        out: &mut QuantizedTokens,
        workspace: &mut [f32],
    ) -> Result<(), Error> {
        let affine = self.quantizer()?;
        check_length("out.k", self.channels, out.k())?;
        self.check(&source, tokens, workspace)?;
        out.set_tokens(tokens)?;
        let stride = out.stride();
        let rows = tokens * stride;
        // The fields are public, so somebody may have shortened them.
        for (operand, expected, got) in [
            ("out.codes", rows, out.codes.len()),
            ("out.scale", tokens, out.scale.len()),
            ("out.zero_point", tokens, out.zero_point.len()),
            ("out.row_sum", tokens, out.row_sum.len()),
        ] {
            if got < expected {
                return Err(Error::Length { operand, expected, got });
            }
        }
        let codes = SharedMut::new(&mut out.codes[..rows]);
        let scale = SharedMut::new(&mut out.scale[..tokens]);
        let zero_point = SharedMut::new(&mut out.zero_point[..tokens]);
        let row_sum = SharedMut::new(&mut out.row_sum[..tokens]);
        self.for_each_tile(tokens, workspace, |first, count, scratch| {
            // SAFETY: each tile is its own range of tokens.
            let sink = unsafe {
                Sink::Codes {
                    affine,
                    codes: codes.part(first * stride, count * stride),
                    stride,
                    scale: scale.part(first, count),
                    zero_point: zero_point.part(first, count),
                    row_sum: row_sum.part(first, count),
                }
            };
            self.run_tile(source, first, count, scratch, sink);
        });
        Ok(())
    }

    /// The transform alone: `out` `[T, K]` in `f32`.
    ///
    /// # Errors
    /// As [`Self::run`], apart from those of the quantizer.
    pub fn run_float(
        &self,
        source: Source<'_>,
        tokens: usize,
        out: &mut [f32],
        workspace: &mut [f32],
    ) -> Result<(), Error> {
        self.run_values(source, tokens, None, out, workspace)
    }

    /// The real numbers that the codes of [`Self::run`] stand for: `out` `[T, K] = scale (code - zero_point)`. A token that
    /// `run` gives scale NaN becomes NaN throughout.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_dequantized(
        &self,
        source: Source<'_>,
        tokens: usize,
        out: &mut [f32],
        workspace: &mut [f32],
    ) -> Result<(), Error> {
        let affine = self.quantizer()?;
        self.run_values(source, tokens, Some(affine), out, workspace)
    }

    fn run_values(
        &self,
        source: Source<'_>,
        tokens: usize,
        affine: Option<Affine>,
        out: &mut [f32],
        workspace: &mut [f32],
    ) -> Result<(), Error> {
        self.check(&source, tokens, workspace)?;
        let k = self.channels;
        check_length("out", tokens * k, out.len())?;
        let out = SharedMut::new(out);
        self.for_each_tile(tokens, workspace, |first, count, scratch| {
            // SAFETY: each tile is its own range of tokens.
            let out = unsafe { out.part(first * k, count * k) };
            self.run_tile(source, first, count, scratch, Sink::Values { affine, out });
        });
        Ok(())
    }

    fn quantizer(&self) -> Result<Affine, Error> {
        self.affine.ok_or_else(|| Error::Unsupported {
            what: "affine",
            expected: "a plan with a quantizer (run_float needs none)".into(),
            got: "none".into(),
        })
    }

    fn check(&self, source: &Source<'_>, tokens: usize, workspace: &[f32]) -> Result<(), Error> {
        if tokens > self.m_max {
            let expected = format!("at most {}", self.m_max);
            return Err(Error::Unsupported { what: "tokens", expected, got: tokens.to_string() });
        }
        source.check(tokens, self.channels)?;
        let least = tiles::least_workspace(self.tile_len());
        if workspace.len() < least {
            return Err(Error::Length { operand: "workspace", expected: least, got: workspace.len() });
        }
        Ok(())
    }

    fn run_tile(&self, source: Source<'_>, first: usize, count: usize, scratch: &mut [f32], sink: Sink<'_>) {
        #[cfg(target_arch = "x86_64")]
        if let Some(amx) = &self.amx {
            return amx.run(self, source, first, count, scratch, sink);
        }
        self.level.run(Tile { plan: self, source, first, count, scratch, sink });
    }

    fn for_each_tile(&self, tokens: usize, workspace: &mut [f32], work: impl Fn(usize, usize, &mut [f32]) + Sync) {
        let products = tokens * self.channels * (8 + self.rotations * self.block);
        #[cfg(target_arch = "x86_64")]
        if self.amx.is_some() {
            let division = amx_bf16::Division::new(tokens, rayon::current_num_threads());
            let parallel = products >= amx_bf16::INLINE_WORK;
            tiles::for_each_tile(workspace, self.tile_len(), division.jobs(), parallel, |job, scratch| {
                let (first, count) = division.job(job);
                work(first, count, scratch);
            });
            return;
        }
        let count = tokens.div_ceil(self.tile);
        tiles::for_each_tile(workspace, self.tile_len(), count, products >= INLINE_WORK, |tile, scratch| {
            let first = tile * self.tile;
            work(first, self.tile.min(tokens - first), scratch);
        });
    }
}

/// Values of one packed rotation.
fn packed_len(block: usize) -> usize {
    block * block.next_multiple_of(LANES)
}
