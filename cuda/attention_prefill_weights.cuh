// The online softmax of attention_prefill.cu: dot products to exponents, exponents to weights.
#pragma once

#include "attention_prefill.cuh"

constexpr f32 LEAST = -3.40282347e+38f;

// What a lane knows of its rows, g and 8 + g of each tile.
struct Rows {
    f32 most[TILES][2];   // largest exponent so far
    f32 total[TILES][2];  // this lane's part of sum (p / sv)
    f32 scale[TILES][2];  // sq log2 e / sqrt(D)
    Whole sum[TILES][2];  // sum(q) - D zq
    Whole zero[TILES][2];
};

// What dot products and weights want of the thread's key.
DEVICE void put_key(KeyPair *pairs, const KvParams &key) {
    KeyPair &pair = pairs[thread_index() / 2];
    const u32 i = thread_index() % 2;
    pair.scale[i] = key.key_scale;
    pair.minus_zero[i] = -static_cast<Whole>(static_cast<i32>(key.key_zero_sum & 0xffff));
    pair.minus_sum[i] = -static_cast<Whole>(static_cast<i32>(key.key_zero_sum >> 16));
    pair.log_value_scale[i] = logarithm_2(key.value_scale);
    pair.inverse_value_scale[i] = reciprocal(key.value_scale);
    // A row that was never written may hold anything, and the weight 0 must make 0 of it.
    pair.value_zero[i] = static_cast<u16>(key.value_zero_sum & 0xff);
}

// Dot products to exponents, without the row's largest: log2 of the weights. Floating point keeps the dot product.
DEVICE void exponents(f32 (&y)[TILES][SPAN / 8][4], const Dot (&dots)[TILES][SPAN / 8][4], const Rows &rows, const KeyPair *pairs) {
#pragma unroll
    for (u32 n = 0; n < SPAN / 8; n++) {
#if KEY_BITS != 16
        const KeyPair pair = pairs[4 * n + lane_index() % 4];
#endif
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
#pragma unroll
            for (u32 m = 0; m < TILES; m++) {
                const Dot dot = dots[m][n][i];
#if KEY_BITS == 16
                y[m][n][i] = dot;
#else
                const f32 scale = pair.scale[i % 2];
#if KEY_BITS == 4
                // 2^23 goes where the scale comes: scale x - 2^23 scale is rounded once.
                const f32 a = fused(pair.minus_zero[i % 2], rows.sum[m][i / 2], f32_of(static_cast<u32>(dot)));
                const f32 score = fused(fused(pair.minus_sum[i % 2], rows.zero[m][i / 2], a), scale, -8388608.0f * scale);
#else
                const i32 whole = dot + pair.minus_zero[i % 2] * rows.sum[m][i / 2] + pair.minus_sum[i % 2] * rows.zero[m][i / 2];
                const f32 score = static_cast<f32>(whole) * scale;
#endif
                y[m][n][i] = fused(score, rows.scale[m][i / 2], pair.log_value_scale[i % 2]);
#endif
            }
        }
    }
}

// Exponents to weights as the fragments of the next product; MASKED where keys may be unseen.
template <bool MASKED>
DEVICE void weights(u32 (&p)[TILES][SPAN / 16][4], const f32 (&y)[TILES][SPAN / 8][4], Rows &rows, const KeyPair *pairs) {
    f32 offset[TILES][2];
#pragma unroll
    for (u32 m = 0; m < TILES; m++) {
        for (u32 h = 0; h < 2; h++) offset[m][h] = CODES ? -rows.most[m][h] : -rows.most[m][h] * rows.scale[m][h];
    }
#pragma unroll
    for (u32 n = 0; n < SPAN / 8; n++) {
#if KEY_BITS != 16
        const KeyPair &pair = pairs[4 * n + lane_index() % 4];
        const f32 inverse[2] = {pair.inverse_value_scale[0], pair.inverse_value_scale[1]};
#endif
#pragma unroll
        for (u32 m = 0; m < TILES; m++) {
            f32 w[4];
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
#if KEY_BITS == 16
                w[i] = exponential_2_flush(fused(y[m][n][i], rows.scale[m][i / 2], offset[m][i / 2]));
                rows.total[m][i / 2] += w[i];
#else
                w[i] = exponential_2_flush(y[m][n][i] + offset[m][i / 2]);
                // An unseen token's scale may be NaN.
                const f32 share = MASKED && w[i] == 0.0f ? 0.0f : inverse[i % 2];
                rows.total[m][i / 2] = fused(w[i], share, rows.total[m][i / 2]);
#endif
            }
            p[m][n / 2][n % 2 * 2] = pack_weights(w[0], w[1]);
            p[m][n / 2][n % 2 * 2 + 1] = pack_weights(w[2], w[3]);
        }
    }
}

// What a warp has summed: weighted codes and weighted zero points, or weighted values.
struct Sums {
    f32 value[TILES][FRAGMENTS][4];
    f32 zero[TILES][4];
};

// The rows' largest exponents with those of y; sums shrink where they grew.
DEVICE void grow(Rows &rows, Sums &sums, const f32 (&y)[TILES][SPAN / 8][4]) {
    f32 shrink[TILES][2];
    bool grown = false;
#pragma unroll
    for (u32 m = 0; m < TILES; m++) {
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            f32 most = rows.most[m][h];
#pragma unroll
            for (u32 n = 0; n < SPAN / 8; n++) most = maximum(maximum(most, y[m][n][2 * h]), y[m][n][2 * h + 1]);
            most = maximum(most, shuffle_xor(most, 1));
            most = maximum(most, shuffle_xor(most, 2));
            const f32 less = rows.most[m][h] - most;
            shrink[m][h] = exponential_2_flush(CODES ? less : less * rows.scale[m][h]);
            grown |= less != 0.0f;
            rows.most[m][h] = most;
        }
    }
    // The largest of a row is seldom among later keys.
    if (ballot(grown) == 0) return;
#pragma unroll
    for (u32 m = 0; m < TILES; m++) {
        for (u32 h = 0; h < 2; h++) rows.total[m][h] *= shrink[m][h];
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            if (CODES) sums.zero[m][i] *= shrink[m][i / 2];
#pragma unroll
            for (u32 f = 0; f < FRAGMENTS; f++) sums.value[m][f][i] *= shrink[m][i / 2];
        }
    }
}

// A row sees `window` keys up to the one at its position; the others weigh nothing.
DEVICE void mask(f32 (&y)[TILES][SPAN / 8][4], const u32 *positions, u32 first_key, u32 window) {
#pragma unroll
    for (u32 m = 0; m < TILES; m++) {
        const u32 position[2] = {positions[16 * m], positions[16 * m + 8]};
#pragma unroll
        for (u32 n = 0; n < SPAN / 8; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const u32 key = first_key + 8 * n + 2 * (lane_index() % 4) + i % 2;
                // Wraps to something large where the key is ahead.
                if (position[i / 2] - key >= window) y[m][n][i] = -f32_of(0x7f800000);
            }
        }
    }
}
