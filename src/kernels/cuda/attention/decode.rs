//! Few new tokens a sequence: a block takes a part of the pages, the last block of a sequence and head merges the parts.

use super::{AttentionDesc, CACHE_BITS, CommonArgs};
use crate::kernels::cuda::{Arch, Device, Dtype, Error, Function, HEAD_DIMS, Kernel, Launch, PAGE};
use bytemuck::{Pod, Zeroable};
use std::sync::Arc;

/// Rows of a block: the `n8` of the matrix instructions. A row is a query head of the group at a token.
const ROWS: usize = 8;
/// Most row tiles of a sequence and key head; each reads the cache anew.
const ROW_TILES: usize = 4;
/// Fewest pages of a block. Below that, merging costs more than the parallel reads gain.
const PAGES_MIN: usize = 2;
/// Most parts of a sequence, whose weights the merging block holds in shared memory. `SPLITS_MAX` of the source.
const SPLITS_MAX: usize = 128;

/// How a variant cuts its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    /// Warps of a block; each has its own keys and its own copies in flight.
    warps: u32,
    /// Keys of a warp's step over 16: 1 or 2.
    tiles: u32,
    /// Steps of a warp that are in shared memory at a time.
    stages: u32,
    /// Registers of a thread.
    registers: u32,
}

impl Shape {
    fn of(head_dim: usize, bits: (u32, u32)) -> Self {
        let row = row_bytes(head_dim, bits);
        // Two steps of 32 keys or 4 of 16, whatever a block can hold beside others.
        let (warps, tiles, stages) = match row {
            0..=160 => (4, 2, 2),
            161..=320 => (4, 1, 2),
            _ => (if row <= 512 { 4 } else { 2 }, 1, 2),
        };
        // 16, 12 or 8 warps a multiprocessor; shared memory allows floating point of wide heads no more.
        let registers = match (bits.0 == 16, head_dim) {
            (true, 129..) => 255,
            (true, 96..) | (false, 129..) => 168,
            _ => 128,
        };
        Self { warps, tiles, stages, registers }
    }
}

/// Bytes of a token and head in the cache.
fn row_bytes(head_dim: usize, (key_bits, value_bits): (u32, u32)) -> usize {
    head_dim * (key_bits + value_bits) as usize / 8 + if key_bits < 16 { 16 } else { 0 }
}

#[derive(Debug, Clone)]
pub(super) struct Decode {
    function: Arc<Function>,
    shape: Shape,
    shared: u32,
    group: usize,
    kv_heads: usize,
    head_dim: usize,
    sequences_max: usize,
    row_tiles_max: usize,
    /// Pages that a query can see.
    pages: usize,
    /// Blocks that run at a time.
    slots: usize,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct DecodeArgs {
    common: CommonArgs,
    /// Row tiles of the launch.
    row_tiles: u32,
    /// Where the parts begin in the workspace, in bytes; counters are in front.
    parts: u32,
}

impl Decode {
    pub(super) fn new(device: &dyn Device, desc: &AttentionDesc) -> Result<Self, Error> {
        let cache = &desc.cache;
        let bits = (cache.key_bits(), cache.value_bits());
        let shape = Shape::of(cache.head_dim, bits);
        let chip = device.chip();
        let ring = shape.warps as usize * (shape.stages * shape.tiles * 16) as usize * row_bytes(cache.head_dim, bits);
        let merge = shape.warps as usize * ROWS * (cache.head_dim + 2) * 4;
        let weights = SPLITS_MAX * ROWS * 4 + ROWS * 8;
        let shared = ring.max(merge).max(weights) as u32;
        let by_shared = chip.arch.shared_per_multiprocessor() / (shared + 1024);
        let by_registers = 65_536 / (shape.registers * shape.warps * 32);
        let seen = desc.window.map_or(usize::MAX, |window| window.saturating_add(2 * PAGE)).min(desc.context_max);
        let group = desc.heads / cache.kv_heads;
        let decode = Self {
            function: device.load(&kernel(cache.head_dim, bits, cache.float, shape))?,
            shape,
            shared,
            group,
            kv_heads: cache.kv_heads,
            head_dim: cache.head_dim,
            sequences_max: desc.sequences_max,
            row_tiles_max: group.div_ceil(ROWS).max(ROW_TILES),
            pages: seen.div_ceil(PAGE),
            slots: chip.multiprocessors as usize * by_shared.min(by_registers).max(1) as usize,
        };
        let (limit, got) = (u64::from(u32::MAX), decode.counter_bytes());
        if got > limit {
            return Err(Error::Limit { what: "bytes of sequences_max x heads counters".into(), limit, got });
        }
        Ok(decode)
    }

    /// Whether so many tokens a sequence are few.
    pub(super) fn takes(&self, longest: usize) -> bool {
        longest <= self.longest()
    }

    /// Most tokens of a sequence.
    pub(super) fn longest(&self) -> usize {
        (ROW_TILES * ROWS / self.group).max(1)
    }

    pub(super) fn kernel(&self) -> String {
        self.function.kernel.to_string()
    }

    /// Parts of a sequence and head when so many blocks take the first parts. All blocks run at a time, or there is one part, so
    /// that parts never outnumber `slots`.
    fn splits(&self, blocks: usize) -> usize {
        (self.slots / blocks).min(self.pages / PAGES_MIN).clamp(1, SPLITS_MAX)
    }

    fn counter_bytes(&self) -> u64 {
        (4 * self.sequences_max as u64 * (self.kv_heads * self.row_tiles_max) as u64).next_multiple_of(16)
    }

    pub(super) fn workspace_bytes(&self) -> u64 {
        self.counter_bytes() + self.slots as u64 * (ROWS * (self.head_dim + 2) * 4) as u64
    }

    pub(super) fn launch(&self, sequences: usize, longest: usize, common: CommonArgs) -> Launch {
        let row_tiles = (longest * self.group).div_ceil(ROWS);
        let heads = self.kv_heads * row_tiles;
        let splits = self.splits(sequences * heads);
        let arguments = DecodeArgs { common, row_tiles: row_tiles as u32, parts: self.counter_bytes() as u32 };
        let grid = [splits as u32, heads as u32, sequences as u32];
        Launch::new(&self.function, grid, 32 * self.shape.warps, self.shared, &arguments)
    }
}

fn kernel(head_dim: usize, bits: (u32, u32), float: Dtype, shape: Shape) -> Kernel {
    let float = if bits.0 == 16 { float } else { Dtype::F16 };
    let defines = vec![
        ("HEAD_DIM", head_dim as u32),
        ("KEY_BITS", bits.0),
        ("VALUE_BITS", bits.1),
        ("FLOAT", float.define()),
        ("WARPS", shape.warps),
        ("TILES", shape.tiles),
        ("STAGES", shape.stages),
    ];
    let registers = shape.registers;
    Kernel { file: "attention_decode.cu", entry: "attention_decode", defines, archs: &Arch::ALL, registers }
}

/// Every kernel of this file.
pub(super) fn kernels() -> Vec<Kernel> {
    let mut out = Vec::new();
    for head_dim in HEAD_DIMS {
        for bits in CACHE_BITS {
            let floats: &[Dtype] = if bits.0 == 16 { &[Dtype::F16, Dtype::Bf16] } else { &[Dtype::F16] };
            out.extend(floats.iter().map(|&float| kernel(head_dim, bits, float, Shape::of(head_dim, bits))));
        }
    }
    out
}
