use super::{Kernel, Lanes};
use std::arch::x86_64::*;

/// One 512-bit register a vector.
#[derive(Clone, Copy)]
pub(in crate::kernels::cpu) struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The machine has AVX-512 F, BW, DQ, VL and VNNI, and FMA.
    pub(in crate::kernels::cpu) unsafe fn new() -> Self {
        Self(())
    }
}

#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn with_features<K: Kernel>(l: Avx512, kernel: K) -> K::Output {
    kernel.run(l)
}

// SAFETY of every block below: a value of `Avx512` proves that the machine has the features; pointers come from
// references of the right length or carry the caller's promise.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one argument for all of them, stated above")]
impl Lanes for Avx512 {
    type F = __m512;
    type I = __m512i;
    type B = __m512i;
    const STRIPS: usize = 4;
    const TALL: bool = true;

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        unsafe { with_features(self, kernel) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> Self::F {
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, v: Self::F, out: &mut [f32; 16]) {
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn fnma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { _mm512_fnmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn round(self, a: Self::F) -> Self::F {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }

    #[inline(always)]
    fn scale_pow2(self, p: Self::F, n: Self::F) -> Self::F {
        unsafe { _mm512_scalef_ps(p, n) }
    }

    #[inline(always)]
    fn swap<const H: usize>(self, v: Self::F) -> Self::F {
        unsafe {
            match H {
                1 => _mm512_permute_ps::<0b10_11_00_01>(v),
                2 => _mm512_permute_ps::<0b01_00_11_10>(v),
                4 => _mm512_shuffle_f32x4::<0b10_11_00_01>(v, v),
                _ => _mm512_shuffle_f32x4::<0b01_00_11_10>(v, v),
            }
        }
    }

    #[inline(always)]
    fn first(self, v: Self::F) -> f32 {
        unsafe { _mm512_cvtss_f32(v) }
    }

    #[inline(always)]
    fn sum_int(self, v: Self::I) -> i32 {
        unsafe { _mm512_reduce_add_epi32(v) }
    }

    #[inline(always)]
    fn butterfly<const H: usize>(self, v: Self::F) -> Self::F {
        let odd = match H {
            1 => 0xAAAA,
            2 => 0xCCCC,
            4 => 0xF0F0,
            _ => 0xFF00,
        };
        let other = self.swap::<H>(v);
        unsafe { _mm512_mask_sub_ps(_mm512_add_ps(other, v), odd, other, v) }
    }

    #[inline(always)]
    fn keep(self, v: Self::F, low: usize, high: usize, fill: Self::F) -> Self::F {
        let below = |n: usize| ((1_u32 << n.min(16)) - 1) as u16;
        unsafe { _mm512_mask_blend_ps(below(high) & !below(low), fill, v) }
    }

    #[inline(always)]
    unsafe fn gather(self, x: *const f32, index: &[u32; 16]) -> Self::F {
        unsafe { _mm512_i32gather_ps::<4>(_mm512_loadu_si512(index.as_ptr().cast()), x) }
    }

    #[inline(always)]
    fn zero_int(self) -> Self::I {
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    fn to_int(self, v: Self::F) -> Self::I {
        unsafe { _mm512_cvttps_epi32(v) }
    }

    #[inline(always)]
    fn to_float(self, v: Self::I) -> Self::F {
        unsafe { _mm512_cvtepi32_ps(v) }
    }

    #[inline(always)]
    fn add_int(self, a: Self::I, b: Self::I) -> Self::I {
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    fn store_int(self, v: Self::I, out: &mut [i32; 16]) {
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), v) }
    }

    #[inline(always)]
    fn store_bytes(self, v: Self::I, out: &mut [u8; 16]) {
        unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(v)) }
    }

    #[inline(always)]
    fn store_signed_bytes(self, v: [Self::I; 4], out: &mut [i8; 64]) {
        unsafe {
            let [a, b, c, d] = v;
            let bytes = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
            // Packing works on quarters: four bytes of each vector by turns.
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm512_storeu_si512(out.as_mut_ptr().cast(), _mm512_permutexvar_epi32(order, bytes));
        }
    }

    #[inline(always)]
    fn widen(self, bytes: &[u8; 16]) -> Self::F {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn widen_nibbles(self, bytes: &[u8; 16]) -> (Self::F, Self::F) {
        unsafe {
            let wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.as_ptr().cast()));
            let low = _mm512_and_si512(wide, _mm512_set1_epi32(15));
            (_mm512_cvtepi32_ps(low), _mm512_cvtepi32_ps(_mm512_srli_epi32::<4>(wide)))
        }
    }

    #[inline(always)]
    fn nibbles(self, v: Self::B) -> (Self::B, Self::B) {
        unsafe {
            let mask = _mm512_set1_epi8(15);
            (_mm512_and_si512(v, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(v), mask))
        }
    }

    #[inline(always)]
    fn interleave(self, rows: [&[u8; 16]; 4]) -> Self::B {
        unsafe {
            let [a, b, c, d] = rows;
            let both = _mm256_castsi128_si256(_mm_loadu_si128(a.as_ptr().cast()));
            let both = _mm256_inserti128_si256::<1>(both, _mm_loadu_si128(b.as_ptr().cast()));
            let v = _mm512_castsi256_si512(both);
            let v = _mm512_inserti32x4::<2>(v, _mm_loadu_si128(c.as_ptr().cast()));
            let v = _mm512_inserti32x4::<3>(v, _mm_loadu_si128(d.as_ptr().cast()));
            // Four bytes of each row to 16, then in each 16 row by row to byte by byte.
            let fours = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            let order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
            _mm512_shuffle_epi8(_mm512_permutexvar_epi32(fours, v), order)
        }
    }

    #[inline(always)]
    fn store_block(self, v: Self::B, out: &mut [u8; 64]) {
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), v) }
    }

    #[inline(always)]
    fn dot4<const WIDE: bool>(self, acc: Self::I, a: Self::B, b: i32) -> Self::I {
        unsafe { _mm512_dpbusd_epi32(acc, a, _mm512_set1_epi32(b)) }
    }

    #[inline(always)]
    unsafe fn load_at(self, x: *const f32) -> Self::F {
        unsafe { _mm512_loadu_ps(x) }
    }

    #[inline(always)]
    unsafe fn store_at(self, v: Self::F, out: *mut f32) {
        unsafe { _mm512_storeu_ps(out, v) }
    }

    #[inline(always)]
    unsafe fn load_bytes_at(self, x: *const u8) -> Self::B {
        unsafe { _mm512_loadu_si512(x.cast()) }
    }
}
