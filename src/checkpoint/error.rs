use std::path::{Path, PathBuf};

/// What can be wrong with a checkpoint. Every variant names the file; where one tensor is to blame, the tensor too.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read or write.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried: `open`, `write`, `rename`, ...
        action: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file does not follow its format.
    #[error("{}: {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What was expected and what came.
        what: String,
    },
    /// A field of `config.json` or of the GGUF metadata is missing or makes no sense.
    #[error("{}: {field}: expected {expected}, got {got}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The field as the file spells it.
        field: String,
        /// Values that would do.
        expected: String,
        /// The value that came.
        got: String,
    },
    /// The model is of a family that this library does not run.
    #[error(
        "{}: architecture {name} is not supported; supported are LlamaForCausalLM and MistralForCausalLM (Hugging Face) \
         and llama (GGUF)",
        path.display()
    )]
    Architecture {
        /// The file.
        path: PathBuf,
        /// The architecture as the file spells it.
        name: String,
    },
    /// A tensor that the architecture needs is not there.
    #[error("{}: tensor {tensor} is missing", path.display())]
    MissingTensor {
        /// The file or folder.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor has another shape, type or content than the configuration asks for.
    #[error("{}: tensor {tensor}: {what}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What was expected and what came.
        what: String,
    },
    /// A tensor holds NaN or infinity.
    #[error("{}: tensor {tensor}: element {index} is not finite", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The first such element, counted row-major.
        index: usize,
    },
    /// There is no usable tokenizer, or it failed on a text.
    #[error("{}: tokenizer: {what}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A layer that the model does not have was asked for.
    #[error("{}: layer {index} was asked for, the model has {layers}", path.display())]
    Layer {
        /// The file or folder.
        path: PathBuf,
        /// The layer asked for.
        index: usize,
        /// Layers that there are.
        layers: usize,
    },
    /// A file of a DuQuant folder is not the one that was written.
    #[error("{}: SHA-256 is {got}, the checkpoint was written with {expected}", path.display())]
    Hash {
        /// The file.
        path: PathBuf,
        /// Hash recorded when the checkpoint was written.
        expected: String,
        /// Hash of the file as it is.
        got: String,
    },
    /// The output folder is in use and may not be replaced.
    #[error("{}: {what}", path.display())]
    Occupied {
        /// The folder.
        path: PathBuf,
        /// What stands there and what to do about it.
        what: String,
    },
}

impl Error {
    /// Turns an I/O error on `path` into [`Error::Io`].
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, action, source }
    }

    pub(crate) fn malformed(path: &Path, what: impl Into<String>) -> Self {
        Self::Malformed { path: path.into(), what: what.into() }
    }

    pub(crate) fn tensor(path: &Path, tensor: &str, what: impl Into<String>) -> Self {
        Self::Tensor { path: path.into(), tensor: tensor.into(), what: what.into() }
    }

    pub(crate) fn missing(path: &Path, tensor: &str) -> Self {
        Self::MissingTensor { path: path.into(), tensor: tensor.into() }
    }

    pub(crate) fn config(path: &Path, field: &str, expected: impl Into<String>, got: impl Into<String>) -> Self {
        Self::Config { path: path.into(), field: field.into(), expected: expected.into(), got: got.into() }
    }

    pub(crate) fn tokenizer(path: &Path, what: impl std::fmt::Display) -> Self {
        Self::Tokenizer { path: path.into(), what: what.to_string() }
    }
}
