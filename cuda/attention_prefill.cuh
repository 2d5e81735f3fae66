// The tile of attention_prefill.cu: how queries, keys, weights and values become fragments of the matrix instructions.
//
// A piece is 16 bytes of a row of the cache. One load_matrix_x4 brings a piece of 32 tokens. What a lane then holds of a token's
// piece is the word that the matrix instruction wants of it, whatever the width of a code: channels of a dot product may come in
// any order, so that queries take the order in which the cache has them.
//
// Values come transposed: a lane has, of the tokens 2t and 2t + 1, the same half word, which is four, two or one neighbouring
// channels. A mask gives a pair of halves, which is the fragment. A code c as the bits of a half is the number c 2^-24, exact
// and multiplied as such: no conversion, and no zero point, which meets the weights in a column of its own.
#pragma once

#include "attention.cuh"

constexpr bool CODES = KEY_BITS != 16;
static_assert(CODES == (VALUE_BITS != 16), "both are quantized, or neither");
// Whether dot products of 4-bit codes have an instruction; otherwise they are spread to bytes.
constexpr bool NATIVE_U4 = KEY_BITS == 4 && ARCH < 900;
constexpr bool SPREAD = KEY_BITS == 4 && !NATIVE_U4;

constexpr u32 THREADS = 128;
// Rows of a block: TILES of 16 for each of its 4 warps.
constexpr u32 ROWS = THREADS / 2 * TILES;
// Keys of a tile: a page, or half of one.
constexpr u32 KEYS = CODES || HEAD_DIM < 256 ? PAGE : PAGE / 2;
constexpr u32 HALVES = SPAN / 32;

constexpr u32 KEY_ROW = HEAD_DIM * KEY_BITS / 8;
constexpr u32 VALUE_ROW = HEAD_DIM * VALUE_BITS / 8;
constexpr u32 KEY_PIECES = divide_up(KEY_ROW, 16u);
constexpr u32 VALUE_PIECES = divide_up(VALUE_ROW, 16u);
// An odd number of pieces, so that eight rows of a column of pieces lie in different banks.
constexpr u32 KEY_STRIDE = 16 * (KEY_PIECES | 1);
constexpr u32 VALUE_STRIDE = 16 * (VALUE_PIECES | 1);
// Steps of a dot product, and fragments of 8 channels to a piece of values.
constexpr u32 STEPS = SPREAD ? KEY_PIECES : divide_up(KEY_PIECES, 2u);
constexpr u32 PER_PIECE = VALUE_BITS == 4 ? 4 : VALUE_BITS == 8 ? 2 : 1;
constexpr u32 FRAGMENTS = VALUE_PIECES * PER_PIECE;

// Dot products of 4-bit codes start at the bits of 2^23, so that the bits of the sum are a float.
#if KEY_BITS == 16
using Dot = f32;
#else
using Dot = i32;
constexpr Dot DOT_ZERO = KEY_BITS == 4 ? 0x4b000000 : 0;
#endif
// Zero points and sums of codes: where they stay below 2^23 all together f32 is as exact as i32.
#if KEY_BITS == 8
using Whole = i32;
#else
using Whole = f32;
#endif

// Two neighbouring keys, as a lane meets them.
struct alignas(16) KeyPair {
    f32 scale[2];
    Whole minus_zero[2];
    Whole minus_sum[2];
    f32 log_value_scale[2];
    f32 inverse_value_scale[2];
    // Bits of two halves.
    u16 value_zero[2];
    u32 unused;
};

// A fragment of queries: row 8 h + g in words h and 2 + h.
DEVICE void load_queries(u32 (&q)[STEPS][4], u32 half, const u8 *row, bool there) {
    const u32 t = lane_index() % 4;
#pragma unroll
    for (u32 piece = 0; piece < 2 * divide_up(KEY_PIECES, 2u); piece++) {
        if constexpr (KEY_BITS == 4) {
            Pair codes = {0, 0};
            if (there && 32 * piece + 8 * t < HEAD_DIM) codes = load_8(row + 32 * piece + 8 * t);
            // The order of a word of the cache: its low nibbles are channels 0, 4, 1, 5, its high ones 2, 6, 3, 7.
            const u32 low = permute_bytes(codes.x, codes.y, 0x5140), high = permute_bytes(codes.x, codes.y, 0x7362);
            if constexpr (NATIVE_U4) {
                q[piece / 2][piece % 2 * 2 + half] = low | high << 4;
            } else if (piece < KEY_PIECES) {
                q[piece][half] = low;
                q[piece][2 + half] = high;
            }
        } else {
            const bool inside = there && piece < KEY_PIECES;
            q[piece / 2][piece % 2 * 2 + half] = inside ? *reinterpret_cast<const u32 *>(row + 16 * piece + 4 * t) : 0;
        }
    }
}

// The first step of a dot product sets s.
DEVICE void multiply_scores(Dot (&s)[4], const u32 (&a)[4], const u32 (&b)[2], bool first) {
#if KEY_BITS == 16
    if (first) s[0] = s[1] = s[2] = s[3] = 0.0f;
#if FLOAT == DTYPE_BF16
    mma_bf16(s, a, b);
#else
    mma_f16(s, a, b);
#endif
#elif KEY_BITS == 4 && ARCH < 900
    if (first) {
        mma_u4_from(s, a, b, DOT_ZERO);
    } else {
        mma_u4(s, a, b);
    }
#else
    if (first) {
        mma_u8_from(s, a, b, DOT_ZERO);
    } else {
        mma_u8(s, a, b);
    }
#endif
}

// Fragments of queries stay in registers, or in shared memory where sums need those: a Quad a lane.
constexpr bool QUERIES_SHARED = HEAD_DIM == 256 && KEY_BITS == 8 && VALUE_BITS == 8;
using Queries = u32[TILES][STEPS][4];
constexpr u32 QUERY_BYTES = QUERIES_SHARED ? THREADS * TILES * STEPS * sizeof(Quad) : 0;

DEVICE Quad query_fragment(const Queries &q, const Quad *stored, u32 m, u32 step) {
    if constexpr (QUERIES_SHARED) return stored[(m * STEPS + step) * THREADS];
    return {q[m][step][0], q[m][step][1], q[m][step][2], q[m][step][3]};
}

// Whether a load brings two pieces of 16 keys rather than one of 32, which saves moves. Spread codes want one, and numbers of 256
// channels leave no register for the second address, but on Hopper.
constexpr bool PAIRED = !SPREAD && (CODES || HEAD_DIM < 256 || ARCH == 900);

// The pieces of a step of 32 keys, as the fragments of 8 keys each.
DEVICE void load_keys(u32 (&b)[4][2], const u8 *keys, u32 step) {
    const u32 lane = lane_index();
    if (!PAIRED || 2 * step + 1 == KEY_PIECES) {
        const u8 *row = keys + lane * KEY_STRIDE + (SPREAD ? 16 : 32) * step;
        u32 first[4], second[4] = {0, 0, 0, 0};
        load_matrix_x4(first, row);
        if (!SPREAD && 2 * step + 1 < KEY_PIECES) load_matrix_x4(second, row + 16);
#pragma unroll
        for (u32 n = 0; n < 4; n++) {
            b[n][0] = SPREAD ? first[n] & 0x0f0f0f0f : first[n];
            b[n][1] = SPREAD ? first[n] >> 4 & 0x0f0f0f0f : second[n];
        }
        return;
    }
    // Two pieces of 16 keys at a time: the words of a fragment come in neighbouring registers.
    const u8 *row = keys + (lane % 8 + lane / 16 * 8) * KEY_STRIDE + lane / 8 % 2 * 16 + 32 * step;
#pragma unroll
    for (u32 j = 0; j < 2; j++) {
        u32 words[4];
        load_matrix_x4(words, row + 16 * j * KEY_STRIDE);
        b[2 * j][0] = words[0], b[2 * j][1] = words[1];
        b[2 * j + 1][0] = words[2], b[2 * j + 1][1] = words[3];
    }
}

// q k of the warp's rows and SPAN keys.
DEVICE void dot_products(Dot (&s)[TILES][SPAN / 8][4], const Queries &q, const Quad *stored, const u8 *keys) {
#pragma unroll
    for (u32 half = 0; half < HALVES; half++) {
#pragma unroll
        for (u32 step = 0; step < STEPS; step++) {
            u32 a[TILES][4], b[4][2];
#pragma unroll
            for (u32 m = 0; m < TILES; m++) {
                const Quad fragment = query_fragment(q, stored, m, step);
                a[m][0] = fragment.x, a[m][1] = fragment.y, a[m][2] = fragment.z, a[m][3] = fragment.w;
            }
            load_keys(b, keys + half * 32 * KEY_STRIDE, step);
#pragma unroll
            for (u32 n = 0; n < 4; n++) {
#pragma unroll
                for (u32 m = 0; m < TILES; m++) multiply_scores(s[m][4 * half + n], a[m], b[n], step == 0);
            }
        }
    }
}

DEVICE void multiply_values(f32 (&o)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#if VALUE_BITS == 16 && FLOAT == DTYPE_BF16
    mma_bf16(o, a, b);
#else
    mma_f16(o, a, b);
#endif
}

DEVICE u32 pack_weights(f32 low, f32 high) {
#if VALUE_BITS == 16 && FLOAT == DTYPE_BF16
    return pack_bf16(low, high);
#else
    return pack_f16(low, high);
#endif
}

// Fragment i of a piece of values, as halves. Odd ones of 4 bits are 16 times too large: see value_unit.
DEVICE u32 value_halves(u32 word, u32 i) {
    if constexpr (VALUE_BITS == 4) return (i < 2 ? word : word >> 8) & (i % 2 == 0 ? 0x000f000f : 0x00f000f0);
    if constexpr (VALUE_BITS == 8) return (i == 0 ? word : word >> 8) & 0x00ff00ff;
    return word;
}
constexpr f32 value_unit(u32 i) { return VALUE_BITS == 4 && i % 2 == 1 ? 0.0625f : 1.0f; }

// o += p v over SPAN tokens; `values` is the lane's row of the first 32.
DEVICE void weigh_values(f32 (&o)[TILES][FRAGMENTS][4], const u32 (&p)[TILES][SPAN / 16][4], const u8 *values) {
#pragma unroll
    for (u32 half = 0; half < HALVES; half++) {
        const u8 *row = values + half * 32 * VALUE_STRIDE;
#pragma unroll
        for (u32 piece = 0; piece < VALUE_PIECES; piece++) {
            u32 words[4];
            load_matrix_x4_transposed(words, row + 16 * piece);
#pragma unroll
            for (u32 j = 0; j < 2; j++) {
#pragma unroll
                for (u32 i = 0; i < PER_PIECE; i++) {
                    const u32 b[2] = {value_halves(words[2 * j], i), value_halves(words[2 * j + 1], i)};
#pragma unroll
                    for (u32 m = 0; m < TILES; m++) multiply_values(o[m][PER_PIECE * piece + i], p[m][2 * half + j], b);
                }
            }
        }
    }
}

// Keys of a tile from global to shared memory, by all threads; rows from `count` on become zeros where ZEROS.
template <u32 ROW, u32 STRIDE, bool ZEROS>
DEVICE void copy_tile(u8 *to, const u8 *from, u32 count) {
    constexpr u32 UNIT = ROW % 16 == 0 ? 16 : 8, UNITS = ROW / UNIT;
    // A thread keeps its column and steps by constants.
    constexpr u32 ACROSS = UNITS % 8 == 0 ? 8 : UNITS > 2 ? 4 : 2, DOWN = THREADS / ACROSS;
    const u32 row = thread_index() / ACROSS, unit = thread_index() % ACROSS;
    to += row * STRIDE + unit * UNIT;
    from += row * ROW + unit * UNIT;
#pragma unroll
    for (u32 down = 0; down < KEYS; down += DOWN) {
#pragma unroll
        for (u32 across = 0; across < UNITS; across += ACROSS) {
            if (UNITS % ACROSS != 0 && across + unit >= UNITS) continue;
            u8 *at = to + down * STRIDE + across * UNIT;
            const u8 *source = from + down * ROW + across * UNIT;
            if constexpr (UNIT == 8) {
                copy_async_8(at, source);
            } else if constexpr (ZEROS) {
                copy_async_16_zero(at, source, down + row < count ? 16 : 0);
            } else {
                copy_async_16(at, source);
            }
        }
    }
}
