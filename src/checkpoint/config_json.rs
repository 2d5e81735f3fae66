//! `config.json` of a Hugging Face folder, in and out.

use super::quantization::decimal::widen;
use super::{Config, Error, RopeScaling};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Reads a [`Config`] out of the bytes of a `config.json`. `path` is for error messages only.
///
/// Takes `LlamaForCausalLM` and `MistralForCausalLM`; `rope_scaling` of kinds `linear` and `llama3` under the keys
/// `type` (old), `rope_type` (new) and inside `rope_parameters` (transformers 5).
///
/// # Errors
/// [`Error::Malformed`] for what is not JSON, [`Error::Architecture`], and [`Error::Config`] naming the first field that
/// is missing or makes no sense.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<Config, Error> {
    let value: Value =
        serde_json::from_slice(bytes).map_err(|e| Error::malformed(path, format!("expected a JSON object: {e}")))?;
    from_value(path, &value)
}

pub(crate) fn from_value(path: &Path, value: &Value) -> Result<Config, Error> {
    let Value::Object(object) = value else {
        return Err(Error::malformed(path, "expected a JSON object"));
    };
    check_architecture(path, object)?;
    let fields = Fields { path, object };
    let hidden = fields.size("hidden_size")?;
    let heads = fields.size("num_attention_heads")?;
    let head_dim = match fields.optional_size("head_dim")? {
        Some(head_dim) => head_dim,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => return Err(fields.bad("num_attention_heads", &format!("a divisor of hidden_size {hidden}"))),
    };
    let activation = object.get("hidden_act").unwrap_or(&Value::Null);
    if !activation.is_null() && activation != "silu" {
        return Err(fields.bad("hidden_act", "\"silu\""));
    }
    let (rope_theta, rope_scaling) = rope(&fields)?;
    let config = Config {
        model_type: object.get("model_type").and_then(Value::as_str).unwrap_or("llama").into(),
        hidden,
        intermediate: fields.size("intermediate_size")?,
        layers: fields.size("num_hidden_layers")?,
        heads,
        kv_heads: fields.optional_size("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        vocabulary: fields.size("vocab_size")?,
        max_positions: fields.optional_size("max_position_embeddings")?.unwrap_or(2048),
        norm_epsilon: fields.optional_number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        rope_theta,
        rope_scaling,
        sliding_window: sliding_window(&fields)?,
        tied_embeddings: fields.flag("tie_word_embeddings")?,
        bos: fields.token_ids("bos_token_id")?.first().copied(),
        eos: fields.token_ids("eos_token_id")?,
    };
    config.check(path)?;
    Ok(config)
}

fn check_architecture(path: &Path, object: &Map<String, Value>) -> Result<(), Error> {
    let unsupported = |name: String| Err(Error::Architecture { path: path.into(), name });
    let supported = |name: &str| matches!(name, "LlamaForCausalLM" | "MistralForCausalLM");
    match object.get("architectures") {
        Some(Value::Array(names)) if !names.is_empty() => {
            match names.iter().find(|name| !name.as_str().is_some_and(supported)) {
                None => Ok(()),
                Some(other) => unsupported(other.as_str().map_or_else(|| other.to_string(), String::from)),
            }
        }
        // Configs written by hand often carry a model_type alone.
        None | Some(Value::Null | Value::Array(_)) => match object.get("model_type").and_then(Value::as_str) {
            Some("llama" | "mistral") => Ok(()),
            other => unsupported(other.unwrap_or("(none named)").into()),
        },
        Some(other) => unsupported(other.to_string()),
    }
}

fn sliding_window(fields: &Fields<'_>) -> Result<Option<usize>, Error> {
    match fields.object.get("use_sliding_window") {
        Some(Value::Bool(false)) => Ok(None),
        _ => fields.optional_size("sliding_window"),
    }
}

/// Base and scaling of the rotary frequencies.
fn rope(fields: &Fields<'_>) -> Result<(f64, RopeScaling), Error> {
    let Fields { path, object } = *fields;
    let nested = |key: &str| match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(object)) => Ok(Some(Fields { path, object })),
        Some(_) => Err(fields.bad(key, "an object or null")),
    };
    let parameters = nested("rope_parameters")?;
    let theta = match &parameters {
        Some(parameters) => parameters.optional_number("rope_theta")?,
        None => None,
    };
    let theta = match theta {
        Some(theta) => theta,
        None => fields.optional_number("rope_theta")?.unwrap_or(10_000.0),
    };
    let Some(scaling) = nested("rope_scaling")?.or(parameters) else {
        return Ok((theta, RopeScaling::None));
    };
    let kind = scaling.object.get("rope_type").or_else(|| scaling.object.get("type"));
    let kind = match kind {
        None | Some(Value::Null) => "default",
        Some(kind) => kind.as_str().unwrap_or(""),
    };
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: scaling.number("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: scaling.number("factor")?,
            low_frequency_factor: scaling.number("low_freq_factor")?,
            high_frequency_factor: scaling.number("high_freq_factor")?,
            original_positions: scaling.size("original_max_position_embeddings")?,
        },
        "factors" => RopeScaling::Factors { factors: scaling.numbers("factors")? },
        _ => return Err(scaling.bad("rope_type", "\"default\", \"linear\" or \"llama3\"")),
    };
    Ok((theta, scaling))
}

/// Typed access to a JSON object.
struct Fields<'a> {
    path: &'a Path,
    object: &'a Map<String, Value>,
}

impl Fields<'_> {
    fn bad(&self, field: &str, expected: &str) -> Error {
        let got = self.object.get(field).map_or_else(|| "nothing".into(), |value| short(&value.to_string()));
        Error::config(self.path, field, expected, got)
    }

    fn optional_size(&self, field: &str) -> Result<Option<usize>, Error> {
        match self.object.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64().and_then(|x| usize::try_from(x).ok()) {
                Some(size) if size > 0 => Ok(Some(size)),
                _ => Err(self.bad(field, "a positive integer")),
            },
        }
    }

    fn size(&self, field: &str) -> Result<usize, Error> {
        self.optional_size(field)?.ok_or_else(|| self.bad(field, "a positive integer"))
    }

    fn optional_number(&self, field: &str) -> Result<Option<f64>, Error> {
        match self.object.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or_else(|| self.bad(field, "a number")),
        }
    }

    fn number(&self, field: &str) -> Result<f64, Error> {
        self.optional_number(field)?.ok_or_else(|| self.bad(field, "a number"))
    }

    fn numbers(&self, field: &str) -> Result<Vec<f64>, Error> {
        let array = self.object.get(field).and_then(Value::as_array);
        let numbers = array.and_then(|values| values.iter().map(Value::as_f64).collect());
        numbers.ok_or_else(|| self.bad(field, "an array of numbers"))
    }

    fn flag(&self, field: &str) -> Result<bool, Error> {
        match self.object.get(field) {
            None | Some(Value::Null) => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| self.bad(field, "true or false")),
        }
    }

    fn token_ids(&self, field: &str) -> Result<Vec<u32>, Error> {
        let id = |value: &Value| value.as_u64().and_then(|x| u32::try_from(x).ok());
        let ids = match self.object.get(field) {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Array(ids)) => ids.iter().map(id).collect(),
            Some(value) => id(value).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.bad(field, "a token id or a list of them"))
    }
}

/// At most 80 characters of a value, for messages.
pub(crate) fn short(text: &str) -> String {
    if text.chars().count() <= 80 { text.into() } else { text.chars().take(77).chain("...".chars()).collect() }
}

impl Config {
    /// Checks what the arithmetic relies on: the number of heads, even heads, finite positive numbers, sizes that a
    /// 64-bit product holds.
    pub(crate) fn check(&self, path: &Path) -> Result<(), Error> {
        let bad = |field: &str, expected: String, got: String| Err(Error::config(path, field, expected, got));
        // No real model comes near; the limit keeps every product of two sizes and four bytes far from overflow.
        let limit = 1 << 24;
        for (field, size) in [
            ("hidden_size", self.hidden),
            ("intermediate_size", self.intermediate),
            ("num_hidden_layers", self.layers),
            ("num_attention_heads", self.heads),
            ("num_key_value_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("vocab_size", self.vocabulary),
        ] {
            if size == 0 || size > limit {
                return bad(field, format!("1 to {limit}"), size.to_string());
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let expected = format!("a divisor of num_attention_heads {}", self.heads);
            return bad("num_key_value_heads", expected, self.kv_heads.to_string());
        }
        if !self.head_dim.is_multiple_of(2) {
            return bad(
                "head_dim",
                "an even number (rotary embedding pairs channels)".into(),
                self.head_dim.to_string(),
            );
        }
        if self.heads * self.head_dim > limit {
            return bad("head_dim", format!("heads * head_dim of at most {limit}"), self.head_dim.to_string());
        }
        let positive = |x: f64| x.is_finite() && x > 0.0;
        if !(self.norm_epsilon.is_finite() && self.norm_epsilon >= 0.0) {
            return bad("rms_norm_eps", "a finite number, not negative".into(), self.norm_epsilon.to_string());
        }
        if !positive(self.rope_theta) {
            return bad("rope_theta", "a positive number".into(), self.rope_theta.to_string());
        }
        let sound = match &self.rope_scaling {
            RopeScaling::None => true,
            RopeScaling::Linear { factor } => positive(*factor),
            RopeScaling::Llama3 { factor, low_frequency_factor, high_frequency_factor, original_positions } => {
                positive(*factor)
                    && positive(*low_frequency_factor)
                    && positive(*high_frequency_factor)
                    && high_frequency_factor > low_frequency_factor
                    && *original_positions > 0
            }
            RopeScaling::Factors { factors } => {
                factors.len() == self.head_dim / 2 && factors.iter().all(|&x| positive(x))
            }
        };
        if !sound {
            let got = short(&format!("{:?}", self.rope_scaling));
            return bad("rope_scaling", "positive factors, high above low, one for each pair of channels".into(), got);
        }
        Ok(())
    }

    /// The scaling, with spelled-out factors replaced by the rule they come from where it is one that was published:
    /// LLaMA 3.1 (factor 8) and 3.2 (factor 32).
    fn rope_scaling_by_name(&self) -> RopeScaling {
        if let RopeScaling::Factors { factors } = &self.rope_scaling {
            for factor in [8.0, 32.0] {
                let rule = |j: usize| {
                    let wavelength =
                        std::f64::consts::TAU * self.rope_theta.powf(2.0 * j as f64 / self.head_dim as f64);
                    let smooth = ((8192.0 / wavelength - 1.0) / 3.0).clamp(0.0, 1.0);
                    1.0 / ((1.0 - smooth) / factor + smooth)
                };
                if factors.iter().enumerate().all(|(j, x)| (x / rule(j) - 1.0).abs() < 1e-5) {
                    return RopeScaling::Llama3 {
                        factor,
                        low_frequency_factor: 1.0,
                        high_frequency_factor: 4.0,
                        original_positions: 8192,
                    };
                }
            }
        }
        self.rope_scaling.clone()
    }

    /// The `config.json` that says the same, for models which did not come with one.
    #[must_use]
    pub fn to_hugging_face(&self) -> Value {
        let mistral = self.model_type == "mistral";
        let rope_scaling = match &self.rope_scaling_by_name() {
            RopeScaling::None => Value::Null,
            RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
            RopeScaling::Llama3 { factor, low_frequency_factor, high_frequency_factor, original_positions } => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_frequency_factor,
                "high_freq_factor": high_frequency_factor,
                "original_max_position_embeddings": original_positions,
            }),
            // Not a kind that transformers knows: it refuses such a model rather than running it wrongly.
            RopeScaling::Factors { factors } => json!({ "rope_type": "factors", "factors": factors }),
        };
        json!({
            "architectures": [if mistral { "MistralForCausalLM" } else { "LlamaForCausalLM" }],
            "model_type": if mistral { "mistral" } else { "llama" },
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": widen(self.norm_epsilon),
            "rope_theta": self.rope_theta,
            "rope_scaling": rope_scaling,
            "sliding_window": self.sliding_window,
            "tie_word_embeddings": self.tied_embeddings,
            "bos_token_id": self.bos,
            "eos_token_id": self.eos,
        })
    }
}
