//! One decoder layer: prefill and decode, method beside method (tables 9 and 10, figure 5).

use super::cost::Work;
use super::machine::taken_bytes;
use super::record::{Phase, SpeedPoint, Times};
use super::speed::{
    Error, Side, SpeedOptions, WARM_UP, copies, flowing_bytes, kernel_times, point, prepare, random_rows, relate,
    transform_share,
};
use super::{Machine, Memory, Watch};
use crate::checkpoint::{Checkpoint, Config};
use crate::model::cpu::CHUNK;
use crate::model::{Backend, Model, Operation, State};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Runs of a layer whose operations are timed apart from the samples.
const PROFILES: usize = 3;

/// What a benchmark tells while it runs.
pub enum Event<'a, T = SpeedPoint> {
    /// A point is about to be measured.
    Start(&'a str),
    /// Points that were measured together.
    Points(Vec<T>),
    /// A point could not be measured.
    Failed(&'a str, Error),
}

/// One side with its memory.
struct Loaded {
    side: Side,
    backend: Backend,
    model: Model,
    state: State,
    layers: usize,
    /// Bytes that loading and a first run took, as [`taken_bytes`] counts them.
    taken: Option<u64>,
}

/// Measures one layer of `config` with random weights. All methods of a point take turns, sample by sample, so that a machine
/// which slows down slows all of them, in an order that is drawn anew each time, because what ran before a method tells on
/// the clock that it finds; one that quantizes runs once untimed before each. In decoding the layer has copies
/// beside it (weights and cache), as many as it takes for the data to come from memory; times and bytes are those of one.
///
/// # Errors
/// [`Error::Refused`] before anything is measured, when a point makes no sense or cannot fit; later failures go to `tell`.
pub fn layer<E: From<Error>>(
    config: &Config,
    backend: &Backend,
    options: &SpeedOptions,
    mut tell: impl FnMut(Event<'_>) -> Result<(), E>,
) -> Result<(), E> {
    options.check(config, backend, copies, true, 0)?;
    for &phase in &options.phases {
        for &batch in &options.batches {
            let what = point(phase, batch);
            tell(Event::Start(&what))?;
            match measure(config, backend, options, phase, batch) {
                Ok(points) => tell(Event::Points(points))?,
                Err(error) => tell(Event::Failed(&what, error))?,
            }
        }
    }
    Ok(())
}

fn measure(
    config: &Config,
    backend: &Backend,
    options: &SpeedOptions,
    phase: Phase,
    batch: usize,
) -> Result<Vec<SpeedPoint>, Error> {
    let sides = options.sides();
    let x = random_rows(CHUNK.min(batch * options.length.max(1)), config.hidden, options.seed);
    let (tokens, samples) = match phase {
        Phase::Prefill => (options.length, options.samples),
        Phase::Decode => (1, options.steps),
    };
    let mut all = Vec::with_capacity(sides.len());
    for side in sides {
        let before = taken_bytes(backend);
        let mut loaded = load(config, backend, options, side, phase, batch)?;
        // Memory that nobody has used yet is not taken yet.
        loaded.model.run_layers(&mut loaded.state, &x, tokens)?;
        loaded.reset(options, phase);
        loaded.taken = before.zip(taken_bytes(backend)).map(|(before, after)| after.saturating_sub(before));
        all.push(loaded);
    }
    let mut seconds = vec![Vec::with_capacity(samples); all.len()];
    let mut order: Vec<usize> = (0..all.len()).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let mut watch = Watch::start();
    for sample in 0..WARM_UP + samples {
        if sample == WARM_UP {
            watch = Watch::start();
            all.iter_mut().for_each(|loaded| loaded.reset(options, phase));
        }
        order.shuffle(&mut rng);
        for &turn in &order {
            let Loaded { side, model, state, layers, .. } = &mut all[turn];
            if phase == Phase::Prefill {
                state.clear();
            }
            // Behind a slow method caches and clocks are its own, and a quick one would pay for that.
            if !side.method.is_float() {
                let before = state.len();
                model.run_layers(state, &x, tokens)?;
                state.truncate(before);
            }
            let run = model.run_layers(state, &x, tokens)?;
            if sample >= WARM_UP {
                seconds[turn].push(run / *layers as f64);
            }
        }
    }
    let times: Vec<Times> = seconds.iter().map(|seconds| Times::of(seconds, &watch)).collect();
    let machine = Machine::of(backend);
    let mut points = Vec::with_capacity(all.len());
    for (mut loaded, time) in all.into_iter().zip(times) {
        let mut operations = vec![0.0; Operation::ALL.len()];
        for _ in 0..PROFILES {
            loaded.reset(options, phase);
            let run = loaded.model.time_operations(&mut loaded.state, &x, tokens)?;
            operations.iter_mut().zip(run).for_each(|(sum, seconds)| *sum += seconds);
        }
        let Side { method, bits } = loaded.side;
        let context = if phase == Phase::Decode { options.length } else { 0 };
        let float_bytes = flowing_bytes(&loaded.backend);
        let work = Work { config, method, bits, batch, tokens, context, float_bytes };
        let kernels = kernel_times(&loaded.model, &operations, PROFILES, loaded.layers, &work, false);
        let memory = loaded.memory();
        let rows = batch * tokens;
        points.push(SpeedPoint {
            phase,
            batch,
            tokens: rows,
            length: options.length,
            method: method.name().into(),
            bits: method.bits_name(bits),
            backend: machine.backend.clone(),
            device: machine.device.clone(),
            tokens_per_second: if time.median_ms > 0.0 { rows as f64 * 1e3 / time.median_ms } else { 0.0 },
            time,
            speedup: None,
            transform_share: transform_share(&kernels),
            transform_overhead: None,
            peak_bytes: memory.total(),
            memory,
            device_bytes: loaded.taken_by_one(),
            kernels,
        });
    }
    relate(&mut points, true);
    Ok(points)
}

fn load(
    config: &Config,
    backend: &Backend,
    options: &SpeedOptions,
    side: Side,
    phase: Phase,
    batch: usize,
) -> Result<Loaded, Error> {
    let Side { method, bits } = side;
    let backend = method.on(backend).map_err(|why| Error::Refused { what: method.name().into(), why })?;
    let (tokens, context) = (options.capacity(phase), 0);
    let float_bytes = flowing_bytes(&backend);
    let layers = copies(&Work { config, method, bits, batch, tokens, context, float_bytes }, phase);
    // Of embedding and output head a layer needs nothing.
    let config = Config { layers, vocabulary: 1, tied_embeddings: true, ..config.clone() };
    let checkpoint = Checkpoint::random(config, method.quantization(bits)?, options.seed)?;
    let model = Model::load_on(&checkpoint, &backend)?;
    let state = prepare(&model, options, phase, batch)?;
    Ok(Loaded { side, backend, model, state, layers, taken: None })
}

impl Loaded {
    /// As before the first sample.
    fn reset(&mut self, options: &SpeedOptions, phase: Phase) {
        self.state.truncate(if phase == Phase::Decode { options.length } else { 0 });
    }

    /// What was taken, less what the copies of the layer were counted to hold.
    fn taken_by_one(&self) -> Option<u64> {
        let Memory { weights, kv_cache, .. } = self.memory();
        self.taken.map(|taken| taken.saturating_sub((weights + kv_cache) * (self.layers as u64).saturating_sub(1)))
    }

    /// Of one layer, without the table of one token that stands in for an embedding.
    fn memory(&self) -> Memory {
        let state = self.state.memory();
        let layers = self.layers.max(1) as u64;
        Memory { weights: self.model.layer_bytes() as u64 / layers, kv_cache: state.kv_cache / layers, ..state }
    }
}
