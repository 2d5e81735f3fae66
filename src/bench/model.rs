//! A whole model: prefill and decode from token ids to the likeliest next token, with its memory (tables 11, E11, E12).

use super::cost::Work;
use super::layer::Event;
use super::machine::{forget_peak, peak_resident_bytes, taken_bytes};
use super::method::{Bits, Method};
use super::record::{Phase, SpeedPoint, Times};
use super::speed::{
    Error, Side, SpeedOptions, WARM_UP, flowing_bytes, kernel_times, point, prepare, random_rows, relate,
    transform_share,
};
use super::{Machine, Watch};
use crate::checkpoint::{Checkpoint, Config, FLOAT_BITS};
use crate::model::cpu::CHUNK;
use crate::model::{Backend, Model, State};
use std::time::Instant;

/// Whose weights are run.
pub enum Weights<'a> {
    /// Random ones in the shape of a configuration, by each of the options' methods.
    Random(&'a Config),
    /// Those of checkpoints, each as it is; the options' methods do not matter, but for the type of floating-point ones.
    Checkpoints(&'a [Checkpoint]),
}

/// One model to measure.
struct Candidate<'a> {
    side: Side,
    source: Source<'a>,
}

enum Source<'a> {
    Random(&'a Config),
    Checkpoint(&'a Checkpoint),
}

/// Measures whole models, one after the other: each is loaded alone, so that its memory is its own. Times are those of the wall,
/// from the call with token ids to the likeliest next tokens in the caller's hands.
///
/// # Errors
/// [`Error::Refused`] before anything is measured, when a point makes no sense or cannot fit; later failures go to `tell`.
pub fn model<E: From<Error>>(
    weights: &Weights<'_>,
    backend: &Backend,
    options: &SpeedOptions,
    mut tell: impl FnMut(Event<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let candidates: Vec<Candidate<'_>> = match weights {
        Weights::Random(config) => {
            let tables = 4 * (config.vocabulary * config.hidden) as u64;
            options.check(config, backend, |_, _| config.layers, false, tables)?;
            options.sides().into_iter().map(|side| Candidate { side, source: Source::Random(config) }).collect()
        }
        Weights::Checkpoints(checkpoints) => {
            for checkpoint in *checkpoints {
                let config = checkpoint.config();
                options.check(config, backend, |_, _| config.layers, false, 0)?;
            }
            let candidate =
                |checkpoint| Candidate { side: side_of(checkpoint, options), source: Source::Checkpoint(checkpoint) };
            checkpoints.iter().map(candidate).collect()
        }
    };
    let mut measured: Vec<SpeedPoint> = Vec::new();
    for candidate in &candidates {
        let Side { method, bits } = candidate.side;
        let name = format!("{} {}", method.name(), method.bits_name(bits));
        tell(Event::Start(&format!("{name}: loading")))?;
        forget_peak();
        let before = taken_bytes(backend);
        let model = match load(candidate, backend, options) {
            Ok(model) => model,
            Err(error) => {
                tell(Event::Failed(&name, error))?;
                continue;
            }
        };
        for &phase in &options.phases {
            for &batch in &options.batches {
                let what = format!("{name}, {}", point(phase, batch));
                tell(Event::Start(&what))?;
                match measure(&model, candidate.side, backend, options, phase, batch, before) {
                    Ok(point) => {
                        measured.push(point);
                        // All of the same phase and batch, in which the last one is new.
                        let mut related: Vec<SpeedPoint> =
                            measured.iter().filter(|p| (p.phase, p.batch) == (phase, batch)).cloned().collect();
                        relate(&mut related, false);
                        tell(Event::Points(related.split_off(related.len() - 1)))?;
                    }
                    Err(error) => tell(Event::Failed(&what, error))?,
                }
            }
        }
    }
    Ok(())
}

/// The method that stands for a checkpoint's own settings.
fn side_of(checkpoint: &Checkpoint, options: &SpeedOptions) -> Side {
    let float = options.methods.iter().copied().find(|method| method.is_float());
    let bits = |q: &crate::checkpoint::Quantization| Bits { weight: q.weight_bits, activation: q.activation_bits };
    match checkpoint.quantization() {
        Some(q) if q.weight_bits != FLOAT_BITS => {
            let method = match q.method.as_str() {
                "duquant" => Method::DuQuant(q.permutations.min(2)),
                "quarot" => Method::QuaRot,
                _ => Method::Rtn,
            };
            Side { method, bits: bits(q) }
        }
        _ => Side {
            method: float.unwrap_or(Method::Float(crate::model::cpu::Float::F32)),
            bits: Bits { weight: FLOAT_BITS, activation: FLOAT_BITS },
        },
    }
}

fn load(candidate: &Candidate<'_>, backend: &Backend, options: &SpeedOptions) -> Result<Model, Error> {
    let Side { method, bits } = candidate.side;
    let backend = method.on(backend).map_err(|why| Error::Refused { what: method.name().into(), why })?;
    let random;
    let checkpoint = match candidate.source {
        Source::Checkpoint(checkpoint) => checkpoint,
        Source::Random(config) => {
            random = Checkpoint::random(config.clone(), method.quantization(bits)?, options.seed)?;
            &random
        }
    };
    Ok(Model::load_on(checkpoint, &backend)?)
}

fn measure(
    model: &Model,
    side: Side,
    backend: &Backend,
    options: &SpeedOptions,
    phase: Phase,
    batch: usize,
    taken_before: Option<u64>,
) -> Result<SpeedPoint, Error> {
    let Side { method, bits } = side;
    let config = model.config();
    let mut state = prepare(model, options, phase, batch)?;
    let (each, samples) = match phase {
        Phase::Prefill => (options.length, options.samples),
        Phase::Decode => (1, options.steps),
    };
    let prompt: Vec<u32> = (0..batch * each).map(|i| (i * 7919 % config.vocabulary.max(1)) as u32).collect();
    let start = state.len();
    let mut seconds = Vec::with_capacity(samples);
    let mut watch = Watch::start();
    let mut tokens = prompt.clone();
    for sample in 0..WARM_UP + samples {
        if sample == WARM_UP {
            watch = Watch::start();
        }
        if phase == Phase::Prefill || sample == WARM_UP {
            state.truncate(start);
        }
        let (run, next) = step(model, &mut state, &tokens)?;
        if phase == Phase::Decode {
            tokens = next;
        }
        if sample >= WARM_UP {
            seconds.push(run);
        }
    }
    let time = Times::of(&seconds, &watch);
    // Devices hold all they need throughout.
    let most = match backend {
        Backend::Cpu(_) => peak_resident_bytes(),
        #[cfg(any(feature = "wgpu", feature = "cuda"))]
        _ => taken_bytes(backend),
    };
    let device_bytes = taken_before.zip(most).map(|(before, most)| most.saturating_sub(before));
    let memory = model.memory() + state.memory();
    state.truncate(start);
    let x = random_rows(CHUNK.min(batch * each.max(1)), config.hidden, options.seed);
    let operations = model.time_operations(&mut state, &x, each)?;
    let context = if phase == Phase::Decode { options.length } else { 0 };
    let work = Work { config, method, bits, batch, tokens: each, context, float_bytes: flowing_bytes(backend) };
    let kernels = kernel_times(model, &operations, 1, config.layers, &work, true);
    let machine = Machine::of(backend);
    Ok(SpeedPoint {
        phase,
        batch,
        tokens: batch * each,
        length: options.length,
        method: method.name().into(),
        bits: method.bits_name(bits),
        backend: machine.backend,
        device: machine.device,
        tokens_per_second: if time.median_ms > 0.0 { (batch * each) as f64 * 1e3 / time.median_ms } else { 0.0 },
        time,
        speedup: None,
        transform_share: transform_share(&kernels),
        transform_overhead: None,
        peak_bytes: memory.total(),
        memory,
        device_bytes,
        kernels,
    })
}

/// One forward pass with the choice of each sequence's next token.
fn step(model: &Model, state: &mut State, tokens: &[u32]) -> Result<(f64, Vec<u32>), Error> {
    let clock = Instant::now();
    model.forward(state, tokens)?;
    let next = model.greedy_each(state)?;
    Ok((clock.elapsed().as_secs_f64(), next))
}
