use super::{Kernel, Lanes};
use std::arch::x86_64::*;

/// Two 256-bit registers a vector.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The machine has AVX2, FMA and F16C.
    pub(super) unsafe fn new() -> Self {
        Self(())
    }
}

#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
fn with_features<K: Kernel>(l: Avx2, kernel: K) -> K::Output {
    kernel.run(l)
}

/// Applies an intrinsic to both halves.
macro_rules! halves {
    ($f:ident, $($v:expr),+) => {
        [unsafe { $f($($v[0]),+) }, unsafe { $f($($v[1]),+) }]
    };
}

// SAFETY of every block below: a value of `Avx2` proves that the machine has the features; pointers come from references
// of the right length or carry the caller's promise.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one argument for all of them, stated above")]
impl Lanes for Avx2 {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    type B = [__m256i; 2];
    const STRIPS: usize = 1;
    const TALL: bool = false;

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        unsafe { with_features(self, kernel) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [unsafe { _mm256_set1_ps(x) }; 2]
    }

    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> Self::F {
        unsafe { self.load_at(x.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, v: Self::F, out: &mut [f32; 16]) {
        unsafe { self.store_at(v, out.as_mut_ptr()) }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_add_ps, a, b)
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_sub_ps, a, b)
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_mul_ps, a, b)
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_div_ps, a, b)
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_min_ps, a, b)
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_max_ps, a, b)
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        halves!(_mm256_fmadd_ps, a, b, c)
    }

    #[inline(always)]
    fn fnma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        halves!(_mm256_fnmadd_ps, a, b, c)
    }

    #[inline(always)]
    fn round(self, a: Self::F) -> Self::F {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        unsafe { [_mm256_round_ps::<NEAREST>(a[0]), _mm256_round_ps::<NEAREST>(a[1])] }
    }

    #[inline(always)]
    fn scale_pow2(self, p: Self::F, n: Self::F) -> Self::F {
        let power = |n| unsafe {
            let exponent = _mm256_add_epi32(_mm256_cvttps_epi32(n), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
        };
        unsafe { [_mm256_mul_ps(p[0], power(n[0])), _mm256_mul_ps(p[1], power(n[1]))] }
    }

    #[inline(always)]
    fn swap<const H: usize>(self, v: Self::F) -> Self::F {
        unsafe {
            match H {
                1 => [_mm256_permute_ps::<0b10_11_00_01>(v[0]), _mm256_permute_ps::<0b10_11_00_01>(v[1])],
                2 => [_mm256_permute_ps::<0b01_00_11_10>(v[0]), _mm256_permute_ps::<0b01_00_11_10>(v[1])],
                4 => [_mm256_permute2f128_ps::<1>(v[0], v[0]), _mm256_permute2f128_ps::<1>(v[1], v[1])],
                _ => [v[1], v[0]],
            }
        }
    }

    #[inline(always)]
    fn first(self, v: Self::F) -> f32 {
        unsafe { _mm256_cvtss_f32(v[0]) }
    }

    #[inline(always)]
    fn sum_int(self, v: Self::I) -> i32 {
        let mut all = [0; 16];
        self.store_int(v, &mut all);
        let mut sum = 0;
        for x in all {
            sum += x;
        }
        sum
    }

    #[inline(always)]
    fn butterfly<const H: usize>(self, v: Self::F) -> Self::F {
        let other = self.swap::<H>(v);
        let (sum, difference) = (self.add(other, v), self.sub(other, v));
        let mut out = sum;
        for i in 0..2 {
            out[i] = unsafe {
                match H {
                    1 => _mm256_blend_ps::<0xAA>(sum[i], difference[i]),
                    2 => _mm256_blend_ps::<0xCC>(sum[i], difference[i]),
                    4 => _mm256_blend_ps::<0xF0>(sum[i], difference[i]),
                    _ => [sum[0], difference[1]][i],
                }
            };
        }
        out
    }

    #[inline(always)]
    fn keep(self, v: Self::F, low: usize, high: usize, fill: Self::F) -> Self::F {
        let (mut all, mut out) = ([0.0; 16], [0.0; 16]);
        self.store(v, &mut all);
        self.store(fill, &mut out);
        for i in (0..16).filter(|i| (low..high).contains(i)) {
            out[i] = all[i];
        }
        self.load(&out)
    }

    #[inline(always)]
    unsafe fn gather(self, x: *const f32, index: &[u32; 16]) -> Self::F {
        let mut out = [0.0; 16];
        for i in 0..16 {
            out[i] = unsafe { *x.add(index[i] as usize) };
        }
        self.load(&out)
    }

    #[inline(always)]
    fn zero_int(self) -> Self::I {
        [unsafe { _mm256_setzero_si256() }; 2]
    }

    #[inline(always)]
    fn to_int(self, v: Self::F) -> Self::I {
        halves!(_mm256_cvttps_epi32, v)
    }

    #[inline(always)]
    fn to_float(self, v: Self::I) -> Self::F {
        halves!(_mm256_cvtepi32_ps, v)
    }

    #[inline(always)]
    fn add_int(self, a: Self::I, b: Self::I) -> Self::I {
        halves!(_mm256_add_epi32, a, b)
    }

    #[inline(always)]
    fn store_int(self, v: Self::I, out: &mut [i32; 16]) {
        unsafe {
            _mm256_storeu_si256(out.as_mut_ptr().cast(), v[0]);
            _mm256_storeu_si256(out.as_mut_ptr().add(8).cast(), v[1]);
        }
    }

    #[inline(always)]
    fn store_bytes(self, v: Self::I, out: &mut [u8; 16]) {
        unsafe {
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(v[0], v[1]));
            let bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(out.as_mut_ptr().cast(), bytes);
        }
    }

    #[inline(always)]
    fn store_signed_bytes(self, v: [Self::I; 4], out: &mut [i8; 64]) {
        for (v, out) in v.as_chunks::<2>().0.iter().zip(out.as_chunks_mut::<32>().0) {
            unsafe {
                let [[a, b], [c, d]] = *v;
                let bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
                // Packing works on halves: four bytes of each vector by turns.
                let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
                _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_permutevar8x32_epi32(bytes, order));
            }
        }
    }

    #[inline(always)]
    fn widen(self, bytes: &[u8; 16]) -> Self::F {
        unsafe {
            let bytes = _mm_loadu_si128(bytes.as_ptr().cast());
            let high = _mm_srli_si128::<8>(bytes);
            [_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(high))]
        }
    }

    #[inline(always)]
    fn widen_nibbles(self, bytes: &[u8; 16]) -> (Self::F, Self::F) {
        let (mut low, mut high) = ([0; 16], [0; 16]);
        for i in 0..16 {
            low[i] = bytes[i] & 15;
            high[i] = bytes[i] >> 4;
        }
        (self.widen(&low), self.widen(&high))
    }

    #[inline(always)]
    fn nibbles(self, v: Self::B) -> (Self::B, Self::B) {
        let (mut low, mut high) = (v, v);
        for i in 0..2 {
            unsafe {
                let mask = _mm256_set1_epi8(15);
                low[i] = _mm256_and_si256(v[i], mask);
                high[i] = _mm256_and_si256(_mm256_srli_epi16::<4>(v[i]), mask);
            }
        }
        (low, high)
    }

    #[inline(always)]
    fn interleave(self, rows: [&[u8; 16]; 4]) -> Self::B {
        unsafe {
            let [a, b, c, d] = rows;
            let (a, b) = (_mm_loadu_si128(a.as_ptr().cast()), _mm_loadu_si128(b.as_ptr().cast()));
            let (c, d) = (_mm_loadu_si128(c.as_ptr().cast()), _mm_loadu_si128(d.as_ptr().cast()));
            let (ab, cd) = (_mm_unpacklo_epi8(a, b), _mm_unpacklo_epi8(c, d));
            let low = _mm256_set_m128i(_mm_unpackhi_epi16(ab, cd), _mm_unpacklo_epi16(ab, cd));
            let (ab, cd) = (_mm_unpackhi_epi8(a, b), _mm_unpackhi_epi8(c, d));
            [low, _mm256_set_m128i(_mm_unpackhi_epi16(ab, cd), _mm_unpacklo_epi16(ab, cd))]
        }
    }

    #[inline(always)]
    fn store_block(self, v: Self::B, out: &mut [u8; 64]) {
        unsafe {
            _mm256_storeu_si256(out.as_mut_ptr().cast(), v[0]);
            _mm256_storeu_si256(out.as_mut_ptr().add(32).cast(), v[1]);
        }
    }

    #[inline(always)]
    fn dot4<const WIDE: bool>(self, acc: Self::I, a: Self::B, b: i32) -> Self::I {
        // vpmaddubsw saturates to 16 bits: two products of up to 127 x 127 fit, those of 255 x 128 do not and are taken
        // nibble by nibble.
        let mut out = acc;
        for i in 0..2 {
            out[i] = unsafe {
                let (b, ones) = (_mm256_set1_epi32(b), _mm256_set1_epi16(1));
                if WIDE {
                    let mask = _mm256_set1_epi8(15);
                    let low = _mm256_maddubs_epi16(_mm256_and_si256(a[i], mask), b);
                    let high = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16::<4>(a[i]), mask), b);
                    let high = _mm256_slli_epi32::<4>(_mm256_madd_epi16(high, ones));
                    _mm256_add_epi32(acc[i], _mm256_add_epi32(_mm256_madd_epi16(low, ones), high))
                } else {
                    _mm256_add_epi32(acc[i], _mm256_madd_epi16(_mm256_maddubs_epi16(a[i], b), ones))
                }
            };
        }
        out
    }

    #[inline(always)]
    unsafe fn load_at(self, x: *const f32) -> Self::F {
        unsafe { [_mm256_loadu_ps(x), _mm256_loadu_ps(x.add(8))] }
    }

    #[inline(always)]
    unsafe fn store_at(self, v: Self::F, out: *mut f32) {
        unsafe {
            _mm256_storeu_ps(out, v[0]);
            _mm256_storeu_ps(out.add(8), v[1]);
        }
    }

    #[inline(always)]
    unsafe fn load_bytes_at(self, x: *const u8) -> Self::B {
        unsafe { [_mm256_loadu_si256(x.cast()), _mm256_loadu_si256(x.add(32).cast())] }
    }
}
