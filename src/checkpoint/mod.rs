//! Files in and out: Hugging Face folders, GGUF, and the DuQuant format.

mod atomic;
mod config;
mod config_json;
mod duquant;
mod error;
mod export;
pub mod gguf;
mod mapped;
mod names;
mod output;
mod quantization;
mod random;
pub mod shards;
mod source;
mod tokenizer;
mod weights;
mod writer;

pub use config::{Config, RopeScaling};
pub use config_json::parse as parse_config;
pub use error::Error;
pub use export::{Precision, export};
pub use quantization::{FLOAT_BITS, FORMAT_VERSION, Quantization};
pub use source::{Checkpoint, Format, TensorInfo};
pub use tokenizer::Tokenizer;
pub use weights::{Group, LayerWeights, LinearGroup, LinearWeights, Projection, Table, TableValues, Weight};
pub use writer::Writer;

#[cfg(test)]
mod tests;
