//! GGUF files, versions 2 and 3: metadata, tensors, and what a LLaMA model makes of them.

mod blocks;
mod model;
mod tokenizer;

pub use blocks::BlockType;
pub(crate) use model::GgufModel;

use super::{Error, Tokenizer};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Deepest nesting of arrays in metadata. The format allows any; no writer uses more than one level.
const NESTING: usize = 4;
/// Alignment of the tensor data where the metadata do not say.
const ALIGNMENT: u64 = 32;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Unsigned integers of 8 to 64 bits.
    Unsigned(u64),
    /// Signed integers of 8 to 64 bits.
    Signed(i64),
    /// Floats of 32 or 64 bits.
    Float(f64),
    /// `true` or `false`.
    Bool(bool),
    /// UTF-8 text.
    String(String),
    /// An array of strings.
    Strings(Vec<String>),
    /// An array of numbers or booleans.
    Numbers(Vec<f64>),
    /// An array of arrays.
    Arrays(Vec<Value>),
}

/// A tensor's entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// How its values are stored.
    pub block_type: BlockType,
    /// Shape, row-major: the reverse of the file's order, `[N, K]` for a linear.
    pub shape: Vec<usize>,
    /// First byte and the byte behind the last one, counted from the start of the file.
    pub range: Range<usize>,
}

/// A parsed header.
#[derive(Debug, Clone, PartialEq)]
pub struct Gguf {
    /// The file, for messages.
    pub path: PathBuf,
    /// Metadata by key.
    pub metadata: BTreeMap<String, Value>,
    /// Tensors by name.
    pub tensors: BTreeMap<String, Tensor>,
}

impl Gguf {
    /// Parses the header of a GGUF file held in `bytes`; memory and time are bounded by the size of `bytes`, whatever
    /// the counts in it claim. `path` is for error messages only.
    ///
    /// # Errors
    /// [`Error::Malformed`] for another magic number or version, for counts and lengths which the file cannot hold, and
    /// for unknown types; [`Error::Tensor`] for a tensor of an unknown type or one that lies outside the file.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, Error> {
        let mut reader = Reader { path, bytes, at: 0 };
        if reader.take(4)? != b"GGUF" {
            return Err(reader.bad("expected the magic bytes GGUF"));
        }
        let version = reader.u32()?;
        if !(2..=3).contains(&version) {
            return Err(reader.bad(format!("expected GGUF version 2 or 3 (little-endian), got {version}")));
        }
        let tensor_count = reader.u64()?;
        let metadata_count = reader.u64()?;
        let mut metadata = BTreeMap::new();
        for _ in 0..metadata_count {
            let key = reader.string()?;
            let kind = reader.u32()?;
            let value = reader.value(kind, 0)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(reader.bad(format!("metadata key {key:?} appears twice")));
            }
        }
        let mut entries = Vec::new();
        for _ in 0..tensor_count {
            entries.push(reader.tensor()?);
        }
        let alignment = match metadata.get("general.alignment") {
            None => ALIGNMENT,
            Some(Value::Unsigned(alignment)) if alignment.is_power_of_two() && *alignment <= 1 << 20 => *alignment,
            Some(other) => return Err(reader.bad(format!("general.alignment: expected a power of two, got {other:?}"))),
        };
        let start = (reader.at as u64).next_multiple_of(alignment);
        let mut tensors = BTreeMap::new();
        for (name, block_type, shape, offset) in entries {
            let range = locate(path, &name, block_type, &shape, (start, offset, alignment), bytes.len())?;
            if tensors.insert(name.clone(), Tensor { block_type, shape, range }).is_some() {
                return Err(Error::tensor(path, &name, "appears twice"));
            }
        }
        Ok(Self { path: path.into(), metadata, tensors })
    }

    /// The tokenizer that the metadata describe.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a model other than `gpt2` (byte-level BPE) and `llama` (SentencePiece BPE), an unknown
    /// pre-tokenizer, or arrays that do not fit each other; [`Error::Config`] for metadata of the wrong type.
    pub fn tokenizer(&self) -> Result<Tokenizer, Error> {
        let json = tokenizer::tokenizer_json(self)?;
        Tokenizer::from_json(&self.path, json.to_string().as_bytes())
    }

    /// The values of a tensor, row-major. `bytes` is the file that was parsed.
    ///
    /// # Errors
    /// [`Error::MissingTensor`]; [`Error::NotFinite`] when a value (or a block's scale) is NaN or infinite.
    pub fn dequantize(&self, name: &str, bytes: &[u8]) -> Result<Vec<f32>, Error> {
        let tensor = self.tensors.get(name).ok_or_else(|| Error::missing(&self.path, name))?;
        let data =
            bytes.get(tensor.range.clone()).ok_or_else(|| Error::tensor(&self.path, name, "lies outside the file"))?;
        let values = tensor.block_type.dequantize(data);
        super::shards::check_finite(&self.path, name, values.iter().copied())?;
        Ok(values)
    }
}

/// The bytes of a tensor, checked against the file's size.
fn locate(
    path: &Path,
    name: &str,
    block_type: BlockType,
    shape: &[usize],
    (start, offset, alignment): (u64, u64, u64),
    file: usize,
) -> Result<Range<usize>, Error> {
    let bad = |what: String| Error::tensor(path, name, what);
    let columns = shape.last().copied().unwrap_or(1);
    if !columns.is_multiple_of(block_type.values()) {
        let what = format!("{columns} columns do not fill blocks of {} values ({block_type:?})", block_type.values());
        return Err(bad(what));
    }
    let count = shape.iter().try_fold(1_usize, |product, &x| product.checked_mul(x));
    let size = count.and_then(|count| (count / block_type.values()).checked_mul(block_type.bytes()));
    let size = size.ok_or_else(|| bad(format!("shape {shape:?} overflows")))?;
    if !offset.is_multiple_of(alignment) {
        return Err(bad(format!("offset {offset} is not a multiple of the alignment {alignment}")));
    }
    let from = start.checked_add(offset).and_then(|from| usize::try_from(from).ok());
    let range = from.and_then(|from| Some(from..from.checked_add(size)?));
    match range {
        Some(range) if range.end <= file => Ok(range),
        _ => Err(bad(format!(
            "{size} bytes at offset {offset} of the tensor data lie outside the file of {file} bytes (cut short?)"
        ))),
    }
}

/// A cursor over the header which never reads past the end.
struct Reader<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn bad(&self, what: impl std::fmt::Display) -> Error {
        Error::malformed(self.path, format!("{what} (at byte {})", self.at))
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let bytes = self.at.checked_add(count).and_then(|end| self.bytes.get(self.at..end));
        let bytes = bytes.ok_or_else(|| self.bad(format!("the header is cut short: {count} bytes expected")))?;
        self.at += count;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn string(&mut self) -> Result<String, Error> {
        let length = self.u64()?;
        let length = usize::try_from(length).map_err(|_| self.bad(format!("string of {length} bytes")))?;
        let bytes = self.take(length)?;
        // Tokens of byte-level vocabularies are text; a stray invalid byte in a licence must not reject a model.
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value, Error> {
        Ok(match kind {
            0 => Value::Unsigned(u64::from(self.array::<1>()?[0])),
            1 => Value::Signed(i64::from(i8::from_le_bytes(self.array()?))),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.array()?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.array()?))),
            4 => Value::Unsigned(u64::from(self.u32()?)),
            5 => Value::Signed(i64::from(i32::from_le_bytes(self.array()?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.array()?))),
            7 => Value::Bool(self.array::<1>()?[0] != 0),
            8 => Value::String(self.string()?),
            9 => self.array_value(depth)?,
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            _ => return Err(self.bad(format!("unknown metadata type {kind}"))),
        })
    }

    /// Elements are pushed one by one: a count that lies runs into the end of the file, not out of memory.
    fn array_value(&mut self, depth: usize) -> Result<Value, Error> {
        let kind = self.u32()?;
        let count = self.u64()?;
        match kind {
            8 => {
                let mut strings = Vec::new();
                for _ in 0..count {
                    strings.push(self.string()?);
                }
                Ok(Value::Strings(strings))
            }
            9 if depth >= NESTING => Err(self.bad(format!("arrays nested deeper than {NESTING}"))),
            9 => {
                let mut arrays = Vec::new();
                for _ in 0..count {
                    arrays.push(self.array_value(depth + 1)?);
                }
                Ok(Value::Arrays(arrays))
            }
            _ => {
                let mut numbers = Vec::new();
                for _ in 0..count {
                    numbers.push(match self.value(kind, depth)? {
                        Value::Unsigned(x) => x as f64,
                        Value::Signed(x) => x as f64,
                        Value::Float(x) => x,
                        other => f64::from(u8::from(other == Value::Bool(true))),
                    });
                }
                Ok(Value::Numbers(numbers))
            }
        }
    }

    fn tensor(&mut self) -> Result<(String, BlockType, Vec<usize>, u64), Error> {
        let name = self.string()?;
        let dimensions = self.u32()?;
        if dimensions > 8 {
            return Err(self.bad(format!("tensor {name:?} has {dimensions} dimensions, expected at most 8")));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = self.u64()?;
            let size = usize::try_from(size).map_err(|_| self.bad(format!("tensor {name:?}: dimension {size}")))?;
            shape.push(size);
        }
        shape.reverse();
        let kind = self.u32()?;
        let block_type = BlockType::from_id(kind).ok_or_else(|| {
            let what = format!("type {kind} is not supported; supported are {}", BlockType::names());
            Error::tensor(self.path, &name, what)
        })?;
        Ok((name, block_type, shape, self.u64()?))
    }
}
