// The step of attention_decode.cu: keys and values of the paged cache are copied into shared memory as they lie, unpacked into
// matrix fragments from there, and taken into the softmax of a warp. HEAD_DIM, KEY_BITS, VALUE_BITS, FLOAT and TILES say what
// they are.
#pragma once

#include "attention.cuh"

constexpr bool CODES = KEY_BITS < 16;
static_assert(CODES == (VALUE_BITS < 16), "keys and values are both codes or both floating point");

constexpr u32 ROWS = 8;
constexpr u32 KEYS = 16 * TILES;  // of a warp's step
constexpr u32 KEY_BYTES = HEAD_DIM * KEY_BITS / 8, VALUE_BYTES = HEAD_DIM * VALUE_BITS / 8;
constexpr u32 PARAM_BYTES = CODES ? sizeof(KvParams) : 0;
constexpr u32 STAGE = KEYS * (KEY_BYTES + VALUE_BYTES + PARAM_BYTES);
constexpr u32 STEPS = divide_up(HEAD_DIM, CODES ? 32 : 16);  // of the first product
constexpr u32 CHANNEL_TILES = HEAD_DIM / 16;

// Where a row's 16-byte pieces lie in shared memory: moved by an exclusive or, so that the rows that a warp reads at a time
// fall into different banks. Rows of 40, 48, 80, 96, 160 or 192 bytes do so by themselves or nearly.
template <u32 BYTES, u32 WIDE>
DEVICE u32 moved(u32 row) {
    constexpr u32 PIECES = BYTES / 16;
    if (BYTES % 16 != 0 || (BYTES & (BYTES - 1)) != 0 || PIECES <= WIDE) return 0;
    const u32 at = BYTES < 128 ? row / (128 / (BYTES < 128 ? BYTES : 128)) : row;
    return at % smaller(PIECES / WIDE, 8 / WIDE) * WIDE * 16;
}
// Pieces that a warp's lanes read side by side: keys of 4 bits are read by words, four lanes a row.
constexpr u32 KEY_WIDE = KEY_BITS == 4 ? 1 : 2, VALUE_WIDE = 2;

// Copies KEYS rows.
template <u32 BYTES, u32 WIDE>
DEVICE void copy_rows(u8 *shared, const u8 *global) {
    const u8 *from = global + 16 * lane_index();
#pragma unroll
    for (u32 i = 0; i < divide_up(KEYS * BYTES, 512u); i++) {
        const u32 at = 512 * i + 16 * lane_index();
        if (KEYS * BYTES % 512 != 0 && at >= KEYS * BYTES) break;
        const u32 row = at / BYTES;
        copy_async_16(shared + row * BYTES + (at % BYTES ^ moved<BYTES, WIDE>(row)), from + 512 * i);
    }
}

// As above, but only rows `first` up to `end`; the others become zeros and are not read.
template <u32 BYTES, u32 WIDE>
DEVICE void copy_some_rows(u8 *shared, const u8 *global, u32 first, u32 end) {
#pragma unroll 1
    for (u32 at = lane_index() * 16; at < KEYS * BYTES; at += 512) {
        const u32 row = at / BYTES;
        const bool wanted = (at + 15) / BYTES >= first && row < end;
        copy_async_16_zero(shared + row * BYTES + (at % BYTES ^ moved<BYTES, WIDE>(row)), global + at, wanted ? 16 : 0);
    }
}

DEVICE u32 word_at(const u8 *row, u32 byte, u32 moved) { return *reinterpret_cast<const u32 *>(row + (byte ^ moved)); }

// The queries as B fragments, in the order in which `key_step` reads the keys.
DEVICE void load_queries(u32 (&q)[STEPS][2], const u8 *row, bool there) {
    const u32 t = lane_index() % 4;
#pragma unroll
    for (u32 s = 0; s < STEPS; s++) {
        // Eight channels of a step of 32, or four of a step of 16.
        const u32 byte = CODES ? 32 * s + 8 * t : 2 * (16 * s + 4 * t);
        Pair words = {0, 0};
        if (there && byte < HEAD_DIM * (CODES ? 1 : 2)) words = load_8(row + byte);
        if (KEY_BITS == 4) {
            // Nibbles 0, 2, 4, 6 of a word are channels 0, 4, 1, 5; the others channels 2, 6, 3, 7.
            q[s][0] = permute_bytes(words.x, words.y, 0x5140);
            q[s][1] = permute_bytes(words.x, words.y, 0x7362);
        } else {
            q[s][0] = words.x;
            q[s][1] = words.y;
        }
    }
}

// Two words of a key, those that meet q[s]. Behind the last channel queries are 0, so that any key will do.
DEVICE void key_step(u32 &a, u32 &b, const u8 *row, u32 s, u32 moved) {
    const u32 t = lane_index() % 4;
    if (KEY_BITS == 4) {
        const u32 byte = smaller(16 * s + 4 * t, KEY_BYTES - 4);
        const u32 word = word_at(row, byte, moved);
        a = word & 0x0f0f0f0f;
        b = word >> 4 & 0x0f0f0f0f;
    } else {
        const u32 byte = smaller(32 * s + 8 * t, KEY_BYTES - 8);
        const Pair *words = reinterpret_cast<const Pair *>(row + (byte ^ moved));
        a = words->x;
        b = words->y;
    }
}

DEVICE void multiply(i32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_u8(d, a, b); }
DEVICE void multiply(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    if (FLOAT == DTYPE_BF16) {
        mma_bf16(d, a, b);
    } else {
        mma_f16(d, a, b);
    }
}
DEVICE u32 pack_weights(f32 low, f32 high) { return FLOAT == DTYPE_BF16 ? pack_bf16(low, high) : pack_f16(low, high); }

// Zero points of two keys, as halves of a word, ready to be taken off.
struct ZeroPoints {
    u32 plain;    // 1024 + z
    u32 shifted;  // -(64 + z)
};
DEVICE ZeroPoints zero_points(u32 low, u32 high) {
    const u32 both = (low & 0xff) | (high & 0xff) << 16;
    return {both | 0x64006400, (both << 4 & 0x0ff00ff0) + 0xd400d400};
}

// Channel pair i of the words of two keys: code minus zero point, exact in half precision, of both keys; first the even
// channel, then the odd one.
DEVICE void value_pair(u32 (&out)[2], u32 first, u32 second, u32 i, const ZeroPoints &zero) {
    if (VALUE_BITS == 16) {
        out[0] = permute_bytes(first, second, 0x5410);
        out[1] = permute_bytes(first, second, 0x7632);
        return;
    }
    if (VALUE_BITS == 8) {
        // Bytes below 0x64 are the half 1024 + code.
        const u32 both = permute_bytes(first, second, i % 2 == 0 ? 0x5140 : 0x7362);
        out[0] = sub_f16x2(permute_bytes(both, 0x64646464, 0x4140), zero.plain);
        out[1] = sub_f16x2(permute_bytes(both, 0x64646464, 0x4342), zero.plain);
        return;
    }
#pragma unroll
    for (u32 h = 0; h < 2; h++) {
        u32 x = permute_bytes(first, second, h == 0 ? 0x5410 : 0x7632);
        if (i >= 2) x >>= 8;
        if (i % 2 == 0) {
            out[h] = sub_f16x2((x & 0x000f000f) | 0x64006400, zero.plain);
        } else {
            // 1024 + 16 code, a sixteenth of it, less 64 + z.
            out[h] = fma_f16x2((x & 0x00f000f0) | 0x64006400, 0x2c002c00, zero.shifted);
        }
    }
}

// How the channels of O^T lie: tile `c` has, in row g and in row 8 + g, channels place.first and the next one.
constexpr u32 PER_WORD = 32 / VALUE_BITS, PAIRS = PER_WORD / 2;
constexpr u32 UNITS = CHANNEL_TILES / PAIRS;  // of eight words, one a lane group
constexpr u32 REST = CHANNEL_TILES % PAIRS;   // tiles whose words several lane groups share
DEVICE u32 channel_of(u32 tile, u32 g) {
    if (tile < UNITS * PAIRS) return PER_WORD * (8 * (tile / PAIRS) + g) + 2 * (tile % PAIRS);
    return PER_WORD * 8 * UNITS + 2 * (g * REST + tile - UNITS * PAIRS);
}

// A maximum is raised only by more than this, so that most steps rescale nothing; weights stay below 2^9.
constexpr f32 SLACK = 8.0f;
constexpr f32 LOWEST = -1e30f;

// What a warp knows of its rows 2t and 2t + 1.
struct State {
    f32 maximum[2], sum[2];
    f32 o[CHANNEL_TILES][4];
};

struct RowQuery {
    f32 scale[2];
    i32 zero_point[2], rest[2];  // rest: sum - D zero point
    u32 first[2], count[2];      // keys that it sees
    u32 token[2];                // among the tokens of the tile
    // Of all rows: how many tokens they are, and the keys that all of them see.
    u32 tokens, common_first, common_end, window;
};

// The step of one warp over KEYS keys, of which the first is number `key` of its sequence.
DEVICE void step(State &state, const u8 *stage, u32 key, const u32 (&q)[STEPS][2], const RowQuery &query) {
    const u32 g = lane_index() / 4, t = lane_index() % 4;
    const u8 *keys = stage, *values = stage + KEYS * KEY_BYTES, *params = values + KEYS * VALUE_BYTES;
    // Row g of a tile is this key, so that lanes of neighbouring t read neighbouring rows of the values.
    const u32 mine = g / 2 + g % 2 * 4;

    f32 score[TILES][4];
    f32 value_scale[TILES][2];
    f32 level[TILES][2];
    bool raise = false;
#pragma unroll
    for (u32 m = 0; m < TILES; m++) {
        const u32 low = 16 * m + mine, high = low + 8;
        const u32 low_moved = moved<KEY_BYTES, KEY_WIDE>(low), high_moved = moved<KEY_BYTES, KEY_WIDE>(high);
        if constexpr (CODES) {
            i32 acc[4] = {};
#pragma unroll
            for (u32 s = 0; s < STEPS; s++) {
                u32 a[4];
                key_step(a[0], a[2], keys + low * KEY_BYTES, s, low_moved);
                key_step(a[1], a[3], keys + high * KEY_BYTES, s, high_moved);
                multiply(acc, a, q[s]);
            }
#pragma unroll
            for (u32 h = 0; h < 2; h++) {
                const Quad p = *reinterpret_cast<const Quad *>(params + (h == 0 ? low : high) * 16);
                const f32 scale = f32_of(p.x);
                const i32 zero = static_cast<i32>(p.y & 0xffff), sum = static_cast<i32>(p.y >> 16);
#pragma unroll
                for (u32 r = 0; r < 2; r++) {
                    // sum (q - zq)(k - zk), exact: acc - zk (sum q - D zq) - zq sum k.
                    const i32 exact = acc[2 * h + r] - zero * query.rest[r] - query.zero_point[r] * sum;
                    score[m][2 * h + r] = static_cast<f32>(exact) * (query.scale[r] * scale);
                }
                value_scale[m][h] = f32_of(p.z);
                // The exponent of the value's scale. Maxima are those of score plus exponent, so that a weight times the
                // scale is below 2^(SLACK + 1) whatever the scales, and the largest of a row is at least 1.
                level[m][h] = static_cast<f32>(static_cast<i32>(p.z >> 23 & 0xff) - 127);
            }
        } else {
            f32 acc[4] = {};
#pragma unroll
            for (u32 s = 0; s < STEPS; s++) {
                u32 a[4];
                key_step(a[0], a[2], keys + low * KEY_BYTES, s, low_moved);
                key_step(a[1], a[3], keys + high * KEY_BYTES, s, high_moved);
                multiply(acc, a, q[s]);
            }
#pragma unroll
            for (u32 i = 0; i < 4; i++) score[m][i] = acc[i] * query.scale[i % 2];
        }
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 at = key + (i < 2 ? low : high);
            if (at - query.first[i % 2] >= query.count[i % 2]) score[m][i] = -f32_of(0x7f800000);
            const f32 height = CODES ? score[m][i] + level[m][i / 2] : score[m][i];
            raise = raise || height > state.maximum[i % 2] + SLACK;
        }
    }

    if (ballot(raise) != 0) {
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
            f32 top = state.maximum[r];
#pragma unroll
            for (u32 m = 0; m < TILES; m++) {
                top = maximum(top, CODES ? score[m][r] + level[m][0] : score[m][r]);
                top = maximum(top, CODES ? score[m][2 + r] + level[m][1] : score[m][2 + r]);
            }
#pragma unroll
            for (u32 mask = 4; mask < 32; mask *= 2) top = maximum(top, shuffle_xor(top, mask));
            const f32 factor = exponential_2(state.maximum[r] - top);
            state.maximum[r] = top;
            state.sum[r] *= factor;
#pragma unroll
            for (u32 c = 0; c < CHANNEL_TILES; c++) {
                state.o[c][r] *= factor;
                state.o[c][2 + r] *= factor;
            }
        }
    }

#pragma unroll
    for (u32 m = 0; m < TILES; m++) {
        f32 weight[4];
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const f32 p = exponential_2(score[m][i] - state.maximum[i % 2]);
            state.sum[i % 2] += p;
            weight[i] = p;
            if constexpr (CODES) {
                const u32 at = key + 16 * m + mine + 8 * (i / 2);
                // A key that is not seen may have any scale.
                weight[i] = at - query.first[i % 2] < query.count[i % 2] ? p * value_scale[m][i / 2] : 0.0f;
            }
        }
        // Keys 2t and 2t + 1 of the fragment are rows t and t + 4, and eight more.
        ZeroPoints zeros[2] = {};
        if constexpr (CODES) {
            const u32 *zero = reinterpret_cast<const u32 *>(params + (16 * m + t) * 16) + 3;
            zeros[0] = zero_points(zero[0], zero[16]);
            zeros[1] = zero_points(zero[32], zero[48]);
        }
        const u8 *row = values + (16 * m + t) * VALUE_BYTES;
        u32 shift[4];
#pragma unroll
        for (u32 j = 0; j < 4; j++) shift[j] = moved<VALUE_BYTES, VALUE_WIDE>(16 * m + t + 4 * j);
        // Codes less their zero points are numbers, whatever a key that is not seen holds. Floating point may be NaN, and 0
        // times NaN is NaN: where tokens see different keys, each has a product of its own, and what it does not see is 0.
        const bool apart = !CODES && query.tokens > 1 && (key < query.common_first || key + KEYS > query.common_end);
        const u32 passes = apart ? query.tokens : 1;
        const u32 b[2] = {transpose_matrix(pack_weights(weight[0], weight[1])),
                          transpose_matrix(pack_weights(weight[2], weight[3]))};
#pragma unroll 1
        for (u32 pass = 0; pass < passes; pass++) {
            u32 seen[4] = {~0u, ~0u, ~0u, ~0u};
            const u32 behind = query.common_end + pass, count = smaller(behind, query.window);
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                if (apart) seen[j] = key + 16 * m + t + 4 * j - (behind - count) < count ? ~0u : 0;
            }
#pragma unroll
            for (u32 unit = 0; unit < UNITS + (REST > 0 ? 1 : 0); unit++) {
                const bool rest = unit == UNITS;
                const u32 word = 8 * unit + (rest ? g * REST / PAIRS : g);
                u32 w[4];
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    w[j] = word_at(row + 4 * j * VALUE_BYTES, 4 * word, shift[j]);
                    if (!CODES) w[j] &= seen[j];
                    // The pair that this lane group starts with comes to the front.
                    if (rest && VALUE_BITS == 4) w[j] >>= 4 * (g * REST % PAIRS);
                    if (rest && VALUE_BITS == 8) w[j] >>= 16 * (g * REST % PAIRS);
                }
#pragma unroll
                for (u32 i = 0; i < (rest ? REST : PAIRS); i++) {
                    u32 near[2], far[2];
                    value_pair(near, w[0], w[1], i, zeros[0]);
                    value_pair(far, w[2], w[3], i, zeros[1]);
                    const u32 a[4] = {near[0], near[1], far[0], far[1]};
                    f32(&o)[4] = state.o[unit * PAIRS + i];
                    if (!apart) {
                        multiply(o, a, b);
                        continue;
                    }
                    f32 own[4] = {};
                    multiply(own, a, b);
#pragma unroll
                    for (u32 r = 0; r < 4; r++) o[r] = query.token[r % 2] == pass ? o[r] + own[r] : o[r];
                }
            }
        }
    }
}
