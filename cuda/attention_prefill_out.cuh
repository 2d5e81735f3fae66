// Rows of queries and of the output of attention_prefill.cu.
#pragma once

#include "attention_prefill_weights.cuh"

// Row of [T, H] of a row of the sequence: its heads of the group, token by token.
DEVICE u64 query_row(const Sequence &sequence, u32 heads, u32 group, u32 kv_head, u32 row) {
    return static_cast<u64>(sequence.first + row / group) * heads + kv_head * group + row % group;
}

// zero += p z over SPAN tokens, the same in all columns.
DEVICE void weigh_zeros(f32 (&zero)[TILES][4], const u32 (&p)[TILES][SPAN / 16][4], const KeyPair *pairs) {
#pragma unroll
    for (u32 step = 0; step < SPAN / 16; step++) {
        u32 b[2];
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            const KeyPair &pair = pairs[8 * step + 4 * h + lane_index() % 4];
            b[h] = *reinterpret_cast<const u32 *>(pair.value_zero);
        }
#pragma unroll
        for (u32 m = 0; m < TILES; m++) mma_f16(zero[m], p[m][step], b);
    }
}

// N neighbours, 2, 4 or 8, as one store (two of 8 in f32).
template <u32 N>
DEVICE void store_numbers(void *out, u32 type, u64 at, const f32 (&x)[N]) {
    u32 words[N];
    if (type == DTYPE_F32) {
        u8 *to = static_cast<u8 *>(out) + 4 * at;
#pragma unroll
        for (u32 i = 0; i < N; i++) words[i] = bits_of(x[i]);
        if constexpr (N == 2) {
            store_8(to, {words[0], words[1]});
        } else {
#pragma unroll
            for (u32 i = 0; i < N; i += 4) store_16(to + 4 * i, {words[i], words[i + 1], words[i + 2], words[i + 3]});
        }
        return;
    }
    u8 *to = static_cast<u8 *>(out) + 2 * at;
#pragma unroll
    for (u32 i = 0; i < N / 2; i++) {
        words[i] = type == DTYPE_F16 ? pack_f16(x[2 * i], x[2 * i + 1]) : pack_bf16(x[2 * i], x[2 * i + 1]);
    }
    if constexpr (N == 2) {
        *reinterpret_cast<u32 *>(to) = words[0];
    } else if constexpr (N == 4) {
        store_8(to, {words[0], words[1]});
    } else {
        store_16(to, {words[0], words[1], words[2], words[3]});
    }
}

// Half h of tile m: a lane has 2 PER_PIECE neighbouring channels of each piece.
DEVICE void write_row(const AttentionArgs &args, u64 row, const Sums &sums, u32 m, u32 h, f32 inverse) {
    constexpr u32 N = 2 * PER_PIECE;
    // Codes went in as multiples of 2^-24.
    const f32 unit = CODES ? 16777216.0f * inverse : inverse;
#pragma unroll
    for (u32 piece = 0; piece < VALUE_PIECES; piece++) {
        const u32 channel = 4 * N * piece + N * (lane_index() % 4);
        if (channel >= HEAD_DIM) break;
        f32 x[N];
#pragma unroll
        for (u32 i = 0; i < PER_PIECE; i++) {
#pragma unroll
            for (u32 j = 0; j < 2; j++) {
                // Of 8 bits the fragments are the even and the odd channels, of 4 bits pairs of neighbours.
                const u32 at = VALUE_BITS == 8 ? 2 * j + i : 2 * i + j;
                f32 sum = sums.value[m][PER_PIECE * piece + i][2 * h + j];
                if (CODES) sum = fused(sum, value_unit(i), -sums.zero[m][2 * h + j]);
                x[at] = sum * unit;
            }
        }
        store_numbers(args.out, args.out_type, row * HEAD_DIM + channel, x);
    }
}
