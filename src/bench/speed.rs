//! What the benchmarks of a layer and of a model share.

use super::cost::{Cost, Work};
use super::machine::available_bytes;
use super::method::{Bits, Method};
use super::record::{KernelTime, Phase, SpeedPoint};
use super::times::quantile;
use crate::checkpoint::{Config, Group};
use crate::model::cpu::CHUNK;
use crate::model::{Backend, Model, Operation, State};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What to measure.
#[derive(Debug, Clone, PartialEq)]
pub struct SpeedOptions {
    /// Prefill, decode or both.
    pub phases: Vec<Phase>,
    /// Sequences, one point each.
    pub batches: Vec<usize>,
    /// Tokens of a sequence: those of the prompt in prefill, those before the first step in decode.
    pub length: usize,
    /// Steps of decoding, each a sample.
    pub steps: usize,
    /// Samples of a prefill; of a layer on the CPU each has its own load, and counts up to eight short ones.
    pub samples: usize,
    /// What is set beside each other. A floating-point method is the baseline of the others.
    pub methods: Vec<Method>,
    /// Bits of the methods that quantize, one point each.
    pub bits: Vec<Bits>,
    /// Seed of weights and activations.
    pub seed: u64,
}

/// Why nothing can be measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A point that this machine or backend cannot run.
    #[error("{what}: {why}")]
    Refused {
        /// The point.
        what: String,
        /// Why, and what would do.
        why: String,
    },
    /// The model cannot be made or run.
    #[error(transparent)]
    Model(#[from] crate::model::Error),
    /// The checkpoint cannot be made.
    #[error(transparent)]
    Checkpoint(#[from] crate::checkpoint::Error),
    /// The device failed when its ceilings were measured.
    #[error("the device's ceilings: {fault}")]
    Ceilings {
        /// What it says.
        fault: String,
    },
    /// A kernel refused its settings.
    #[error(transparent)]
    Kernel(#[from] crate::kernels::Error),
}

/// A method with its bits, as one column of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Side {
    pub(super) method: Method,
    pub(super) bits: Bits,
}

impl SpeedOptions {
    /// Methods times bits; a baseline has no bits and stands once.
    pub(super) fn sides(&self) -> Vec<Side> {
        let mut sides = Vec::new();
        for &method in &self.methods {
            for &bits in self.bits.iter().take(if method.is_float() { 1 } else { usize::MAX }) {
                sides.push(Side { method, bits });
            }
        }
        sides
    }

    /// Most tokens of a sequence in a phase.
    pub(super) fn capacity(&self, phase: Phase) -> usize {
        self.length + if phase == Phase::Decode { self.steps } else { 0 }
    }

    /// Rows of a pass: decoding alone needs no more than sequences.
    pub(super) fn rows(&self, phase: Phase, batch: usize) -> Option<usize> {
        (phase == Phase::Decode).then_some(batch)
    }

    /// Ok when everything that is asked for makes sense and may fit the memory. `layers` says how many a side holds in a phase, at
    /// once with the other sides when they are `together`, with `tables` bytes besides.
    pub(super) fn check(
        &self,
        config: &Config,
        backend: &Backend,
        layers: impl Fn(&Work<'_>, Phase) -> usize,
        together: bool,
        tables: u64,
    ) -> Result<(), Error> {
        let refused = |what: &str, why: String| Err(Error::Refused { what: what.into(), why });
        if self.sides().is_empty() || self.batches.is_empty() || self.phases.is_empty() {
            return refused("benchmark", "expected at least one method, bits, batch and phase".into());
        }
        for &method in &self.methods {
            if let Err(why) = method.on(backend) {
                return refused(method.name(), why);
            }
        }
        let Some(available) = available(backend) else { return Ok(()) };
        for &phase in &self.phases {
            for &batch in &self.batches {
                if batch.checked_mul(self.capacity(phase)).is_none_or(|tokens| tokens > 1 << 32) {
                    return refused(&point(phase, batch), "expected at most 2^32 tokens in all".into());
                }
                let rows = self.rows(phase, batch).unwrap_or(CHUNK).min(CHUNK);
                let bytes = self.sides().into_iter().map(|side| {
                    let (tokens, context) = (self.capacity(phase), 0);
                    let work =
                        Work { config, method: side.method, bits: side.bits, batch, tokens, context, float_bytes: 4.0 };
                    work.footprint(layers(&work, phase), rows) + tables as f64
                });
                let bytes = if together { bytes.sum() } else { bytes.fold(0.0, f64::max) };
                if bytes > available as f64 {
                    let gigabytes = |bytes: f64| format!("{:.1} GB", bytes / 1e9);
                    let why = format!(
                        "takes about {} and {} are free; ask for a smaller batch or length, or for fewer methods at a time",
                        gigabytes(bytes),
                        gigabytes(available as f64)
                    );
                    return refused(&point(phase, batch), why);
                }
            }
        }
        Ok(())
    }
}

/// Bytes that may be allocated, where the backend's memory is this machine's.
fn available(backend: &Backend) -> Option<u64> {
    match backend {
        Backend::Cpu(_) => available_bytes(),
        #[cfg(feature = "wgpu")]
        Backend::Wgpu { gpu, .. } => {
            (gpu.info().device_type == ::wgpu::DeviceType::Cpu).then(available_bytes).flatten()
        }
        #[cfg(feature = "cuda")]
        Backend::Cuda { .. } => None,
    }
}

/// A point in words.
pub(super) fn point(phase: Phase, batch: usize) -> String {
    format!("{} at batch {batch}", if phase == Phase::Prefill { "prefill" } else { "decode" })
}

/// `rows` rows of `width` numbers between -1 and 1.
pub(super) fn random_rows(rows: usize, width: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..rows * width).map(|_| rng.random_range(-1.0_f32..1.0)).collect()
}

/// Bytes of a number that flows between kernels.
pub(super) fn flowing_bytes(backend: &Backend) -> f64 {
    match backend {
        Backend::Cpu(_) => 4.0,
        #[cfg(feature = "wgpu")]
        Backend::Wgpu { .. } => 4.0,
        #[cfg(feature = "cuda")]
        Backend::Cuda { float, .. } => float.bytes() as f64,
    }
}

/// The time of each operation, summed over `runs` runs of `layers` layers, as that of one layer (or of all, with `whole`).
pub(super) fn kernel_times(
    model: &Model,
    seconds: &[f64],
    runs: usize,
    layers: usize,
    work: &Work<'_>,
    whole: bool,
) -> Vec<KernelTime> {
    let counted = if whole { layers } else { 1 };
    let rows = work.batch * work.tokens;
    let share = counted as f64 / (runs.max(1) * layers.max(1)) as f64;
    Operation::ALL
        .into_iter()
        .zip(seconds)
        .map(|(operation, &seconds)| {
            let Cost { bytes, ops } = work.cost(operation);
            let (name, group) = names(operation, work.method.is_float());
            let kernel = model.kernel(operation, rows);
            KernelTime {
                name: name.into(),
                variant: if group.is_empty() { kernel } else { format!("{group}: {kernel}") },
                ms: seconds * share * 1e3,
                bytes: bytes * counted as f64,
                ops: ops * counted as f64,
            }
        })
        .collect()
}

/// Name of the kernel behind an operation, and of its group.
fn names(operation: Operation, float: bool) -> (&'static str, &'static str) {
    match operation {
        Operation::Prologue(group) => {
            (if float { "transform_float" } else { "transform_quantize" }, Group::name(group))
        }
        Operation::Gemm(group) => (if float { "gemm_float" } else { "gemm_w4a4" }, Group::name(group)),
        Operation::RopeHadamardQuantize => ("rope_hadamard_quantize", ""),
        Operation::Attention => ("attention", ""),
    }
}

/// Share of the kernels' time that the prologues of quantized linears take.
pub(super) fn transform_share(kernels: &[KernelTime]) -> Option<f64> {
    let sum = |name: Option<&str>| -> f64 {
        kernels.iter().filter(|kernel| name.is_none_or(|name| kernel.name == name)).map(|kernel| kernel.ms).sum()
    };
    let (all, prologues) = (sum(None), sum(Some("transform_quantize")));
    (prologues > 0.0 && all > 0.0).then(|| prologues / all)
}

/// Fills in what is relative to the other points of the same phase, batch and run. Where as many samples were taken in turns the
/// ratio is the median of those of neighbours, which a machine that slows down leaves alone; else it is that of the medians.
pub(super) fn relate(points: &mut [SpeedPoint], in_turns: bool) {
    let float = |point: &SpeedPoint| Method::parse(&point.method).is_some_and(Method::is_float);
    let ratio = |of: &SpeedPoint, to: &SpeedPoint| {
        let (a, b) = (&of.time.samples_ms, &to.time.samples_ms);
        let ratio = if in_turns && a.len() == b.len() {
            quantile(&a.iter().zip(b).map(|(a, b)| a / b).collect::<Vec<_>>(), 0.5)
        } else {
            of.time.median_ms / to.time.median_ms
        };
        Some(ratio).filter(|ratio| ratio.is_finite() && *ratio > 0.0)
    };
    let related: Vec<_> = points
        .iter()
        .map(|point| {
            let speedup = points.iter().find(|other| float(other)).and_then(|baseline| ratio(baseline, point));
            let plain = points.iter().find(|other| other.method == "rtn" && other.bits == point.bits);
            let plain = plain.filter(|_| !float(point) && point.method != "rtn");
            (speedup, plain.and_then(|plain| ratio(point, plain)).map(|ratio| ratio - 1.0))
        })
        .collect();
    for (point, (speedup, overhead)) in points.iter_mut().zip(related) {
        (point.speedup, point.transform_overhead) = (speedup, overhead);
    }
}

/// Bytes that the weights and caches of a layer and its copies take together in decoding, so that they come from memory as in a
/// whole model and not from a cache that they happen to fit in: twice the last cache, between these.
const BEYOND_CACHES: (u64, u64) = (256 << 20, 1 << 30);

/// Layers that a benchmark of one layer holds: copies beside it in decoding, up to a whole model; prefill uses weights so often
/// that they need none.
pub(super) fn copies(work: &Work<'_>, phase: Phase) -> usize {
    if phase == Phase::Prefill {
        return 1;
    }
    let size = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index3/size").unwrap_or_default();
    let kibibytes: u64 = size.trim().strip_suffix('K').and_then(|size| size.parse().ok()).unwrap_or(0);
    let beyond = (2 * 1024 * kibibytes).clamp(BEYOND_CACHES.0, BEYOND_CACHES.1);
    ((beyond as f64 / work.footprint(1, 0).max(1.0)).ceil() as usize).clamp(1, work.config.layers.max(1))
}

/// Runs what is timed once or twice before it counts: caches fill, clocks rise, what is loaded lazily is loaded.
pub(super) const WARM_UP: usize = 1;

/// A state filled with a context for decoding, or empty for prefill.
pub(super) fn prepare(model: &Model, options: &SpeedOptions, phase: Phase, batch: usize) -> Result<State, Error> {
    let desc = crate::model::StateDesc {
        sequences: batch,
        // Steps that warm up are taken back.
        capacity: options.capacity(phase).max(1),
        rows: options.rows(phase, batch),
    };
    let mut state = model.new_state_with(&desc)?;
    if phase == Phase::Decode && options.length > 0 {
        let config = model.config();
        let width = (config.heads + 2 * config.kv_heads) * config.head_dim;
        let qkv = random_rows(options.length.min(CHUNK), width, options.seed ^ 0x5eed);
        model.fill(&mut state, &qkv, options.length)?;
    }
    Ok(state)
}
