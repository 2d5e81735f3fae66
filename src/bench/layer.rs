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
use crate::model::{Backend, Model, State};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// How often everything is loaded anew in the course of decoding, at most, where memory is the processor's. Where in it a method's
/// weights and activations come to lie makes it some percent faster or slower for as long as it stays loaded. In prefill each sample
/// has its own load; in decoding that would take too long.
const LOADS: usize = 3;
/// Seconds that a short prefill may be repeated for in each turn, and how often at most.
const TURN: f64 = 1.0;
const REPEATS: usize = 8;

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
    /// Which of the sides it is.
    turn: usize,
    side: Side,
    phase: Phase,
    /// Tokens of a prompt, or before the first step.
    length: usize,
    backend: Backend,
    model: Model,
    state: State,
    layers: usize,
}

/// What was seen of a side over all its loads.
#[derive(Default)]
struct Seen {
    /// Of a layer, each sample.
    seconds: Vec<f64>,
    /// Of all layers and loads, summed up.
    operations: Vec<f64>,
    /// Bytes that the system or the device gave for a layer.
    taken: Option<u64>,
}

/// Measures one layer of `config` with random weights. All methods of a point take turns, sample by sample, so that a machine
/// which slows down slows all of them, in an order that is drawn anew each time, because what ran before a method tells on
/// the clock that it finds; one that quantizes runs once untimed before each. On the CPU everything is loaded anew for each sample
/// of a prefill and a few times in decoding, because of the luck of where it lies; short prefills of methods that quantize count up
/// to eight times a sample. In decoding the layer has copies beside it (weights and cache), as many as it takes for the data to
/// come from memory; times and bytes are those of one.
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
    let loads = match (backend, phase) {
        (Backend::Cpu(_), Phase::Prefill) => samples,
        (Backend::Cpu(_), Phase::Decode) => LOADS.min(samples),
        #[cfg(any(feature = "wgpu", feature = "cuda"))]
        _ => 1,
    };
    let loads = loads.max(1);
    let mut seen: Vec<Seen> = sides.iter().map(|_| Seen::default()).collect();
    let mut order: Vec<usize> = (0..sides.len()).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let mut all: Vec<Loaded> = Vec::new();
    let watch = Watch::start();
    for load in 0..loads {
        // The memory of the last ones is to be had again.
        all.clear();
        order.shuffle(&mut rng);
        for &turn in &order {
            let before = taken_bytes(backend);
            let mut loaded = self::load(config, backend, options, turn, sides[turn], phase, batch)?;
            // Memory that nobody has used yet is not taken yet.
            loaded.run(&x, tokens)?;
            if load == 0 {
                let taken = before.zip(taken_bytes(backend)).map(|(before, after)| after.saturating_sub(before));
                seen[turn].taken = taken.map(|taken| loaded.of_one(taken));
            }
            all.push(loaded);
        }
        let rounds = samples * (load + 1) / loads - samples * load / loads;
        take_turns(&mut all, &mut seen, rounds, &x, tokens, &mut rng)?;
    }
    all.sort_by_key(|loaded| loaded.turn);
    let machine = Machine::of(backend);
    let mut points = Vec::with_capacity(all.len());
    for (loaded, seen) in all.into_iter().zip(seen) {
        let time = Times::of(&seen.seconds, &watch);
        let Side { method, bits } = loaded.side;
        let context = if phase == Phase::Decode { options.length } else { 0 };
        let float_bytes = flowing_bytes(&loaded.backend);
        let work = Work { config, method, bits, batch, tokens, context, float_bytes };
        let kernels = kernel_times(&loaded.model, &seen.operations, loads, loaded.layers, &work, false);
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
            device_bytes: seen.taken,
            kernels,
        });
    }
    relate(&mut points, true);
    Ok(points)
}

/// Takes samples of all that are loaded, `rounds` of them, and then times their operations.
fn take_turns(
    all: &mut [Loaded],
    seen: &mut [Seen],
    rounds: usize,
    x: &[f32],
    tokens: usize,
    rng: &mut ChaCha8Rng,
) -> Result<(), Error> {
    let mut slowest: f64 = 0.0;
    for loaded in all.iter_mut() {
        for _ in 0..WARM_UP {
            let seconds = loaded.sample(x, tokens)?;
            if !loaded.side.method.is_float() {
                slowest = slowest.max(seconds);
            }
        }
        loaded.reset();
    }
    let repeats = if slowest > 0.0 { ((TURN / slowest) as usize).clamp(1, REPEATS) } else { 1 };
    let mut turns = Vec::new();
    for (i, loaded) in all.iter().enumerate() {
        let short = loaded.phase == Phase::Prefill && !loaded.side.method.is_float();
        turns.resize(turns.len() + if short { repeats } else { 1 }, i);
    }
    for _ in 0..rounds {
        turns.shuffle(rng);
        for &i in &turns {
            seen[all[i].turn].seconds.push(all[i].sample(x, tokens)?);
        }
    }
    for loaded in all {
        loaded.reset();
        let run = loaded.model.time_operations(&mut loaded.state, x, tokens)?;
        let operations = &mut seen[loaded.turn].operations;
        operations.resize(run.len(), 0.0);
        operations.iter_mut().zip(run).for_each(|(sum, seconds)| *sum += seconds);
    }
    Ok(())
}

fn load(
    config: &Config,
    backend: &Backend,
    options: &SpeedOptions,
    turn: usize,
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
    Ok(Loaded { turn, side, phase, length: options.length, backend, model, state, layers })
}

impl Loaded {
    /// As before the first sample.
    fn reset(&mut self) {
        self.state.truncate(if self.phase == Phase::Decode { self.length } else { 0 });
    }

    fn run(&mut self, x: &[f32], tokens: usize) -> Result<f64, Error> {
        Ok(self.model.run_layers(&mut self.state, x, tokens)? / self.layers as f64)
    }

    /// Seconds of a layer.
    fn sample(&mut self, x: &[f32], tokens: usize) -> Result<f64, Error> {
        if self.phase == Phase::Prefill {
            self.state.clear();
        }
        // Behind a slow method caches and clocks are its own, and a quick one would pay for that.
        if !self.side.method.is_float() {
            let before = self.state.len();
            self.run(x, tokens)?;
            self.state.truncate(before);
        }
        self.run(x, tokens)
    }

    /// Of the bytes that loading and a first run took, as [`taken_bytes`] counts them, those of one layer: less what its copies
    /// were counted to hold.
    fn of_one(&self, taken: u64) -> u64 {
        let Memory { weights, kv_cache, .. } = self.memory();
        taken.saturating_sub((weights + kv_cache) * (self.layers as u64).saturating_sub(1))
    }

    /// Of one layer, without the table of one token that stands in for an embedding.
    fn memory(&self) -> Memory {
        let state = self.state.memory();
        let layers = self.layers.max(1) as u64;
        Memory { weights: self.model.layer_bytes() as u64 / layers, kv_cache: state.kv_cache / layers, ..state }
    }
}
