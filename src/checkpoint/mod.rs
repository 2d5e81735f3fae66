//! Files in and out: Hugging Face folders, GGUF, and the DuQuant format.

mod config;
mod config_json;
mod error;
pub mod gguf;
mod mapped;
mod names;
pub mod shards;
mod source;
mod tokenizer;
mod weights;

pub use config::{Config, RopeScaling};
pub use config_json::parse as parse_config;
pub use error::Error;
pub use source::{Checkpoint, Format, TensorInfo};
pub use tokenizer::Tokenizer;
pub use weights::{Group, LayerWeights, LinearGroup, LinearWeights, Projection, Table, TableValues, Weight};

#[cfg(test)]
mod real_model_tests;
