use super::{Kernel, Lanes};

/// Plain arrays. The compiler turns them into the vectors that the target always has.
#[derive(Clone, Copy)]
pub(super) struct Portable;

#[inline(always)]
fn map(a: [f32; 16], b: [f32; 16], f: impl Fn(f32, f32) -> f32) -> [f32; 16] {
    let mut out = [0.0; 16];
    for i in 0..16 {
        out[i] = f(a[i], b[i]);
    }
    out
}

impl Lanes for Portable {
    type F = [f32; 16];
    type I = [i32; 16];
    type B = [u8; 64];
    const STRIPS: usize = 1;
    const TALL: bool = false;

    #[inline(never)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; 16]
    }

    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> Self::F {
        *x
    }

    #[inline(always)]
    fn store(self, v: Self::F, out: &mut [f32; 16]) {
        *out = v;
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        let mut out = c;
        for i in 0..16 {
            out[i] = a[i].mul_add(b[i], out[i]);
        }
        out
    }

    #[inline(always)]
    fn fnma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        let mut out = c;
        for i in 0..16 {
            out[i] = (-a[i]).mul_add(b[i], out[i]);
        }
        out
    }

    #[inline(always)]
    fn round(self, a: Self::F) -> Self::F {
        map(a, a, |a, _| a.round_ties_even())
    }

    #[inline(always)]
    fn scale_pow2(self, p: Self::F, n: Self::F) -> Self::F {
        map(p, n, |p, n| p * f32::from_bits(((n as i32 + 127) as u32) << 23))
    }

    #[inline(always)]
    fn swap<const H: usize>(self, v: Self::F) -> Self::F {
        let mut out = v;
        for i in 0..16 {
            out[i] = v[i ^ H];
        }
        out
    }

    #[inline(always)]
    fn first(self, v: Self::F) -> f32 {
        v[0]
    }

    #[inline(always)]
    fn sum_int(self, v: Self::I) -> i32 {
        v.iter().sum()
    }

    #[inline(always)]
    fn butterfly<const H: usize>(self, v: Self::F) -> Self::F {
        let mut out = v;
        for i in 0..16 {
            out[i] = if i & H == 0 { v[i ^ H] + v[i] } else { v[i ^ H] - v[i] };
        }
        out
    }

    #[inline(always)]
    fn keep(self, v: Self::F, low: usize, high: usize, fill: Self::F) -> Self::F {
        let mut out = fill;
        for i in (0..16).filter(|i| (low..high).contains(i)) {
            out[i] = v[i];
        }
        out
    }

    #[inline(always)]
    unsafe fn gather(self, x: *const f32, index: &[u32; 16]) -> Self::F {
        let mut out = [0.0; 16];
        for i in 0..16 {
            // SAFETY: the caller keeps every index inside the allocation.
            out[i] = unsafe { *x.add(index[i] as usize) };
        }
        out
    }

    #[inline(always)]
    fn zero_int(self) -> Self::I {
        [0; 16]
    }

    #[inline(always)]
    fn to_int(self, v: Self::F) -> Self::I {
        let mut out = [0; 16];
        for i in 0..16 {
            out[i] = v[i] as i32;
        }
        out
    }

    #[inline(always)]
    fn to_float(self, v: Self::I) -> Self::F {
        let mut out = [0.0; 16];
        for i in 0..16 {
            out[i] = v[i] as f32;
        }
        out
    }

    #[inline(always)]
    fn add_int(self, a: Self::I, b: Self::I) -> Self::I {
        let mut out = a;
        for i in 0..16 {
            out[i] += b[i];
        }
        out
    }

    #[inline(always)]
    fn store_int(self, v: Self::I, out: &mut [i32; 16]) {
        *out = v;
    }

    #[inline(always)]
    fn store_bytes(self, v: Self::I, out: &mut [u8; 16]) {
        for i in 0..16 {
            out[i] = v[i] as u8;
        }
    }

    #[inline(always)]
    fn store_signed_bytes(self, v: [Self::I; 4], out: &mut [i8; 64]) {
        for (out, x) in out.iter_mut().zip(v.as_flattened()) {
            *out = *x as i8;
        }
    }

    #[inline(always)]
    fn widen(self, bytes: &[u8; 16]) -> Self::F {
        let mut out = [0.0; 16];
        for i in 0..16 {
            out[i] = f32::from(bytes[i]);
        }
        out
    }

    #[inline(always)]
    fn widen_nibbles(self, bytes: &[u8; 16]) -> (Self::F, Self::F) {
        let (mut low, mut high) = ([0.0; 16], [0.0; 16]);
        for i in 0..16 {
            low[i] = f32::from(bytes[i] & 15);
            high[i] = f32::from(bytes[i] >> 4);
        }
        (low, high)
    }

    #[inline(always)]
    fn nibbles(self, v: Self::B) -> (Self::B, Self::B) {
        (v.map(|byte| byte & 15), v.map(|byte| byte >> 4))
    }

    #[inline(always)]
    fn interleave(self, rows: [&[u8; 16]; 4]) -> Self::B {
        let mut out = [0; 64];
        for i in 0..16 {
            for j in 0..4 {
                out[4 * i + j] = rows[j][i];
            }
        }
        out
    }

    #[inline(always)]
    fn store_block(self, v: Self::B, out: &mut [u8; 64]) {
        *out = v;
    }

    #[inline(always)]
    fn dot4<const WIDE: bool>(self, acc: Self::I, a: Self::B, b: i32) -> Self::I {
        let mut out = acc;
        let b = b.to_le_bytes();
        for i in 0..16 {
            for j in 0..4 {
                out[i] += i32::from(a[4 * i + j]) * i32::from(b[j] as i8);
            }
        }
        out
    }

    #[inline(always)]
    unsafe fn load_at(self, x: *const f32) -> Self::F {
        // SAFETY: the caller's promise.
        unsafe { x.cast::<[f32; 16]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store_at(self, v: Self::F, out: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { out.cast::<[f32; 16]>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn load_bytes_at(self, x: *const u8) -> Self::B {
        // SAFETY: the caller's promise.
        unsafe { x.cast::<[u8; 64]>().read_unaligned() }
    }
}
