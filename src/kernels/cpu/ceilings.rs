//! What this machine can do at most: plain loops that do nothing else, on all threads of the pool.

use super::Isa;
use super::lanes::{Kernel, LANES, Lanes, Level};
use crate::kernels::Error;
use rayon::prelude::*;
use std::hint::black_box;
use std::time::Instant;

/// Independent chains: more than latency times throughput of any multiply-add here.
const CHAINS: usize = 16;
/// Runs of each loop; the fastest counts.
const RUNS: usize = 5;
/// Steps of a loop of one thread, some milliseconds.
const STEPS: usize = 1 << 20;

/// Single-precision operations a second, 2 a multiply-add.
///
/// # Errors
/// [`Error::Unsupported`] for an instruction set that this machine lacks.
pub fn f32_per_second(isa: Isa) -> Result<f64, Error> {
    let level = Level::new(isa)?;
    Ok(fastest((2 * LANES * CHAINS * STEPS) as f64, || {
        black_box(level.run(Multiply));
    }))
}

/// Operations a second on 8-bit integers with sums of 32 bits, 2 a multiply-add, by the instructions that `gemm_w4a4` is made of.
///
/// # Errors
/// [`Error::Unsupported`] for an instruction set that this machine lacks.
pub fn integer_per_second(isa: Isa) -> Result<f64, Error> {
    let level = Level::new(isa)?;
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Amx {
        // 4 products of 16 by 64 by 16 a step.
        const TILES: usize = STEPS / 16;
        // SAFETY: `Level::new` has seen that AMX is granted.
        return Ok(fastest((4 * 2 * 16 * 64 * 16 * TILES) as f64, || unsafe { multiply_tiles::<false>(TILES) }));
    }
    Ok(fastest((2 * 4 * LANES * CHAINS * STEPS) as f64, || {
        black_box(level.run(Dot));
    }))
}

/// Operations a second on bfloat16 with single-precision sums, 2 a multiply-add, by tiles; `None` where there are none.
///
/// # Errors
/// [`Error::Unsupported`] for an instruction set that this machine lacks.
pub fn bf16_per_second(isa: Isa) -> Result<Option<f64>, Error> {
    Level::new(isa)?;
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Amx && super::isa::amx_bf16() {
        // 4 products of 16 by 32 by 16 a step.
        const TILES: usize = STEPS / 16;
        // SAFETY: `Level::new` has seen that AMX is granted, and the machine has these products.
        return Ok(Some(fastest((4 * 2 * 16 * 32 * 16 * TILES) as f64, || unsafe { multiply_tiles::<true>(TILES) })));
    }
    Ok(None)
}

/// Bytes read from memory a second; `bytes` is the size of what is read, which should exceed every cache by far.
///
/// # Errors
/// [`Error::Unsupported`] for an instruction set that this machine lacks.
pub fn bytes_per_second(isa: Isa, bytes: usize) -> Result<f64, Error> {
    let level = Level::new(isa)?;
    let values = vec![1.0_f32; bytes / 4];
    let part = values.len().div_ceil(8 * rayon::current_num_threads()).next_multiple_of(CHAINS * LANES).max(1);
    let mut best = 0.0_f64;
    for _ in 0..RUNS {
        let clock = Instant::now();
        values.par_chunks(part).for_each(|part| {
            black_box(level.run(Read(part)));
        });
        best = best.max(size_of_val(values.as_slice()) as f64 / clock.elapsed().as_secs_f64().max(1e-9));
    }
    Ok(best)
}

/// The best rate of `work` on every thread at once, each doing `operations`.
fn fastest(operations: f64, work: impl Fn() + Sync) -> f64 {
    let threads = rayon::current_num_threads();
    let mut best = 0.0_f64;
    for _ in 0..RUNS {
        let clock = Instant::now();
        rayon::broadcast(|_| work());
        best = best.max(operations * threads as f64 / clock.elapsed().as_secs_f64().max(1e-9));
    }
    best
}

struct Multiply;

impl Kernel for Multiply {
    type Output = f32;

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> f32 {
        let (a, b) = (l.splat(black_box(0.999)), l.splat(black_box(0.001)));
        let mut sums = [l.splat(1.0); CHAINS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = l.fma(*sum, a, b);
            }
        }
        l.sum(sums.into_iter().fold(l.splat(0.0), |x, y| l.add(x, y)))
    }
}

struct Dot;

impl Kernel for Dot {
    type Output = i32;

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> i32 {
        let bytes = [black_box(1_u8); 64];
        // SAFETY: 64 bytes are there.
        let a = unsafe { l.load_bytes_at(bytes.as_ptr()) };
        let mut sums = [l.zero_int(); CHAINS];
        for step in 0..STEPS {
            // Another factor each time, so that no product is one that was there before.
            let b = 0x0101_0101 & step as i32;
            for sum in &mut sums {
                *sum = l.dot4::<false>(*sum, a, b);
            }
        }
        l.sum_int(sums.into_iter().fold(l.zero_int(), |x, y| l.add_int(x, y)))
    }
}

struct Read<'a>(&'a [f32]);

impl Kernel for Read<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> f32 {
        let mut sums = [l.splat(0.0); CHAINS];
        let (vectors, _) = self.0.as_chunks::<LANES>();
        for vectors in vectors.chunks_exact(CHAINS) {
            for (sum, vector) in sums.iter_mut().zip(vectors) {
                *sum = l.add(*sum, l.load(vector));
            }
        }
        l.sum(sums.into_iter().fold(l.splat(0.0), |x, y| l.add(x, y)))
    }
}

/// `steps` times four products of tiles in registers, of bfloat16 or of bytes.
///
/// # Safety
/// [`Isa::Amx`] is available, and products of bfloat16 are where they are asked for.
#[cfg(target_arch = "x86_64")]
unsafe fn multiply_tiles<const BF16: bool>(steps: usize) {
    use super::tile_registers::{configure, release};
    // SAFETY: the caller's; the tiles are configured, and no memory is touched.
    unsafe {
        configure();
        std::arch::asm!("tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7", options(nostack, nomem));
        for _ in 0..steps {
            if BF16 {
                std::arch::asm!(
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    options(nostack, nomem)
                );
            } else {
                std::arch::asm!(
                    "tdpbuud tmm0, tmm4, tmm6",
                    "tdpbuud tmm1, tmm4, tmm7",
                    "tdpbuud tmm2, tmm5, tmm6",
                    "tdpbuud tmm3, tmm5, tmm7",
                    options(nostack, nomem)
                );
            }
        }
        release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_has_ceilings() {
        for &isa in Isa::available() {
            if isa == Isa::Portable {
                // Its fused multiply-add is a call of the library's: slow, and no ceiling of anything.
                continue;
            }
            let (float, integer) = (f32_per_second(isa).unwrap(), integer_per_second(isa).unwrap());
            assert!(float > 1e8 && integer > 1e8, "{isa:?} {float:e} {integer:e}");
            assert!(bf16_per_second(isa).unwrap().is_none_or(|bf16| bf16 > float), "{isa:?}");
        }
        assert!(bytes_per_second(Isa::best(), 1 << 24).unwrap() > 1e8);
    }
}
