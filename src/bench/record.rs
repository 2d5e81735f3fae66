//! What every measurement is written as: one JSON object with the machine, what was asked for, and a list of points.

use crate::model::Memory;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The `format` of every record.
pub const FORMAT: &str = "duquant-bench";
/// The `version` that this program writes and reads.
pub const VERSION: u32 = 1;

/// One run of `duquant bench`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    /// Version of the program.
    pub duquant: String,
    /// Commit of the checkout that the program runs in, with `+` behind it where files differ from it; `null` outside of one.
    pub commit: Option<String>,
    /// When the run began, seconds since 1970.
    pub unix_seconds: u64,
    /// Arguments of the program, without its name.
    pub command: Vec<String>,
    /// What it ran on.
    pub machine: Machine,
    /// The model whose shapes were measured.
    pub model: Option<ModelShape>,
    /// What the run was asked for: lengths, samples, seeds.
    pub settings: BTreeMap<String, serde_json::Value>,
    /// What the machine can do at most, where the run measured it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ceilings: Option<Ceilings>,
    /// The subcommand, `bench`, and its `points`.
    #[serde(flatten)]
    pub points: Points,
    /// Points that were asked for and could not be measured.
    pub failures: Vec<Failure>,
}

/// The points of a record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "bench", content = "points", rename_all = "lowercase")]
pub enum Points {
    /// One decoder layer.
    Layer(Vec<SpeedPoint>),
    /// All layers with embedding and output head.
    Model(Vec<SpeedPoint>),
    /// Single kernels.
    Kernel(Vec<KernelPoint>),
    /// Quantization runs.
    Quantize(Vec<QuantizePoint>),
    /// Perplexities of the paper's ablations.
    Ablate(Vec<AblationPoint>),
    /// Magnitudes of a linear's input along the transform.
    Outliers(Vec<OutlierPoint>),
}

/// A machine and the device that was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Name of the processor.
    pub cpu: String,
    /// Logical cores.
    pub cores: usize,
    /// Threads that the run used.
    pub threads: usize,
    /// Bytes of main memory, where the system says.
    pub memory_bytes: Option<u64>,
    /// Operating system and architecture.
    pub os: String,
    /// `cpu`, `wgpu` or `cuda`.
    pub backend: String,
    /// The device behind the backend; on the CPU its instruction set.
    pub device: String,
    /// Its driver, where it has one.
    pub driver: Option<String>,
    /// How floating-point sums are computed: `fast` or `reproducible`.
    pub arithmetic: String,
}

/// Hyperparameters that decide speed and memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelShape {
    /// Name of the preset, or the path it came from.
    pub name: String,
    /// Channels of the residual stream.
    pub hidden: usize,
    /// Channels of the feed-forward network.
    pub intermediate: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocabulary: usize,
}

/// The most that the machine was seen to do in the same run, each by the fastest of a few plain loops or library calls.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Ceilings {
    /// Bytes read from memory in a second.
    pub bytes_per_second: f64,
    /// Floating-point operations (2 a multiply-add) in a second, with single-precision sums: of single precision, on CUDA of half
    /// precision on tensor cores.
    pub f32_per_second: f64,
    /// Operations on bfloat16 (2 a multiply-add) in a second where a CPU has tiles of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bf16_per_second: Option<f64>,
    /// Integer operations (2 a multiply-add) of the kind that the GEMM uses in a second.
    pub integer_per_second: f64,
}

/// What could not be measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// The point, in words.
    pub what: String,
    /// Why.
    pub error: String,
}

/// Which half of a request's life is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// All tokens of the prompts at once.
    Prefill,
    /// One token a sequence behind a context.
    Decode,
}

/// Times of one phase of a layer or a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpeedPoint {
    /// Prefill or decode.
    pub phase: Phase,
    /// Sequences.
    pub batch: usize,
    /// Tokens of one timed run over all sequences: `batch * length` in prefill, `batch` in decode.
    pub tokens: usize,
    /// Tokens of a sequence's prompt in prefill, of its context in decode.
    pub length: usize,
    /// `fp32`, `fp16`, `bf16`, `rtn`, `quarot`, `duquant0`, `duquant` (one permutation) or `duquant2`.
    pub method: String,
    /// `W4A4`, `W4A8`, `W8A8`; `FP32`, `FP16` or `BF16` for floating point.
    pub bits: String,
    /// `cpu`, `wgpu` or `cuda`.
    pub backend: String,
    /// As [`Machine::device`].
    pub device: String,
    /// Median time of a run.
    #[serde(flatten)]
    pub time: Times,
    /// Tokens a second at the median.
    pub tokens_per_second: f64,
    /// Time of the floating-point method over this one's, same phase, batch and run: the median ratio of samples that were taken in
    /// turns (`layer`), or that of the medians (`model`, and where one side has more samples).
    pub speedup: Option<f64>,
    /// Share of the kernels' time that `transform_quantize` takes, with the norm or SiLU and the quantization inside it.
    pub transform_share: Option<f64>,
    /// What the transform adds to plain round-to-nearest at the same bits (figure 5): the ratio of times as in `speedup`, minus 1.
    pub transform_overhead: Option<f64>,
    /// Bytes held at once: the sum of [`SpeedPoint::memory`].
    pub peak_bytes: u64,
    /// The same by purpose, as the backend's buffers count it.
    pub memory: Memory,
    /// What the system or the device says that this method took: a cross-check of `peak_bytes`, where it can be had.
    pub device_bytes: Option<u64>,
    /// One run, kernel by kernel, timed apart from the samples.
    pub kernels: Vec<KernelTime>,
}

/// Samples in milliseconds, in the order in which they were taken, with what they say.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Times {
    /// Median.
    pub median_ms: f64,
    /// 10th percentile.
    pub p10_ms: f64,
    /// 90th percentile.
    pub p90_ms: f64,
    /// Every sample.
    pub samples_ms: Vec<f64>,
    /// Why the median may not be repeatable to 5%; empty on a quiet machine.
    pub noise: Vec<String>,
}

/// One kernel of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KernelTime {
    /// Name of the kernel, the same on every backend.
    pub name: String,
    /// The group of linears it works for, and which implementation ran.
    pub variant: String,
    /// Time, summed over its launches.
    pub ms: f64,
    /// Bytes that it must move at least: operands once, results once.
    pub bytes: f64,
    /// Operations that it must do, 2 a multiply-add.
    pub ops: f64,
}

/// One kernel at one shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KernelPoint {
    /// Name of the kernel, the same on every backend.
    pub name: String,
    /// Which implementation ran.
    pub variant: String,
    /// Its shape: `tokens`, `n`, `k`, `heads`, `context`, ..
    pub shape: BTreeMap<String, usize>,
    /// As in [`SpeedPoint`].
    pub bits: String,
    /// `cpu`, `wgpu` or `cuda`.
    pub backend: String,
    /// As [`Machine::device`].
    pub device: String,
    /// Time of a call.
    #[serde(flatten)]
    pub time: Times,
    /// As [`KernelTime::bytes`].
    pub bytes: f64,
    /// As [`KernelTime::ops`].
    pub ops: f64,
    /// Whether `ops` are `f32` or `integer`.
    pub arithmetic: String,
    /// Bytes a second at the median.
    pub bytes_per_second: f64,
    /// Operations a second at the median.
    pub ops_per_second: f64,
    /// The larger of the two as a fraction of its ceiling in the same run: how near the roofline it is.
    pub of_ceiling: Option<f64>,
    /// Which ceiling that is: `memory` or `compute`.
    pub bound: Option<String>,
}

/// One quantization.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuantizePoint {
    /// The model, as in [`ModelShape::name`].
    pub model: String,
    /// `duquant`, `quarot`, `smoothquant` or `rtn`.
    pub method: String,
    /// DuQuant's mode; `none` for the others.
    pub mode: String,
    /// `W4A4` and the like.
    pub bits: String,
    /// Calibration tokens.
    pub tokens: usize,
    /// Layers that were quantized.
    pub layers: usize,
    /// Time in all.
    pub seconds: f64,
    /// The same by stage, in the order of the pipeline.
    pub stages: Vec<Stage>,
    /// Most bytes of this process that were resident at once.
    pub peak_bytes: Option<u64>,
    /// Why the time may not be repeatable.
    pub noise: Vec<String>,
}

/// A part of a quantization.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// What it does.
    pub name: String,
    /// How long it took.
    pub seconds: f64,
}

/// One row of an ablation table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AblationPoint {
    /// Key of the table: `modules`, `outliers`, `block`, `steps`, `permutation`, `calibration`, `samples`, `rotation`.
    pub table: String,
    /// The paper's table that it follows.
    pub paper: String,
    /// The row, in words.
    pub row: String,
    /// The settings of the row that differ from the table's others.
    pub settings: BTreeMap<String, serde_json::Value>,
    /// Perplexity of the quantized model; infinite or not a number is `null`.
    pub perplexity: Option<f64>,
    /// Perplexity of the floating-point model on the same text, same run.
    pub baseline: f64,
    /// Time of the quantization.
    pub seconds: f64,
    /// Variance over the blocks of their mean outliers behind the permutation, at the first layer's query projection (eq. 4).
    pub variance: Option<f64>,
    /// What the paper gives for the row on LLaMA2-7B and WikiText2.
    pub paper_perplexity: Option<f64>,
}

/// The input of one group of linears, before and behind each step of its transform.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutlierPoint {
    /// Layer.
    pub layer: usize,
    /// `qkv`, `o`, `gate_up` or `down`.
    pub group: String,
    /// Input channels.
    pub channels: usize,
    /// Tokens.
    pub tokens: usize,
    /// The steps, in their order.
    pub steps: Vec<Magnitudes>,
}

/// `|x|` over channels and tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Magnitudes {
    /// `before smoothing`, `after smoothing`, `after rotation 1`, `after permutation`, `after rotation 2`.
    pub step: String,
    /// Largest `|x|`.
    pub max: f32,
    /// Median `|x|`.
    pub median: f32,
    /// Columns of [`Magnitudes::grid`]: groups of neighbouring channels.
    pub columns: usize,
    /// Largest `|x|` of each group of neighbouring tokens (rows) and channels, row-major.
    pub grid: Vec<f32>,
}
