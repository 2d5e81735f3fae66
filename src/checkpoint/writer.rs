use super::names::{self, Parameter};
use super::output::{OutTensor, OutputFolder};
use super::quantization::{FORMAT_VERSION, GroupRecord, LayerRecord, Manifest};
use super::{Config, Error, Group, LayerWeights, LinearGroup, Quantization, Table, Weight};
use crate::kernels::QuantizedMatrix;
use safetensors::Dtype;
use serde_json::Value;
use std::borrow::Cow;
use std::path::{Path, PathBuf};

/// Writes a DuQuant folder layer by layer; nothing is at the final name before [`Writer::finish`] returns. Dropping it
/// earlier removes what was written.
///
/// A folder holds `config.json` (the model's own, with a `quantization_config` of method `duquant`), `tokenizer.json`,
/// `model.safetensors.index.json`, one shard a layer, and one for embedding, head and final norm. For linear `p` of shape
/// `[N, K]` in layer `i`, under `model.layers.{i}.self_attn.` or `.mlp.`:
///
/// | tensor | type and shape | |
/// |---|---|---|
/// | `{p}.weight_packed` | I32 `[N, ceil(K / 8)]`, wide codes `[N, ceil(K / 4)]` | as [`QuantizedMatrix::packed`] |
/// | `{p}.weight_scale` | F32 `[N]` | |
/// | `{p}.weight_zero_point` | I32 `[ceil(N / 8)]`, wide codes `[ceil(N / 4)]` | packed as a row of codes |
/// | `{p}.weight_shape` | I64 `[2]` | N, K |
/// | `{p}.weight` | F32 `[N, K]` | in place of the four above where a weight stays float |
/// | `{p}.bias` | F32 `[N]` | where there is one |
///
/// and for each group `g` of `qkv`, `o`, `gate_up`, `down`, under `model.layers.{i}.`:
///
/// | tensor | type and shape | |
/// |---|---|---|
/// | `{g}.rotation` | F32 `[P + 1, B, B]` | where there are rotations |
/// | `{g}.permutation` | I32 `[P, K]` | gathers, where P > 0 |
/// | `{g}.inverse_smooth` | F32 `[K]` | `1 / s`, where smoothing is applied online |
///
/// Activation settings, bits of each weight and what each rotation is stand in `quantization_config.layers`; sizes and
/// SHA-256 of all files but `config.json` in `quantization_config.files`.
#[derive(Debug)]
pub struct Writer {
    output: OutputFolder,
    target: PathBuf,
    config: Config,
    config_json: Value,
    quantization: Quantization,
    layers: Vec<Option<LayerRecord>>,
}

impl Writer {
    /// Starts a folder that will be `target`. `config_json` is the model's own `config.json`
    /// ([`super::Checkpoint::config_json`]), passed through; `tokenizer` the bytes of its `tokenizer.json`. With
    /// `overwrite` a DuQuant folder that stands at `target` is replaced; anything else there is never touched.
    ///
    /// # Errors
    /// [`Error::Occupied`] when something else stands there, [`Error::Io`] when the place cannot be written to.
    pub fn create(
        target: &Path,
        config: &Config,
        config_json: &Value,
        quantization: &Quantization,
        tokenizer: &[u8],
        overwrite: bool,
    ) -> Result<Self, Error> {
        let output = OutputFolder::create(target, tokenizer, |existing| {
            let config = std::fs::read(existing.join("config.json")).ok();
            let config = config.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
            match (config.is_some_and(|config| Manifest::is_in(&config)), overwrite) {
                (true, true) => Ok(true),
                (true, false) => Err("is a quantized model already; allow overwriting or give another folder".into()),
                (false, _) => Ok(false),
            }
        })?;
        Ok(Self {
            output,
            target: target.into(),
            config: config.clone(),
            config_json: config_json.clone(),
            quantization: quantization.clone(),
            layers: vec![None; config.layers],
        })
    }

    /// Writes decoder layer `index`, once each, in any order.
    ///
    /// # Errors
    /// [`Error::Layer`] for a layer that the model does not have, [`Error::Tensor`] for weights or transforms whose shapes
    /// or contents are wrong or a layer that was written before, [`Error::Io`].
    pub fn layer(&mut self, index: usize, layer: &LayerWeights) -> Result<(), Error> {
        let slot = self.layers.get(index);
        let slot = slot.ok_or(Error::Layer { path: self.target.clone(), index, layers: self.config.layers })?;
        if slot.is_some() {
            return Err(Error::tensor(&self.target, &format!("model.layers.{index}"), "was written before"));
        }
        let hidden = self.config.hidden;
        let mut tensors = Vec::new();
        for (parameter, values) in
            [(Parameter::AttentionNorm(index), &layer.attention_norm), (Parameter::MlpNorm(index), &layer.mlp_norm)]
        {
            self.check(&parameter.hugging_face(), values, hidden)?;
            tensors.push(OutTensor::f32(parameter.hugging_face(), &[hidden], values));
        }
        for (kind, group) in Group::ALL.into_iter().zip(&layer.groups) {
            self.check_group(index, kind, group)?;
            push_group(&mut tensors, index, kind, group);
        }
        self.output.shard(&format!("model-layer-{index:05}.safetensors"), &tensors)?;
        let [qkv, o, gate_up, down] = layer.groups.each_ref().map(GroupRecord::of);
        self.layers[index] = Some(LayerRecord { qkv, o, gate_up, down });
        Ok(())
    }

    /// Adds a file that no reader needs, such as a report. It is covered by the hashes like every other.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn attach(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        self.output.file(name, bytes)
    }

    /// Writes the rest and gives the folder its name. `head` is `None` where the embedding serves as the head.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] when a layer was not written, [`Error::Tensor`] for a table of another shape,
    /// [`Error::Io`].
    pub fn finish(mut self, embedding: &Table, head: Option<&Table>, final_norm: &[f32]) -> Result<(), Error> {
        let mut layers = Vec::with_capacity(self.layers.len());
        for (index, layer) in self.layers.iter().enumerate() {
            let missing = || Error::missing(&self.target, &format!("model.layers.{index}"));
            layers.push(layer.clone().ok_or_else(missing)?);
        }
        let (rows, columns) = (self.config.vocabulary, self.config.hidden);
        self.check(&Parameter::FinalNorm.hugging_face(), final_norm, columns)?;
        let tables = [(Parameter::Embedding, Some(embedding)), (Parameter::Head, head)];
        let mut tensors = vec![OutTensor::f32(Parameter::FinalNorm.hugging_face(), &[columns], final_norm)];
        for (parameter, table) in tables {
            let name = parameter.hugging_face();
            let Some(table) = table else { continue };
            if (table.rows, table.columns, table.values.len()) != (rows, columns, rows * columns) {
                let what = format!("expected shape [{rows}, {columns}], got [{}, {}]", table.rows, table.columns);
                return Err(Error::tensor(&self.target, &name, what));
            }
            tensors.push(OutTensor::table(name, table));
        }
        if head.is_none() != self.config.tied_embeddings {
            let what =
                format!("expected one exactly when tie_word_embeddings ({}) is false", self.config.tied_embeddings);
            return Err(Error::tensor(&self.target, &Parameter::Head.hugging_face(), what));
        }
        self.output.shard("model-tables.safetensors", &tensors)?;
        self.output.index()?;
        let manifest = Manifest {
            quant_method: Manifest::METHOD.into(),
            version: FORMAT_VERSION,
            settings: self.quantization,
            layers,
            files: self.output.files.clone(),
        };
        let manifest = manifest.to_json().map_err(|e| Error::malformed(&self.target, e.to_string()))?;
        if let Value::Object(config) = &mut self.config_json {
            config.insert("quantization_config".into(), manifest);
        }
        self.output.finish(&self.config_json)
    }

    fn check(&self, tensor: &str, values: &[f32], expected: usize) -> Result<(), Error> {
        if values.len() != expected {
            let what = format!("expected {expected} values, got {}", values.len());
            return Err(Error::tensor(&self.target, tensor, what));
        }
        super::shards::check_finite(&self.target, tensor, values.iter().copied())
    }

    fn check_group(&self, index: usize, kind: Group, group: &LinearGroup) -> Result<(), Error> {
        let name = names::group(index, kind);
        let bad = |what: String| Error::tensor(&self.target, &name, what);
        let projections: Vec<_> = group.linears.iter().map(|linear| linear.projection).collect();
        if projections != kind.projections() {
            return Err(bad(format!("expected linears {:?}, got {projections:?}", kind.projections())));
        }
        let (_, k) = self.config.linear_shape(kind.projections()[0]);
        if group.transform.channels != k {
            return Err(bad(format!("expected a transform of {k} channels, got {}", group.transform.channels)));
        }
        group.transform.validate().map_err(|e| bad(e.to_string()))?;
        for linear in &group.linears {
            let (n, k) = self.config.linear_shape(linear.projection);
            let name = names::linear(index, linear.projection);
            if (linear.weight.n(), linear.weight.k()) != (n, k) {
                let what = format!("expected shape [{n}, {k}], got [{}, {}]", linear.weight.n(), linear.weight.k());
                return Err(Error::tensor(&self.target, &name, what));
            }
            match &linear.weight {
                Weight::Float { values, .. } => self.check(&name, values, n * k)?,
                Weight::Quantized(matrix) => {
                    matrix.validate().map_err(|e| Error::tensor(&self.target, &name, e.to_string()))?;
                }
            }
            if let Some(bias) = &linear.bias {
                self.check(&Parameter::Bias(index, linear.projection).hugging_face(), bias, n)?;
            }
        }
        Ok(())
    }
}

fn push_group<'a>(tensors: &mut Vec<OutTensor<'a>>, index: usize, kind: Group, group: &'a LinearGroup) {
    let (name, transform) = (names::group(index, kind), &group.transform);
    let (k, block, rotations) = (transform.channels, transform.block, transform.rotation_count());
    if rotations > 0 {
        let shape = [rotations, block, block];
        tensors.push(OutTensor::f32(format!("{name}.rotation"), &shape, &transform.rotations));
    }
    if transform.permutation_count() > 0 {
        tensors.push(OutTensor {
            name: format!("{name}.permutation"),
            dtype: Dtype::I32,
            shape: vec![transform.permutation_count(), k],
            bytes: bytemuck::cast_slice(&transform.permutations).into(),
        });
    }
    if let Some(inverse) = &transform.inverse_smooth {
        tensors.push(OutTensor::f32(format!("{name}.inverse_smooth"), &[k], inverse));
    }
    for linear in &group.linears {
        let name = names::linear(index, linear.projection);
        match &linear.weight {
            Weight::Float { n, k, values } => {
                tensors.push(OutTensor::f32(format!("{name}.weight"), &[*n, *k], values));
            }
            Weight::Quantized(matrix) => push_matrix(tensors, &name, matrix),
        }
        if let Some(bias) = &linear.bias {
            tensors.push(OutTensor::f32(format!("{name}.bias"), &[bias.len()], bias));
        }
    }
}

fn push_matrix<'a>(tensors: &mut Vec<OutTensor<'a>>, name: &str, matrix: &'a QuantizedMatrix) {
    let zero_points = pack_zero_points(&matrix.zero_point, matrix.bits);
    let shape: Vec<u8> = [matrix.n, matrix.k].iter().flat_map(|&size| (size as i64).to_le_bytes()).collect();
    let tensor = |part: &str, dtype, shape: &[usize], bytes: Cow<'a, [u8]>| OutTensor {
        name: format!("{name}.{part}"),
        dtype,
        shape: shape.into(),
        bytes,
    };
    let words = [zero_points.len() / 4];
    // The only 8-byte type comes first, so that every tensor lies at a multiple of its type's size.
    tensors.extend([
        tensor("weight_shape", Dtype::I64, &[2], shape.into()),
        tensor("weight_packed", Dtype::I32, &[matrix.n, matrix.row_bytes() / 4], matrix.packed.as_slice().into()),
        tensor("weight_scale", Dtype::F32, &[matrix.n], bytemuck::cast_slice(&matrix.scale).into()),
        tensor("weight_zero_point", Dtype::I32, &words, zero_points.into()),
    ]);
}

/// Zero points in the layout of a row of codes.
pub(super) fn pack_zero_points(zero_points: &[u8], bits: u32) -> Vec<u8> {
    let mut packed = vec![0; QuantizedMatrix::row_bytes_of(zero_points.len(), bits)];
    for (i, &zero_point) in zero_points.iter().enumerate() {
        if bits <= 4 {
            packed[i / 2] |= zero_point << (4 * (i % 2));
        } else {
            packed[i] = zero_point;
        }
    }
    packed
}
