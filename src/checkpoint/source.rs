use super::duquant::DuQuantModel;
use super::gguf::GgufModel;
use super::mapped::read_small;
use super::names::Parameter;
use super::quantization::{Manifest, Quantization};
use super::random::{self, RandomModel};
use super::shards::Shards;
use super::{Config, Error, Group, LayerWeights, LinearGroup, LinearWeights, Projection, Table, Tokenizer, Weight};
use crate::kernels::Transform;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Longest `config.json` that is read.
const CONFIG_LIMIT: u64 = 64 << 20;
/// Longest `tokenizer.json` that is read.
const TOKENIZER_LIMIT: u64 = 256 << 20;

/// What kind of checkpoint a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A folder with `config.json`, safetensors and `tokenizer.json`.
    HuggingFace,
    /// A GGUF file.
    Gguf,
    /// A folder that [`super::Writer`] wrote.
    DuQuant,
    /// No files: [`Checkpoint::random`].
    Random,
}

/// A tensor as it lies in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name in the file.
    pub name: String,
    /// Type of its elements or blocks, as the format calls it.
    pub dtype: String,
    /// Shape, row-major.
    pub shape: Vec<usize>,
    /// Bytes in the file.
    pub bytes: usize,
}

/// An opened checkpoint. Headers are read and checked, tensors are memory-mapped and copied out when asked for.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    config: Config,
    config_json: Value,
    source: Source,
}

#[derive(Debug)]
enum Source {
    HuggingFace(Shards),
    Gguf(Box<GgufModel>),
    DuQuant(Box<DuQuantModel>),
    Random(Box<RandomModel>),
}

/// The files behind a checkpoint.
enum Files<'a> {
    Shards(&'a Shards),
    Gguf(&'a GgufModel),
    None,
}

impl Checkpoint {
    /// Opens a Hugging Face folder, a GGUF file or a folder written by `quantize`, and checks that every tensor which the
    /// configuration asks for is there, in its shape, inside its file. Values are checked as they are read.
    ///
    /// # Errors
    /// Any [`Error`] but those of writing; it names the file and, where one is to blame, the tensor.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let metadata = std::fs::metadata(path).map_err(Error::io(path, "open"))?;
        let checkpoint = if metadata.is_dir() { Self::open_folder(path)? } else { Self::open_gguf(path)? };
        checkpoint.check_shapes()?;
        Ok(checkpoint)
    }

    /// A model of random weights, each layer made when it is asked for: what speed and memory are measured on. With
    /// `quantization`, weights are random codes and transforms random rotations and permutations of the kind that it names; of
    /// its settings bits, clip of activations, block, permutations, method and mode count.
    ///
    /// # Errors
    /// [`Error::Config`] or [`Error::Malformed`] for hyperparameters or settings that make no sense.
    pub fn random(config: Config, quantization: Option<Quantization>, seed: u64) -> Result<Self, Error> {
        let path = Path::new(random::PATH);
        config.check(path)?;
        let source = Source::Random(Box::new(RandomModel::new(seed, quantization)?));
        Ok(Self { path: path.into(), config_json: config.to_hugging_face(), config, source })
    }

    fn open_gguf(path: &Path) -> Result<Self, Error> {
        let model = GgufModel::open(path)?;
        let config = model.config.clone();
        Ok(Self {
            path: path.into(),
            config_json: config.to_hugging_face(),
            config,
            source: Source::Gguf(Box::new(model)),
        })
    }

    fn open_folder(path: &Path) -> Result<Self, Error> {
        let config_path = path.join("config.json");
        let bytes = read_small(&config_path, CONFIG_LIMIT)?;
        let config_json: Value = serde_json::from_slice(&bytes)
            .map_err(|e| Error::malformed(&config_path, format!("expected a JSON object: {e}")))?;
        let config = super::config_json::from_value(&config_path, &config_json)?;
        if Manifest::is_in(&config_json) {
            let manifest = Manifest::read(&config_path, &config_json)?;
            let model = DuQuantModel::open(path, manifest, &config)?;
            return Ok(Self { path: path.into(), config, config_json, source: Source::DuQuant(Box::new(model)) });
        }
        if let Some(quantization) = config_json.get("quantization_config").filter(|value| !value.is_null()) {
            let method = quantization.get("quant_method").map_or_else(|| "unnamed".into(), Value::to_string);
            return Err(Error::config(&config_path, "quantization_config", "none, or method \"duquant\"", method));
        }
        let shards = Shards::open(path)?;
        Ok(Self { path: path.into(), config, config_json, source: Source::HuggingFace(shards) })
    }

    /// The same checkpoint as a model of its first `layers` layers, for whoever measures a part of it. A folder of this
    /// program, whose manifest counts layers, stays as it is, and so does a checkpoint that has no more.
    #[must_use]
    pub fn first_layers(mut self, layers: usize) -> Self {
        if layers < self.config.layers && !matches!(self.source, Source::DuQuant(_)) {
            self.config.layers = layers;
            self.config_json["num_hidden_layers"] = layers.into();
        }
        self
    }

    /// What kind of checkpoint it is.
    #[must_use]
    pub fn format(&self) -> Format {
        match &self.source {
            Source::HuggingFace(_) => Format::HuggingFace,
            Source::Gguf(_) => Format::Gguf,
            Source::DuQuant(_) => Format::DuQuant,
            Source::Random(_) => Format::Random,
        }
    }

    /// How the model was quantized; `None` for floating-point checkpoints.
    #[must_use]
    pub fn quantization(&self) -> Option<&Quantization> {
        match &self.source {
            Source::DuQuant(model) => Some(&model.manifest.settings),
            Source::Random(model) => model.quantization.as_ref(),
            Source::HuggingFace(_) | Source::Gguf(_) => None,
        }
    }

    /// Compares every file of a DuQuant folder with the SHA-256 recorded when it was written (`config.json`, which holds
    /// the hashes, apart). [`Checkpoint::open`] compares sizes only, because hashing reads every byte of the model. Other
    /// formats record no hashes and pass.
    ///
    /// # Errors
    /// [`Error::Hash`] naming the first file that differs, [`Error::Io`].
    pub fn verify(&self) -> Result<(), Error> {
        match &self.source {
            Source::DuQuant(model) => model.verify(),
            _ => Ok(()),
        }
    }

    /// The folder or file that was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model's hyperparameters.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The model's `config.json`: the one in the folder, or one that says what the GGUF metadata say.
    #[must_use]
    pub fn config_json(&self) -> &Value {
        &self.config_json
    }

    /// The checkpoint's tokenizer.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when it is of an unsupported kind, [`Error::Io`] when the folder has no `tokenizer.json`.
    pub fn tokenizer(&self) -> Result<Tokenizer, Error> {
        match &self.source {
            Source::Gguf(model) => model.gguf.tokenizer(),
            Source::HuggingFace(_) | Source::DuQuant(_) => {
                let path = self.path.join("tokenizer.json");
                Tokenizer::from_json(&path, &read_small(&path, TOKENIZER_LIMIT)?)
            }
            Source::Random(_) => Err(Error::tokenizer(&self.path, "a model of random weights has none")),
        }
    }

    /// The weights of decoder layer `index`. Float formats give identity transforms, activations in floating point and
    /// [`Weight::Float`].
    ///
    /// # Errors
    /// [`Error::Layer`] when there is no such layer, [`Error::NotFinite`], [`Error::Tensor`].
    pub fn layer(&self, index: usize) -> Result<LayerWeights, Error> {
        if index >= self.config.layers {
            return Err(Error::Layer { path: self.path.clone(), index, layers: self.config.layers });
        }
        if let Source::Random(model) = &self.source {
            return model.layer(index, &self.config);
        }
        let mut groups = Vec::with_capacity(4);
        for group in Group::ALL {
            groups.push(match &self.source {
                Source::DuQuant(model) => model.group(index, group, &self.config)?,
                _ => self.float_group(index, group)?,
            });
        }
        let groups = groups.try_into().map_err(|_| Error::malformed(&self.path, "a layer has four groups"))?;
        Ok(LayerWeights {
            attention_norm: self.floats(Parameter::AttentionNorm(index), &[self.config.hidden])?,
            mlp_norm: self.floats(Parameter::MlpNorm(index), &[self.config.hidden])?,
            groups,
        })
    }

    fn float_group(&self, layer: usize, group: Group) -> Result<LinearGroup, Error> {
        let mut linears = Vec::new();
        for &projection in group.projections() {
            let (n, k) = self.config.linear_shape(projection);
            let values = self.floats(Parameter::Weight(layer, projection), &[n, k])?;
            let bias = Parameter::Bias(layer, projection);
            let bias = if self.contains(bias) { Some(self.floats(bias, &[n])?) } else { None };
            linears.push(LinearWeights { projection, weight: Weight::Float { n, k, values }, bias });
        }
        let (_, k) = self.config.linear_shape(group.projections()[0]);
        Ok(LinearGroup { transform: Transform::identity(k), activation: None, linears })
    }

    /// The token embedding, `[vocabulary, hidden]`, in the precision of the file (block-quantized GGUF tables as f32).
    ///
    /// # Errors
    /// [`Error::NotFinite`], [`Error::Tensor`], [`Error::MissingTensor`].
    pub fn embedding(&self) -> Result<Table, Error> {
        match &self.source {
            Source::Random(model) => Ok(model.table(false, &self.config)),
            _ => self.table(Parameter::Embedding),
        }
    }

    /// The output head, `[vocabulary, hidden]`; `None` when it is the embedding.
    ///
    /// # Errors
    /// As [`Checkpoint::embedding`].
    pub fn head(&self) -> Result<Option<Table>, Error> {
        match &self.source {
            _ if self.config.tied_embeddings => Ok(None),
            Source::Random(model) => Ok(Some(model.table(true, &self.config))),
            _ => self.table(Parameter::Head).map(Some),
        }
    }

    /// Weight of the norm in front of the output head, `[hidden]`.
    ///
    /// # Errors
    /// As [`Checkpoint::embedding`].
    pub fn final_norm(&self) -> Result<Vec<f32>, Error> {
        match &self.source {
            Source::Random(_) => Ok(vec![1.0; self.config.hidden]),
            _ => self.floats(Parameter::FinalNorm, &[self.config.hidden]),
        }
    }

    /// Every tensor in the checkpoint's files, by name.
    pub fn tensors(&self) -> impl Iterator<Item = TensorInfo> {
        let tensors: Vec<TensorInfo> = match self.files() {
            Files::None => Vec::new(),
            Files::Shards(shards) => shards
                .iter()
                .map(|(name, entry)| TensorInfo {
                    name: name.into(),
                    dtype: format!("{:?}", entry.dtype),
                    shape: entry.shape.clone(),
                    bytes: entry.range.len(),
                })
                .collect(),
            Files::Gguf(model) => {
                let tensors = model.gguf.tensors.iter();
                tensors
                    .map(|(name, tensor)| TensorInfo {
                        name: name.clone(),
                        dtype: tensor.block_type.name().into(),
                        shape: tensor.shape.clone(),
                        bytes: tensor.range.len(),
                    })
                    .collect()
            }
        };
        tensors.into_iter()
    }

    fn files(&self) -> Files<'_> {
        match &self.source {
            Source::HuggingFace(shards) => Files::Shards(shards),
            Source::DuQuant(model) => Files::Shards(&model.shards),
            Source::Gguf(model) => Files::Gguf(model),
            Source::Random(_) => Files::None,
        }
    }

    /// What a model of random weights lacks.
    fn missing(&self, parameter: Parameter) -> Error {
        Error::missing(&self.path, &parameter.hugging_face())
    }

    fn floats(&self, parameter: Parameter, shape: &[usize]) -> Result<Vec<f32>, Error> {
        match self.files() {
            Files::Shards(shards) => shards.floats(&parameter.hugging_face(), shape),
            Files::Gguf(model) => model.floats(parameter, shape),
            Files::None => Err(self.missing(parameter)),
        }
    }

    fn table(&self, parameter: Parameter) -> Result<Table, Error> {
        match self.files() {
            Files::Shards(shards) => {
                shards.table(&parameter.hugging_face(), self.config.vocabulary, self.config.hidden)
            }
            Files::Gguf(model) => model.table(parameter),
            Files::None => Err(self.missing(parameter)),
        }
    }

    fn contains(&self, parameter: Parameter) -> bool {
        match self.files() {
            Files::Shards(shards) => shards.contains(&parameter.hugging_face()),
            Files::Gguf(model) => model.contains(parameter),
            Files::None => false,
        }
    }

    fn check_shape(&self, parameter: Parameter, shape: &[usize]) -> Result<(), Error> {
        match self.files() {
            Files::Shards(shards) => shards.entry_shaped(&parameter.hugging_face(), shape).map(|_| ()),
            Files::Gguf(model) => model.check_shape(parameter, shape),
            Files::None => Err(self.missing(parameter)),
        }
    }

    /// Checks names and shapes of everything that [`Checkpoint::layer`] and its like will read. Stops at the first that is
    /// missing, so that a layer count which lies costs nothing.
    fn check_shapes(&self) -> Result<(), Error> {
        let config = &self.config;
        self.check_shape(Parameter::Embedding, &[config.vocabulary, config.hidden])?;
        if !config.tied_embeddings {
            self.check_shape(Parameter::Head, &[config.vocabulary, config.hidden])?;
        }
        self.check_shape(Parameter::FinalNorm, &[config.hidden])?;
        for layer in 0..config.layers {
            self.check_shape(Parameter::AttentionNorm(layer), &[config.hidden])?;
            self.check_shape(Parameter::MlpNorm(layer), &[config.hidden])?;
            if let Source::DuQuant(model) = &self.source {
                for group in Group::ALL {
                    model.check_group(layer, group, config)?;
                }
                continue;
            }
            for projection in Group::ALL.into_iter().flat_map(Group::projections) {
                let (n, k) = config.linear_shape(*projection);
                self.check_shape(Parameter::Weight(layer, *projection), &[n, k])?;
                let bias = Parameter::Bias(layer, *projection);
                if self.contains(bias) || self.wants_bias(*projection) {
                    self.check_shape(bias, &[n])?;
                }
            }
        }
        Ok(())
    }

    /// Whether `config.json` says that the linear has a bias.
    fn wants_bias(&self, projection: Projection) -> bool {
        let key = match projection {
            Projection::Q | Projection::K | Projection::V | Projection::O => "attention_bias",
            Projection::Gate | Projection::Up | Projection::Down => "mlp_bias",
        };
        self.config_json.get(key) == Some(&Value::Bool(true))
    }
}
