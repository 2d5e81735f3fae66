use crate::{calibrate, checkpoint, kernels, model};

/// Why a model could not be quantized.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source could not be read or the result not written.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// The floating-point or the quantized layer could not be run.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// The samples do not do.
    #[error(transparent)]
    Samples(#[from] calibrate::SampleError),
    /// A transform could not be found, or a weight or an option is outside what the quantizer takes.
    #[error(transparent)]
    Kernel(#[from] kernels::Error),
    /// Something went wrong in one layer.
    #[error("layer {layer}: {source}")]
    Layer {
        /// The layer.
        layer: usize,
        /// What went wrong.
        source: Box<Error>,
    },
    /// The source is a quantized checkpoint.
    #[error("this checkpoint is quantized already; give the floating-point model that it was made from")]
    AlreadyQuantized,
    /// The method measures activations and got no samples.
    #[error("{method} needs calibration samples; give a text or ask for random tokens")]
    NoSamples {
        /// The method.
        method: &'static str,
    },
    /// A fault in this library.
    #[error("internal fault: {0}; please report it")]
    Internal(&'static str),
}
