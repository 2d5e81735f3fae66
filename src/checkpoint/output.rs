//! Sharded safetensors out: one shard a layer, an index, atomically.

use super::atomic::PartialFolder;
use super::quantization::FileRecord;
use super::{Error, Table, TableValues};
use safetensors::Dtype;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

#[cfg(target_endian = "big")]
compile_error!("checkpoints are written from memory as it is and are little-endian");

/// A tensor to be written.
pub(crate) struct OutTensor<'a> {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Cow<'a, [u8]>,
}

impl<'a> OutTensor<'a> {
    pub(crate) fn f32(name: String, shape: &[usize], values: &'a [f32]) -> Self {
        Self { name, dtype: Dtype::F32, shape: shape.into(), bytes: bytemuck::cast_slice(values).into() }
    }

    pub(crate) fn table(name: String, table: &'a Table) -> Self {
        let (dtype, bytes) = match &table.values {
            TableValues::F32(values) => (Dtype::F32, bytemuck::cast_slice(values)),
            TableValues::F16(values) => (Dtype::F16, bytemuck::cast_slice(values)),
            TableValues::Bf16(values) => (Dtype::BF16, bytemuck::cast_slice(values)),
        };
        Self { name, dtype, shape: vec![table.rows, table.columns], bytes: bytes.into() }
    }
}

/// A Hugging Face folder under construction.
#[derive(Debug)]
pub(crate) struct OutputFolder {
    folder: PartialFolder,
    weight_map: BTreeMap<String, String>,
    total: usize,
    pub(crate) files: BTreeMap<String, FileRecord>,
}

impl OutputFolder {
    pub(crate) fn create(
        target: &Path,
        tokenizer: &[u8],
        may_replace: impl FnOnce(&Path) -> Result<bool, String>,
    ) -> Result<Self, Error> {
        let folder = PartialFolder::create(target, may_replace)?;
        let mut output = Self { folder, weight_map: BTreeMap::new(), total: 0, files: BTreeMap::new() };
        output.file("tokenizer.json", tokenizer)?;
        Ok(output)
    }

    /// Writes a small file and records its hash.
    pub(crate) fn file(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let record = self.folder.write(name, |out| out.write_all(bytes))?;
        self.files.insert(name.into(), record);
        Ok(())
    }

    /// Writes one shard: a header that tells where each tensor lies, padded to 8 bytes, then the tensors.
    pub(crate) fn shard(&mut self, name: &str, tensors: &[OutTensor<'_>]) -> Result<(), Error> {
        let mut header = Map::new();
        // transformers refuses a file that does not say which framework's tensors it holds.
        header.insert("__metadata__".into(), json!({ "format": "pt" }));
        let mut at = 0;
        for tensor in tensors {
            let end = at + tensor.bytes.len();
            let entry = json!({
                "dtype": format!("{:?}", tensor.dtype), "shape": tensor.shape, "data_offsets": [at, end],
            });
            header.insert(tensor.name.clone(), entry);
            self.weight_map.insert(tensor.name.clone(), name.into());
            at = end;
        }
        self.total += at;
        let mut header = Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let record = self.folder.write(name, |out| {
            out.write_all(&(header.len() as u64).to_le_bytes())?;
            out.write_all(&header)?;
            tensors.iter().try_for_each(|tensor| out.write_all(&tensor.bytes))
        })?;
        self.files.insert(name.into(), record);
        Ok(())
    }

    /// Writes the index.
    pub(crate) fn index(&mut self) -> Result<(), Error> {
        let index = json!({ "metadata": { "total_size": self.total }, "weight_map": self.weight_map });
        self.file("model.safetensors.index.json", pretty(&index).as_bytes())
    }

    /// Writes `config.json` and gives the folder its name.
    pub(crate) fn finish(self, config: &Value) -> Result<(), Error> {
        self.folder.write("config.json", |out| out.write_all(pretty(config).as_bytes()))?;
        self.folder.commit()
    }
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
