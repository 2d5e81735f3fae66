//! The token of the largest logit, on the device: greedy decoding needs no round trip to the host.

use super::checks::{check_address, check_range};
use super::{Address, Arch, Device, Dtype, Error, Function, Kernel, Launch, Stream};
use bytemuck::{Pod, Zeroable};
use std::sync::Arc;

const THREADS: u32 = 256;

/// Columns that a block goes through: two loads of eight logits a thread, so that one row of a large vocabulary is read by many
/// multiprocessors at once.
const SEGMENT: usize = 16 * THREADS as usize;

/// What to plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArgmaxDesc {
    /// Most tokens.
    pub m_max: usize,
    /// Columns `V` of the logits.
    pub columns: usize,
    /// Type of the logits.
    pub input: Dtype,
}

/// Where the next decode step finds what this one chose, so that a captured graph of one step can be replayed without the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextStep {
    /// `[T]` of `u32`: token `t`'s choice once more, as the ids of the next embedding.
    pub ids: Address,
    /// `[T]` of [`Sequence`](super::Sequence): the `tokens` of sequence `t` join its `position`, and its next token is row `t`,
    /// unless it had none.
    pub sequences: Address,
}

/// `ids[t] = ` the first index of the largest of token `t`'s logits.
///
/// NaN is never chosen, and a token whose logits are all NaN gets 0. Both zeros are the same number. One launch: each block
/// searches a segment of a row, and the last one to finish writes the token.
#[derive(Debug, Clone)]
pub struct ArgmaxPlan {
    desc: ArgmaxDesc,
    function: Arc<Function>,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Args {
    logits: Address,
    ids: Address,
    next: Address,
    sequences: Address,
    workspace: Address,
    columns: u32,
    segment: u32,
}

impl ArgmaxPlan {
    /// Loads the kernel.
    ///
    /// # Errors
    /// [`Error::Kernel`] for an empty shape or one of 2^24 or more; what [`Device::load`] gives.
    pub fn plan(device: &dyn Device, desc: &ArgmaxDesc) -> Result<Self, Error> {
        check_range("m_max", desc.m_max, 1, 1 << 24)?;
        check_range("columns", desc.columns, 1, 1 << 24)?;
        Ok(Self { desc: *desc, function: device.load(&kernel(desc.input))? })
    }

    /// Which kernel runs for `tokens` tokens.
    #[must_use]
    pub fn kernel(&self, _tokens: usize) -> String {
        self.function.kernel.to_string()
    }

    /// Bytes of device memory for the candidates: zero before the first launch, and left zero by each.
    #[must_use]
    pub fn workspace_bytes(&self) -> u64 {
        16 * self.desc.m_max as u64
    }

    /// Enqueues `tokens` tokens: `logits` `[T, V]`, `ids` `[T]` of `u32`, and where the next step reads them, if it is to.
    ///
    /// # Safety
    /// The addresses must be the device's and hold what the shape says until the kernel has run; the workspace must be zero, and
    /// no other launch may use it at the same time.
    ///
    /// # Errors
    /// [`Error::Kernel`] for more tokens than planned, [`Error::Alignment`] for an address that is no multiple of 16.
    pub unsafe fn enqueue(
        &self,
        device: &dyn Device,
        stream: Stream,
        tokens: usize,
        logits: Address,
        ids: Address,
        next: Option<NextStep>,
        workspace: Address,
    ) -> Result<(), Error> {
        check_range("tokens", tokens, 0, self.desc.m_max)?;
        let operands = [("logits", logits), ("ids", ids), ("workspace", workspace)];
        let following = next.iter().flat_map(|next| [("next ids", next.ids), ("sequences", next.sequences)]);
        operands.into_iter().chain(following).try_for_each(|(what, at)| check_address(what, at))?;
        let columns = self.desc.columns;
        let (next, sequences) = next.map_or((0, 0), |next| (next.ids, next.sequences));
        let arguments =
            Args { logits, ids, next, sequences, workspace, columns: columns as u32, segment: SEGMENT as u32 };
        let grid = [tokens as u32, columns.div_ceil(SEGMENT) as u32, 1];
        let shared = 8 * THREADS / 32;
        // SAFETY: the caller vouches for the addresses; a block stays in its token's row.
        unsafe { device.launch(stream, &Launch::new(&self.function, grid, THREADS, shared, &arguments)) }
    }
}

fn kernel(input: Dtype) -> Kernel {
    let defines = vec![("INPUT", input.define())];
    Kernel { file: "argmax.cu", entry: "argmax", defines, archs: &Arch::ALL, registers: 64 }
}

/// Every kernel of this file.
pub(super) fn kernels() -> Vec<Kernel> {
    [Dtype::F32, Dtype::F16, Dtype::Bf16].map(kernel).into()
}
