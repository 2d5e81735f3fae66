//! The floating-point GEMM `y[T, N] = x[T, K] W[N, K]^T (+ y) (+ bias)`, summed in `f32`: the baseline that W4A4 is measured
//! against, and the output head. A weight larger than a binding may be is cut into parts, each its own dispatch.

mod pack;

pub use pack::{PackedFloatWeights, Part, PartBinding};

use super::pipelines::{Bound, Kernel, Operand};
use super::tile::{PANEL, Rung, Tile, check_binding, check_dtypes, check_tokens, ladder, rung};
use super::tune::Table;
use super::{Access, Dtype, Error, Gpu, Recorder, Shader, Variant};
use crate::kernels::Error as KernelError;
use crate::kernels::cpu::FloatWeights;
use ::wgpu::BufferBinding;
use std::sync::Arc;

const COMMON: &str = include_str!("../../../../shaders/gemm_float.wgsl");
const QUADS: &str = include_str!("../../../../shaders/gemm_float_quads.wgsl");
const SCALARS: &str = include_str!("../../../../shaders/gemm_float_scalars.wgsl");
const STREAM: &str = include_str!("../../../../shaders/gemm_float_stream.wgsl");
const TILED: &str = include_str!("../../../../shaders/gemm_float_tiled.wgsl");

const fn shader(name: &'static str, sources: &'static [&'static str]) -> Shader {
    const BINDINGS: &[Access] = &[Access::Read, Access::Read, Access::Read, Access::Write];
    Shader { name, sources, bindings: BINDINGS, immediates: 32 }
}

/// By type of the weight (f32, f16), then by access to tokens (quads, scalars).
static STREAMS: [[Shader; 2]; 2] = [
    [shader("gemm_f32_stream", &[COMMON, QUADS, STREAM]), shader("gemm_f32_stream", &[COMMON, SCALARS, STREAM])],
    [shader("gemm_f16_stream", &[COMMON, QUADS, STREAM]), shader("gemm_f16_stream", &[COMMON, SCALARS, STREAM])],
];
static TILES: [[Shader; 2]; 2] = [
    [shader("gemm_f32_tiled", &[COMMON, QUADS, TILED]), shader("gemm_f32_tiled", &[COMMON, SCALARS, TILED])],
    [shader("gemm_f16_tiled", &[COMMON, QUADS, TILED]), shader("gemm_f16_tiled", &[COMMON, SCALARS, TILED])],
];

/// A GEMM `y[T, N] = x[T, K] W[N, K]^T` in floating point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GemmFloatDesc {
    /// Most tokens `T` of one call.
    pub m_max: usize,
    /// Output channels `N`.
    pub n: usize,
    /// Input channels `K`.
    pub k: usize,
    /// Type of `x`.
    pub x: Dtype,
    /// Type of the weight; others are rounded to it when they are packed.
    pub weight: Dtype,
    /// Type of `y`. Half precision overflows from 65,520 on.
    pub out: Dtype,
    /// Whether a bias is added last; it is packed with the weights.
    pub bias: bool,
    /// Whether `y` holds numbers to add to, as a residual does; otherwise it is overwritten.
    pub accumulate: bool,
}

impl GemmFloatDesc {
    /// Whether the kernel has variables of half precision; weights and whole quads of tokens are read as words.
    fn needs_f16(&self) -> bool {
        self.out == Dtype::F16 || (self.x == Dtype::F16 && !self.k.is_multiple_of(4))
    }
}

/// A planned [`GemmFloatDesc`].
#[derive(Clone)]
pub struct GemmFloatPlan {
    desc: GemmFloatDesc,
    parts: Vec<Part>,
    ladder: Vec<Rung<Arc<Kernel>>>,
}

/// A plan with its operands, ready to be recorded.
#[derive(Debug)]
pub struct GemmFloatBound {
    desc: GemmFloatDesc,
    parts: Vec<(Part, Vec<Rung<Bound>>)>,
}

impl GemmFloatPlan {
    /// Compiles the kernels of `desc` with the device's tiles ([`Gpu::tiles`]) and cuts the weight into parts.
    ///
    /// # Errors
    /// [`Error::Limit`] when an operand, a tile or a dispatch is larger than the device allows, [`Error::MissingFeature`]
    /// on a device without half precision for such a `y`, or such an `x` when `k` is no multiple of 4, [`Error::Kernel`]
    /// for shapes of more than 31 bits and `k` = 0, or what compiling gives.
    pub fn plan(gpu: &Gpu, desc: &GemmFloatDesc) -> Result<Self, Error> {
        Self::plan_with(gpu, desc, gpu.tiles())
    }

    /// As [`GemmFloatPlan::plan`], with the tiles of `table`.
    ///
    /// # Errors
    /// As [`GemmFloatPlan::plan`].
    pub fn plan_with(gpu: &Gpu, desc: &GemmFloatDesc, table: &Table) -> Result<Self, Error> {
        let limits = gpu.limits();
        Self::plan_parts(gpu, desc, table, limits.max_storage_buffer_binding_size.min(limits.max_buffer_size))
    }

    /// As [`GemmFloatPlan::plan_with`], with parts of at most `part_bytes`: for hosts whose allocator wants smaller ones
    /// than the device.
    ///
    /// # Errors
    /// As [`GemmFloatPlan::plan`], and [`Error::Limit`] when 32 channels need more.
    pub fn plan_parts(gpu: &Gpu, desc: &GemmFloatDesc, table: &Table, part_bytes: u64) -> Result<Self, Error> {
        check_dtypes(gpu, &[if desc.needs_f16() { Dtype::F16 } else { Dtype::F32 }])?;
        let largest = desc.m_max.max(desc.n).max(desc.k);
        if largest > i32::MAX as usize {
            let (expected, got) = (format!("at most {}", i32::MAX), largest.to_string());
            return Err(KernelError::Unsupported { what: "m_max, n and k", expected, got }.into());
        }
        let bytes = |width: usize, dtype: Dtype| (desc.m_max as u64 * width as u64).checked_mul(dtype.bytes());
        check_binding(gpu, "gemm_float x", bytes(desc.k, desc.x))?;
        check_binding(gpu, "gemm_float y", bytes(desc.n, desc.out))?;
        if desc.k == 0 {
            let expected = "at least 1".into();
            return Err(KernelError::Unsupported { what: "k", expected, got: "0".into() }.into());
        }
        let limits = gpu.limits();
        let limit = part_bytes.min(limits.max_storage_buffer_binding_size);
        let parts = desc.parts(limit).ok_or_else(|| Error::Limit {
            what: format!("gemm_float: {PANEL} channels of the weight"),
            limit_name: "max_storage_buffer_binding_size",
            limit,
            got: desc.panel_bytes(),
        })?;
        let rows = parts.first().map_or(0, |part| part.rows);
        let ladder = ladder(&table.float, desc.m_max, |tile| {
            tile.check(gpu, name(desc), true, desc.m_max, rows)?;
            let (shader, variant) = variant(desc, tile);
            gpu.kernel(shader, &variant)
        })?;
        Ok(Self { desc: *desc, parts, ladder })
    }

    /// What was planned.
    #[must_use]
    pub fn desc(&self) -> &GemmFloatDesc {
        &self.desc
    }

    /// The same plan for at most `m_max` tokens, where those are fewer: its operands are smaller, and the packed weights the same.
    #[must_use]
    pub fn limited(&self, m_max: usize) -> Self {
        let mut plan = self.clone();
        plan.desc.m_max = m_max.min(plan.desc.m_max);
        plan
    }

    /// The parts of the weight, in order.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The kernel that runs for `tokens` tokens, with its tile.
    #[must_use]
    pub fn kernel(&self, tokens: usize) -> String {
        rung(&self.ladder, tokens).map_or_else(String::new, |rung| format!("{} {}", name(&self.desc), rung.tile))
    }

    /// Packs weights `[n_i, k]` one below the other, with `n` their sum, and the bias `[n]` where one was planned, into
    /// buffers.
    ///
    /// # Errors
    /// [`Error::Kernel`] when a weight or the bias is not what was planned, or as [`Gpu::buffer`].
    pub fn pack(
        &self,
        gpu: &Gpu,
        weights: &[FloatWeights<'_>],
        bias: Option<&[f32]>,
    ) -> Result<PackedFloatWeights, Error> {
        pack::upload(gpu, &self.desc, &self.parts, weights, bias)
    }

    /// As [`GemmFloatPlan::pack`], the weights of each part, into the host's memory.
    ///
    /// # Errors
    /// [`Error::Kernel`] when a weight is not what was planned.
    pub fn pack_host(&self, weights: &[FloatWeights<'_>]) -> Result<Vec<Vec<u8>>, Error> {
        let desc = GemmFloatDesc { bias: false, ..self.desc };
        pack::check(&desc, weights, None)?;
        Ok(self.parts.iter().map(|part| pack::pack(&desc, weights, part)).collect())
    }

    /// Joins the kernels with operands: `x [m_max, k]`, a binding for each of [`GemmFloatPlan::parts`], and
    /// `y [m_max, n]`.
    ///
    /// # Errors
    /// [`Error::Kernel`] when there is another number of parts, [`Error::Binding`] or [`Error::Alignment`] naming the
    /// operand.
    pub fn bind(
        &self,
        gpu: &Gpu,
        x: BufferBinding<'_>,
        weights: &[PartBinding<'_>],
        y: BufferBinding<'_>,
    ) -> Result<GemmFloatBound, Error> {
        crate::kernels::error::check_length("weight parts", self.parts.len(), weights.len())?;
        let desc = &self.desc;
        let (m, n, k) = (desc.m_max as u64, desc.n as u64, desc.k as u64);
        if m == 0 || n == 0 {
            return Ok(GemmFloatBound { desc: *desc, parts: Vec::new() });
        }
        let mut parts = Vec::with_capacity(self.parts.len());
        for (part, PartBinding { weights, bias }) in self.parts.iter().zip(weights) {
            let bias_bytes = if desc.bias { 4 * part.rows as u64 } else { 4 };
            let operands = [
                Operand { name: "x", binding: x.clone(), bytes: m * k * desc.x.bytes() },
                Operand { name: "weights", binding: weights.clone(), bytes: desc.part_bytes(part) },
                Operand { name: "bias", binding: bias.clone(), bytes: bias_bytes },
                Operand { name: "y", binding: y.clone(), bytes: m * n * desc.out.bytes() },
            ];
            let bind = |rung: &Rung<Arc<Kernel>>| {
                let kernel = gpu.bind(&rung.kernel, &operands)?;
                Ok(Rung { up_to: rung.up_to, tile: rung.tile, kernel })
            };
            parts.push((*part, self.ladder.iter().map(bind).collect::<Result<_, Error>>()?));
        }
        Ok(GemmFloatBound { desc: *desc, parts })
    }
}

impl GemmFloatBound {
    /// Records the product for the first `tokens` tokens, one dispatch a part.
    ///
    /// # Errors
    /// [`Error::Kernel`] when there are more than `m_max`.
    pub fn enqueue(&self, recorder: &mut Recorder<'_>, tokens: usize) -> Result<(), Error> {
        check_tokens(tokens, self.desc.m_max)?;
        let GemmFloatDesc { n, k, .. } = self.desc;
        for (part, ladder) in &self.parts {
            let Some(rung) = rung(ladder, tokens) else { continue };
            let quads = self.desc.quads();
            let words =
                [tokens, n, k, quads, part.first, part.rows, part.rows.div_ceil(PANEL), 0].map(|word| word as u32);
            recorder.dispatch(&rung.kernel, bytemuck::bytes_of(&words), rung.tile.workgroups(tokens, part.rows));
        }
        Ok(())
    }
}

fn name(desc: &GemmFloatDesc) -> &'static str {
    if desc.weight == Dtype::F32 { "gemm_f32" } else { "gemm_f16" }
}

fn variant(desc: &GemmFloatDesc, tile: Tile) -> (&'static Shader, Variant) {
    let shaders = match tile {
        Tile::Stream { .. } => &STREAMS,
        Tile::Tiled { .. } => &TILES,
    };
    let whole = desc.k.is_multiple_of(4);
    let shader = &shaders[usize::from(desc.weight == Dtype::F16)][usize::from(!whole)];
    let scalar = |dtype| if dtype == Dtype::F32 { "f32" } else { "f16" };
    let input = if whole { quad("Input", "widen_input", desc.x) } else { format!("alias Input = {};", scalar(desc.x)) };
    let enable = if desc.needs_f16() { "enable f16;\n" } else { "" };
    let prelude = format!(
        "{enable}{input}\n{}\nalias Value = {};\nconst BIAS: bool = {};\nconst ACCUMULATE: bool = {};\n{}",
        quad("Weight", "widen_weight", desc.weight),
        scalar(desc.out),
        desc.bias,
        desc.accumulate,
        tile.constants(true),
    );
    (shader, Variant { prelude, constants: Vec::new() })
}

/// The type of four numbers of `dtype` and the function that makes `f32` of them.
fn quad(alias: &str, widen: &str, dtype: Dtype) -> String {
    let (kind, wide) = match dtype {
        Dtype::F32 => ("vec4<f32>", "quad"),
        Dtype::F16 => ("vec2<u32>", "vec4(unpack2x16float(quad.x), unpack2x16float(quad.y))"),
    };
    format!("alias {alias} = {kind};\nfn {widen}(quad: {alias}) -> vec4<f32> {{ return {wide}; }}")
}

/// Every variant that plans with the built-in tables compile.
pub(super) fn variants() -> Vec<(&'static Shader, Variant)> {
    let dtypes = [Dtype::F32, Dtype::F16];
    let mut out = Vec::new();
    for table in Table::builtins() {
        for &(_, tile) in table.float.as_slice() {
            for (x, weight, k) in [
                (dtypes[0], dtypes[0], 4),
                (dtypes[0], dtypes[1], 4),
                (dtypes[1], dtypes[0], 4),
                (dtypes[1], dtypes[1], 4),
                (dtypes[0], dtypes[0], 3),
                (dtypes[0], dtypes[1], 3),
                (dtypes[1], dtypes[0], 3),
                (dtypes[1], dtypes[1], 3),
            ] {
                for (y, epilogue) in [(dtypes[0], false), (dtypes[1], false), (dtypes[0], true), (dtypes[1], true)] {
                    let desc =
                        GemmFloatDesc { m_max: 1, n: 1, k, x, weight, out: y, bias: epilogue, accumulate: epilogue };
                    out.push(variant(&desc, tile));
                }
            }
        }
    }
    out.sort_by(|a, b| (a.0.name, &a.1.prelude).cmp(&(b.0.name, &b.1.prelude)));
    out.dedup_by(|a, b| a.0.name == b.0.name && a.1 == b.1);
    out
}
