// Attention of a few new tokens over the paged cache, which it reads once: flash decoding.
//
// A block takes a part of the pages of one sequence and key head, and up to eight rows: the query heads of the group at the new
// tokens. Keys lie on the m16 side of both products, rows on n8, so that eight rows waste nothing:
//
//   S^T [16 keys, 8 rows] = K Q^T          integers, exact; K from shared memory as it lies there, nibbles shifted out
//   O^T [16 channels, 8 rows] += V^T P^T   half precision; P^T is S^T's fragment, turned by movmatrix
//
// Sums over channels may run in any order as long as K and Q agree, and channels of O^T may stand in any order: both are chosen so
// that a lane takes whole words of the cache. Each warp has keys, copies in flight and softmax of its own until the end; no barrier
// stands in the loop. The last block of a sequence and head merges what all have left in the workspace.
#include "attention.cuh"
#include "rows.cuh"

using Float = DtypeOf<FLOAT>::type;

constexpr bool CODES = KEY_BITS < 16;
static_assert(CODES == (VALUE_BITS < 16), "keys and values are both codes or both floating point");

constexpr u32 ROWS = 8;
constexpr u32 KEYS = 16 * TILES;  // of a warp's step
constexpr u32 KEY_BYTES = HEAD_DIM * KEY_BITS / 8, VALUE_BYTES = HEAD_DIM * VALUE_BITS / 8;
constexpr u32 PARAM_BYTES = CODES ? sizeof(KvParams) : 0;
constexpr u32 STAGE = KEYS * (KEY_BYTES + VALUE_BYTES + PARAM_BYTES);
constexpr u32 STEPS = divide_up(HEAD_DIM, CODES ? 32 : 16);  // of the first product
constexpr u32 CHANNEL_TILES = HEAD_DIM / 16;
constexpr u32 PART_BYTES = ROWS * (HEAD_DIM + 2) * 4;  // [8, D] of O, then maximum and sum of each row
constexpr u32 SPLITS_MAX = 128;
// A maximum is raised only by more than this, so that most steps rescale nothing; weights stay below 2^9.
constexpr f32 SLACK = 8.0f;
constexpr f32 LOWEST = -1e30f;

struct DecodeArgs {
    AttentionArgs common;
    u32 row_tiles;
    u32 parts;  // where parts begin in the workspace, in bytes
};

// Where a row's 16-byte pieces lie in shared memory: moved by an exclusive or, so that the rows that a warp reads at a time fall
// into different banks. Rows of 40, 48, 80, 96, 160 or 192 bytes do so by themselves or nearly.
template <u32 BYTES, u32 WIDE>
DEVICE u32 moved(u32 row) {
    constexpr u32 PIECES = BYTES / 16;
    if (BYTES % 16 != 0 || (BYTES & (BYTES - 1)) != 0 || PIECES <= WIDE) return 0;
    const u32 at = BYTES < 128 ? row / (128 / (BYTES < 128 ? BYTES : 128)) : row;
    return at % smaller(PIECES / WIDE, 8 / WIDE) * WIDE * 16;
}
// Pieces that a warp's lanes read side by side: keys of 4 bits are read by words, four lanes a row.
constexpr u32 KEY_WIDE = KEY_BITS == 4 ? 1 : 2, VALUE_WIDE = 2;

// Copies KEYS rows, those from `first` up to `end` (the others become zeros and are not read).
template <u32 BYTES, u32 WIDE>
DEVICE void copy_rows(u8 *shared, const u8 *global, u32 first, u32 end) {
#pragma unroll
    for (u32 i = 0; i < divide_up(KEYS * BYTES, 512u); i++) {
        const u32 at = (i * 32 + lane_index()) * 16;
        if (KEYS * BYTES % 512 != 0 && at >= KEYS * BYTES) break;
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

// Channel pair i of the words of two keys: code minus zero point, exact in half precision, of both keys; first the even channel,
// then the odd one.
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

// What a warp knows of its rows 2t and 2t + 1.
struct State {
    f32 maximum[2], sum[2];
    f32 o[CHANNEL_TILES][4];
};

struct RowQuery {
    f32 scale[2];
    i32 zero_point[2], rest[2];  // rest: sum - D zero point
    u32 first[2], count[2];      // keys that it sees
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
                // The exponent of the value's scale: maxima are those of the weighted values, so that a weight times the scale is
                // below 2^(SLACK + 1) whatever the scales, and the largest of a row is no smaller than 1/2.
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
        const u32 b[2] = {transpose_matrix(pack_weights(weight[0], weight[1])),
                          transpose_matrix(pack_weights(weight[2], weight[3]))};
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
#pragma unroll
        for (u32 unit = 0; unit < UNITS + (REST > 0 ? 1 : 0); unit++) {
            const bool rest = unit == UNITS;
            const u32 word = 8 * unit + (rest ? g * REST / PAIRS : g);
            u32 w[4];
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                w[j] = word_at(row + 4 * j * VALUE_BYTES, 4 * word, shift[j]);
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
                multiply(state.o[unit * PAIRS + i], a, b);
            }
        }
    }
}

// One number of the output.
DEVICE void store_out(const AttentionArgs &args, u64 at, Quad x) {
    if (args.out_type == DTYPE_F32) {
        store_16(static_cast<f32 *>(args.out) + at, x);
    } else if (args.out_type == DTYPE_F16) {
        store_8(static_cast<f16 *>(args.out) + at, {pack_f16(f32_of(x.x), f32_of(x.y)), pack_f16(f32_of(x.z), f32_of(x.w))});
    } else {
        store_8(static_cast<bf16 *>(args.out) + at, {pack_bf16(f32_of(x.x), f32_of(x.y)), pack_bf16(f32_of(x.z), f32_of(x.w))});
    }
}

KERNEL(attention_decode, DecodeArgs, 32 * WARPS, HEAD_DIM > 128 ? 12 / WARPS : 16 / WARPS) {
    const AttentionArgs &common = args.common;
    const u32 warp = warp_index(), lane = lane_index(), g = lane / 4, t = lane % 4;
    const u32 kv_head = block_y() / args.row_tiles, row_tile = block_y() % args.row_tiles;
    const u32 group = common.heads / common.kv_heads;
    const Quad raw = load_16_constant(common.sequences + block_z());
    const Sequence sequence = {raw.x, raw.y, raw.z, raw.w};
    const u32 rows = sequence.tokens * group;
    if (row_tile * ROWS >= rows) return;
    const u32 rows_here = smaller(rows - row_tile * ROWS, ROWS);

    // Keys that any row of the tile sees, and this block's part of their pages.
    const u32 first_token = row_tile * ROWS / group, last_token = (row_tile * ROWS + rows_here - 1) / group;
    const u32 end = sequence.position + last_token + 1;
    const u32 behind = sequence.position + first_token + 1;
    const u32 begin = behind > common.window ? behind - common.window : 0;
    const u32 first_page = begin / PAGE, pages = divide_up(end, PAGE) - first_page;
    // Two pages at least: below that, merging costs more than the reads gain.
    const u32 pages_each = larger(divide_up(pages, grid_x()), 2u);
    const u32 splits = divide_up(pages, pages_each), split = block_x();
    if (split >= splits) return;
    const u32 part_page = first_page + split * pages_each;
    const u32 part_pages = smaller(pages_each, pages - split * pages_each);

    // The queries: row g of the fragments, rows 2t and 2t + 1 of the scores.
    u32 q[STEPS][2];
    {
        const u32 row = row_tile * ROWS + g;
        const u64 at = static_cast<u64>(sequence.first + row / group) * common.heads + kv_head * group + row % group;
        load_queries(q, common.query_codes + at * HEAD_DIM * (CODES ? 1 : 2), g < rows_here);
    }
    RowQuery query;
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        const u32 in_tile = 2 * t + r, row = row_tile * ROWS + in_tile;
        query.scale[r] = common.score_scale;
        query.zero_point[r] = query.rest[r] = 0;
        query.first[r] = query.count[r] = 0;
        if (in_tile < rows_here) {
            const u32 seen = sequence.position + row / group + 1;
            query.count[r] = smaller(seen, common.window);
            query.first[r] = seen - query.count[r];
            if (CODES) {
                const u64 at = static_cast<u64>(sequence.first + row / group) * common.heads + kv_head * group + row % group;
                const Quad p = load_16_constant(common.query_params + 16 * at);
                query.scale[r] *= f32_of(p.x);
                query.zero_point[r] = static_cast<i32>(p.y);
                query.rest[r] = static_cast<i32>(p.z) - static_cast<i32>(HEAD_DIM) * static_cast<i32>(p.y);
            }
        }
    }

    // Steps of the part: step i of the block is keys i * KEYS from the part's first; warps take them in turn.
    u8 *ring = shared_memory() + warp * STAGES * STAGE;
    constexpr u32 STEPS_OF_PAGE = PAGE / KEYS;
    const u32 steps = part_pages * STEPS_OF_PAGE;
    // Page numbers of 32 pages, one a lane, so that no copy waits for the table.
    u32 chunk = 0, page_of_lane = lane < part_pages ? common.page_table[sequence.table + part_page + lane] : 0;
    const auto copy = [&](u32 i) {
        if (i < steps) {
            const u32 page_in_part = i / STEPS_OF_PAGE;
            if (page_in_part / 32 != chunk) {
                chunk = page_in_part / 32;
                const u32 mine = 32 * chunk + lane;
                page_of_lane = mine < part_pages ? common.page_table[sequence.table + part_page + mine] : 0;
            }
            const u32 page = shuffle(page_of_lane, page_in_part);
            const u32 key = (part_page * STEPS_OF_PAGE + i) * KEYS;
            const u32 from = begin > key ? smaller(begin - key, KEYS) : 0, to = end > key ? smaller(end - key, KEYS) : 0;
            const u64 row = kv_row(page, common.kv_heads, kv_head, key);
            u8 *stage = ring + i / WARPS % STAGES * STAGE;
            copy_rows<KEY_BYTES, KEY_WIDE>(stage, common.keys + row * KEY_BYTES, from, to);
            copy_rows<VALUE_BYTES, VALUE_WIDE>(stage + KEYS * KEY_BYTES, common.values + row * VALUE_BYTES, from, to);
            if (CODES) {
                const u8 *params = reinterpret_cast<const u8 *>(common.cache_params + row);
                if (lane < KEYS) {
                    copy_async_16_zero(stage + KEYS * (KEY_BYTES + VALUE_BYTES) + 16 * lane, params + 16 * lane,
                                       lane >= from && lane < to ? 16 : 0);
                }
            }
        }
        copy_async_commit();
    };

    State state;
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        state.maximum[r] = LOWEST;
        state.sum[r] = 0.0f;
    }
#pragma unroll
    for (u32 c = 0; c < CHANNEL_TILES; c++) {
        for (u32 i = 0; i < 4; i++) state.o[c][i] = 0.0f;
    }
#pragma unroll
    for (u32 s = 0; s + 1 < STAGES; s++) copy(warp + s * WARPS);
    for (u32 i = warp; i < steps; i += WARPS) {
        // The step before has been read by all lanes.
        sync_warp();
        copy(i + (STAGES - 1) * WARPS);
        copy_async_wait<STAGES - 1>();
        sync_warp();
        step(state, ring + i / WARPS % STAGES * STAGE, (part_page * STEPS_OF_PAGE + i) * KEYS, q, query);
    }
    copy_async_wait<0>();

    // The block's rows: each warp brings its numbers to the block's maximum. The rings are free now.
    sync_block();
    f32 *merge = reinterpret_cast<f32 *>(shared_memory());           // [WARPS, 8, D]
    f32 *stats = merge + WARPS * ROWS * HEAD_DIM;                     // [WARPS, 8] of maximum and sum
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
#pragma unroll
        for (u32 mask = 4; mask < 32; mask *= 2) state.sum[r] += shuffle_xor(state.sum[r], mask);
        if (g == 0) {
            stats[2 * (warp * ROWS + 2 * t + r)] = state.maximum[r];
            stats[2 * (warp * ROWS + 2 * t + r) + 1] = state.sum[r];
        }
    }
#pragma unroll
    for (u32 c = 0; c < CHANNEL_TILES; c++) {
        const u32 channel = channel_of(c, g);
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
            f32 *to = merge + (warp * ROWS + 2 * t + r) * HEAD_DIM + channel;
            to[0] = state.o[c][r];
            to[1] = state.o[c][2 + r];
        }
    }
    sync_block();

    const bool alone = splits == 1;
    const u64 counter_at = (static_cast<u64>(block_z()) * common.kv_heads + kv_head) * args.row_tiles + row_tile;
    u8 *parts = common.workspace + args.parts + counter_at * grid_x() * PART_BYTES;
    f32 *part = reinterpret_cast<f32 *>(parts + split * PART_BYTES);
    const auto out_row = [&](u32 in_tile) {
        const u32 row = row_tile * ROWS + in_tile;
        return (static_cast<u64>(sequence.first + row / group) * common.heads + kv_head * group + row % group) * HEAD_DIM;
    };
    for (u32 i = thread_index(); i < rows_here * (HEAD_DIM / 4); i += 32 * WARPS) {
        const u32 row = i / (HEAD_DIM / 4), channel = i % (HEAD_DIM / 4) * 4;
        f32 top = LOWEST;
        for (u32 w = 0; w < WARPS; w++) top = maximum(top, stats[2 * (w * ROWS + row)]);
        f32 x[4] = {}, sum = 0.0f;
        for (u32 w = 0; w < WARPS; w++) {
            const f32 factor = exponential_2(stats[2 * (w * ROWS + row)] - top);
            const f32 *from = merge + (w * ROWS + row) * HEAD_DIM + channel;
            sum = fused(factor, stats[2 * (w * ROWS + row) + 1], sum);
            for (u32 j = 0; j < 4; j++) x[j] = fused(factor, from[j], x[j]);
        }
        const f32 norm = alone ? 1.0f / sum : 1.0f;
        const Quad packed = {bits_of(x[0] * norm), bits_of(x[1] * norm), bits_of(x[2] * norm), bits_of(x[3] * norm)};
        if (alone) {
            store_out(common, out_row(row) + channel, packed);
        } else {
            store_16(part + row * HEAD_DIM + channel, packed);
            if (channel == 0) store_8(part + ROWS * HEAD_DIM + 2 * row, {bits_of(top), bits_of(sum)});
        }
    }
    if (alone) return;

    // The last block to arrive merges the parts, and leaves the workspace zero.
    fence_device();
    sync_block();
    u32 *counter = reinterpret_cast<u32 *>(common.workspace) + counter_at;
    const bool last = thread_index() == 0 && atomic_add(counter, 1u) == splits - 1;
    if (!sync_block_or(last)) return;
    fence_device();
    f32 *weights = reinterpret_cast<f32 *>(shared_memory());  // [splits, 8]
    f32 *norms = weights + SPLITS_MAX * ROWS;                 // [8]
    const auto stats_of = [&](u32 s) { return reinterpret_cast<f32 *>(parts + s * PART_BYTES) + ROWS * HEAD_DIM; };
    if (thread_index() < rows_here) {
        const u32 row = thread_index();
        f32 top = LOWEST, sum = 0.0f;
        for (u32 s = 0; s < splits; s++) top = maximum(top, load_fresh(stats_of(s) + 2 * row));
        for (u32 s = 0; s < splits; s++) {
            const f32 factor = exponential_2(load_fresh(stats_of(s) + 2 * row) - top);
            weights[s * ROWS + row] = factor;
            sum = fused(factor, load_fresh(stats_of(s) + 2 * row + 1), sum);
            store_8(stats_of(s) + 2 * row, {0, 0});
        }
        norms[row] = 1.0f / sum;
    }
    if (thread_index() == 0) *counter = 0;
    sync_block();
    for (u32 i = thread_index(); i < rows_here * (HEAD_DIM / 4); i += 32 * WARPS) {
        const u32 row = i / (HEAD_DIM / 4), channel = i % (HEAD_DIM / 4) * 4;
        f32 x[4] = {};
#pragma unroll 4
        for (u32 s = 0; s < splits; s++) {
            f32 *from = reinterpret_cast<f32 *>(parts + s * PART_BYTES) + row * HEAD_DIM + channel;
            const Quad y = load_16_fresh(from);
            const f32 weight = weights[s * ROWS + row];
            x[0] = fused(weight, f32_of(y.x), x[0]);
            x[1] = fused(weight, f32_of(y.y), x[1]);
            x[2] = fused(weight, f32_of(y.z), x[2]);
            x[3] = fused(weight, f32_of(y.w), x[3]);
            store_16(from, {0, 0, 0, 0});
        }
        const f32 norm = norms[row];
        store_out(common, out_row(row) + channel,
                  {bits_of(x[0] * norm), bits_of(x[1] * norm), bits_of(x[2] * norm), bits_of(x[3] * norm)});
    }
}
