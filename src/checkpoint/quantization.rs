use super::{Error, Group, LinearGroup, Weight};
use crate::kernels::Affine;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Version of the DuQuant folder that this library writes, and the only one it reads.
pub const FORMAT_VERSION: u32 = 1;

/// Bits that stand for "kept in floating point".
pub const FLOAT_BITS: u32 = 16;

/// How a model was quantized: the settings of the run, and what a runner needs beyond the layers' own data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Quantization {
    /// `duquant`, `rtn`, `smoothquant` or `quarot`.
    pub method: String,
    /// How the rotations were found: `best`, `paper`, `official`, `left`, ...
    pub mode: String,
    /// Bits of weights, 2 to 8, or 16 for floating point.
    pub weight_bits: u32,
    /// Bits of activations, 2 to 8, or 16 for floating point.
    pub activation_bits: u32,
    /// Bits of queries, keys and values, 2 to 8, or 16 for floating point.
    pub kv_bits: u32,
    /// Rotation block that was asked for; a group whose width it does not divide takes a smaller one.
    pub block: usize,
    /// `zigzag`, `random`, `anneal` or `none`.
    pub permutation: String,
    /// Permutations between rotations.
    pub permutations: usize,
    /// Groups that were smoothed and neither rotated nor permuted; none in the folders of most runs, which say nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub untransformed: Vec<String>,
    /// Greedy steps of a rotation.
    pub steps: usize,
    /// Clip ratio of weights.
    #[serde(with = "decimal")]
    pub weight_clip: f32,
    /// Clip ratio of activations.
    #[serde(with = "decimal")]
    pub activation_clip: f32,
    /// Exponent of smoothing; 0 for none.
    #[serde(with = "decimal")]
    pub alpha: f32,
    /// What is smoothed: `norms`, `all` or `balanced`.
    pub smoothing: String,
    /// How a weight became a code: `nearest` or `compensated`.
    pub rounding: String,
    /// Which activations calibrated a layer: `float` or `quantized`.
    pub propagation: String,
    /// Whether weights have a range symmetric around zero.
    pub weight_symmetric: bool,
    /// Whether activations have a range symmetric around zero.
    pub activation_symmetric: bool,
    /// Seed of everything random.
    pub seed: u64,
    /// Where the calibration's tokens came from, for people.
    pub calibration: String,
    /// Whether queries and keys are multiplied by a Hadamard of size `head_dim` after the rotary embedding.
    pub rotate_heads: bool,
    /// How queries are quantized per token and head; `None` keeps them in floating point.
    #[serde(with = "affine")]
    pub query: Option<Affine>,
    /// How keys are quantized per token and head.
    #[serde(with = "affine")]
    pub key: Option<Affine>,
    /// How values are quantized per token and head.
    #[serde(with = "affine")]
    pub value: Option<Affine>,
}

impl Default for Quantization {
    /// Everything in floating point, nothing transformed.
    fn default() -> Self {
        Self {
            method: "rtn".into(),
            mode: "none".into(),
            weight_bits: FLOAT_BITS,
            activation_bits: FLOAT_BITS,
            kv_bits: FLOAT_BITS,
            block: 0,
            permutation: "none".into(),
            permutations: 0,
            untransformed: Vec::new(),
            steps: 0,
            weight_clip: 1.0,
            activation_clip: 1.0,
            alpha: 0.0,
            smoothing: "norms".into(),
            rounding: "nearest".into(),
            propagation: "float".into(),
            weight_symmetric: false,
            activation_symmetric: false,
            seed: 0,
            calibration: String::new(),
            rotate_heads: false,
            query: None,
            key: None,
            value: None,
        }
    }
}

/// An `f32` by its shortest decimal digits (0.9, not 0.8999999761581421), which read back as the same number.
pub(crate) mod decimal {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn widen(x: f32) -> f64 {
        x.to_string().parse().ok().filter(|&wide: &f64| wide as f32 == x).unwrap_or(f64::from(x))
    }

    pub(crate) fn serialize<S: Serializer>(x: &f32, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(widen(*x))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f32, D::Error> {
        Ok(f64::deserialize(deserializer)? as f32)
    }
}

/// [`Affine`] as `{"bits", "clip", "symmetric"}` or null.
mod affine {
    use crate::kernels::Affine;
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Record {
        bits: u32,
        #[serde(with = "super::decimal")]
        clip: f32,
        symmetric: bool,
    }

    pub(super) fn serialize<S: Serializer>(affine: &Option<Affine>, serializer: S) -> Result<S::Ok, S::Error> {
        let record = affine.map(|a| Record { bits: a.bits, clip: a.clip, symmetric: a.symmetric });
        record.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Affine>, D::Error> {
        let Some(record) = Option::<Record>::deserialize(deserializer)? else { return Ok(None) };
        let affine = Affine::new(record.bits, record.clip).map_err(D::Error::custom)?;
        Ok(Some(if record.symmetric { affine.symmetric() } else { affine }))
    }
}

/// What a reader must know of a group beside its tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct GroupRecord {
    #[serde(with = "affine")]
    pub(crate) activation: Option<Affine>,
    /// Bits of each linear's weight; 16 for floating point.
    pub(crate) weight_bits: Vec<u32>,
    pub(crate) block: usize,
    pub(crate) rotations: usize,
    pub(crate) hadamard: bool,
    pub(crate) smooth: bool,
}

impl GroupRecord {
    pub(crate) fn of(group: &LinearGroup) -> Self {
        let bits = |weight: &Weight| match weight {
            Weight::Float { .. } => FLOAT_BITS,
            Weight::Quantized(matrix) => matrix.bits,
        };
        let transform = &group.transform;
        Self {
            activation: group.activation,
            weight_bits: group.linears.iter().map(|linear| bits(&linear.weight)).collect(),
            block: if transform.rotation_count() == 0 { 0 } else { transform.block },
            rotations: transform.rotation_count(),
            hadamard: transform.hadamard,
            smooth: transform.inverse_smooth.is_some(),
        }
    }
}

/// The groups of a layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) qkv: GroupRecord,
    pub(crate) o: GroupRecord,
    pub(crate) gate_up: GroupRecord,
    pub(crate) down: GroupRecord,
}

impl LayerRecord {
    pub(crate) fn group(&self, group: Group) -> &GroupRecord {
        match group {
            Group::Qkv => &self.qkv,
            Group::O => &self.o,
            Group::GateUp => &self.gate_up,
            Group::Down => &self.down,
        }
    }
}

/// A file of the folder as it was written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct FileRecord {
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

/// `quantization_config` of a DuQuant folder's `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) quant_method: String,
    pub(crate) version: u32,
    pub(crate) settings: Quantization,
    pub(crate) layers: Vec<LayerRecord>,
    pub(crate) files: BTreeMap<String, FileRecord>,
}

impl Manifest {
    pub(crate) const METHOD: &'static str = "duquant";

    /// Whether a `config.json` is that of a DuQuant folder.
    pub(crate) fn is_in(config: &Value) -> bool {
        config["quantization_config"]["quant_method"] == Self::METHOD
    }

    pub(crate) fn read(path: &Path, config: &Value) -> Result<Self, Error> {
        let value = &config["quantization_config"];
        let version = &value["version"];
        if version != FORMAT_VERSION {
            let expected = format!("{FORMAT_VERSION} (another version of duquant wrote this folder)");
            return Err(Error::config(path, "quantization_config.version", expected, version.to_string()));
        }
        Self::deserialize(value).map_err(|e| Error::malformed(path, format!("quantization_config: {e}")))
    }

    /// The JSON, with compressed-tensors' fields beside ours for readers who know those: they say how most linears are
    /// quantized; [`Manifest::layers`] is what counts.
    pub(crate) fn to_json(&self) -> Result<Value, serde_json::Error> {
        let mut value = serde_json::to_value(self)?;
        let settings = &self.settings;
        let scheme = |bits: u32, symmetric: bool, strategy: &str, dynamic: bool| match bits {
            FLOAT_BITS => Value::Null,
            bits => json!({
                "num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy, "dynamic": dynamic,
            }),
        };
        value["format"] = "pack-quantized".into();
        value["ignore"] = json!(["lm_head"]);
        value["config_groups"] = json!({ "group_0": {
            "targets": ["Linear"],
            "weights": scheme(settings.weight_bits, settings.weight_symmetric, "channel", false),
            "input_activations": scheme(settings.activation_bits, settings.activation_symmetric, "token", true),
        } });
        value["kv_cache_scheme"] = scheme(settings.kv_bits, false, "attn_head", true);
        Ok(value)
    }
}
