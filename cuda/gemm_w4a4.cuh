// The exact epilogue of gemm_w4a4, the same for every kind of tensor core:
//   I = acc - zw rs - zx c        y = (sx sw) float(I) + bias (+ y)
#pragma once

#include "rows.cuh"

// Output::define of src/kernels/cuda/gemm_w4a4: a DTYPE_*, or I itself as i32.
#define OUTPUT_INTEGERS 3

struct GemmOutputArgs {
    const TokenParams *token_params;  // [T]
    const ChannelParams *channels;    // [64 ceil(N / 64)]
    void *y;                          // [T, N]
    u32 tokens;                       // T
    u32 n;                            // N
    u32 output;                       // DTYPE_* or OUTPUT_INTEGERS: chosen at run time, so that a tile is compiled once
    u32 accumulate;                   // whether y is added to
};

// A channel's or a token's parameters as they travel.
DEVICE Quad load_channel(const GemmOutputArgs &out, u32 channel) { return load_16_constant(out.channels + channel); }
DEVICE Quad load_token(const GemmOutputArgs &out, u32 token) { return load_16_constant(out.token_params + token); }

// The bits of I, or of y as f32, of one sum.
DEVICE u32 finish(const GemmOutputArgs &out, const Quad &token, const Quad &channel, i32 sum) {
    // Modulo 2^32, in which the result is exact: it fits, whatever the products do.
    const u32 integer = static_cast<u32>(sum) - channel.y * token.z - token.y * channel.z;
    const f32 scale = f32_of(token.x) * f32_of(channel.x);
    const f32 y = scale * static_cast<f32>(static_cast<i32>(integer)) + f32_of(channel.w);
    return out.output == OUTPUT_INTEGERS ? integer : bits_of(y);
}

// Eight numbers from `to` on: in wide accesses, or the first `count` of them one by one.
template <class T>
DEVICE void put_8(T *to, const u32 (&bits)[8], bool wide, u32 count, bool accumulate) {
    f32 v[8];
#pragma unroll
    for (u32 i = 0; i < 8; i++) v[i] = f32_of(bits[i]);
    if (wide) {
        if (accumulate) {
            f32 held[8];
            load_row_8(held, to);
#pragma unroll
            for (u32 i = 0; i < 8; i++) v[i] = v[i] + held[i];
        }
        store_row_8(to, v);
        return;
    }
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        if (i < count) to[i] = from_f32<T>(accumulate ? v[i] + to_f32(to[i]) : v[i]);
    }
}

// Writes what `finish` gave for a token and eight neighbouring channels. `first`, the first of them, is a multiple of 8 and
// below N.
DEVICE void store_8(const GemmOutputArgs &out, u32 token, u32 first, const u32 (&bits)[8]) {
    const u64 at = static_cast<u64>(token) * out.n + first;
    const bool wide = out.n % 8 == 0, accumulate = out.accumulate != 0;
    const u32 count = out.n - first;
    if (out.output == DTYPE_F16) {
        put_8(static_cast<f16 *>(out.y) + at, bits, wide, count, accumulate);
    } else if (out.output == DTYPE_BF16) {
        put_8(static_cast<bf16 *>(out.y) + at, bits, wide, count, accumulate);
    } else if (out.output == DTYPE_F32) {
        put_8(static_cast<f32 *>(out.y) + at, bits, wide, count, accumulate);
    } else {
        u32 *to = static_cast<u32 *>(out.y) + at;
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            if (i < count) to[i] = bits[i];
        }
    }
}
