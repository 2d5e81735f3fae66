//! Files in and out: Hugging Face folders, GGUF, and the DuQuant format.

mod config;
mod weights;

pub use config::{Config, RopeScaling};
pub use weights::{Group, LayerWeights, LinearGroup, LinearWeights, Projection, Table, TableValues, Weight};
