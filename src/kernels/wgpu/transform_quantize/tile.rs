//! Which variant of the kernel a device gets, and how a token is cut up.

use super::{TokenSource, TransformQuantizeDesc, TransformShape, TransformTarget};
use crate::kernels::wgpu::pipelines::{Access, Shader, Variant};
use crate::kernels::wgpu::plan_checks::prelude;
use crate::kernels::wgpu::{Dtype, Error, Gpu};

/// Largest block of a dense rotation: one invocation a column.
pub(super) const DENSE_BLOCK_MAX: usize = 256;

const TOKENS: &str = include_str!("../../../../shaders/transform_tokens.wgsl");
const DENSE: &str = include_str!("../../../../shaders/rotate_dense.wgsl");
const HADAMARD: &str = include_str!("../../../../shaders/rotate_hadamard.wgsl");
const QUANTIZE: &str = include_str!("../../../../shaders/transform_quantize.wgsl");
const FLOAT: &str = include_str!("../../../../shaders/transform_float.wgsl");

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

/// The dense and the Hadamard kernel of each target share an entry point; `prelude` tells their pipelines apart.
static QUANTIZE_DENSE: Shader = Shader {
    name: "transform_quantize",
    sources: &[TOKENS, DENSE, QUANTIZE],
    bindings: QUANTIZE_BINDINGS,
    immediates: IMMEDIATES,
};
static QUANTIZE_HADAMARD: Shader = Shader {
    name: "transform_quantize",
    sources: &[TOKENS, HADAMARD, QUANTIZE],
    bindings: QUANTIZE_BINDINGS,
    immediates: IMMEDIATES,
};
static FLOAT_DENSE: Shader = Shader {
    name: "transform_float",
    sources: &[TOKENS, DENSE, FLOAT],
    bindings: FLOAT_BINDINGS,
    immediates: IMMEDIATES,
};
static FLOAT_HADAMARD: Shader = Shader {
    name: "transform_float",
    sources: &[TOKENS, HADAMARD, FLOAT],
    bindings: FLOAT_BINDINGS,
    immediates: IMMEDIATES,
};

/// How a token is cut up on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tile {
    /// Invocations of a workgroup.
    workgroup: usize,
    /// Blocks of a chunk that one invocation rotates.
    rows: usize,
    /// Channels that are rotated at a time.
    chunk: usize,
    /// Whether each of the two areas is in workgroup memory.
    local: [bool; 2],
    /// Most workgroups of a dispatch.
    pub(super) workgroups: usize,
}

impl Tile {
    pub(super) fn choose(gpu: &Gpu, desc: &TransformQuantizeDesc) -> Result<Self, Error> {
        let limits = gpu.limits();
        let shape = desc.shape;
        let on_cpu = gpu.info().device_type == ::wgpu::DeviceType::Cpu;
        let mut tile = Self::sized(&shape, on_cpu);
        let invocations = limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x);
        if tile.workgroup > invocations as usize {
            return Err(Error::Limit {
                what: format!("a workgroup for blocks of {}", shape.block),
                limit_name: "max_compute_invocations_per_workgroup",
                limit: invocations.into(),
                got: tile.workgroup as u64,
            });
        }
        // The chunk, the sums of squares and a few words.
        let mut used = 4 * (tile.chunk + tile.workgroup) + 64;
        let limit = limits.max_compute_workgroup_storage_size as usize;
        if used > limit {
            return Err(Error::Limit {
                what: format!("a block of {} channels", shape.block),
                limit_name: "max_compute_workgroup_storage_size",
                limit: limit as u64,
                got: used as u64,
            });
        }
        for local in tile.local.iter_mut().take(shape.rotations) {
            *local = used + 4 * shape.channels <= limit;
            used += if *local { 4 * shape.channels } else { 4 };
        }
        let dimension = limits.max_compute_workgroups_per_dimension as usize;
        // Enough workgroups to fill the device several times; their areas stay in its caches.
        let busy = if on_cpu { 32 } else { 512 };
        tile.workgroups = if tile.workspace_areas(&shape) > 0 { busy.min(dimension) } else { dimension };
        Ok(tile)
    }

    /// The tile without its areas.
    fn sized(shape: &TransformShape, on_cpu: bool) -> Self {
        let TransformShape { channels, block, rotations, hadamard, .. } = *shape;
        let none = Self { workgroup: 256, rows: 1, chunk: 4, local: [false; 2], workgroups: 0 };
        if on_cpu && (rotations == 0 || hadamard) {
            let chunk = if hadamard { block * (2048 / block).clamp(1, channels / block) } else { 4 };
            return Self { workgroup: 64, chunk, ..none };
        }
        if rotations == 0 {
            return none;
        }
        if hadamard {
            return Self { chunk: block * (2048 / block).clamp(1, channels / block), ..none };
        }
        // A driver that runs workgroups on the CPU reads a token's value once for all invocations when it sees that all
        // read the same one: one block's columns a workgroup.
        let workgroup = if on_cpu { if block >= 32 { block } else { 64 } } else { 256 };
        let groups = workgroup / block;
        let most = if on_cpu { 16 } else { 8 };
        let rows = (channels / block).div_ceil(groups).next_power_of_two().min(most);
        Self { workgroup, rows, chunk: groups * rows * block, ..none }
    }

    fn workspace_areas(&self, shape: &TransformShape) -> usize {
        self.local.iter().take(shape.rotations).filter(|&&local| !local).count()
    }

    pub(super) fn workspace_bytes(&self, desc: &TransformQuantizeDesc) -> u64 {
        let areas = self.workspace_areas(&desc.shape) as u64;
        4 * areas * desc.shape.channels as u64 * self.workgroups.min(desc.m_max) as u64
    }

    pub(super) fn variant(&self, desc: &TransformQuantizeDesc) -> (&'static Shader, Variant) {
        let shape = &desc.shape;
        let source = match desc.source {
            TokenSource::Tokens => 0.0,
            TokenSource::RmsNorm { .. } => 1.0,
            TokenSource::SiluMul => 2.0,
        };
        let mut constants = vec![
            ("CHANNELS", shape.channels as f64),
            ("BLOCK", shape.block.max(1) as f64),
            ("ROTATIONS", shape.rotations as f64),
            ("SOURCE", source),
            ("SMOOTH", f64::from(u8::from(shape.smooth))),
            ("WORKGROUP", self.workgroup as f64),
            ("CHUNK", self.chunk as f64),
            ("AREA_0", if self.local[0] { shape.channels as f64 } else { 1.0 }),
            // The unused area of a token without or with one rotation must not look like one in the workspace.
            ("AREA_1", if self.local[1] { shape.channels as f64 } else { 1.0 }),
        ];
        let mut types = vec![("Value", desc.input)];
        let shader = match desc.target {
            TransformTarget::Codes => {
                constants.push(("STRIDE", desc.layout().stride() as f64));
                if shape.hadamard { &QUANTIZE_HADAMARD } else { &QUANTIZE_DENSE }
            }
            TransformTarget::Float(dtype) | TransformTarget::Dequantized(dtype) => {
                let dequantize = matches!(desc.target, TransformTarget::Dequantized(_));
                constants.push(("DEQUANTIZE", f64::from(u8::from(dequantize))));
                types.push(("Out", dtype));
                if shape.hadamard { &FLOAT_HADAMARD } else { &FLOAT_DENSE }
            }
        };
        let mut prelude = prelude(&types);
        if shape.hadamard {
            constants.push(("NORM", f64::from(1.0 / (shape.block as f32).sqrt())));
        } else {
            constants.push(("QUADS", (self.chunk / 4) as f64));
            prelude.push_str(&format!("const ROWS = {}u;\n", self.rows));
        }
        (shader, Variant { prelude, constants })
    }

    pub(super) fn name(&self, desc: &TransformQuantizeDesc) -> String {
        let shape = &desc.shape;
        let rotation = match (shape.rotations, shape.hadamard) {
            (0, _) => "no rotation".into(),
            (_, true) => format!("hadamard {}", shape.block),
            _ => format!("dense {} x{}", shape.block, self.rows),
        };
        let memory = if self.workspace_areas(shape) > 0 { "workspace" } else { "workgroup memory" };
        format!("transform_quantize wgsl {rotation}, {} invocations, {memory}", self.workgroup)
    }
}

/// Every combination of sources, targets and types, with the tiles of both kinds of device at a few shapes.
pub(in crate::kernels::wgpu) fn variants() -> Vec<(&'static Shader, Variant)> {
    let shape = |channels, block, rotations, hadamard| TransformShape {
        channels,
        block,
        rotations,
        hadamard,
        smooth: rotations == 1,
    };
    let shapes = [
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
                    let mut tile = Tile::sized(&shape, (i + j) % 2 == 0);
                    // 32 KiB of workgroup memory hold one area of 4096, and two of the smaller shapes.
                    tile.local = [shape.channels <= 4096, shape.channels <= 2048].map(|fits| fits && shape.rotations > 0);
                    tile.local[1] &= shape.rotations > 1;
                    out.push(tile.variant(&desc));
                }
            }
        }
    }
    out
}
