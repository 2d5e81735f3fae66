//! Safetensors: one file, or a sharded folder, seen as one set of named tensors.

use super::mapped::{MappedFile, read_small};
use super::{Error, Table, TableValues};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// Longest index file that is read.
const INDEX_LIMIT: u64 = 256 << 20;

/// Where a tensor lies and what it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Type of its elements.
    pub dtype: Dtype,
    /// Shape, row-major.
    pub shape: Vec<usize>,
    /// First byte and the byte behind the last one, counted from the start of the file.
    pub range: std::ops::Range<usize>,
}

/// Reads the header of a safetensors file held in `bytes`. `path` is for error messages only.
///
/// # Errors
/// [`Error::Malformed`] when the header is longer than the file (or than 100 MB), is not the JSON that the format asks
/// for, or when the tensors do not exactly tile the rest of the file.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, Entry>, Error> {
    let (header, metadata) = SafeTensors::read_metadata(bytes)
        .map_err(|e| Error::malformed(path, format!("not a safetensors file or cut short: {e}")))?;
    let start = header + 8;
    let entries = metadata.tensors().into_iter().map(|(name, info)| {
        let (from, to) = info.data_offsets;
        (name, Entry { dtype: info.dtype, shape: info.shape.clone(), range: start + from..start + to })
    });
    Ok(entries.collect())
}

/// The tensors of a folder.
#[derive(Debug)]
pub(crate) struct Shards {
    folder: PathBuf,
    files: Vec<MappedFile>,
    tensors: BTreeMap<String, (usize, Entry)>,
}

impl Shards {
    /// Opens `model.safetensors.index.json` and its shards, or else `model.safetensors`.
    pub(crate) fn open(folder: &Path) -> Result<Self, Error> {
        let index = folder.join("model.safetensors.index.json");
        if index.exists() {
            return Self::open_index(folder, &index);
        }
        let single = folder.join("model.safetensors");
        if !single.exists() {
            return Err(Error::malformed(
                folder,
                "expected model.safetensors or model.safetensors.index.json in the folder (pytorch_model.bin is not read: \
                 convert it with save_pretrained(safe_serialization=True))",
            ));
        }
        let file = MappedFile::open(&single)?;
        let tensors = parse(&single, file.bytes())?.into_iter().map(|(name, entry)| (name, (0, entry))).collect();
        Ok(Self { folder: folder.into(), files: vec![file], tensors })
    }

    fn open_index(folder: &Path, index: &Path) -> Result<Self, Error> {
        let mut files = Vec::new();
        let mut tensors = BTreeMap::new();
        for (shard, names) in read_index(index)? {
            let path = folder.join(&shard);
            let file = MappedFile::open(&path)?;
            let mut entries = parse(&path, file.bytes())?;
            for name in names {
                let entry = entries.remove(&name).ok_or_else(|| Error::missing(&path, &name))?;
                tensors.insert(name, (files.len(), entry));
            }
            files.push(file);
        }
        Ok(Self { folder: folder.into(), files, tensors })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.tensors.iter().map(|(name, (_, entry))| (name.as_str(), entry))
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The file that holds `name`, or the folder.
    pub(crate) fn path_of(&self, name: &str) -> &Path {
        self.tensors.get(name).map_or(&self.folder, |(file, _)| &self.files[*file].path)
    }

    pub(crate) fn entry(&self, name: &str) -> Result<&Entry, Error> {
        self.tensors.get(name).map(|(_, entry)| entry).ok_or_else(|| Error::missing(&self.folder, name))
    }

    /// Checks that `name` is there with `shape` and returns its entry.
    pub(crate) fn entry_shaped(&self, name: &str, shape: &[usize]) -> Result<&Entry, Error> {
        let entry = self.entry(name)?;
        if entry.shape != shape {
            let what = format!("expected shape {shape:?}, got {:?}", entry.shape);
            return Err(Error::tensor(self.path_of(name), name, what));
        }
        Ok(entry)
    }

    /// Runs `read` on the bytes of `name`, then gives the pages back.
    pub(crate) fn with_bytes<T>(&self, name: &str, read: impl FnOnce(&[u8]) -> T) -> Result<T, Error> {
        let (file, entry) = self.tensors.get(name).ok_or_else(|| Error::missing(&self.folder, name))?;
        let file = &self.files[*file];
        let bytes = file
            .bytes()
            .get(entry.range.clone())
            .ok_or_else(|| Error::tensor(&file.path, name, format!("bytes {:?} lie outside the file", entry.range)))?;
        let result = read(bytes);
        file.release(entry.range.clone());
        Ok(result)
    }

    /// The values of a float tensor of this shape, all finite.
    pub(crate) fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        let dtype = self.entry_shaped(name, shape)?.dtype;
        let values = self.with_bytes(name, |bytes| match dtype {
            Dtype::F32 => Some(f32s(bytes)),
            Dtype::F16 => Some(f16s(bytes).into_iter().map(f32::from).collect()),
            Dtype::BF16 => Some(bf16s(bytes).into_iter().map(f32::from).collect()),
            _ => None,
        })?;
        let values = values.ok_or_else(|| self.unknown_dtype(name, dtype))?;
        check_finite(self.path_of(name), name, values.iter().copied())?;
        Ok(values)
    }

    /// A float table in the precision of the file.
    pub(crate) fn table(&self, name: &str, rows: usize, columns: usize) -> Result<Table, Error> {
        let dtype = self.entry_shaped(name, &[rows, columns])?.dtype;
        let values = self.with_bytes(name, |bytes| match dtype {
            Dtype::F32 => Some(TableValues::F32(f32s(bytes))),
            Dtype::F16 => Some(TableValues::F16(f16s(bytes))),
            Dtype::BF16 => Some(TableValues::Bf16(bf16s(bytes))),
            _ => None,
        })?;
        let values = values.ok_or_else(|| self.unknown_dtype(name, dtype))?;
        check_table_finite(self.path_of(name), name, &values)?;
        Ok(Table { rows, columns, values })
    }

    fn unknown_dtype(&self, name: &str, dtype: Dtype) -> Error {
        Error::tensor(self.path_of(name), name, format!("expected F32, F16 or BF16, got {dtype:?}"))
    }
}

/// The shards of an index and the tensors that each holds. Names of shards may not lead out of the folder.
fn read_index(path: &Path) -> Result<BTreeMap<String, Vec<String>>, Error> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let bytes = read_small(path, INDEX_LIMIT)?;
    let index: Index = serde_json::from_slice(&bytes)
        .map_err(|e| Error::malformed(path, format!("expected an object with a weight_map of strings: {e}")))?;
    let mut shards = BTreeMap::<String, Vec<String>>::new();
    for (tensor, shard) in index.weight_map {
        let mut components = Path::new(&shard).components();
        let plain = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
        if !plain || shard.contains(['/', '\\']) {
            return Err(Error::malformed(
                path,
                format!("weight_map sends {tensor} to {shard:?}, expected the plain name of a file in the same folder"),
            ));
        }
        shards.entry(shard).or_default().push(tensor);
    }
    Ok(shards)
}

pub(crate) fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

pub(crate) fn f16s(bytes: &[u8]) -> Vec<f16> {
    bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b)).collect()
}

pub(crate) fn bf16s(bytes: &[u8]) -> Vec<bf16> {
    bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b)).collect()
}

pub(crate) fn check_finite(path: &Path, tensor: &str, mut values: impl Iterator<Item = f32>) -> Result<(), Error> {
    match values.position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(index) => Err(Error::NotFinite { path: path.into(), tensor: tensor.into(), index }),
    }
}

pub(crate) fn check_table_finite(path: &Path, tensor: &str, values: &TableValues) -> Result<(), Error> {
    match values {
        TableValues::F32(x) => check_finite(path, tensor, x.iter().copied()),
        TableValues::F16(x) => check_finite(path, tensor, x.iter().map(|x| x.to_f32())),
        TableValues::Bf16(x) => check_finite(path, tensor, x.iter().map(|x| x.to_f32())),
    }
}
