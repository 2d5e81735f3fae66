//! The auto-tuner: times candidate tiles on the device and keeps the fastest for each number of tokens.

use super::{Product, REST, Steps, Table, stream, tiled};
use crate::kernels::wgpu::gemm_float::{GemmFloatDesc, GemmFloatPlan, PartBinding};
use crate::kernels::wgpu::gemm_w4a4::{GemmW4A4Desc, GemmW4A4Plan, WeightsBinding};
use crate::kernels::wgpu::{Dtype, Error, Gpu, QuantizedTokens, Recorder, Tile, Timer};

/// A linear to tune for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TuneShape {
    /// Output channels `N`.
    pub n: usize,
    /// Input channels `K`.
    pub k: usize,
}

/// Numbers of tokens that are timed; a step of the table reaches up to each, the last one on without a bound.
const TOKENS: [usize; 7] = [1, 2, 4, 8, 32, 128, 512];

/// Times `table`'s kind of work: one timed run after one that warms up, the best of three.
const RUNS: u32 = 3;

/// What is tried: those that the device does not allow are left out.
fn candidates(tokens: usize) -> Vec<Tile> {
    let mut out = Vec::new();
    for t in [1, 2, 4, 8] {
        // A tile of twice the tokens computes rows that nobody asked for.
        if t as usize >= 2 * tokens {
            continue;
        }
        for panels in [1, 2, 4, 8] {
            for slices in [1, 4, 8] {
                if t * panels <= 32 {
                    out.push(stream(t, panels, slices));
                }
            }
        }
    }
    if tokens >= 8 {
        out.extend([tiled(16, 64, 1, 4), tiled(32, 32, 2, 2), tiled(32, 64, 4, 4), tiled(64, 64, 4, 4)]);
    }
    if tokens >= 64 {
        out.extend([tiled(64, 64, 8, 4), tiled(128, 64, 8, 4), tiled(128, 128, 8, 8)]);
    }
    out
}

/// Times every candidate tile for `shapes` on the device (seconds to minutes) and returns the table of the fastest: their
/// times summed over the shapes. Operands are zeros; time does not depend on values.
///
/// # Errors
/// [`Error::MissingFeature`] without time stamps, [`Error::Kernel`] when there is no shape, or what planning and running
/// give.
pub fn tune(gpu: &Gpu, shapes: &[TuneShape]) -> Result<Table, Error> {
    if shapes.is_empty() {
        return Err(crate::kernels::Error::Length { operand: "shapes", expected: 1, got: 0 }.into());
    }
    let mut timer = Timer::new(gpu, RUNS)?;
    let mut float = Vec::new();
    for tokens in TOKENS {
        let time = |tile| {
            shapes.iter().try_fold(0.0, |sum, shape| Ok(sum + time_float(gpu, &mut timer, shape, tokens, tile)?))
        };
        float.push((tokens, best(gpu, true, tokens, time)?));
    }
    let float = steps(float)?;
    let mut tables = Vec::new();
    for product in [Product::Dot, Product::Pairs] {
        let (mut w4a4, mut total) = (Vec::new(), 0.0);
        for tokens in TOKENS {
            let time = |tile| {
                let table = Table { product, w4a4: Steps(vec![(REST, tile)]), float: float.clone() };
                shapes.iter().try_fold(0.0, |sum, shape| Ok(sum + time_w4a4(gpu, &mut timer, shape, tokens, &table)?))
            };
            let (tile, seconds) = best(gpu, false, tokens, time)?;
            // Each number of tokens counts alike, however long it takes.
            total += f64::ln(seconds.max(1e-9));
            w4a4.push((tokens, (tile, seconds)));
        }
        tables.push((total, Table { product, w4a4: steps(w4a4)?, float: float.clone() }));
    }
    tables.sort_by(|a, b| a.0.total_cmp(&b.0));
    let missing = || Error::Device { what: "tuning".into(), message: "no product was timed".into() };
    tables.into_iter().next().map(|(_, table)| table).ok_or_else(missing)
}

/// The fastest tile that the device allows, and its seconds.
fn best(
    gpu: &Gpu,
    float: bool,
    tokens: usize,
    mut time: impl FnMut(Tile) -> Result<f64, Error>,
) -> Result<(Tile, f64), Error> {
    let mut best: Option<(Tile, f64)> = None;
    for tile in candidates(tokens).into_iter().filter(|tile| tile.fits(gpu, float)) {
        let seconds = time(tile)?;
        if best.is_none_or(|(_, least)| seconds < least) {
            best = Some((tile, seconds));
        }
    }
    best.ok_or_else(|| Error::Device { what: "tuning".into(), message: "the device allows none of the tiles".into() })
}

/// Joins neighbours with the same tile and lets the last go on without a bound.
fn steps(measured: Vec<(usize, (Tile, f64))>) -> Result<Steps, Error> {
    let mut out: Vec<(usize, Tile)> = Vec::new();
    for (tokens, (tile, _)) in measured {
        match out.last_mut() {
            Some(last) if last.1 == tile => last.0 = tokens,
            _ => out.push((tokens, tile)),
        }
    }
    if let Some(last) = out.last_mut() {
        last.0 = REST;
    }
    Ok(Steps::new(out)?)
}

/// The least seconds of some runs after one to warm up.
fn time(gpu: &Gpu, timer: &mut Timer, enqueue: impl Fn(&mut Recorder<'_>) -> Result<(), Error>) -> Result<f64, Error> {
    let mut encoder = gpu.encoder();
    enqueue(&mut Recorder::new(&mut encoder))?;
    gpu.submit(encoder)?;
    for _ in 0..RUNS {
        let mut encoder = gpu.encoder();
        enqueue(&mut Recorder::timed(&mut encoder, timer))?;
        gpu.submit(encoder)?;
    }
    let times = timer.finish(gpu)?;
    Ok(times.iter().fold(f64::INFINITY, |least, &(_, seconds)| least.min(seconds)))
}

fn time_w4a4(
    gpu: &Gpu,
    timer: &mut Timer,
    &TuneShape { n, k }: &TuneShape,
    tokens: usize,
    table: &Table,
) -> Result<f64, Error> {
    let desc = GemmW4A4Desc {
        m_max: tokens,
        n,
        k,
        weight_bits: 4,
        activation_bits: 4,
        out: Dtype::F32,
        bias: false,
        accumulate: false,
    };
    let plan = GemmW4A4Plan::plan_with(gpu, &desc, table)?;
    let x = QuantizedTokens::new(gpu, desc.tokens())?;
    let codes = gpu.buffer("tuning", desc.weight_bytes().max(16))?;
    let channels = gpu.buffer("tuning", desc.channel_bytes().max(16))?;
    let y = gpu.buffer("tuning", 4 * (tokens * n) as u64)?;
    let weights =
        WeightsBinding { codes: codes.as_entire_buffer_binding(), channels: channels.as_entire_buffer_binding() };
    let bound = plan.bind(gpu, &x.binding(), &weights, y.as_entire_buffer_binding())?;
    time(gpu, timer, |recorder| bound.enqueue(recorder, tokens))
}

fn time_float(
    gpu: &Gpu,
    timer: &mut Timer,
    &TuneShape { n, k }: &TuneShape,
    tokens: usize,
    tile: Tile,
) -> Result<f64, Error> {
    let weight = if gpu.has_f16() { Dtype::F16 } else { Dtype::F32 };
    let desc =
        GemmFloatDesc { m_max: tokens, n, k, x: Dtype::F32, weight, out: Dtype::F32, bias: false, accumulate: false };
    let steps = Steps(vec![(REST, tile)]);
    let table = Table { product: Product::Dot, w4a4: steps.clone(), float: steps };
    let plan = GemmFloatPlan::plan_with(gpu, &desc, &table)?;
    let x = gpu.buffer("tuning", (4 * tokens * k).max(16) as u64)?;
    let y = gpu.buffer("tuning", (4 * tokens * n) as u64)?;
    let buffers: Vec<_> = plan
        .parts()
        .iter()
        .map(|part| Ok((gpu.buffer("tuning", desc.part_bytes(part).max(16))?, gpu.buffer("tuning", 4)?)))
        .collect::<Result<_, Error>>()?;
    let weights: Vec<_> = buffers
        .iter()
        .map(|(weights, bias)| PartBinding {
            weights: weights.as_entire_buffer_binding(),
            bias: bias.as_entire_buffer_binding(),
        })
        .collect();
    let bound = plan.bind(gpu, x.as_entire_buffer_binding(), &weights, y.as_entire_buffer_binding())?;
    time(gpu, timer, |recorder| bound.enqueue(recorder, tokens))
}
