//! What this device can do at most: matrix instructions, products of the vendor's library and copies that do nothing else.

use super::{Address, Arch, Buffer, Device, Dtype, Error, Kernel, Launch, MatrixProduct, Stream};
use crate::kernels::rate::most_per_second;
use bytemuck::{Pod, Zeroable};
use std::sync::Arc;

/// Threads of a block, as the kernels say; in warps.
const THREADS: u32 = 256;
const WARPS: f64 = 8.0;
/// Blocks for each multiprocessor.
const BLOCKS: u32 = 2;
/// Bytes of shared memory of `ceiling_integer_sm90`: a tile of tokens and a barrier.
const TILE: u32 = 128 * 256;
/// Seconds of a run that is long beside its launch.
const LONG: f64 = 0.01;
/// Most work in a run, as a multiple of the least.
const MOST: u32 = 1 << 16;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Args {
    out: Address,
    rounds: u32,
    operand: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ArgsSm90 {
    out: Address,
    tile: Address,
    rounds: u32,
    operand: u32,
}

/// Operations a second on codes, 2 a multiply-add, by the matrix instruction that `gemm_w4a4` is made of on this chip: 4 bits a side
/// on sm_80 to sm_89, 8 bits on sm_90a.
///
/// # Errors
/// As [`Device::load`], and what allocating and running give.
pub fn integer_per_second(device: &Arc<dyn Device>) -> Result<f64, Error> {
    const OPERAND: u32 = 0x0321_0123;
    let chip = device.chip();
    let out = Buffer::zeroed(device, "ceiling", u64::from(4 * THREADS))?;
    let blocks = chip.multiprocessors * if chip.arch == Arch::Sm90a { 1 } else { BLOCKS };
    if chip.arch == Arch::Sm90a {
        let function = device.load(&kernel_sm90())?;
        let tile = random(device, "tile", u64::from(TILE))?;
        // Two warpgroups, four steps a round, each 64 by 256 by 32.
        let operations = 2.0 * 4.0 * 2.0 * (64 * 256 * 32) as f64;
        return per_second(device, operations * f64::from(blocks), |rounds| {
            let arguments = ArgsSm90 { out: out.address(), tile: tile.address(), rounds, operand: OPERAND };
            let launch = Launch::new(&function, [blocks, 1, 1], THREADS, TILE + 8, &arguments);
            // SAFETY: both operands are as large as the kernel says, and live until the run was waited for.
            unsafe { device.launch(Stream::DEFAULT, &launch) }
        });
    }
    let function = device.load(&kernel())?;
    // Eight chains a warp, each 16 by 8 by 64.
    let operations = WARPS * 8.0 * 2.0 * (16 * 8 * 64) as f64;
    per_second(device, operations * f64::from(blocks), |rounds| {
        let arguments = Args { out: out.address(), rounds, operand: OPERAND };
        // SAFETY: as above.
        unsafe { device.launch(Stream::DEFAULT, &Launch::new(&function, [blocks, 1, 1], THREADS, 0, &arguments)) }
    })
}

/// Operations a second in half precision with sums in single precision, 2 a multiply-add: the vendor's product of two square matrices
/// of `side` rows, a multiple of 8.
///
/// # Errors
/// As [`Device::matrix_product`], and what allocating gives.
pub fn half_per_second(device: &Arc<dyn Device>, side: usize) -> Result<f64, Error> {
    let bytes = 2 * (side * side) as u64;
    let (x, weight, y) = (random(device, "x", bytes)?, random(device, "weight", bytes)?, random(device, "y", bytes)?);
    let product = MatrixProduct {
        tokens: side,
        n: side,
        k: side,
        input: Dtype::F16,
        output: Dtype::F16,
        x: x.address(),
        weight: weight.address(),
        bias: None,
        y: y.address(),
        accumulate: false,
    };
    per_second(device, 2.0 * (side as f64).powi(3), |count| {
        // SAFETY: the operands have the shape, and live until the run was waited for.
        (0..count).try_for_each(|_| unsafe { device.matrix_product(Stream::DEFAULT, &product) })
    })
}

/// Bytes of memory a second: a copy of `bytes` bytes within the device, which reads and writes them. They should exceed every cache
/// by far.
///
/// # Errors
/// As [`Device::copy`], and what allocating gives.
pub fn bytes_per_second(device: &Arc<dyn Device>, bytes: u64) -> Result<f64, Error> {
    let (from, to) = (random(device, "from", bytes)?, random(device, "to", bytes)?);
    per_second(device, 2.0 * bytes as f64, |count| {
        (0..count).try_for_each(|_| device.copy(Stream::DEFAULT, from.address(), to.address(), bytes))
    })
}

/// Random bytes that are also half-precision numbers below 2 in magnitude: with zeros a device draws less power and runs faster than
/// it would.
fn random(device: &Arc<dyn Device>, what: &str, bytes: u64) -> Result<Buffer, Error> {
    const PIECE: u64 = 1 << 20;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state & 0xbfff_bfff_bfff_bfff
    };
    let piece: Vec<u64> = (0..bytes.min(PIECE).div_ceil(8)).map(|_| draw()).collect();
    let buffer = Buffer::new(device, what, bytes)?;
    let mut done = bytes.min(PIECE);
    device.write(buffer.address(), &bytemuck::cast_slice(&piece)[..done as usize])?;
    while done < bytes {
        let count = done.min(bytes - done);
        device.copy(Stream::DEFAULT, buffer.address(), buffer.address() + done, count)?;
        done += count;
    }
    device.synchronize(Stream::DEFAULT)?;
    Ok(buffer)
}

/// The best rate of runs that each do `amount` as often as `enqueue` is told, with as many as make a run long.
fn per_second(device: &Arc<dyn Device>, amount: f64, enqueue: impl Fn(u32) -> Result<(), Error>) -> Result<f64, Error> {
    most_per_second(amount, LONG, MOST, |count| {
        let start = device.mark(Stream::DEFAULT)?;
        enqueue(count)?;
        device.mark(Stream::DEFAULT)?.seconds_since(start.as_ref())
    })
}

fn kernel() -> Kernel {
    const ARCHS: &[Arch] = &[Arch::Sm80, Arch::Sm86, Arch::Sm89];
    Kernel { file: "ceiling.cu", entry: "ceiling_integer", defines: Vec::new(), archs: ARCHS, registers: 128 }
}

fn kernel_sm90() -> Kernel {
    let archs = &[Arch::Sm90a];
    Kernel { file: "ceiling_sm90.cu", entry: "ceiling_integer_sm90", defines: Vec::new(), archs, registers: 255 }
}

/// Every kernel of this file.
pub(super) fn kernels() -> Vec<Kernel> {
    vec![kernel(), kernel_sm90()]
}
