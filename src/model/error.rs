use crate::{checkpoint, kernels};

/// What can go wrong while a model is loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The checkpoint could not be read.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// A kernel refused its operands.
    #[error("{place}: {source}")]
    Kernel {
        /// Layer and group, or the part of the model, that called it.
        place: String,
        /// What the kernel said.
        source: kernels::Error,
    },
    /// A device refused something.
    #[cfg(feature = "wgpu")]
    #[error("{place}: {source}")]
    Wgpu {
        /// Layer and group, or the part of the model, that called it.
        place: String,
        /// What the device said.
        source: kernels::wgpu::Error,
    },
    /// A CUDA device refused something.
    #[cfg(feature = "cuda")]
    #[error("{place}: {source}")]
    Cuda {
        /// Layer and group, or the part of the model, that called it.
        place: String,
        /// What the device said.
        source: kernels::cuda::Error,
    },
    /// A state is used with another model than the one that made it.
    #[error("the state belongs to another model; make it with this model's new_state")]
    State,
    /// A weight has another shape than the configuration asks for.
    #[error("{place}: expected {expected}, got {got}")]
    Shape {
        /// Layer and group.
        place: String,
        /// The shape that the configuration asks for.
        expected: String,
        /// The shape that came.
        got: String,
    },
    /// A token is outside the vocabulary.
    #[error("token {token} is outside the vocabulary of {vocabulary}")]
    Token {
        /// The token.
        token: u32,
        /// Rows of the embedding.
        vocabulary: usize,
    },
    /// More tokens than the state has room for.
    #[error("the key-value cache holds {capacity} tokens and {wanted} are wanted; make the state with more room")]
    Capacity {
        /// Tokens that the cache has room for.
        capacity: usize,
        /// Tokens after the call.
        wanted: usize,
    },
}

/// Attaches the place to a kernel's error.
pub(crate) trait At<T> {
    fn at(self, place: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> At<T> for Result<T, kernels::Error> {
    fn at(self, place: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::Kernel { place: place(), source })
    }
}

#[cfg(feature = "wgpu")]
impl<T> At<T> for Result<T, kernels::wgpu::Error> {
    fn at(self, place: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::Wgpu { place: place(), source })
    }
}

#[cfg(feature = "cuda")]
impl<T> At<T> for Result<T, kernels::cuda::Error> {
    fn at(self, place: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::Cuda { place: place(), source })
    }
}
