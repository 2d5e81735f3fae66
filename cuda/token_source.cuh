// What the prologue of a W4A4 linear reads: tokens, their RMSNorm, or SwiGLU's product, times the smoothing factors.
#pragma once

#include "rows.cuh"

// TokenSource of src/kernels/cuda/transform_quantize.
#define SOURCE_TOKENS 0
#define SOURCE_RMS_NORM 1
#define SOURCE_SILU_MUL 2

template <class Input>
struct TokenSource {
    const Input *x;             // [T, K]; [T, 2K] for SOURCE_SILU_MUL, gate in the first K columns
    const f32 *norm_weight;     // [K] for SOURCE_RMS_NORM
    const f32 *inverse_smooth;  // [K] or null
    u32 tokens;                 // T
    u32 channels;               // K
    u32 kind;
    u32 wide;  // rows start at multiples of 16 bytes, and so do tiles: eight neighbouring channels are one or two loads
    f32 epsilon;
    u32 unused;
};

// Eight channels as they came from memory, so that they can be asked for long before they are converted.
template <class Input>
struct RawOctet {
    static constexpr u32 QUADS = sizeof(Input) / 2;
    Quad x[QUADS], up[QUADS];
};

template <class T>
DEVICE void widen_8(f32 (&out)[8], const Quad (&q)[1]) {
    const u32 words[4] = {q[0].x, q[0].y, q[0].z, q[0].w};
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        out[2 * i] = to_f32(T{static_cast<u16>(words[i])});
        out[2 * i + 1] = to_f32(T{static_cast<u16>(words[i] >> 16)});
    }
}
template <class T>
DEVICE void widen_8(f32 (&out)[8], const Quad (&q)[2]) {
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        out[4 * i] = f32_of(q[i].x);
        out[4 * i + 1] = f32_of(q[i].y);
        out[4 * i + 2] = f32_of(q[i].z);
        out[4 * i + 3] = f32_of(q[i].w);
    }
}

// The row of a token, gate for SOURCE_SILU_MUL.
template <class Input>
DEVICE const Input *token_row(const TokenSource<Input> &source, u32 token) {
    const u64 width = static_cast<u64>(source.channels) << (source.kind == SOURCE_SILU_MUL);
    return source.x + width * token;
}

// Asks for the channels from `channel` on, where rows are wide.
template <class Input>
DEVICE void fetch_8(RawOctet<Input> &raw, const TokenSource<Input> &source, u32 token, u32 channel) {
    const Input *from = token_row(source, token) + channel;
#pragma unroll
    for (u32 i = 0; i < raw.QUADS; i++) raw.x[i] = load_16(from + i * (8 / raw.QUADS));
    if (source.kind == SOURCE_SILU_MUL) {
#pragma unroll
        for (u32 i = 0; i < raw.QUADS; i++) raw.up[i] = load_16(from + source.channels + i * (8 / raw.QUADS));
    }
}

// Eight factors from `channel` on, those before `end`.
DEVICE void factors_8(f32 (&w)[8], const f32 *factors, u32 wide, u32 channel, u32 end) {
    if (wide) {
        load_row_8(w, factors + channel);
    } else {
#pragma unroll
        for (u32 i = 0; i < 8; i++) w[i] = channel + i < end ? factors[channel + i] : 0.0f;
    }
}

// The linear's input at channels `channel` to channel + 7: ((x * factor) * weight) * smooth or silu(gate) * up * smooth, with
// the RMSNorm's factor of the token. Channels from `end` on are 0. `raw` counts where rows are wide.
template <class Input>
DEVICE void source_8(f32 (&v)[8], const RawOctet<Input> &raw, const TokenSource<Input> &source, u32 token, u32 channel, u32 end,
                     f32 factor) {
    const Input *row = token_row(source, token);
    if (source.wide) {
        widen_8<Input>(v, raw.x);
    } else {
#pragma unroll
        for (u32 i = 0; i < 8; i++) v[i] = channel + i < end ? to_f32(row[channel + i]) : 0.0f;
    }
    f32 w[8];
    if (source.kind == SOURCE_SILU_MUL) {
        if (source.wide) {
            widen_8<Input>(w, raw.up);
        } else {
            row += source.channels;
#pragma unroll
            for (u32 i = 0; i < 8; i++) w[i] = channel + i < end ? to_f32(row[channel + i]) : 0.0f;
        }
#pragma unroll
        for (u32 i = 0; i < 8; i++) v[i] = silu_mul(v[i], w[i]);
    } else if (source.kind == SOURCE_RMS_NORM) {
        factors_8(w, source.norm_weight, source.wide, channel, end);
#pragma unroll
        for (u32 i = 0; i < 8; i++) v[i] = v[i] * factor * w[i];
    }
    if (source.inverse_smooth != nullptr) {
        factors_8(w, source.inverse_smooth, source.wide, channel, end);
#pragma unroll
        for (u32 i = 0; i < 8; i++) v[i] = v[i] * w[i];
    }
}

// A row's sum of squares is taken in so many parts, whoever sums them, so that a token's factor is the same in every grid.
constexpr u32 NORM_PARTS = 16;

// The sum of one part of a token's row in every lane of the warp.
template <class Input>
DEVICE f32 square_sum_part(const TokenSource<Input> &source, u32 token, u32 part) {
    const Input *row = token_row(source, token);
    f32 sum = 0.0f;
    for (u32 c = 8 * (32 * part + lane_index()); c < source.channels; c += 8 * 32 * NORM_PARTS) {
        f32 v[8];
        if (source.wide) {
            load_row_8(v, row + c);
        } else {
#pragma unroll
            for (u32 i = 0; i < 8; i++) v[i] = c + i < source.channels ? to_f32(row[c + i]) : 0.0f;
        }
#pragma unroll
        for (u32 i = 0; i < 8; i++) sum = fused(v[i], v[i], sum);
    }
#pragma unroll
    for (u32 mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    return sum;
}

// 1 / sqrt(mean + epsilon) from a token's parts.
DEVICE f32 norm_factor(const f32 *parts, u32 channels, f32 epsilon) {
    f32 sum = 0.0f;
    for (u32 part = 0; part < NORM_PARTS; part++) sum += parts[part];
    return 1.0f / square_root(sum / static_cast<f32>(channels) + epsilon);
}
