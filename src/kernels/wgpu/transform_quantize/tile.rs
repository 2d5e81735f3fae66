//! Which variant of the kernel a device gets, and how a token is cut up.

use super::{TokenSource, TransformQuantizeDesc, TransformShape, TransformTarget};
use crate::kernels::wgpu::arithmetic::PRELUDES;
use crate::kernels::wgpu::pipelines::{Access, Shader, Variant};
use crate::kernels::wgpu::plan_checks::prelude;
use crate::kernels::wgpu::{Dtype, Error, Gpu};

/// Largest block of a dense rotation: one invocation a column.
pub(super) const DENSE_BLOCK_MAX: usize = 256;

const TOKENS: &str = include_str!("../../../../shaders/transform_tokens.wgsl");
const QUADS: &str = include_str!("../../../../shaders/transform_quads.wgsl");
const SCALARS: &str = include_str!("../../../../shaders/transform_scalars.wgsl");
const DENSE: &str = include_str!("../../../../shaders/rotate_dense.wgsl");
const HADAMARD: &str = include_str!("../../../../shaders/rotate_hadamard.wgsl");
const QUANTIZE: &str = include_str!("../../../../shaders/transform_quantize.wgsl");
const FLOAT: &str = include_str!("../../../../shaders/transform_float.wgsl");
const FAST: &str =
    concat!(include_str!("../../../../shaders/silu.wgsl"), include_str!("../../../../shaders/transform_fast.wgsl"));
const REPRODUCIBLE: &str = concat!(
    include_str!("../../../../shaders/reproducible.wgsl"),
    include_str!("../../../../shaders/transform_reproducible.wgsl")
);

const QUANTIZE_BINDINGS: &[Access] = &[
    Access::Read,
    Access::Read,
    Access::Read,
    Access::Read,
    Access::Read,
    Access::Write,
    Access::Write,
    Access::Write,
];
const FLOAT_BINDINGS: &[Access] =
    &[Access::Read, Access::Read, Access::Read, Access::Read, Access::Read, Access::Write, Access::Write];
const IMMEDIATES: u32 = 24;

const fn both(name: &'static str, bindings: &'static [Access], sources: [&'static [&'static str]; 2]) -> [Shader; 2] {
    [
        Shader { name, sources: sources[0], bindings, immediates: IMMEDIATES },
        Shader { name, sources: sources[1], bindings, immediates: IMMEDIATES },
    ]
}

const fn quantize(sources: [&'static [&'static str]; 2]) -> [Shader; 2] {
    both("transform_quantize", QUANTIZE_BINDINGS, sources)
}

const fn float(sources: [&'static [&'static str]; 2]) -> [Shader; 2] {
    both("transform_float", FLOAT_BINDINGS, sources)
}

// Each is fast and, second, reproducible. Without a rotation any K will do, and K that is no multiple of 4 reads one number at
// a time.
static QUANTIZE_DENSE: [Shader; 2] =
    quantize([&[TOKENS, FAST, QUADS, DENSE, QUANTIZE], &[TOKENS, REPRODUCIBLE, QUADS, DENSE, QUANTIZE]]);
static QUANTIZE_HADAMARD: [Shader; 2] =
    quantize([&[TOKENS, FAST, QUADS, HADAMARD, QUANTIZE], &[TOKENS, REPRODUCIBLE, QUADS, HADAMARD, QUANTIZE]]);
static QUANTIZE_SCALARS: [Shader; 2] =
    quantize([&[TOKENS, FAST, SCALARS, DENSE, QUANTIZE], &[TOKENS, REPRODUCIBLE, SCALARS, DENSE, QUANTIZE]]);
static FLOAT_DENSE: [Shader; 2] =
    float([&[TOKENS, FAST, QUADS, DENSE, FLOAT], &[TOKENS, REPRODUCIBLE, QUADS, DENSE, FLOAT]]);
static FLOAT_HADAMARD: [Shader; 2] =
    float([&[TOKENS, FAST, QUADS, HADAMARD, FLOAT], &[TOKENS, REPRODUCIBLE, QUADS, HADAMARD, FLOAT]]);
static FLOAT_SCALARS: [Shader; 2] =
    float([&[TOKENS, FAST, SCALARS, DENSE, FLOAT], &[TOKENS, REPRODUCIBLE, SCALARS, DENSE, FLOAT]]);

/// For which kind of device a token is cut up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransformTiling {
    /// For drivers that run workgroups on the CPU: few invocations with many results each.
    Narrow,
    /// For GPUs: 256 invocations.
    Wide,
}

/// How a token is cut up on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tile {
    /// Invocations of a workgroup, a power of two: the norm is summed by a tree.
    workgroup: usize,
    /// Blocks of a chunk that one invocation rotates.
    rows: usize,
    /// Quads of columns of each that it computes.
    columns: usize,
    /// Quads that are rotated at a time.
    chunk: usize,
    /// Whether each of the two areas is in workgroup memory.
    local: [bool; 2],
    /// Most workgroups of a dispatch.
    pub(super) workgroups: usize,
}

impl Tile {
    pub(super) fn choose(gpu: &Gpu, desc: &TransformQuantizeDesc, tiling: TransformTiling) -> Result<Self, Error> {
        let limits = gpu.limits();
        let shape = desc.shape;
        let limit = limits.max_compute_workgroup_storage_size as usize;
        let mut tile = Self::sized(&shape, tiling, usize::MAX);
        let mut most = tile.rows;
        while tile.used() > limit && most > 1 {
            most /= 2;
            tile = Self::sized(&shape, tiling, most);
        }
        let invocations = limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x);
        if tile.workgroup > invocations as usize {
            return Err(Error::Limit {
                what: "a workgroup of transform_quantize".into(),
                limit_name: "max_compute_invocations_per_workgroup",
                limit: invocations.into(),
                got: tile.workgroup as u64,
            });
        }
        let mut used = tile.used();
        if used > limit {
            return Err(Error::Limit {
                what: format!("workgroup memory for blocks of {} channels", shape.block),
                limit_name: "max_compute_workgroup_storage_size",
                limit: limit as u64,
                got: used as u64,
            });
        }
        for local in tile.local.iter_mut().take(shape.rotations) {
            *local = used + 4 * shape.channels <= limit;
            used += if *local { 4 * shape.channels } else { 0 };
        }
        let dimension = limits.max_compute_workgroups_per_dimension as usize;
        // Enough workgroups to fill the device several times; their areas stay in its caches.
        let busy = if tiling == TransformTiling::Narrow { 32 } else { 512 };
        tile.workgroups = if tile.workspace_areas(&shape) > 0 { busy.min(dimension) } else { dimension };
        Ok(tile)
    }

    /// Bytes of workgroup memory without the areas: the chunk, the sums of squares, and what is left over of areas that are
    /// in the workspace, with a few words.
    fn used(&self) -> usize {
        16 * self.chunk + 4 * self.workgroup + 128
    }

    /// The tile without its areas, with at most `most` rows.
    fn sized(shape: &TransformShape, tiling: TransformTiling, most: usize) -> Self {
        let TransformShape { channels, block, rotations, hadamard, .. } = *shape;
        let narrow = tiling == TransformTiling::Narrow;
        let workgroup = if narrow { 64 } else { 256 };
        let tile = Self { workgroup, rows: 1, columns: 1, chunk: 1, local: [false; 2], workgroups: 0 };
        if rotations == 0 {
            return tile;
        }
        let quads = block / 4;
        if hadamard {
            return Self { chunk: quads * (512 / quads).clamp(1, channels / block), ..tile };
        }
        // Where the CPU runs all invocations, it reads a token's value once for them when it sees that all read the same one:
        // one block's columns a workgroup.
        let columns = match quads {
            16 if narrow => 2,
            32.. if narrow && quads.is_multiple_of(4) => 4,
            _ => 1,
        };
        let whole = narrow && quads >= 8 && quads.is_power_of_two();
        let workgroup = if whole { quads / columns } else { workgroup };
        let groups = workgroup / (quads / columns);
        let rows = (channels / block).div_ceil(groups).next_power_of_two().min(if narrow { 32 } else { 4 }).min(most);
        Self { workgroup, rows, columns, chunk: groups * rows * quads, ..tile }
    }

    fn workspace_areas(&self, shape: &TransformShape) -> usize {
        self.local.iter().take(shape.rotations).filter(|&&local| !local).count()
    }

    pub(super) fn workspace_bytes(&self, desc: &TransformQuantizeDesc) -> u64 {
        let areas = self.workspace_areas(&desc.shape) as u64;
        4 * areas * desc.shape.channels as u64 * self.workgroups.min(desc.m_max) as u64
    }

    /// The kernel: the fast one, or with the prelude of [`Gpu::reproducible`] the other.
    pub(super) fn variant(&self, desc: &TransformQuantizeDesc, fused: Option<&str>) -> (&'static Shader, Variant) {
        let shape = &desc.shape;
        let source = match desc.source {
            TokenSource::Tokens => 0.0,
            TokenSource::RmsNorm { .. } => 1.0,
            TokenSource::SiluMul => 2.0,
        };
        let mut constants = vec![
            ("CHANNELS", shape.channels as f64),
            ("BLOCK", shape.block.max(4) as f64),
            ("ROTATIONS", shape.rotations as f64),
            ("SOURCE", source),
            ("SMOOTH", f64::from(u8::from(shape.smooth))),
            ("WORKGROUP", self.workgroup as f64),
            ("CHUNK", self.chunk as f64),
        ];
        for (i, [area, far]) in [["AREA_0", "FAR_0"], ["AREA_1", "FAR_1"]].into_iter().enumerate() {
            constants.push((area, if self.local[i] { (shape.channels / 4) as f64 } else { 1.0 }));
            constants.push((far, f64::from(u8::from(i < shape.rotations && !self.local[i]))));
        }
        let mut types = vec![("Value", desc.input)];
        let kind = if shape.hadamard { 1 } else { usize::from(!shape.channels.is_multiple_of(4)) * 2 };
        let shaders = match desc.target {
            TransformTarget::Codes => {
                constants.push(("STRIDE", desc.layout().stride() as f64));
                [&QUANTIZE_DENSE, &QUANTIZE_HADAMARD, &QUANTIZE_SCALARS][kind]
            }
            TransformTarget::Float(dtype) | TransformTarget::Dequantized(dtype) => {
                let dequantize = matches!(desc.target, TransformTarget::Dequantized(_));
                constants.push(("DEQUANTIZE", f64::from(u8::from(dequantize))));
                types.push(("Out", dtype));
                [&FLOAT_DENSE, &FLOAT_HADAMARD, &FLOAT_SCALARS][kind]
            }
        };
        let mut prelude = prelude(&types) + fused.unwrap_or_default();
        if shape.hadamard {
            constants.push(("NORM", f64::from(1.0 / (shape.block as f32).sqrt())));
        } else {
            let Self { rows, columns, .. } = *self;
            prelude.push_str(&format!("const ROWS = {rows}u;\nconst COLUMNS = {columns}u;\n"));
            if kind == 2 {
                // Tells the pipelines apart.
                prelude.push_str("// one number at a time\n");
            }
        }
        (&shaders[usize::from(fused.is_some())], Variant { prelude, constants })
    }

    pub(super) fn name(&self, desc: &TransformQuantizeDesc) -> String {
        let shape = &desc.shape;
        let rotation = match (shape.rotations, shape.hadamard) {
            (0, _) => "no rotation".into(),
            (_, true) => format!("hadamard {}", shape.block),
            _ => format!("dense {}, tile {} x {}", shape.block, self.rows, 4 * self.columns),
        };
        let memory = if self.workspace_areas(shape) > 0 { "workspace" } else { "workgroup memory" };
        format!("transform_quantize wgsl {rotation}, {} invocations, {memory}", self.workgroup)
    }
}

/// Every combination of arithmetic, sources, targets and types, with the tiles of both kinds of device at a few shapes.
pub(in crate::kernels::wgpu) fn variants() -> Vec<(&'static Shader, Variant)> {
    let shape = |channels, block, rotations, hadamard| TransformShape {
        channels,
        block,
        rotations,
        hadamard,
        smooth: rotations == 1,
    };
    let shapes = [
        shape(99, 0, 0, false),
        shape(100, 0, 0, false),
        shape(64, 4, 1, false),
        shape(576, 64, 2, false),
        shape(4096, 128, 2, false),
        shape(11_008, 128, 3, false),
        shape(4096, 128, 2, true),
        shape(11_008, 256, 1, true),
    ];
    let mut targets = vec![TransformTarget::Codes];
    for dtype in [Dtype::F32, Dtype::F16] {
        targets.extend([TransformTarget::Float(dtype), TransformTarget::Dequantized(dtype)]);
    }
    let mut out = Vec::new();
    for (i, shape) in shapes.into_iter().enumerate() {
        for (j, &target) in targets.iter().enumerate() {
            for source in [TokenSource::Tokens, TokenSource::RmsNorm { epsilon: 1e-5 }, TokenSource::SiluMul] {
                for input in [Dtype::F32, Dtype::F16] {
                    let desc = TransformQuantizeDesc { m_max: 1, shape, affine: None, source, input, target };
                    let mut tile = Tile::sized(
                        &shape,
                        if (i + j) % 2 == 0 { TransformTiling::Narrow } else { TransformTiling::Wide },
                        32,
                    );
                    // 32 KiB of workgroup memory hold one area of 4096, and two of the smaller shapes.
                    tile.local =
                        [shape.channels <= 4096, shape.channels <= 2048].map(|fits| fits && shape.rotations > 0);
                    tile.local[1] &= shape.rotations > 1;
                    for fused in [None, Some(PRELUDES[0]), Some(PRELUDES[1])] {
                        out.push(tile.variant(&desc, fused));
                    }
                }
            }
        }
    }
    out
}
