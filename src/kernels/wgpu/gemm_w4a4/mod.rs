//! The packed INT4 GEMM: quantized tokens by a quantized weight, exact in 32-bit integers.
//!
//! ```text
//! acc = sum_k qx[t,k] qw[n,k]     rs[t] = sum_k qx[t,k]     c[n] = sum_k qw[n,k] - K zw[n]
//! I   = acc - zw[n] rs[t] - zx[t] c[n]                      y = (sx[t] sw[n]) float(I) (+ bias[n]) (+ y)
//! ```

mod pack;

pub use pack::{HostWeights, PackedWeights, WeightsBinding};

use super::pipelines::{Bound, Kernel, Operand};
use super::tile::{Rung, Tile, check_binding, check_dtypes, check_tokens, ladder, rung};
use super::tune::{Product, Table};
use super::{Access, Dtype, Error, Gpu, Recorder, Shader, TokensBinding, TokensLayout, Variant};
use crate::kernels::{Affine, Error as KernelError, QuantizedMatrix};
use ::wgpu::BufferBinding;
use std::sync::Arc;

const COMMON: &str = include_str!("../../../../shaders/gemm_w4a4.wgsl");
const BINDINGS: &[Access] = &[Access::Read, Access::Read, Access::Read, Access::Read, Access::Write];

static STREAM: Shader = Shader {
    name: "gemm_w4a4_stream",
    sources: &[COMMON, include_str!("../../../../shaders/gemm_w4a4_stream.wgsl")],
    bindings: BINDINGS,
    immediates: 16,
};
static TILED: Shader = Shader {
    name: "gemm_w4a4_tiled",
    sources: &[COMMON, include_str!("../../../../shaders/gemm_w4a4_tiled.wgsl")],
    bindings: BINDINGS,
    immediates: 16,
};

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
    /// Type of `y`. Half precision overflows from 65,520 on.
    pub out: Dtype,
    /// Whether a bias is added to each token; it is packed with the weights.
    pub bias: bool,
    /// Whether `y` holds numbers to add to, as a residual does; otherwise it is overwritten.
    pub accumulate: bool,
}

impl GemmW4A4Desc {
    /// How its tokens lie.
    #[must_use]
    pub fn tokens(&self) -> TokensLayout {
        TokensLayout { m_max: self.m_max, k: self.k }
    }

    fn element_bytes(&self, output: Output) -> u64 {
        if output == Output::Integers { 4 } else { self.out.bytes() }
    }
}

/// What a plan writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Output {
    Floats,
    Integers,
}

/// A planned [`GemmW4A4Desc`].
#[derive(Clone)]
pub struct GemmW4A4Plan {
    desc: GemmW4A4Desc,
    output: Output,
    product: Product,
    ladder: Vec<Rung<Arc<Kernel>>>,
}

/// A plan with its operands, ready to be recorded.
#[derive(Debug)]
pub struct GemmW4A4Bound {
    desc: GemmW4A4Desc,
    ladder: Vec<Rung<Bound>>,
}

impl GemmW4A4Plan {
    /// Compiles the kernels of `desc` with the device's tiles ([`Gpu::tiles`]).
    ///
    /// # Errors
    /// [`Error::Kernel`] when bits are out of range, `k` is 0 or so large that sums could leave `i32`
    /// (`k * (2^wb - 1) * (2^ab - 1)` must stay below `2^31`), [`Error::Limit`] when an operand, a tile or a dispatch is
    /// larger than the device allows, [`Error::MissingFeature`] for half precision on a device without it, or what
    /// compiling gives.
    pub fn plan(gpu: &Gpu, desc: &GemmW4A4Desc) -> Result<Self, Error> {
        Self::plan_with(gpu, desc, gpu.tiles())
    }

    /// As [`GemmW4A4Plan::plan`], with the tiles of `table`.
    ///
    /// # Errors
    /// As [`GemmW4A4Plan::plan`].
    pub fn plan_with(gpu: &Gpu, desc: &GemmW4A4Desc, table: &Table) -> Result<Self, Error> {
        Self::plan_output(gpu, desc, table, Output::Floats)
    }

    /// A plan that writes the integers `I [T, N]` (`i32`) where others write `y`, without bias or residual: for tests
    /// against an oracle.
    ///
    /// # Errors
    /// As [`GemmW4A4Plan::plan`].
    pub fn plan_integers(gpu: &Gpu, desc: &GemmW4A4Desc, table: &Table) -> Result<Self, Error> {
        Self::plan_output(gpu, desc, table, Output::Integers)
    }

    fn plan_output(gpu: &Gpu, desc: &GemmW4A4Desc, table: &Table, output: Output) -> Result<Self, Error> {
        check_desc(desc)?;
        check_dtypes(gpu, &[desc.out])?;
        let layout = desc.tokens();
        let codes = (layout.m_max as u64).checked_mul(layout.stride() as u64);
        check_binding(gpu, "gemm_w4a4 codes", codes)?;
        check_binding(gpu, "gemm_w4a4 token parameters", Some(layout.param_bytes()))?;
        check_binding(gpu, "gemm_w4a4 weights", Some(desc.weight_bytes()))?;
        check_binding(gpu, "gemm_w4a4 channels", Some(desc.channel_bytes()))?;
        let outputs = (desc.m_max as u64).checked_mul(desc.n as u64);
        let bytes = outputs.and_then(|outputs| outputs.checked_mul(desc.element_bytes(output)));
        check_binding(gpu, "gemm_w4a4 y", bytes)?;
        let ladder = ladder(&table.w4a4, desc.m_max, |tile| {
            tile.check(gpu, "gemm_w4a4", false, desc.m_max, desc.n)?;
            let (shader, variant) = variant(desc, output, table.product, tile);
            gpu.kernel(shader, &variant)
        })?;
        Ok(Self { desc: *desc, output, product: table.product, ladder })
    }

    /// What was planned.
    #[must_use]
    pub fn desc(&self) -> &GemmW4A4Desc {
        &self.desc
    }

    /// The same plan for at most `m_max` tokens, where those are fewer: its operands are smaller, and the packed weights the same.
    #[must_use]
    pub fn limited(&self, m_max: usize) -> Self {
        let mut plan = self.clone();
        plan.desc.m_max = m_max.min(plan.desc.m_max);
        plan
    }

    /// The kernel that runs for `tokens` tokens, with its tile and the way it multiplies.
    #[must_use]
    pub fn kernel(&self, tokens: usize) -> String {
        let product = if self.product == Product::Dot { "dot4" } else { "pairs" };
        rung(&self.ladder, tokens).map_or_else(String::new, |rung| format!("gemm_w4a4 {} {product}", rung.tile))
    }

    /// Packs one weight `[n, k]`, and the bias `[n]` where one was planned, into buffers.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the matrix or the bias is not what was planned, or as [`Gpu::buffer`].
    pub fn pack(&self, gpu: &Gpu, matrix: &QuantizedMatrix, bias: Option<&[f32]>) -> Result<PackedWeights, Error> {
        self.pack_stacked(gpu, &[matrix], bias)
    }

    /// Packs weights `[n_i, k]` one below the other, with `n` their sum: `q`, `k`, `v` or `gate`, `up` as one GEMM.
    ///
    /// # Errors
    /// As [`GemmW4A4Plan::pack`], for each of them.
    pub fn pack_stacked(
        &self,
        gpu: &Gpu,
        matrices: &[&QuantizedMatrix],
        bias: Option<&[f32]>,
    ) -> Result<PackedWeights, Error> {
        self.pack_host(matrices, bias)?.upload(gpu)
    }

    /// As [`GemmW4A4Plan::pack_stacked`], into the host's memory.
    ///
    /// # Errors
    /// [`Error::Kernel`] when a matrix or the bias is not what was planned.
    pub fn pack_host(&self, matrices: &[&QuantizedMatrix], bias: Option<&[f32]>) -> Result<HostWeights, Error> {
        pack::pack(&self.desc, self.product, matrices, bias)
    }

    /// Joins the kernels with operands: tokens, weights packed by this plan (or one of the same shape and device), and
    /// `y [m_max, n]`.
    ///
    /// # Errors
    /// [`Error::Binding`] or [`Error::Alignment`] naming the operand.
    pub fn bind(
        &self,
        gpu: &Gpu,
        x: &TokensBinding<'_>,
        weights: &WeightsBinding<'_>,
        y: BufferBinding<'_>,
    ) -> Result<GemmW4A4Bound, Error> {
        let (desc, layout) = (&self.desc, self.desc.tokens());
        if desc.m_max == 0 || desc.n == 0 {
            return Ok(GemmW4A4Bound { desc: *desc, ladder: Vec::new() });
        }
        let y_bytes = desc.m_max as u64 * desc.n as u64 * desc.element_bytes(self.output);
        let operand = |name, binding, bytes| Operand { name, binding, bytes };
        let operands = [
            operand("x.codes", x.codes.clone(), layout.code_bytes()),
            operand("x.params", x.params.clone(), layout.param_bytes()),
            operand("weights.codes", weights.codes.clone(), desc.weight_bytes()),
            operand("weights.channels", weights.channels.clone(), desc.channel_bytes()),
            operand("y", y, y_bytes),
        ];
        let bind = |rung: &Rung<Arc<Kernel>>| {
            let kernel = gpu.bind(&rung.kernel, &operands)?;
            Ok(Rung { up_to: rung.up_to, tile: rung.tile, kernel })
        };
        let ladder = self.ladder.iter().map(bind).collect::<Result<_, Error>>()?;
        Ok(GemmW4A4Bound { desc: *desc, ladder })
    }
}

impl GemmW4A4Bound {
    /// Records the product for the first `tokens` tokens.
    ///
    /// # Errors
    /// [`Error::Kernel`] when there are more than `m_max`.
    pub fn enqueue(&self, recorder: &mut Recorder<'_>, tokens: usize) -> Result<(), Error> {
        check_tokens(tokens, self.desc.m_max)?;
        let Some(rung) = rung(&self.ladder, tokens) else { return Ok(()) };
        let words = [tokens as u32, self.desc.n as u32, self.desc.blocks() as u32, self.desc.panels() as u32];
        recorder.dispatch(&rung.kernel, bytemuck::bytes_of(&words), rung.tile.workgroups(tokens, self.desc.n));
        Ok(())
    }
}

fn check_desc(desc: &GemmW4A4Desc) -> Result<(), Error> {
    let unsupported = |what, expected: String, got: usize| {
        Err(KernelError::Unsupported { what, expected, got: got.to_string() }.into())
    };
    if !(2..=4).contains(&desc.weight_bits) {
        return unsupported("weight_bits", "2 to 4".into(), desc.weight_bits as usize);
    }
    let activation_max = u64::from(Affine::new(desc.activation_bits, 1.0)?.max_code());
    let k_max = i32::MAX as u64 / (activation_max * ((1 << desc.weight_bits) - 1));
    if desc.k == 0 || desc.k as u64 > k_max {
        let bits = format!("{} by {} bits", desc.weight_bits, desc.activation_bits);
        return unsupported("k", format!("1 to {k_max} for {bits}, so that sums fit 32-bit integers"), desc.k);
    }
    // What the binding limit does not catch: indices and dimensions are 32 bits.
    if desc.n > i32::MAX as usize || desc.m_max > i32::MAX as usize {
        return unsupported("m_max and n", format!("at most {}", i32::MAX), desc.n.max(desc.m_max));
    }
    Ok(())
}

/// Blocks whose sums of pairs fit 16 bits, at most 8; 0 when those of one block do not.
fn flush(desc: &GemmW4A4Desc) -> u32 {
    let product = ((1 << desc.weight_bits) - 1) * ((1 << desc.activation_bits) - 1);
    (65_535 / (32_u32 * product)).min(8)
}

fn variant(desc: &GemmW4A4Desc, output: Output, product: Product, tile: Tile) -> (&'static Shader, Variant) {
    let shader = match tile {
        Tile::Stream { .. } => &STREAM,
        Tile::Tiled { .. } => &TILED,
    };
    let integers = output == Output::Integers;
    let (enable, value) = match desc.out {
        _ if integers => ("", "i32"),
        Dtype::F32 => ("", "f32"),
        Dtype::F16 => ("enable f16;\n", "f16"),
    };
    // Dots never leave 32 bits: the constants below are those of pairs alone, and equal kernels are to be one pipeline.
    let pairs = product == Product::Pairs;
    let flush = if pairs { flush(desc) } else { 1 };
    let prelude = format!(
        "{enable}alias Value = {value};\nconst PAIRS: bool = {pairs};\nconst FLUSH: u32 = {}u;\n\
         const SPLIT: bool = {};\nconst INTEGER: bool = {integers};\nconst BIAS: bool = {};\n\
         const ACCUMULATE: bool = {};\n{}",
        flush.max(1),
        flush == 0,
        desc.bias && !integers,
        desc.accumulate && !integers,
        tile.constants(false),
    );
    (shader, Variant { prelude, constants: Vec::new() })
}

/// Every variant that plans with the built-in tables compile.
pub(super) fn variants() -> Vec<(&'static Shader, Variant)> {
    let mut out = Vec::new();
    for table in Table::builtins() {
        for &(_, tile) in table.w4a4.as_slice() {
            for activation_bits in [4, 8] {
                let desc = GemmW4A4Desc {
                    m_max: 1,
                    n: 1,
                    k: 1,
                    weight_bits: 4,
                    activation_bits,
                    out: Dtype::F32,
                    bias: false,
                    accumulate: false,
                };
                out.push(variant(&desc, Output::Integers, table.product, tile));
                for (dtype, bias, accumulate) in [
                    (Dtype::F32, false, false),
                    (Dtype::F32, true, false),
                    (Dtype::F32, false, true),
                    (Dtype::F32, true, true),
                    (Dtype::F16, false, false),
                    (Dtype::F16, true, false),
                    (Dtype::F16, false, true),
                    (Dtype::F16, true, true),
                ] {
                    let desc = GemmW4A4Desc { out: dtype, bias, accumulate, ..desc };
                    out.push(variant(&desc, Output::Floats, table.product, tile));
                }
            }
        }
    }
    out.sort_by(|a, b| (a.0.name, &a.1.prelude).cmp(&(b.0.name, &b.1.prelude)));
    out.dedup_by(|a, b| a.0.name == b.0.name && a.1 == b.1);
    out
}
