//! Many new tokens a sequence: a block takes rows, tokens x heads of a group, and goes through the pages that they see.

use super::{AttentionDesc, CACHE_BITS, CommonArgs};
use crate::kernels::cuda::checks::check_range;
use crate::kernels::cuda::{Arch, Device, Dtype, Error, Function, HEAD_DIMS, Kernel, Launch, PAGE};
use std::sync::Arc;

/// Threads of a block.
const THREADS: u32 = 128;
/// Bytes of what the kernel keeps of two neighbouring keys (`KeyPair`), and of a row of the cache's params.
const KEY_PAIR: u32 = 48;
const KEY_PARAMS: u32 = 16;

/// How a variant cuts its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    /// Rows of a warp over 16. A fragment of keys or values that is loaded and unpacked meets all of them.
    tiles: u32,
    /// Keys between two looks at the largest scores: 32 or 64.
    span: u32,
    /// Blocks of a multiprocessor, by registers.
    blocks: u32,
}

impl Shape {
    fn of(head_dim: usize, bits: (u32, u32)) -> Self {
        // The most rows, then the most blocks, whose sums and scores stay in registers.
        let (tiles, span, blocks) = match (head_dim, bits) {
            (64, (16, _)) => (2, 64, 2),
            (256, (16, _)) => (1, 32, 2),
            (_, (16, _)) => (1, 64, 2),
            (64, _) => (2, 64, 2),
            (80 | 96, _) | (128, (4, _)) => (2, 32, 2),
            (128, _) => (1, 64, 2),
            _ => (1, 32, 2),
        };
        Self { tiles, span, blocks }
    }

    /// Rows of a block: `ROWS` of the source.
    fn rows(self) -> usize {
        (THREADS / 2 * self.tiles) as usize
    }

    /// Registers of a thread.
    fn registers(self) -> u32 {
        (65_536 / (THREADS * self.blocks) / 8 * 8).min(255)
    }
}

/// Keys of a tile: `KEYS` of the source.
fn keys(head_dim: usize, bits: (u32, u32)) -> u32 {
    PAGE as u32 / if bits.0 == 16 && head_dim == 256 { 2 } else { 1 }
}

/// Bytes of a block's shared memory: two buffers of codes or one of floating-point numbers; queries, where registers are short;
/// and the positions of the rows.
fn shared(head_dim: usize, bits: (u32, u32)) -> u32 {
    let row = |bits: u32| 16 * ((head_dim as u32 * bits / 8).div_ceil(16) | 1);
    let keys = keys(head_dim, bits);
    let tile = keys * (row(bits.0) + row(bits.1));
    let tiles = if bits.0 == 16 { tile } else { 2 * (tile + keys / 2 * KEY_PAIR) + keys * KEY_PARAMS };
    let rows = Shape::of(head_dim, bits).rows() as u32;
    let queries = if (head_dim, bits) == (256, (8, 8)) { rows * head_dim as u32 } else { 0 };
    tiles + queries + 4 * rows
}

#[derive(Debug, Clone)]
pub(super) struct Prefill {
    function: Arc<Function>,
    rows: usize,
    shared: u32,
    group: usize,
    kv_heads: usize,
}

impl Prefill {
    pub(super) fn new(device: &dyn Device, desc: &AttentionDesc) -> Result<Self, Error> {
        let cache = &desc.cache;
        let bits = (cache.key_bits(), cache.value_bits());
        // The kernel counts rows in 32 bits.
        check_range("tokens_max x heads", desc.tokens_max * (desc.heads / cache.kv_heads), 1, 1 << 30)?;
        Ok(Self {
            function: device.load(&kernel(cache.head_dim, bits, cache.float))?,
            rows: Shape::of(cache.head_dim, bits).rows(),
            shared: shared(cache.head_dim, bits),
            group: desc.heads / cache.kv_heads,
            kv_heads: cache.kv_heads,
        })
    }

    pub(super) fn kernel(&self) -> String {
        self.function.kernel.to_string()
    }

    /// Of `sequences` sequences of at most `longest` tokens each.
    pub(super) fn launch(&self, sequences: usize, longest: usize, common: CommonArgs) -> Launch {
        let tiles = (longest * self.group).div_ceil(self.rows);
        let grid = [tiles as u32, self.kv_heads as u32, sequences as u32];
        Launch::new(&self.function, grid, THREADS, self.shared, &common)
    }
}

fn kernel(head_dim: usize, bits: (u32, u32), float: Dtype) -> Kernel {
    let shape = Shape::of(head_dim, bits);
    let float = if bits.0 == 16 { float } else { Dtype::F16 };
    let defines = vec![
        ("HEAD_DIM", head_dim as u32),
        ("KEY_BITS", bits.0),
        ("VALUE_BITS", bits.1),
        ("FLOAT", float.define()),
        ("TILES", shape.tiles),
        ("SPAN", shape.span),
        ("BLOCKS", shape.blocks),
        ("SHARED_BYTES", shared(head_dim, bits)),
    ];
    let registers = shape.registers();
    Kernel { file: "attention_prefill.cu", entry: "attention_prefill", defines, archs: &Arch::ALL, registers }
}

/// Every kernel of this file.
pub(super) fn kernels() -> Vec<Kernel> {
    let mut out = Vec::new();
    for head_dim in HEAD_DIMS {
        for bits in CACHE_BITS {
            let floats: &[Dtype] = if bits.0 == 16 { &[Dtype::F16, Dtype::Bf16] } else { &[Dtype::F16] };
            out.extend(floats.iter().map(|&float| kernel(head_dim, bits, float)));
        }
    }
    out
}
