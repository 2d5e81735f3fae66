//! What this device can do at most: shaders and copies that do nothing else, by the clock of runs long enough for it.

use super::pipelines::{Access, Bound, Operand, Shader, Variant};
use super::{Error, Gpu, Product, Recorder};
use crate::kernels::rate::most_per_second;
use std::time::Instant;

static F32: Shader = Shader {
    name: "ceiling_compute",
    sources: &[
        include_str!("../../../shaders/ceiling_f32.wgsl"),
        include_str!("../../../shaders/ceiling_compute.wgsl"),
    ],
    bindings: &[Access::Write],
    immediates: 8,
};
static DOT: Shader = Shader {
    name: "ceiling_compute",
    sources: &[
        include_str!("../../../shaders/ceiling_dot.wgsl"),
        include_str!("../../../shaders/ceiling_compute.wgsl"),
    ],
    bindings: &[Access::Write],
    immediates: 8,
};
static PAIRS: Shader = Shader {
    name: "ceiling_compute",
    sources: &[
        include_str!("../../../shaders/ceiling_pairs.wgsl"),
        include_str!("../../../shaders/ceiling_compute.wgsl"),
    ],
    bindings: &[Access::Write],
    immediates: 8,
};
static READ: Shader = Shader {
    name: "ceiling_read",
    sources: &[include_str!("../../../shaders/ceiling_read.wgsl")],
    bindings: &[Access::Read, Access::Write],
    immediates: 4,
};

/// Invocations of a workgroup, as the shaders say.
const WORKGROUP: u64 = 64;
/// Links of all chains of an invocation in a round, in numbers.
const LINKS: u64 = 48;
/// Rounds of an invocation; lavapipe silently ends a shader after 65,535 iterations of its loops.
const ROUNDS: u32 = 1024;
/// A run that takes so many seconds is long beside its submission.
const LONG: f64 = 0.02;
/// Most work in a run, as a multiple of the least.
const MOST: u32 = 1 << 10;

/// Single-precision operations a second, 2 a multiply-add.
///
/// # Errors
/// What compiling and running give.
pub fn f32_per_second(gpu: &Gpu) -> Result<f64, Error> {
    compute(gpu, &F32, 0.999_f32.to_bits(), 2)
}

/// Operations a second on codes, 2 a multiply-add, by the instruction that `gemm_w4a4` multiplies with on this device.
///
/// # Errors
/// What compiling and running give.
pub fn integer_per_second(gpu: &Gpu) -> Result<f64, Error> {
    match gpu.tiles().product {
        Product::Dot => compute(gpu, &DOT, 0x0102_0304, 8),
        Product::Pairs => compute(gpu, &PAIRS, 0x0001_0003, 4),
    }
}

/// Bytes of memory a second: the faster of reading `bytes` bytes (less where the device binds no such buffer) and copying them,
/// which reads and writes. They should exceed every cache by far.
///
/// # Errors
/// [`Error::OutOfMemory`], and what compiling and running give.
pub fn bytes_per_second(gpu: &Gpu, bytes: u64) -> Result<f64, Error> {
    let limits = gpu.limits();
    let bytes = bytes.min(limits.max_storage_buffer_binding_size).min(limits.max_buffer_size).max(16) / 16 * 16;
    let (from, to) = (gpu.buffer("ceiling", bytes)?, gpu.buffer("ceiling", bytes)?);
    let kernel = gpu.kernel(&READ, &Variant::default())?;
    let values = Operand { name: "values", binding: from.as_entire_buffer_binding(), bytes };
    let out = Operand { name: "out", binding: to.as_entire_buffer_binding(), bytes: 4 * WORKGROUP };
    let bound = gpu.bind(&kernel, &[values, out])?;
    let vectors = (bytes / 16) as u32;
    let groups =
        vectors.div_ceil(16 * WORKGROUP as u32).clamp(1, limits.max_compute_workgroups_per_dimension.min(8192));
    let read = per_second(gpu, bytes as f64, |recorder, count| {
        (0..count).for_each(|_| recorder.dispatch(&bound, bytemuck::bytes_of(&vectors), [groups, 1, 1]));
    })?;
    let copied = per_second(gpu, 2.0 * bytes as f64, |recorder, count| {
        (0..count).for_each(|_| recorder.copy(&from, 0, &to, 0, bytes));
    })?;
    Ok(read.max(copied))
}

fn compute(gpu: &Gpu, shader: &'static Shader, factor: u32, operations: u64) -> Result<f64, Error> {
    let kernel = gpu.kernel(shader, &Variant::default())?;
    let out = gpu.buffer("ceiling", 4 * WORKGROUP)?;
    let operand = Operand { name: "out", binding: out.as_entire_buffer_binding(), bytes: 4 * WORKGROUP };
    let bound: Bound = gpu.bind(&kernel, &[operand])?;
    let most = gpu.limits().max_compute_workgroups_per_dimension;
    // Workgroups before dispatches: only those of one dispatch are sure to run side by side.
    let one = (operations * LINKS * u64::from(ROUNDS) * WORKGROUP) as f64;
    let groups = most.min(64);
    per_second(gpu, one * f64::from(groups), |recorder, count| {
        let across = groups.saturating_mul(count).min(most);
        let repeats = groups.saturating_mul(count) / across;
        (0..repeats).for_each(|_| recorder.dispatch(&bound, bytemuck::cast_slice(&[ROUNDS, factor]), [across, 1, 1]));
    })
}

/// The best rate of runs that each do `amount` for each of `count` that `record` records, with as many as make a run long.
fn per_second(gpu: &Gpu, amount: f64, record: impl Fn(&mut Recorder<'_>, u32)) -> Result<f64, Error> {
    most_per_second(amount, LONG, MOST, |count| {
        let mut encoder = gpu.encoder();
        record(&mut Recorder::new(&mut encoder), count);
        gpu.wait()?;
        let clock = Instant::now();
        gpu.submit(encoder)?;
        gpu.wait()?;
        Ok(clock.elapsed().as_secs_f64())
    })
}

pub(super) fn variants() -> Vec<(&'static Shader, Variant)> {
    [&F32, &DOT, &PAIRS, &READ].map(|shader| (shader, Variant::default())).into()
}
