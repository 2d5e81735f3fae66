//! Reading a folder that [`super::Writer`] wrote.

use super::names::{self, Parameter};
use super::quantization::{FLOAT_BITS, GroupRecord, Manifest};
use super::shards::{Shards, f32s};
use super::{Config, Error, Group, LinearGroup, LinearWeights, Projection, Weight};
use crate::kernels::{QuantizedMatrix, Transform};
use safetensors::Dtype;
use std::path::{Path, PathBuf};

/// The tensors and the manifest of a DuQuant folder.
#[derive(Debug)]
pub(crate) struct DuQuantModel {
    folder: PathBuf,
    pub(crate) shards: Shards,
    pub(crate) manifest: Manifest,
}

impl DuQuantModel {
    pub(crate) fn open(folder: &Path, manifest: Manifest, config: &Config) -> Result<Self, Error> {
        let config_path = folder.join("config.json");
        if manifest.layers.len() != config.layers {
            let expected = format!("an entry for each of {} layers", config.layers);
            let got = manifest.layers.len().to_string();
            return Err(Error::config(&config_path, "quantization_config.layers", expected, got));
        }
        for (name, record) in &manifest.files {
            let path = folder.join(plain_name(&config_path, name)?);
            let bytes = std::fs::metadata(&path).map_err(Error::io(&path, "open"))?.len();
            if bytes != record.bytes {
                let what = format!("expected {} bytes as written, got {bytes} (cut short?)", record.bytes);
                return Err(Error::malformed(&path, what));
            }
        }
        let shards = Shards::open(folder)?;
        Ok(Self { folder: folder.into(), shards, manifest })
    }

    /// Compares every file with the hash recorded when it was written.
    pub(crate) fn verify(&self) -> Result<(), Error> {
        for (name, record) in &self.manifest.files {
            let path = self.folder.join(name);
            let got = super::atomic::sha256_of(&path)?;
            if got != record.sha256 {
                return Err(Error::Hash { path, expected: record.sha256.clone(), got });
            }
        }
        Ok(())
    }

    fn record(&self, layer: usize, group: Group) -> Result<&GroupRecord, Error> {
        let record = self.manifest.layers.get(layer).map(|layer| layer.group(group));
        record.ok_or_else(|| Error::missing(&self.folder, &names::group(layer, group)))
    }

    /// Checks names, types and shapes of a group's tensors without reading values.
    pub(crate) fn check_group(&self, layer: usize, group: Group, config: &Config) -> Result<(), Error> {
        let record = self.record(layer, group)?;
        let name = names::group(layer, group);
        let bad = |what: String| Error::tensor(&self.folder, &name, what);
        if record.weight_bits.len() != group.projections().len() {
            let what = format!("{} weight_bits for {} linears", record.weight_bits.len(), group.projections().len());
            return Err(bad(what));
        }
        let (_, k) = config.linear_shape(group.projections()[0]);
        if record.rotations > 0 {
            if record.block == 0 || !k.is_multiple_of(record.block) {
                return Err(bad(format!("expected a block that divides {k}, got {}", record.block)));
            }
            let shape = [record.rotations, record.block, record.block];
            self.check_tensor(&format!("{name}.rotation"), Dtype::F32, &shape)?;
            if record.rotations > 1 {
                self.check_tensor(&format!("{name}.permutation"), Dtype::I32, &[record.rotations - 1, k])?;
            }
        }
        if record.smooth {
            self.check_tensor(&format!("{name}.inverse_smooth"), Dtype::F32, &[k])?;
        }
        for (&projection, &bits) in group.projections().iter().zip(&record.weight_bits) {
            let (n, k) = config.linear_shape(projection);
            let name = names::linear(layer, projection);
            match bits {
                FLOAT_BITS => self.shards.entry_shaped(&format!("{name}.weight"), &[n, k]).map(|_| ())?,
                2..=8 => {
                    let words = |count| QuantizedMatrix::row_bytes_of(count, bits) / 4;
                    self.check_tensor(&format!("{name}.weight_packed"), Dtype::I32, &[n, words(k)])?;
                    self.check_tensor(&format!("{name}.weight_scale"), Dtype::F32, &[n])?;
                    self.check_tensor(&format!("{name}.weight_zero_point"), Dtype::I32, &[words(n)])?;
                    self.check_tensor(&format!("{name}.weight_shape"), Dtype::I64, &[2])?;
                }
                _ => return Err(bad(format!("expected weights of 2 to 8 or {FLOAT_BITS} bits, got {bits}"))),
            }
            let bias = format!("{name}.bias");
            if self.shards.contains(&bias) {
                self.shards.entry_shaped(&bias, &[n])?;
            }
        }
        Ok(())
    }

    /// Reads a group; every number in it is checked.
    pub(crate) fn group(&self, layer: usize, group: Group, config: &Config) -> Result<LinearGroup, Error> {
        let record = self.record(layer, group)?;
        let (_, k) = config.linear_shape(group.projections()[0]);
        let transform = self.transform(&names::group(layer, group), record, k)?;
        let mut linears = Vec::with_capacity(group.projections().len());
        for (&projection, &bits) in group.projections().iter().zip(&record.weight_bits) {
            linears.push(self.linear(layer, projection, bits, config.linear_shape(projection))?);
        }
        Ok(LinearGroup { transform, activation: record.activation, linears })
    }

    fn transform(&self, name: &str, record: &GroupRecord, k: usize) -> Result<Transform, Error> {
        let mut transform = Transform { hadamard: record.hadamard, ..Transform::identity(k) };
        let (rotation, permutation) = (format!("{name}.rotation"), format!("{name}.permutation"));
        if record.rotations > 0 {
            transform.block = record.block;
            transform.rotations = self.shards.floats(&rotation, &[record.rotations, record.block, record.block])?;
            if record.rotations > 1 {
                self.check_tensor(&permutation, Dtype::I32, &[record.rotations - 1, k])?;
                transform.permutations = self.shards.with_bytes(&permutation, |bytes| {
                    bytes.as_chunks().0.iter().map(|&b| u32::from_le_bytes(b)).collect()
                })?;
            }
        }
        if record.smooth {
            transform.inverse_smooth = Some(self.shards.floats(&format!("{name}.inverse_smooth"), &[k])?);
        }
        transform.validate().map_err(|e| Error::tensor(self.shards.path_of(&rotation), name, e.to_string()))?;
        Ok(transform)
    }

    fn linear(
        &self,
        layer: usize,
        projection: Projection,
        bits: u32,
        (n, k): (usize, usize),
    ) -> Result<LinearWeights, Error> {
        let name = names::linear(layer, projection);
        let weight = if bits == FLOAT_BITS {
            Weight::Float { n, k, values: self.shards.floats(&format!("{name}.weight"), &[n, k])? }
        } else {
            Weight::Quantized(self.matrix(&name, bits, n, k)?)
        };
        let bias = Parameter::Bias(layer, projection).hugging_face();
        let bias = if self.shards.contains(&bias) { Some(self.shards.floats(&bias, &[n])?) } else { None };
        Ok(LinearWeights { projection, weight, bias })
    }

    fn matrix(&self, name: &str, bits: u32, n: usize, k: usize) -> Result<QuantizedMatrix, Error> {
        let packed_name = format!("{name}.weight_packed");
        let bad = |what: String| Error::tensor(self.shards.path_of(&packed_name), &packed_name, what);
        let shape_name = format!("{name}.weight_shape");
        self.check_tensor(&shape_name, Dtype::I64, &[2])?;
        let shape: Vec<i64> = self
            .shards
            .with_bytes(&shape_name, |bytes| bytes.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b)).collect())?;
        if shape != [n as i64, k as i64] {
            return Err(bad(format!("weight_shape: expected [{n}, {k}], got {shape:?}")));
        }
        let row_bytes = QuantizedMatrix::row_bytes_of(k, bits);
        let zero_points_bytes = QuantizedMatrix::row_bytes_of(n, bits);
        self.check_tensor(&packed_name, Dtype::I32, &[n, row_bytes / 4])?;
        let zero_name = format!("{name}.weight_zero_point");
        self.check_tensor(&zero_name, Dtype::I32, &[zero_points_bytes / 4])?;
        let zero_point = self.shards.with_bytes(&zero_name, |bytes| {
            let code = |i: usize| if bits <= 4 { (bytes[i / 2] >> (4 * (i % 2))) & 15 } else { bytes[i] };
            (0..n).map(code).collect()
        })?;
        let matrix = QuantizedMatrix {
            n,
            k,
            bits,
            packed: self.shards.with_bytes(&packed_name, <[u8]>::to_vec)?,
            scale: self.scales(&format!("{name}.weight_scale"), n)?,
            zero_point,
        };
        matrix.validate().map_err(|e| bad(e.to_string()))?;
        check_codes(&matrix).map_err(bad)?;
        Ok(matrix)
    }

    fn scales(&self, name: &str, n: usize) -> Result<Vec<f32>, Error> {
        self.check_tensor(name, Dtype::F32, &[n])?;
        self.shards.with_bytes(name, f32s)
    }

    fn check_tensor(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<(), Error> {
        let got = self.shards.entry_shaped(name, shape)?.dtype;
        if got == dtype {
            return Ok(());
        }
        Err(Error::tensor(self.shards.path_of(name), name, format!("expected {dtype:?}, got {got:?}")))
    }
}

/// Codes must fit their bits, and the padding of a row must be code 0: kernels multiply it like any other.
fn check_codes(matrix: &QuantizedMatrix) -> Result<(), String> {
    let (row_bytes, bits) = (matrix.row_bytes(), matrix.bits);
    let unused = !((1_u32 << bits) - 1) as u8;
    let unused = if bits <= 4 { (unused & 15) * 17 } else { unused };
    for (n, row) in matrix.packed.chunks_exact(row_bytes.max(1)).enumerate() {
        if unused != 0 && row.iter().any(|byte| byte & unused != 0) {
            return Err(format!("row {n} holds a code of more than {bits} bits"));
        }
        let per_byte = if bits <= 4 { 2 } else { 1 };
        let whole = matrix.k / per_byte;
        let tail = row[whole..].iter().enumerate().any(|(i, &byte)| {
            let byte = if i == 0 && matrix.k % per_byte == 1 { byte >> 4 } else { byte };
            byte != 0
        });
        if tail {
            return Err(format!("row {n}: expected zeros behind channel {}", matrix.k));
        }
    }
    Ok(())
}

/// `name` when it is the plain name of a file: what a folder records may not lead out of it.
fn plain_name<'a>(config: &Path, name: &'a str) -> Result<&'a str, Error> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\\']) {
        return Err(Error::config(config, "quantization_config.files", "plain file names", name));
    }
    Ok(name)
}
