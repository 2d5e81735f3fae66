//! Rows of an embedding table by token id.

use super::checks::{check_address, check_range};
use super::{Address, Arch, Device, Dtype, Error, Function, Kernel, Launch, Stream};
use bytemuck::{Pod, Zeroable};
use std::sync::Arc;

const THREADS: u32 = 128;

/// Numbers of a row that one block copies.
const PIECE: usize = 8 * THREADS as usize;

/// What to plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbeddingDesc {
    /// Most tokens.
    pub m_max: usize,
    /// Rows `V` of the table.
    pub vocabulary: usize,
    /// Columns `K` of the table.
    pub channels: usize,
    /// Type of the table.
    pub table: Dtype,
    /// Type of `out`.
    pub output: Dtype,
}

/// `out[t] = table[ids[t]]`. An id of `V` or more gives a row of zeros.
#[derive(Debug, Clone)]
pub struct EmbeddingPlan {
    desc: EmbeddingDesc,
    function: Arc<Function>,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Args {
    ids: Address,
    table: Address,
    out: Address,
    vocabulary: u32,
    channels: u32,
}

impl EmbeddingPlan {
    /// Loads the kernel.
    ///
    /// # Errors
    /// [`Error::Kernel`] for an empty shape or one of 2^24 or more; what [`Device::load`] gives.
    pub fn plan(device: &dyn Device, desc: &EmbeddingDesc) -> Result<Self, Error> {
        check_range("channels", desc.channels, 1, 1 << 24)?;
        check_range("vocabulary", desc.vocabulary, 1, 1 << 24)?;
        check_range("m_max", desc.m_max, 1, 1 << 24)?;
        Ok(Self { desc: *desc, function: device.load(&kernel(desc.table, desc.output))? })
    }

    /// Which kernel runs for `tokens` tokens.
    #[must_use]
    pub fn kernel(&self, _tokens: usize) -> String {
        self.function.kernel.to_string()
    }

    /// What was planned.
    #[must_use]
    pub fn desc(&self) -> &EmbeddingDesc {
        &self.desc
    }

    /// Enqueues `tokens` tokens: `ids` `[T]` of `u32` in device memory, `table` `[V, K]`, `out` `[T, K]`.
    ///
    /// # Safety
    /// The addresses must be the device's and hold what the shape says until the kernel has run.
    ///
    /// # Errors
    /// [`Error::Kernel`] for more tokens than planned, [`Error::Alignment`] for an address that is no multiple of 16.
    pub unsafe fn enqueue(
        &self,
        device: &dyn Device,
        stream: Stream,
        tokens: usize,
        ids: Address,
        table: Address,
        out: Address,
    ) -> Result<(), Error> {
        check_range("tokens", tokens, 0, self.desc.m_max)?;
        [("ids", ids), ("table", table), ("out", out)]
            .into_iter()
            .try_for_each(|(what, at)| check_address(what, at))?;
        let EmbeddingDesc { vocabulary, channels, .. } = self.desc;
        let grid = [tokens as u32, channels.div_ceil(PIECE) as u32, 1];
        let arguments = Args { ids, table, out, vocabulary: vocabulary as u32, channels: channels as u32 };
        // SAFETY: the caller vouches for the addresses; the kernel checks each id against the table.
        unsafe { device.launch(stream, &Launch::new(&self.function, grid, THREADS, 0, &arguments)) }
    }
}

fn kernel(table: Dtype, output: Dtype) -> Kernel {
    let defines = vec![("TABLE", table.define()), ("OUTPUT", output.define())];
    Kernel { file: "embedding.cu", entry: "embedding", defines, archs: &Arch::ALL, registers: 64 }
}

/// Every kernel of this file.
pub(super) fn kernels() -> Vec<Kernel> {
    let dtypes = [Dtype::F32, Dtype::F16, Dtype::Bf16];
    dtypes.into_iter().flat_map(|table| dtypes.map(|output| kernel(table, output))).collect()
}
