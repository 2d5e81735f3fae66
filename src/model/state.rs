//! What a running sequence owns, on the backend of its model.

use super::cpu;
#[cfg(feature = "cuda")]
use super::cuda;
#[cfg(feature = "wgpu")]
use super::wgpu;

/// The KV cache and buffers of one sequence. It belongs to the model that made it.
pub struct State {
    pub(super) inner: Inner,
    /// Tokens of the last run.
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
    /// Tokens in the cache.
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

    /// Tokens that the cache has room for.
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

    /// Forgets every token but the first `tokens`, so that other text can follow them.
    pub fn truncate(&mut self, tokens: usize) {
        match &mut self.inner {
            Inner::Cpu(state) => state.truncate(tokens),
            #[cfg(feature = "wgpu")]
            Inner::Wgpu(state) => state.truncate(tokens),
            #[cfg(feature = "cuda")]
            Inner::Cuda(state) => state.truncate(tokens),
        }
    }

    /// Bytes of the KV cache.
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
