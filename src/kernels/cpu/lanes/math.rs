use super::Lanes;
use crate::kernels::{Affine, RowParams};

/// Scale, zero point and sum of codes of one quantized row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::kernels::cpu) struct Row {
    pub(in crate::kernels::cpu) scale: f32,
    pub(in crate::kernels::cpu) zero_point: u8,
    pub(in crate::kernels::cpu) sum: i32,
}

/// `e^x` to about one unit in the last place, for `x` clamped to -87..=88; NaN stays NaN.
///
/// `x = n ln 2 + r`, a polynomial in `r`, and the exponent moved by `n`.
#[inline(always)]
pub(in crate::kernels::cpu) fn exp<L: Lanes>(l: L, x: L::F) -> L::F {
    let x = l.min(l.splat(88.0), l.max(l.splat(-87.0), x));
    let n = l.round(l.mul(x, l.splat(std::f32::consts::LOG2_E)));
    // ln 2 in two parts, so that n times the first is exact.
    let r = l.fnma(n, l.splat(0.693_359_4), x);
    let r = l.fnma(n, l.splat(-2.121_944_4e-4), r);
    let mut p = l.splat(1.987_569_1e-4);
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = l.fma(p, r, l.splat(c));
    }
    let p = l.add(l.fma(p, l.mul(r, r), r), l.splat(1.0));
    l.scale_pow2(p, n)
}

/// `x / (1 + e^-x)`.
#[inline(always)]
fn silu<L: Lanes>(l: L, x: L::F) -> L::F {
    let e = exp(l, l.sub(l.splat(0.0), x));
    l.div(x, l.add(l.splat(1.0), e))
}

/// Sum of squares of each of `R` rows of one length, in 16 interleaved chains each. Rows beside each other hide how long a
/// chain waits for itself.
#[inline(always)]
fn sums_of_squares<L: Lanes, const R: usize>(l: L, rows: [&[f32]; R]) -> [f32; R] {
    let mut acc = [l.splat(0.0); R];
    let mut vectors = [[].as_slice(); R];
    let mut sums = [0.0; R];
    for (vectors, row) in vectors.iter_mut().zip(rows) {
        *vectors = row.as_chunks::<16>().0;
    }
    for i in 0..vectors.iter().fold(usize::MAX, |least, vectors| least.min(vectors.len())) {
        for (acc, vectors) in acc.iter_mut().zip(vectors) {
            let x = l.load(&vectors[i]);
            *acc = l.fma(x, x, *acc);
        }
    }
    for ((sum, acc), row) in sums.iter_mut().zip(acc).zip(rows) {
        let x = l.load_tail(row.as_chunks::<16>().1, 0.0);
        *sum = l.sum(l.fma(x, x, acc));
    }
    sums
}

/// `out[i] = x[i] * factor[i]`.
#[inline(always)]
pub(in crate::kernels::cpu) fn multiply<L: Lanes>(l: L, x: &mut [f32], factor: &[f32]) {
    let (vectors, tail) = x.as_chunks_mut::<16>();
    let (factors, factor_tail) = factor.as_chunks::<16>();
    for (x, factor) in vectors.iter_mut().zip(factors) {
        l.store(l.mul(l.load(x), l.load(factor)), x);
    }
    if !tail.is_empty() {
        l.store_tail(l.mul(l.load_tail(tail, 0.0), l.load_tail(factor_tail, 0.0)), tail);
    }
}

/// `1 / sqrt(mean(x^2) + epsilon)` of each of `R` rows of one length.
#[inline(always)]
pub(in crate::kernels::cpu) fn rms_factors<L: Lanes, const R: usize>(
    l: L,
    rows: [&[f32]; R],
    epsilon: f32,
) -> [f32; R] {
    let mut factors = sums_of_squares(l, rows);
    for (factor, row) in factors.iter_mut().zip(rows) {
        *factor = 1.0 / (*factor / row.len() as f32 + epsilon).sqrt();
    }
    factors
}

/// `out = (x rms_factors(x)) weight`.
#[inline(always)]
pub(in crate::kernels::cpu) fn rms_norm<L: Lanes>(l: L, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let [factor] = rms_factors(l, [x], epsilon);
    let factor = l.splat(factor);
    let (vectors, tail) = out.as_chunks_mut::<16>();
    let (xs, x_tail) = x.as_chunks::<16>();
    let (weights, weight_tail) = weight.as_chunks::<16>();
    for ((out, x), weight) in vectors.iter_mut().zip(xs).zip(weights) {
        l.store(l.mul(l.mul(l.load(x), factor), l.load(weight)), out);
    }
    if !tail.is_empty() {
        let (x, weight) = (l.load_tail(x_tail, 0.0), l.load_tail(weight_tail, 0.0));
        l.store_tail(l.mul(l.mul(x, factor), weight), tail);
    }
}

/// `out = silu(gate) up`.
#[inline(always)]
pub(in crate::kernels::cpu) fn silu_mul<L: Lanes>(l: L, gate: &[f32], up: &[f32], out: &mut [f32]) {
    let (vectors, tail) = out.as_chunks_mut::<16>();
    let (gates, gate_tail) = gate.as_chunks::<16>();
    let (ups, up_tail) = up.as_chunks::<16>();
    for ((out, gate), up) in vectors.iter_mut().zip(gates).zip(ups) {
        l.store(l.mul(silu(l, l.load(gate)), l.load(up)), out);
    }
    if !tail.is_empty() {
        let (gate, up) = (l.load_tail(gate_tail, 0.0), l.load_tail(up_tail, 0.0));
        l.store_tail(l.mul(silu(l, gate), up), tail);
    }
}

/// Multiplies each run of `block` values by the normalised Sylvester Hadamard matrix, in place. `block` is a power of two
/// that divides the length. Strides 1, 2, 4, .. in this order, one multiplication by `1 / sqrt(block)` last.
#[inline(always)]
pub(in crate::kernels::cpu) fn hadamard<L: Lanes>(l: L, x: &mut [f32], block: usize) {
    let norm = l.splat(1.0 / (block as f32).sqrt());
    match block {
        16 => registers::<L, 1>(l, x, norm),
        32 => registers::<L, 2>(l, x, norm),
        64 => registers::<L, 4>(l, x, norm),
        128 => registers::<L, 8>(l, x, norm),
        256 => registers::<L, 16>(l, x, norm),
        0..16 => {
            let (vectors, tail) = x.as_chunks_mut::<16>();
            for v in vectors {
                let y = within_vector(l, l.load(v), block);
                l.store(l.mul(y, norm), v);
            }
            if !tail.is_empty() {
                let y = within_vector(l, l.load_tail(tail, 0.0), block);
                l.store_tail(l.mul(y, norm), tail);
            }
        }
        _ => {
            for x in x.chunks_exact_mut(block) {
                let (vectors, _) = x.as_chunks_mut::<16>();
                for v in vectors.iter_mut() {
                    let y = within_vector(l, l.load(v), 16);
                    l.store(y, v);
                }
                let mut stride = 1;
                while stride < vectors.len() {
                    for pair in vectors.chunks_exact_mut(2 * stride) {
                        let (low, high) = pair.split_at_mut(stride);
                        for (low, high) in low.iter_mut().zip(high) {
                            let (a, b) = (l.load(low), l.load(high));
                            l.store(l.add(a, b), low);
                            l.store(l.sub(a, b), high);
                        }
                    }
                    stride *= 2;
                }
                for v in vectors {
                    l.store(l.mul(l.load(v), norm), v);
                }
            }
        }
    }
}

/// The butterflies of strides below 16.
#[inline(always)]
fn within_vector<L: Lanes>(l: L, v: L::F, block: usize) -> L::F {
    let mut v = v;
    if block > 1 {
        v = l.butterfly::<1>(v);
    }
    if block > 2 {
        v = l.butterfly::<2>(v);
    }
    if block > 4 {
        v = l.butterfly::<4>(v);
    }
    if block > 8 {
        v = l.butterfly::<8>(v);
    }
    v
}

/// A Hadamard block of `V` vectors kept in registers.
#[inline(always)]
fn registers<L: Lanes, const V: usize>(l: L, x: &mut [f32], norm: L::F) {
    let (vectors, _) = x.as_chunks_mut::<16>();
    for block in vectors.chunks_exact_mut(V) {
        let mut v = [norm; V];
        for i in 0..V {
            v[i] = within_vector(l, l.load(&block[i]), 16);
        }
        let mut stride = 1;
        while stride < V {
            for i in 0..V {
                if i & stride == 0 {
                    let (a, b) = (v[i], v[i + stride]);
                    v[i] = l.add(a, b);
                    v[i + stride] = l.sub(a, b);
                }
            }
            stride *= 2;
        }
        for i in 0..V {
            l.store(l.mul(v[i], norm), &mut block[i]);
        }
    }
}

/// Scale and zero point of a row, or `None` when it holds NaN or infinity or its range overflows `f32`.
#[inline(always)]
pub(in crate::kernels::cpu) fn row_params<L: Lanes>(l: L, affine: &Affine, x: &[f32]) -> Option<RowParams> {
    let zero = l.splat(0.0);
    // The range holds 0 in any case, so 0 is a harmless value to start from and to fill the tail with.
    let (mut min, mut max, mut poison) = (zero, zero, zero);
    let (vectors, tail) = x.as_chunks::<16>();
    for x in vectors {
        let x = l.load(x);
        min = l.min(x, min);
        max = l.max(x, max);
        poison = l.fma(x, zero, poison);
    }
    if !tail.is_empty() {
        let x = l.load_tail(tail, 0.0);
        min = l.min(x, min);
        max = l.max(x, max);
        poison = l.fma(x, zero, poison);
    }
    let params = affine.params(l.smallest(min), l.largest(max));
    let finite = l.sum(poison) == 0.0 && params.scale.is_finite();
    finite.then_some(params)
}

/// Quantizes one row. A row with NaN, infinity or an overflowing range gets scale NaN, zero point 0 and codes 0, so that
/// whatever is computed from it is NaN and not a plausible number.
#[inline(always)]
pub(in crate::kernels::cpu) fn quantize_row<L: Lanes>(l: L, affine: &Affine, x: &[f32], codes: &mut [u8]) -> Row {
    let Some(params) = row_params(l, affine, x) else {
        codes.fill(0);
        return Row { scale: f32::NAN, zero_point: 0, sum: 0 };
    };
    let (inverse, zero_point) = (l.splat(params.inverse_scale), l.splat(f32::from(params.zero_point)));
    let (low, high) = (l.splat(0.0), l.splat(f32::from(affine.max_code())));
    let mut sum = l.zero_int();
    let (vectors, tail) = x.as_chunks::<16>();
    let (code_vectors, code_tail) = codes.as_chunks_mut::<16>();
    for (x, codes) in vectors.iter().zip(code_vectors) {
        let code = l.add(l.round(l.mul(l.load(x), inverse)), zero_point);
        let code = l.to_int(l.min(l.max(code, low), high));
        sum = l.add_int(sum, code);
        l.store_bytes(code, codes);
    }
    let mut sum = l.sum_int(sum);
    for (x, code) in tail.iter().zip(code_tail) {
        *code = affine.code(*x, &params);
        sum += i32::from(*code);
    }
    Row { scale: params.scale, zero_point: params.zero_point, sum }
}

/// Quantizes one row and writes the real numbers that its codes stand for; a row that [`quantize_row`] gives scale NaN
/// becomes NaN.
#[inline(always)]
pub(in crate::kernels::cpu) fn fake_quantize_row<L: Lanes>(l: L, affine: &Affine, x: &[f32], out: &mut [f32]) {
    let Some(params) = row_params(l, affine, x) else {
        out.fill(f32::NAN);
        return;
    };
    let (inverse, zero_point) = (l.splat(params.inverse_scale), l.splat(f32::from(params.zero_point)));
    let (low, high, scale) = (l.splat(0.0), l.splat(f32::from(affine.max_code())), l.splat(params.scale));
    let (vectors, tail) = x.as_chunks::<16>();
    let (outs, out_tail) = out.as_chunks_mut::<16>();
    for (x, out) in vectors.iter().zip(outs) {
        let code = l.add(l.round(l.mul(l.load(x), inverse)), zero_point);
        let code = l.min(l.max(code, low), high);
        l.store(l.mul(scale, l.sub(code, zero_point)), out);
    }
    for (x, out) in tail.iter().zip(out_tail) {
        *out = params.scale * (f32::from(affine.code(*x, &params)) - f32::from(params.zero_point));
    }
}
