// The quantizer of one row (eq. 1 of the paper), in the order of operations that kernels::Affine gives.
#pragma once

#include "kernel.cuh"

struct AffineArgs {
    f32 clip;
    f32 inverse_max_code;  // 1 / L, rounded to f32 on the host
    i32 max_code;          // L = 2^bits - 1
    i32 symmetric;
};

struct RowParams {
    f32 scale;
    f32 inverse_scale;
    f32 zero_point;
};

// Of a row whose extremes are `least` and `most`, both finite.
DEVICE RowParams row_params(const AffineArgs &affine, f32 least, f32 most) {
    f32 lo = minimum(0.0f, affine.clip * least);
    f32 hi = maximum(0.0f, affine.clip * most);
    if (affine.symmetric) {
        hi = maximum(-lo, hi);
        lo = -hi;
    }
    const f32 scale = maximum((hi - lo) * affine.inverse_max_code, 1e-8f);
    const f32 inverse = 1.0f / scale;
    const f32 top = static_cast<f32>(affine.max_code);
    return {scale, inverse, minimum(maximum(round_even(-lo * inverse), 0.0f), top)};
}

// The code of x, 0 to L.
DEVICE u32 code_of(const AffineArgs &affine, const RowParams &row, f32 x) {
    const f32 top = static_cast<f32>(affine.max_code);
    return static_cast<u32>(minimum(maximum(round_even(x * row.inverse_scale) + row.zero_point, 0.0f), top));
}
