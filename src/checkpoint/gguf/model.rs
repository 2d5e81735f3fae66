use super::super::mapped::MappedFile;
use super::super::names::Parameter;
use super::super::{Config, Error, Projection, RopeScaling, Table, TableValues};
use super::{BlockType, Gguf, Value};
use half::f16;
use std::path::Path;

/// A LLaMA model in a GGUF file.
#[derive(Debug)]
pub(crate) struct GgufModel {
    file: MappedFile,
    pub(crate) gguf: Gguf,
    pub(crate) config: Config,
}

impl GgufModel {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let file = MappedFile::open(path)?;
        let gguf = Gguf::parse(path, file.bytes())?;
        let mut config = gguf.llama_config()?;
        if gguf.tensors.contains_key(ROPE_FACTORS) {
            let factors = gguf.dequantize(ROPE_FACTORS, file.bytes())?;
            config.rope_scaling = RopeScaling::Factors { factors: factors.into_iter().map(f64::from).collect() };
            config.check(path)?;
        }
        Ok(Self { file, gguf, config })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.gguf.path
    }

    /// Checks that a parameter is there with `shape`. Vectors may be stored as `[n]` only.
    pub(crate) fn check_shape(&self, parameter: Parameter, shape: &[usize]) -> Result<(), Error> {
        let name = parameter.gguf();
        let tensor = self.gguf.tensors.get(&name).ok_or_else(|| Error::missing(self.path(), &name))?;
        if tensor.shape == shape {
            return Ok(());
        }
        let what = format!("expected shape {shape:?}, got {:?}", tensor.shape);
        Err(Error::tensor(self.path(), &name, what))
    }

    pub(crate) fn contains(&self, parameter: Parameter) -> bool {
        self.gguf.tensors.contains_key(&parameter.gguf())
    }

    /// The values of a parameter in Hugging Face's order of rows.
    pub(crate) fn floats(&self, parameter: Parameter, shape: &[usize]) -> Result<Vec<f32>, Error> {
        self.check_shape(parameter, shape)?;
        let values = self.read(&parameter.gguf())?;
        Ok(match parameter {
            Parameter::Weight(_, Projection::Q) | Parameter::Bias(_, Projection::Q) => {
                rotate_half_rows(&values, self.config.heads, self.config.head_dim)
            }
            Parameter::Weight(_, Projection::K) | Parameter::Bias(_, Projection::K) => {
                rotate_half_rows(&values, self.config.kv_heads, self.config.head_dim)
            }
            _ => values,
        })
    }

    /// A table in the file's precision, which is f32 for a block-quantized one: its values are a code times a scale, and
    /// have more bits than f16 keeps.
    pub(crate) fn table(&self, parameter: Parameter) -> Result<Table, Error> {
        let (rows, columns) = (self.config.vocabulary, self.config.hidden);
        self.check_shape(parameter, &[rows, columns])?;
        let name = parameter.gguf();
        let values = self.read(&name)?;
        let values = match self.gguf.tensors.get(&name).map(|tensor| tensor.block_type) {
            Some(BlockType::F32) => TableValues::F32(values),
            Some(BlockType::Bf16) => TableValues::Bf16(values.iter().map(|&x| half::bf16::from_f32(x)).collect()),
            Some(BlockType::F16) => TableValues::F16(values.iter().map(|&x| f16::from_f32(x)).collect()),
            _ => TableValues::F32(values),
        };
        Ok(Table { rows, columns, values })
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, Error> {
        let values = self.gguf.dequantize(name, self.file.bytes());
        if let Some(tensor) = self.gguf.tensors.get(name) {
            self.file.release(tensor.range.clone());
        }
        values
    }
}

/// Divisors of the rotary frequencies, one for each pair of channels.
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Undoes the permutation of Q and K rows: GGUF stores the two halves of a head's channels interleaved, because its
/// rotary embedding turns neighbours `(2j, 2j + 1)` where Hugging Face's turns `(j, j + head_dim / 2)`.
fn rotate_half_rows(values: &[f32], heads: usize, head_dim: usize) -> Vec<f32> {
    let columns = values.len() / (heads * head_dim);
    let half = head_dim / 2;
    let mut out = Vec::with_capacity(values.len());
    for row in 0..heads * head_dim {
        let (head, channel) = (row / head_dim, row % head_dim);
        let from = head * head_dim + 2 * (channel % half) + channel / half;
        out.extend_from_slice(&values[from * columns..(from + 1) * columns]);
    }
    out
}

impl Gguf {
    /// The model's hyperparameters out of the metadata (the rope factors of LLaMA 3, a tensor, apart).
    ///
    /// # Errors
    /// [`Error::Architecture`] for anything but `llama` without experts, [`Error::Config`] for a key that is missing or
    /// makes no sense.
    pub fn llama_config(&self) -> Result<Config, Error> {
        let architecture = self.text("general.architecture")?.unwrap_or("(none named)");
        let experts = self.size("llama.expert_count")?.unwrap_or(0);
        if architecture != "llama" || experts > 0 {
            let name = if experts > 0 { format!("{architecture} with {experts} experts") } else { architecture.into() };
            return Err(Error::Architecture { path: self.path.clone(), name });
        }
        let hidden = self.required("llama.embedding_length")?;
        let heads = self.required("llama.attention.head_count")?;
        let head_dim = match self.size("llama.attention.key_length")? {
            Some(head_dim) => head_dim,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                let expected = format!("a divisor of llama.embedding_length {hidden}");
                return Err(self.bad("llama.attention.head_count", expected));
            }
        };
        for key in ["llama.rope.dimension_count", "llama.attention.value_length"] {
            if self.size(key)?.is_some_and(|size| size != head_dim) {
                return Err(self.bad(key, format!("the size of a head, {head_dim}")));
            }
        }
        let embedding = self.tensors.get("token_embd.weight").map(|tensor| tensor.shape.as_slice());
        let &[vocabulary, _] = embedding.unwrap_or_default() else {
            return Err(Error::missing(&self.path, "token_embd.weight"));
        };
        let epsilon = self.number("llama.attention.layer_norm_rms_epsilon")?;
        let config = Config {
            model_type: "llama".into(),
            hidden,
            intermediate: self.required("llama.feed_forward_length")?,
            layers: self.required("llama.block_count")?,
            heads,
            kv_heads: self.size("llama.attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
            vocabulary,
            max_positions: self.size("llama.context_length")?.unwrap_or(2048),
            norm_epsilon: epsilon.unwrap_or(1e-5) as f32,
            rope_theta: self.number("llama.rope.freq_base")?.unwrap_or(10_000.0),
            rope_scaling: self.rope_scaling()?,
            sliding_window: self.size("llama.attention.sliding_window")?.filter(|&window| window > 0),
            tied_embeddings: !self.tensors.contains_key("output.weight"),
            bos: self.token("tokenizer.ggml.bos_token_id")?,
            eos: ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"]
                .into_iter()
                .filter_map(|key| self.token(key).transpose())
                .collect::<Result<_, _>>()?,
        };
        config.check(&self.path)?;
        Ok(config)
    }

    fn rope_scaling(&self) -> Result<RopeScaling, Error> {
        let factor = match self.number("llama.rope.scaling.factor")? {
            Some(factor) => Some(factor),
            None => self.number("llama.rope.scale_linear")?,
        };
        match self.text("llama.rope.scaling.type")? {
            Some("none") => Ok(RopeScaling::None),
            // A zero or one, which some converters write, means no scaling.
            None | Some("linear") => Ok(match factor {
                Some(factor) if factor != 0.0 && factor != 1.0 => RopeScaling::Linear { factor },
                _ => RopeScaling::None,
            }),
            Some(_) => Err(self.bad("llama.rope.scaling.type", "none or linear".into())),
        }
    }

    fn bad(&self, key: &str, expected: String) -> Error {
        let got = self.metadata.get(key).map_or_else(
            || "nothing".into(),
            |value| {
                super::super::config_json::short(&match value {
                    Value::Strings(_) | Value::Numbers(_) | Value::Arrays(_) => "an array".into(),
                    value => format!("{value:?}"),
                })
            },
        );
        Error::config(&self.path, key, expected, got)
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, Error> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.bad(key, "a string".into())),
        }
    }

    fn size(&self, key: &str) -> Result<Option<usize>, Error> {
        let size = match self.metadata.get(key) {
            None => return Ok(None),
            Some(Value::Unsigned(size)) => usize::try_from(*size).ok(),
            Some(Value::Signed(size)) => usize::try_from(*size).ok(),
            // One value a layer, the same in every layer.
            Some(Value::Numbers(sizes)) if sizes.windows(2).all(|pair| pair[0] == pair[1]) => {
                sizes.first().filter(|&&x| x >= 0.0 && x.fract() == 0.0).map(|&x| x as usize)
            }
            Some(_) => None,
        };
        size.map(Some).ok_or_else(|| self.bad(key, "an integer, the same for all layers".into()))
    }

    fn required(&self, key: &str) -> Result<usize, Error> {
        let size = self.size(key)?.filter(|&size| size > 0);
        size.ok_or_else(|| self.bad(key, "a positive integer".into()))
    }

    fn number(&self, key: &str) -> Result<Option<f64>, Error> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Float(x)) => Ok(Some(*x)),
            Some(Value::Unsigned(x)) => Ok(Some(*x as f64)),
            Some(_) => Err(self.bad(key, "a number".into())),
        }
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, Error> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.bad(key, "true or false".into())),
        }
    }

    pub(super) fn token(&self, key: &str) -> Result<Option<u32>, Error> {
        let Some(id) = self.size(key)? else { return Ok(None) };
        // Some writers mark "no such token" by -1 or by an id past the vocabulary.
        Ok(u32::try_from(id).ok().filter(|&id| id != u32::MAX))
    }

    pub(super) fn strings(&self, key: &str) -> Result<Option<&[String]>, Error> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Strings(strings)) => Ok(Some(strings)),
            Some(_) => Err(self.bad(key, "an array of strings".into())),
        }
    }

    pub(super) fn numbers(&self, key: &str) -> Result<Option<&[f64]>, Error> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Numbers(numbers)) => Ok(Some(numbers)),
            Some(_) => Err(self.bad(key, "an array of numbers".into())),
        }
    }
}
