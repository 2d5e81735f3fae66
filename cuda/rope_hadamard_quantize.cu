// From the output of the q, k and v projections to the queries and the cache that attention reads: RoPE on queries and keys,
// per-head Hadamard, quantization per token and head, all in the order of operations of the CPU backend.
//
// A lane holds eight channels, which is a 16-byte load of half precision and a word of 4-bit codes; a head takes LANES lanes,
// D / 8 or the next power of two, so that a warp has 1, 2 or 4 heads of a token. All that crosses lanes does so by shuffles.
#include "affine.cuh"
#include "kv_cache.cuh"
#include "rows.cuh"

using Input = DtypeOf<INPUT>::type;

constexpr u32 PER_HEAD = HEAD_DIM / 8;
constexpr u32 LANES = PER_HEAD <= 8 ? 8 : PER_HEAD <= 16 ? 16 : 32;
constexpr u32 HEADS = 32 / LANES;
// Largest power of two that divides D.
constexpr u32 HADAMARD = HEAD_DIM & (~HEAD_DIM + 1u);
static_assert(HEAD_DIM % 16 == 0 && HEAD_DIM <= 256, "a rotated pair lies in two lanes, a head in a warp");

struct RopeHadamardQuantizeArgs {
    const Input *qkv;           // [T, (H + 2 Hkv) D]
    const f32 *rope;            // [positions, 2, D / 2]: cosines, then sines
    const Sequence *sequences;  // [S]
    const u32 *page_table;
    u8 *query_codes;   // [T, H] rows
    u8 *query_params;  // [T, H] of 16 bytes
    u8 *keys;          // [pages, Hkv, 64] rows
    u8 *values;
    KvParams *params;
    u32 tokens, sequence_count;
    u32 heads, kv_heads;
    u32 positions;
    u32 key_bits, value_bits;  // 4, 8, or 16 for floating point
    u32 float_type;            // Dtype::define of what is not quantized
    f32 hadamard_scale;        // 1 / sqrt(HADAMARD)
    u32 unused;
    AffineArgs key, value;
};

// The lane that holds the channels which turn with this lane's.
DEVICE u32 partner_lane(u32 lane) {
    const u32 in_head = lane % LANES;
    return lane - in_head + (in_head < PER_HEAD / 2 ? in_head + PER_HEAD / 2 : in_head - PER_HEAD / 2) % LANES;
}

// The place of a token: its sequence, found by all lanes together, as they are few and in any order.
struct Place {
    bool found;
    u32 position, table;
};

DEVICE Place place_of(const RopeHadamardQuantizeArgs &args, u32 token) {
    for (u32 first = 0; first < args.sequence_count; first += 32) {
        const u32 i = first + lane_index();
        Quad q = {0, 0, 0, 0};
        if (i < args.sequence_count) q = load_16(args.sequences + i);
        // Below `first` the difference wraps around and is no smaller than any number of tokens.
        const u32 mine = ballot(token - q.x < q.y);
        if (mine != 0) {
            const u32 lane = trailing_zeros(mine);
            return {true, shuffle(q.z + token - q.x, lane), shuffle(q.w, lane)};
        }
    }
    return {false, 0, 0};
}

DEVICE void hadamard(f32 (&x)[8], f32 factor) {
#pragma unroll
    for (u32 stride = 1; stride < smaller(HADAMARD, 8u); stride *= 2) {
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            if (i & stride) continue;
            const f32 a = x[i], b = x[i + stride];
            x[i] = a + b;
            x[i + stride] = a - b;
        }
    }
#pragma unroll
    for (u32 stride = 8; stride < HADAMARD; stride *= 2) {
        const bool upper = (lane_index() & (stride / 8)) != 0;
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            const f32 other = shuffle_xor(x[i], stride / 8);
            x[i] = other + (upper ? -x[i] : x[i]);
        }
    }
#pragma unroll
    for (u32 i = 0; i < 8; i++) x[i] *= factor;
}

DEVICE void store_float(u8 *row, u32 channel, const f32 (&x)[8], u32 type) {
    if (type == DTYPE_BF16) {
        store_row_8(reinterpret_cast<bf16 *>(row) + channel, x);
    } else {
        store_row_8(reinterpret_cast<f16 *>(row) + channel, x);
    }
}

KERNEL(rope_hadamard_quantize, RopeHadamardQuantizeArgs, 128, 8) {
    const u32 all_heads = args.heads + 2 * args.kv_heads;
    const u32 units = divide_up(all_heads, HEADS);
    const u32 unit = block_x() * (block_threads() / 32) + warp_index();
    const u32 token = unit / units;
    if (token >= args.tokens) return;
    const u32 lane = lane_index(), in_head = lane % LANES;
    const u32 head = unit % units * HEADS + lane / LANES;
    // Lanes past the head's channels, or past the last head, hold zeros and write nothing.
    const bool lives = head < all_heads && in_head < PER_HEAD;
    const u32 channel = 8 * in_head;

    f32 x[8] = {};
    if (lives) load_row_8(x, args.qkv + (static_cast<u64>(token) * all_heads + head) * HEAD_DIM + channel);
    const Place place = place_of(args, token);
    if (!place.found) return;

    const bool is_query = head < args.heads;
    const bool is_value = head >= args.heads + args.kv_heads;
    const bool low_half = in_head < PER_HEAD / 2;
    f32 turned[8];
    {
        f32 cosine[8] = {}, sine[8] = {};
        if (lives && !is_value) {
            const u32 row = smaller(place.position, args.positions - 1);
            const f32 *table = args.rope + static_cast<u64>(row) * HEAD_DIM + (low_half ? channel : channel - HEAD_DIM / 2);
            load_row_8(cosine, table);
            load_row_8(sine, table + HEAD_DIM / 2);
        }
        const u32 partner = partner_lane(lane);
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            const f32 other = shuffle(x[i], partner);
            turned[i] = fused(low_half ? -other : other, sine[i], x[i] * cosine[i]);
        }
    }
    if (args.key_bits < 16) hadamard(turned, args.hadamard_scale);
    if (!is_value) {
#pragma unroll
        for (u32 i = 0; i < 8; i++) x[i] = turned[i];
    }

    const u32 bits = is_value ? args.value_bits : args.key_bits;
    f32 least = 0.0f, most = 0.0f;
    bool finite = true;
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        least = minimum(least, x[i]);
        most = maximum(most, x[i]);
        finite = finite && is_finite(x[i]);
    }
#pragma unroll
    for (u32 mask = LANES / 2; mask > 0; mask /= 2) {
        least = minimum(least, shuffle_xor(least, mask));
        most = maximum(most, shuffle_xor(most, mask));
    }
    const u32 head_lanes = LANES == 32 ? ~0u : ((1u << (LANES % 32)) - 1) << (lane - in_head);
    finite = (ballot(!finite) & head_lanes) == 0;

    AffineArgs affine;
    affine.clip = is_value ? args.value.clip : args.key.clip;
    affine.inverse_max_code = is_value ? args.value.inverse_max_code : args.key.inverse_max_code;
    affine.max_code = is_value ? args.value.max_code : args.key.max_code;
    affine.symmetric = is_value ? args.value.symmetric : args.key.symmetric;
    const RowParams row = row_params(affine, least, most);
    // A row that is not finite, or whose range is not, becomes NaN and no plausible number.
    finite = finite && is_finite(row.scale);
    u32 codes[8];
    u32 sum = 0;
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        codes[i] = finite && lives ? code_of(affine, row, x[i]) : 0;
        sum += codes[i];
    }
#pragma unroll
    for (u32 mask = LANES / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    const u32 scale = finite ? bits_of(row.scale) : 0x7fc00000u;
    const u32 zero_point = finite ? static_cast<u32>(row.zero_point) : 0;
    if (!lives) return;

    const Pair bytes = {codes[0] | codes[1] << 8 | codes[2] << 16 | codes[3] << 24,
                        codes[4] | codes[5] << 8 | codes[6] << 16 | codes[7] << 24};
    if (is_query) {
        const u64 at = static_cast<u64>(token) * args.heads + head;
        if (bits == 16) {
            store_float(args.query_codes + at * HEAD_DIM * 2, channel, x, args.float_type);
        } else {
            store_8(args.query_codes + at * HEAD_DIM + channel, bytes);
            if (in_head == 0) store_16(args.query_params + 16 * at, {scale, zero_point, sum, 0});
        }
        return;
    }
    const u32 page = args.page_table[place.table + place.position / PAGE];
    const u64 at = kv_row(page, args.kv_heads, head - args.heads - (is_value ? args.kv_heads : 0), place.position);
    u8 *rows = is_value ? args.values : args.keys;
    if (bits == 16) {
        store_float(rows + at * HEAD_DIM * 2, channel, x, args.float_type);
        return;
    }
    if (bits == 8) {
        store_8(rows + at * HEAD_DIM + channel, bytes);
    } else {
        *reinterpret_cast<u32 *>(rows + at * (HEAD_DIM / 2) + channel / 2) = pack_kv_word(codes);
    }
    if (in_head == 0) {
        u8 *params = reinterpret_cast<u8 *>(args.params + at) + (is_value ? 8 : 0);
        store_8(params, {scale, zero_point | sum << 16});
    }
}
