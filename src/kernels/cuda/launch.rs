use super::Function;
use bytemuck::Pod;
use std::sync::Arc;

/// Most bytes of a kernel's arguments.
pub const MAX_ARGUMENTS: usize = 256;

/// One kernel with its grid and arguments: what a plan enqueues.
#[derive(Debug, Clone)]
pub struct Launch {
    /// What runs.
    pub function: Arc<Function>,
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block, in x.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    arguments: Arguments,
    bytes: usize,
}

#[derive(Debug, Clone, Copy)]
#[repr(C, align(16))]
struct Arguments([u8; MAX_ARGUMENTS]);

impl Launch {
    /// A launch with the kernel's one argument, a structure that `cuda/` declares with the same fields.
    #[must_use]
    pub fn new<A: Pod>(function: &Arc<Function>, grid: [u32; 3], block: u32, shared: u32, arguments: &A) -> Self {
        const { assert!(size_of::<A>() <= MAX_ARGUMENTS && align_of::<A>() <= 16, "arguments are too large") };
        let source = bytemuck::bytes_of(arguments);
        let mut bytes = [0; MAX_ARGUMENTS];
        bytes[..source.len()].copy_from_slice(source);
        let (function, arguments) = (Arc::clone(function), Arguments(bytes));
        Self { function, grid, block, shared, arguments, bytes: source.len() }
    }

    /// The argument's bytes, at a multiple of 16.
    #[must_use]
    pub fn arguments(&self) -> &[u8] {
        &self.arguments.0[..self.bytes]
    }

    /// Whether there is nothing to do: a grid without blocks, which the driver would refuse.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.grid.contains(&0)
    }
}
