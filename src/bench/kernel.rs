//! Every kernel of a layer at a list of shapes, beside what the machine can do at most.

use super::cost::Work;
use super::method::{Bits, Method};
use super::record::{Ceilings, KernelPoint, KernelTime, Phase, Times};
use super::speed::{Error, SpeedOptions, WARM_UP, flowing_bytes, kernel_times, prepare, random_rows};
use super::{Event, Machine, Watch};
use crate::checkpoint::{Checkpoint, Config, Group};
use crate::kernels::cpu::ceilings;
#[cfg(feature = "cuda")]
use crate::kernels::cuda;
#[cfg(feature = "wgpu")]
use crate::kernels::wgpu;
use crate::model::cpu::CHUNK;
use crate::model::{Backend, Model, Operation, State};
use std::collections::BTreeMap;

/// Bytes that are read to find out how fast memory is.
const READ: usize = 1 << 30;
/// Rows of a large product on CUDA.
#[cfg(feature = "cuda")]
const SIDE: usize = 8192;

/// What the processor or the device can do at most.
///
/// # Errors
/// [`Error::Kernel`] for an instruction set that is not there, [`Error::Ceilings`] with what a device says.
pub fn ceilings_of(backend: &Backend) -> Result<Ceilings, Error> {
    match backend {
        Backend::Cpu(settings) => Ok(Ceilings {
            bytes_per_second: ceilings::bytes_per_second(settings.isa, READ)?,
            f32_per_second: ceilings::f32_per_second(settings.isa)?,
            bf16_per_second: ceilings::bf16_per_second(settings.isa)?,
            integer_per_second: ceilings::integer_per_second(settings.isa)?,
        }),
        #[cfg(feature = "wgpu")]
        Backend::Wgpu { gpu, .. } => {
            let measure = || -> Result<Ceilings, wgpu::Error> {
                Ok(Ceilings {
                    bytes_per_second: wgpu::ceilings::bytes_per_second(gpu, (READ / 2) as u64)?,
                    f32_per_second: wgpu::ceilings::f32_per_second(gpu)?,
                    bf16_per_second: None,
                    integer_per_second: wgpu::ceilings::integer_per_second(gpu)?,
                })
            };
            measure().map_err(|fault| Error::Ceilings { fault: fault.to_string() })
        }
        #[cfg(feature = "cuda")]
        Backend::Cuda { device, .. } => {
            let measure = || -> Result<Ceilings, cuda::Error> {
                Ok(Ceilings {
                    bytes_per_second: cuda::ceilings::bytes_per_second(device, READ as u64)?,
                    f32_per_second: cuda::ceilings::half_per_second(device, SIDE)?,
                    bf16_per_second: None,
                    integer_per_second: cuda::ceilings::integer_per_second(device)?,
                })
            };
            measure().map_err(|fault| Error::Ceilings { fault: fault.to_string() })
        }
    }
}

/// Times each operation of a layer of `config` for every method and batch of `options`: prompts of `length` tokens, or steps
/// behind such a context. Operands are those that the operations before it left.
///
/// # Errors
/// [`Error::Refused`] before anything is measured, when a shape makes no sense or cannot fit; later failures go to `tell`.
pub fn kernel<E: From<Error>>(
    config: &Config,
    backend: &Backend,
    options: &SpeedOptions,
    ceilings: Option<&Ceilings>,
    mut tell: impl FnMut(Event<'_, KernelPoint>) -> Result<(), E>,
) -> Result<(), E> {
    options.check(config, backend, |_, _| 1, false, 0)?;
    for side in options.sides() {
        for &phase in &options.phases {
            for &batch in &options.batches {
                let (method, bits) = (side.method, side.bits);
                let phase_name = super::speed::point(phase, batch);
                let what = format!("{} {}, {phase_name}", method.name(), method.bits_name(bits));
                tell(Event::Start(&what))?;
                let measured = Rounds::new(config, backend, options, method, bits, phase, batch)
                    .and_then(|mut rounds| measure(&mut rounds, options, ceilings));
                match measured {
                    Ok(points) => tell(Event::Points(points))?,
                    Err(error) => tell(Event::Failed(&what, error))?,
                }
            }
        }
    }
    Ok(())
}

/// A layer whose operations are timed one by one, round after round.
pub struct Rounds<'a> {
    work: Work<'a>,
    backend: Backend,
    model: Model,
    state: State,
    x: Vec<f32>,
}

impl<'a> Rounds<'a> {
    /// Loads a layer of `config` with random weights; of `options` the lengths and the seed matter.
    ///
    /// # Errors
    /// [`Error::Refused`] when the backend has no such floating-point type, and what loading says.
    pub fn new(
        config: &'a Config,
        backend: &Backend,
        options: &SpeedOptions,
        method: Method,
        bits: Bits,
        phase: Phase,
        batch: usize,
    ) -> Result<Self, Error> {
        let backend = method.on(backend).map_err(|why| Error::Refused { what: method.name().into(), why })?;
        let one = Config { layers: 1, vocabulary: 1, tied_embeddings: true, ..config.clone() };
        let checkpoint = Checkpoint::random(one, method.quantization(bits)?, options.seed)?;
        let model = Model::load_on(&checkpoint, &backend)?;
        let (tokens, context) = match phase {
            Phase::Prefill => (options.length, 0),
            Phase::Decode => (1, options.length),
        };
        let work = Work { config, method, bits, batch, tokens, context, float_bytes: flowing_bytes(&backend) };
        let state = prepare(&model, options, phase, batch)?;
        let x = random_rows(CHUNK.min(batch * tokens), config.hidden, options.seed);
        Ok(Self { work, backend, model, state, x })
    }

    /// Device time in seconds of each operation of one run, in the order of [`Operation::ALL`].
    ///
    /// # Errors
    /// What the kernels say.
    pub fn run(&mut self) -> Result<Vec<f64>, Error> {
        self.state.truncate(self.work.context);
        Ok(self.model.time_operations(&mut self.state, &self.x, self.work.tokens)?)
    }
}

fn measure(
    rounds: &mut Rounds<'_>,
    options: &SpeedOptions,
    ceilings: Option<&Ceilings>,
) -> Result<Vec<KernelPoint>, Error> {
    let mut seconds: Vec<Vec<f64>> = vec![Vec::with_capacity(options.samples); Operation::ALL.len()];
    let mut watch = Watch::start();
    for sample in 0..WARM_UP + options.samples {
        if sample == WARM_UP {
            watch = Watch::start();
        }
        let run = rounds.run()?;
        if sample >= WARM_UP {
            seconds.iter_mut().zip(run).for_each(|(all, one)| all.push(one));
        }
    }
    let Rounds { work, backend, model, .. } = &*rounds;
    let sums: Vec<f64> = seconds.iter().map(|seconds| seconds.iter().sum()).collect();
    let kernels = kernel_times(model, &sums, options.samples, 1, work, false);
    let machine = Machine::of(backend);
    let points = Operation::ALL.into_iter().zip(kernels).zip(seconds).map(|((operation, kernel), seconds)| {
        let KernelTime { name, variant, bytes, ops, .. } = kernel;
        let time = Times::of(&seconds, &watch);
        let rate = |amount: f64| if time.median_ms > 0.0 { amount * 1e3 / time.median_ms } else { 0.0 };
        let cpu = matches!(backend, Backend::Cpu(_));
        let arithmetic = match operation {
            Operation::Gemm(_) if !work.method.is_float() => "integer",
            Operation::Attention if cpu && !variant.contains("f32") => "integer",
            Operation::Prologue(_) if variant.contains("amx-bf16") => "bf16",
            _ => "f32",
        };
        let shares = ceilings.map(|ceilings| {
            let compute = match arithmetic {
                "integer" => ceilings.integer_per_second,
                "bf16" => ceilings.bf16_per_second.unwrap_or(ceilings.f32_per_second),
                _ => ceilings.f32_per_second,
            };
            [rate(bytes) / ceilings.bytes_per_second.max(1.0), rate(ops) / compute.max(1.0)]
        });
        KernelPoint {
            name,
            variant,
            shape: shape(operation, work),
            bits: work.method.bits_name(work.bits),
            backend: machine.backend.clone(),
            device: machine.device.clone(),
            bytes,
            ops,
            arithmetic: arithmetic.into(),
            bytes_per_second: rate(bytes),
            ops_per_second: rate(ops),
            of_ceiling: shares.map(|[memory, compute]| memory.max(compute)),
            bound: shares.map(|[memory, compute]| if memory > compute { "memory" } else { "compute" }.to_owned()),
            time,
        }
    });
    Ok(points.collect())
}

/// The numbers that decide the work of an operation.
fn shape(operation: Operation, work: &Work<'_>) -> BTreeMap<String, usize> {
    let Work { config, batch, tokens, context, .. } = *work;
    let width = |group: Group| -> (usize, usize) {
        let n = group.projections().iter().map(|&projection| config.linear_shape(projection).0).sum();
        (n, config.linear_shape(group.projections()[0]).1)
    };
    let named = |pairs: &[(&str, usize)]| pairs.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
    match operation {
        Operation::Prologue(group) => named(&[("tokens", batch * tokens), ("k", width(group).1)]),
        Operation::Gemm(group) => named(&[("tokens", batch * tokens), ("n", width(group).0), ("k", width(group).1)]),
        Operation::RopeHadamardQuantize => named(&[
            ("tokens", batch * tokens),
            ("heads", config.heads),
            ("kv_heads", config.kv_heads),
            ("head_dim", config.head_dim),
        ]),
        Operation::Attention => named(&[
            ("sequences", batch),
            ("tokens", tokens),
            ("context", context),
            ("heads", config.heads),
            ("kv_heads", config.kv_heads),
            ("head_dim", config.head_dim),
        ]),
    }
}
