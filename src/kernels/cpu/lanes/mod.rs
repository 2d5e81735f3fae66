//! Sixteen `f32` lanes, the one vector that the kernels around the GEMM are written in.
//!
//! A kernel is written once over [`Lanes`] and instantiated for each instruction set. Every operation here is exactly
//! rounded and means the same on each of them (a fused multiply-add is fused everywhere, on a machine without one by
//! the slow library call), so all instruction sets give the same bits.

mod math;
mod matmul;
mod portable;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

#[cfg(test)]
mod tests;

use super::Isa;
use crate::kernels::Error;

#[cfg(target_arch = "x86_64")]
pub(in crate::kernels::cpu) use avx512::Avx512;
pub(in crate::kernels::cpu) use math::{
    Row, exp, fake_quantize_row, hadamard, multiply, quantize_row, rms_factors, rms_norm, silu_mul,
};
pub(in crate::kernels::cpu) use matmul::{Dots, Finish, MatMul};

/// Lanes in a vector.
pub(in crate::kernels::cpu) const LANES: usize = 16;

/// An instruction set that this machine has been seen to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kernels::cpu) struct Level(Isa);

impl Level {
    /// # Errors
    /// [`Error::Unsupported`] when this machine lacks `isa`.
    pub(in crate::kernels::cpu) fn new(isa: Isa) -> Result<Self, Error> {
        if Isa::available().contains(&isa) {
            return Ok(Self(isa));
        }
        let names: Vec<_> = Isa::available().iter().map(|isa| isa.name()).collect();
        Err(Error::Unsupported { what: "isa", expected: format!("one of {names:?}"), got: isa.name().into() })
    }

    pub(in crate::kernels::cpu) fn isa(self) -> Isa {
        self.0
    }

    /// Runs `kernel` with the vectors of this instruction set.
    pub(in crate::kernels::cpu) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[cfg(target_arch = "x86_64")]
        match self.0 {
            // SAFETY: `Level::new` has seen the features on this machine.
            Isa::Amx | Isa::Avx512Vnni => return unsafe { avx512::Avx512::new() }.call(kernel),
            // SAFETY: as above.
            Isa::Avx2 => return unsafe { avx2::Avx2::new() }.call(kernel),
            Isa::Neon | Isa::Portable => {}
        }
        portable::Portable.call(kernel)
    }
}

/// A piece of work written over [`Lanes`]. `run` and everything below it must be `#[inline(always)]`, so that it is
/// compiled with the instruction set of its caller.
pub(in crate::kernels::cpu) trait Kernel {
    type Output;
    fn run<L: Lanes>(self, l: L) -> Self::Output;
}

/// Vectors of one instruction set. A value of an implementing type is the proof that the machine has it.
pub(in crate::kernels::cpu) trait Lanes: Copy {
    /// 16 `f32`.
    type F: Copy;
    /// 16 `i32`.
    type I: Copy;
    /// 64 bytes.
    type B: Copy;
    /// Vectors of columns that a register block of the matrix products holds.
    const STRIPS: usize;
    /// Rows of a register block of one or two vectors of columns; those of wider blocks are 6.
    const TALL: bool;

    /// Runs `kernel` in a function of its own.
    fn call<K: Kernel>(self, kernel: K) -> K::Output;

    fn splat(self, x: f32) -> Self::F;
    fn load(self, x: &[f32; 16]) -> Self::F;
    fn store(self, v: Self::F, out: &mut [f32; 16]);
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `if a < b { a } else { b }`: the second where either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `if a > b { a } else { b }`: the second where either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `c - a b`, rounded once.
    fn fnma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// To the nearest integer, ties to even.
    fn round(self, a: Self::F) -> Self::F;
    /// `p 2^n` for integral `n` in -126..=127.
    fn scale_pow2(self, p: Self::F, n: Self::F) -> Self::F;
    /// `v[i ^ H]` in lane `i`; `H` is 1, 2, 4 or 8.
    fn swap<const H: usize>(self, v: Self::F) -> Self::F;
    /// `v[i ^ H] + v[i]` in lane `i` where bit `H` of `i` is 0, and `v[i ^ H] - v[i]` where it is 1.
    fn butterfly<const H: usize>(self, v: Self::F) -> Self::F;
    /// Lane 0.
    fn first(self, v: Self::F) -> f32;
    /// Lanes `low..high` of `v`, and `fill` elsewhere.
    fn keep(self, v: Self::F, low: usize, high: usize, fill: Self::F) -> Self::F;
    /// `x[index[i]]` in lane `i`.
    ///
    /// # Safety
    /// Every index is inside the allocation at `x`, and below 2^31.
    unsafe fn gather(self, x: *const f32, index: &[u32; 16]) -> Self::F;

    fn zero_int(self) -> Self::I;
    /// Integral values to `i32`; NaN gives an unspecified integer.
    fn to_int(self, v: Self::F) -> Self::I;
    fn to_float(self, v: Self::I) -> Self::F;
    fn add_int(self, a: Self::I, b: Self::I) -> Self::I;
    fn store_int(self, v: Self::I, out: &mut [i32; 16]);
    fn sum_int(self, v: Self::I) -> i32;
    /// Lanes of 0..=255 as bytes.
    fn store_bytes(self, v: Self::I, out: &mut [u8; 16]);
    /// Lanes of -128..=127 of four vectors as signed bytes.
    fn store_signed_bytes(self, v: [Self::I; 4], out: &mut [i8; 64]);
    /// Bytes to lanes.
    fn widen(self, bytes: &[u8; 16]) -> Self::F;
    /// Low and high nibbles of bytes.
    fn widen_nibbles(self, bytes: &[u8; 16]) -> (Self::F, Self::F);
    /// Low and high nibbles of 64 bytes.
    fn nibbles(self, v: Self::B) -> (Self::B, Self::B);
    /// Byte `i` of row `j` in byte `4 i + j`.
    fn interleave(self, rows: [&[u8; 16]; 4]) -> Self::B;
    fn store_block(self, v: Self::B, out: &mut [u8; 64]);
    /// `acc[i] + sum_j a[4 i + j] b[j]` for unsigned bytes `a` and the four signed bytes `b`. Without `WIDE` both are at
    /// most 127 in magnitude.
    fn dot4<const WIDE: bool>(self, acc: Self::I, a: Self::B, b: i32) -> Self::I;

    /// # Safety
    /// 16 values can be read at `x`.
    unsafe fn load_at(self, x: *const f32) -> Self::F;
    /// # Safety
    /// 16 values can be written at `out`.
    unsafe fn store_at(self, v: Self::F, out: *mut f32);
    /// # Safety
    /// 64 bytes can be read at `x`.
    unsafe fn load_bytes_at(self, x: *const u8) -> Self::B;

    /// The first lanes from a slice of at most 16, `fill` in the others.
    #[inline(always)]
    fn load_tail(self, x: &[f32], fill: f32) -> Self::F {
        let mut all = [fill; 16];
        all[..x.len()].copy_from_slice(x);
        self.load(&all)
    }

    /// The first lanes to a slice of at most 16.
    #[inline(always)]
    fn store_tail(self, v: Self::F, out: &mut [f32]) {
        let mut all = [0.0; 16];
        self.store(v, &mut all);
        let n = out.len();
        out.copy_from_slice(&all[..n]);
    }

    /// Sum of the lanes, halves first.
    #[inline(always)]
    fn sum(self, v: Self::F) -> f32 {
        let v = self.add(v, self.swap::<8>(v));
        let v = self.add(v, self.swap::<4>(v));
        let v = self.add(v, self.swap::<2>(v));
        self.first(self.add(v, self.swap::<1>(v)))
    }

    /// Smallest lane.
    #[inline(always)]
    fn smallest(self, v: Self::F) -> f32 {
        let v = self.min(v, self.swap::<8>(v));
        let v = self.min(v, self.swap::<4>(v));
        let v = self.min(v, self.swap::<2>(v));
        self.first(self.min(v, self.swap::<1>(v)))
    }

    /// Largest lane.
    #[inline(always)]
    fn largest(self, v: Self::F) -> f32 {
        let v = self.max(v, self.swap::<8>(v));
        let v = self.max(v, self.swap::<4>(v));
        let v = self.max(v, self.swap::<2>(v));
        self.first(self.max(v, self.swap::<1>(v)))
    }
}
