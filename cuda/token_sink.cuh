// What the prologue of a W4A4 linear writes: the codes of TokensLayout (src/kernels/cuda/tokens.rs), or values [T, K].
//
// Everywhere a lane 4 g + t holds octets of channels 32 w + 8 t to 32 w + 8 t + 7 of one row, w = 0 to 3 in a chunk of 128: the
// order of the GEMM's fragments, so that a lane's codes of a chunk are one store of 16 bytes, or two.
#pragma once

#include "affine.cuh"
#include "rows.cuh"

// TransformTarget of src/kernels/cuda/transform_quantize.
#define TARGET_CODES 0
#define TARGET_FLOAT 1
#define TARGET_DEQUANTIZED 2

struct TokenSink {
    void *out;            // atoms, or [T, K] of `dtype`
    TokenParams *params;  // [T] for TARGET_CODES
    u32 tokens;           // T
    u32 channels;         // K
    u32 groups;           // ceil(T / 8)
    u32 form;
    u32 target;
    u32 dtype;
    AffineArgs affine;
};

// A row's quantizer for its values: kernels::Affine in fewer instructions, and its codes bit for bit. Rounding is an addition of
// 1.5 * 2^23, which is exact for what was clamped before; integers -z and L - z are the same bounds before and behind rounding.
struct RowCoder {
    f32 scale, inverse_scale;
    f32 lowest, highest;  // -z, L - z
    u32 shift;            // z less the bits of 1.5 * 2^23
    u32 marked;           // NaN, infinity or a range beyond f32: codes 0, scale NaN
};

constexpr f32 ROUNDER = 12582912.0f;

DEVICE RowCoder row_coder(const AffineArgs &affine, f32 least, f32 most, bool finite) {
    const RowParams row = row_params(affine, least, most);
    const f32 top = static_cast<f32>(affine.max_code);
    const u32 zero = static_cast<u32>(row.zero_point);
    const bool marked = !finite || !is_finite(row.scale);
    return {row.scale, row.inverse_scale, -row.zero_point, top - row.zero_point, zero - bits_of(ROUNDER), marked};
}

DEVICE u32 code_of(const RowCoder &row, f32 x) {
    const f32 steps = minimum(maximum(x * row.inverse_scale, row.lowest), row.highest);
    return bits_of(steps + ROUNDER) + row.shift;
}

// Zero points as TokenParams and TARGET_DEQUANTIZED want them.
DEVICE f32 zero_point_of(const RowCoder &row) { return -row.lowest; }

// Codes of eight channels: byte j of `even` is channel 2 j, of `odd` channel 2 j + 1.
struct CodeOctet {
    u32 even, odd;
};

// `live` of the channels are there; the others' codes are 0.
DEVICE CodeOctet codes_of(const RowCoder &row, const f32 (&x)[8], u32 live) {
    u32 code[8];
#pragma unroll
    for (u32 i = 0; i < 8; i++) code[i] = code_of(row, x[i]);
    if (live < 8 || row.marked) {
#pragma unroll
        for (u32 i = 0; i < 8; i++) code[i] = i < live && !row.marked ? code[i] : 0;
    }
    const auto word = [](u32 a, u32 b, u32 c, u32 d) {
        return permute_bytes(permute_bytes(a, b, 0x0040), permute_bytes(c, d, 0x0040), 0x5410);
    };
    return {word(code[0], code[2], code[4], code[6]), word(code[1], code[3], code[5], code[7])};
}

DEVICE u32 sum_of(const CodeOctet &codes, u32 sum) { return sum_bytes(codes.even, sum_bytes(codes.odd, sum)); }

// Lane t of four neighbours gives four words and gets word t of each.
DEVICE void transpose_4(u32 (&w)[4]) {
    const u32 t = lane_index() % 4;
#pragma unroll
    for (u32 step = 1; step < 4; step *= 2) {
        const bool upper = t & step;
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            if (i & step) continue;
            // The pair's lower lane keeps the lower word and gives the upper one.
            const u32 got = shuffle_xor(upper ? w[i] : w[i + step], step);
            if (upper) {
                w[i] = got;
            } else {
                w[i + step] = got;
            }
        }
    }
}

// Stores a lane's codes of chunk `chunk` of row `token`, where `store` says so. Whole warps come here together.
DEVICE void store_codes(const TokenSink &sink, u32 chunk, u32 token, const CodeOctet (&codes)[4], bool store) {
    const u32 bytes = sink.form == FORM_FRAGMENTS4 ? 512 : 1024;
    u8 *atom = static_cast<u8 *>(sink.out) + (static_cast<u64>(chunk) * sink.groups + token / 8) * bytes;
    const u32 g = token % 8, t = lane_index() % 4;
    if (sink.form == FORM_FRAGMENTS4) {
        u32 w[4];
#pragma unroll
        for (u32 i = 0; i < 4; i++) w[i] = codes[i].even | codes[i].odd << 4;
        if (store) store_16(atom + (4 * g + t) * 16, {w[0], w[1], w[2], w[3]});
        return;
    }
#pragma unroll
    for (u32 s = 0; s < 2; s++) {
        u32 w[4] = {codes[2 * s].even, codes[2 * s + 1].even, codes[2 * s].odd, codes[2 * s + 1].odd};
        if (sink.form == FORM_FRAGMENTS8) {
            if (store) store_16(atom + 512 * s + (4 * g + t) * 16, {w[0], w[1], w[2], w[3]});
        } else {
            // Piece 4 s + i holds word i of all four lanes.
            transpose_4(w);
            if (store) store_16(atom + 128 * g + (((4 * s + t) ^ g) * 16), {w[0], w[1], w[2], w[3]});
        }
    }
}

DEVICE void store_params(const TokenSink &sink, u32 token, const RowCoder &row, u32 sum) {
    const f32 scale = row.marked ? f32_of(0x7fc00000) : row.scale;
    const u32 zero = row.marked ? 0 : static_cast<u32>(zero_point_of(row));
    store_16(sink.params + token, {bits_of(scale), zero, row.marked ? 0 : sum, 0});
}

template <class Output>
DEVICE void store_values_as(const TokenSink &sink, u32 token, u32 channel, const f32 (&x)[8], u32 live) {
    Output *to = static_cast<Output *>(sink.out) + static_cast<u64>(token) * sink.channels + channel;
    if (sink.channels % 8 == 0) {
        if (live == 8) store_row_8(to, x);
    } else {
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            if (i < live) to[i] = from_f32<Output>(x[i]);
        }
    }
}

// Stores a lane's eight transformed values from `channel` on as they are, or as what their codes stand for.
DEVICE void store_values(const TokenSink &sink, u32 token, u32 channel, const RowCoder &row, f32 (&x)[8], u32 live) {
    if (sink.target == TARGET_DEQUANTIZED) {
        const f32 zero = zero_point_of(row);
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            x[i] = row.marked ? f32_of(0x7fc00000) : row.scale * (static_cast<f32>(code_of(row, x[i])) - zero);
        }
    }
    if (sink.dtype == DTYPE_F32) {
        store_values_as<f32>(sink, token, channel, x, live);
    } else if (sink.dtype == DTYPE_F16) {
        store_values_as<f16>(sink, token, channel, x, live);
    } else {
        store_values_as<bf16>(sink, token, channel, x, live);
    }
}

// How many of the eight channels from `channel` on there are.
DEVICE u32 live_channels(u32 channel, u32 channels) { return channel >= channels ? 0 : smaller(channels - channel, 8u); }
