//! What a running sequence owns, on the backend of its model.

use super::cpu;
#[cfg(feature = "cuda")]
use super::cuda;
use super::error::Error;
use super::operation::Memory;
#[cfg(feature = "wgpu")]
use super::wgpu;

/// The KV caches and buffers of sequences in lockstep. It belongs to the model that made it.
pub struct State {
    pub(super) inner: Inner,
    pub(super) sequences: usize,
    /// Rows of the last run: its tokens over all sequences.
    pub(super) last: usize,
}

pub(super) enum Inner {
    Cpu(cpu::State),
    #[cfg(feature = "wgpu")]
    Wgpu(wgpu::State),
    #[cfg(feature = "cuda")]
    Cuda(cuda::State),
}

impl State {
    /// Sequences that run in lockstep.
    #[must_use]
    pub fn sequences(&self) -> usize {
        self.sequences
    }

    /// Bytes of everything that the state holds.
    #[must_use]
    pub fn memory(&self) -> Memory {
        match &self.inner {
            Inner::Cpu(state) => state.memory(),
            #[cfg(feature = "wgpu")]
            Inner::Wgpu(state) => state.memory(),
            #[cfg(feature = "cuda")]
            Inner::Cuda(state) => state.memory(),
        }
    }

    /// Ok when `tokens` more fit into each cache.
    pub(super) fn check_room(&self, tokens: usize) -> Result<(), Error> {
        let (capacity, wanted) = (self.capacity(), self.len() + tokens);
        if wanted > capacity {
            return Err(Error::Capacity { capacity, wanted });
        }
        Ok(())
    }

    /// Tokens in the cache of each sequence.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.inner {
            Inner::Cpu(state) => state.len(),
            #[cfg(feature = "wgpu")]
            Inner::Wgpu(state) => state.len(),
            #[cfg(feature = "cuda")]
            Inner::Cuda(state) => state.len(),
        }
    }

    /// Whether the cache is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens that the cache of each sequence has room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        match &self.inner {
            Inner::Cpu(state) => state.capacity(),
            #[cfg(feature = "wgpu")]
            Inner::Wgpu(state) => state.capacity(),
            #[cfg(feature = "cuda")]
            Inner::Cuda(state) => state.capacity(),
        }
    }

    /// Forgets every token.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// Forgets every token but the first `tokens` of each sequence, so that other text can follow them.
    pub fn truncate(&mut self, tokens: usize) {
        match &mut self.inner {
            Inner::Cpu(state) => state.truncate(tokens),
            #[cfg(feature = "wgpu")]
            Inner::Wgpu(state) => state.truncate(tokens),
            #[cfg(feature = "cuda")]
            Inner::Cuda(state) => state.truncate(tokens),
        }
    }

    /// Bytes of the KV caches.
    #[must_use]
    pub fn cache_bytes(&self) -> usize {
        match &self.inner {
            Inner::Cpu(state) => state.cache_bytes(),
            #[cfg(feature = "wgpu")]
            Inner::Wgpu(state) => state.cache_bytes(),
            #[cfg(feature = "cuda")]
            Inner::Cuda(state) => state.cache_bytes(),
        }
    }
}
