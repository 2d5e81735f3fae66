// Attention of a few new tokens over the paged cache, which it reads once: flash decoding.
//
// A block takes a part of the pages of one sequence and key head, and up to eight rows: the query heads of the group at the new
// tokens. Keys lie on the m16 side of both products, rows on n8, so that eight rows waste nothing:
//
//   S^T [16 keys, 8 rows] = K Q^T          integers, exact; K from shared memory as it lies there, nibbles shifted out
//   O^T [16 channels, 8 rows] += V^T P^T   half precision; P^T is S^T's fragment, turned by movmatrix
//
// Sums over channels may run in any order as long as K and Q agree, and channels of O^T may stand in any order: both are chosen
// so that a lane takes whole words of the cache. Each warp has keys, copies in flight and softmax of its own until the end; no
// barrier stands in the loop. The last block of a sequence and head merges what all have left in the workspace.
#include "attention_decode.cuh"

constexpr u32 PART_BYTES = ROWS * (HEAD_DIM + 2) * 4;  // [8, D] of O, then maximum and sum of each row
constexpr u32 SPLITS_MAX = 128;

struct DecodeArgs {
    AttentionArgs common;
    u32 row_tiles;
    u32 parts;  // where parts begin in the workspace, in bytes
};

// Four numbers of the output.
DEVICE void store_out(const AttentionArgs &args, u64 at, Quad x) {
    if (args.out_type == DTYPE_F32) {
        store_16(static_cast<f32 *>(args.out) + at, x);
    } else if (args.out_type == DTYPE_F16) {
        store_8(static_cast<f16 *>(args.out) + at, {pack_f16(f32_of(x.x), f32_of(x.y)), pack_f16(f32_of(x.z), f32_of(x.w))});
    } else {
        store_8(static_cast<bf16 *>(args.out) + at, {pack_bf16(f32_of(x.x), f32_of(x.y)), pack_bf16(f32_of(x.z), f32_of(x.w))});
    }
}

// 128 registers a thread, 168 or 255 where the output and the words in hand take more; `registers` of decode.rs says the same.
constexpr u32 WARPS_RESIDENT = CODES ? (HEAD_DIM > 128 ? 12 : 16) : HEAD_DIM > 128 ? 8 : HEAD_DIM >= 96 ? 12 : 16;

KERNEL(attention_decode, DecodeArgs, 32 * WARPS, WARPS_RESIDENT / WARPS) {
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
    query.tokens = last_token - first_token + 1;
    query.window = common.window;
    query.common_end = behind;
    query.common_first = end > common.window ? end - common.window : 0;
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        const u32 in_tile = 2 * t + r, row = row_tile * ROWS + in_tile;
        query.scale[r] = common.score_scale;
        query.zero_point[r] = query.rest[r] = 0;
        query.first[r] = query.count[r] = 0;
        query.token[r] = row / group - first_token;
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
            const u8 *keys = common.keys + row * KEY_BYTES, *values = common.values + row * VALUE_BYTES;
            const u8 *params = reinterpret_cast<const u8 *>(common.cache_params + row);
            u8 *stage_values = stage + KEYS * KEY_BYTES, *stage_params = stage_values + KEYS * VALUE_BYTES;
            if (from == 0 && to == KEYS) {
                copy_rows<KEY_BYTES, KEY_WIDE>(stage, keys);
                copy_rows<VALUE_BYTES, VALUE_WIDE>(stage_values, values);
                if (CODES) copy_rows<16, 1>(stage_params, params);
            } else {
                copy_some_rows<KEY_BYTES, KEY_WIDE>(stage, keys, from, to);
                copy_some_rows<VALUE_BYTES, VALUE_WIDE>(stage_values, values, from, to);
                if (CODES) copy_some_rows<16, 1>(stage_params, params, from, to);
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
    // The thread that counts fences for its block: behind the barrier that its parts passed, and in front of others' parts.
    sync_block();
    u32 *counter = reinterpret_cast<u32 *>(common.workspace) + counter_at;
    bool last = false;
    if (thread_index() == 0) {
        fence_device();
        last = atomic_add(counter, 1u) == splits - 1;
        fence_device();
    }
    if (!sync_block_or(last)) return;
    f32 *weights = reinterpret_cast<f32 *>(shared_memory());  // [splits, 8]
    f32 *norms = weights + SPLITS_MAX * ROWS;                 // [8]
    const auto stats_of = [&](u32 s) { return reinterpret_cast<f32 *>(parts + s * PART_BYTES) + ROWS * HEAD_DIM; };
    // A warp a row, a lane a part: all are asked for at once.
    for (u32 row = warp; row < rows_here; row += WARPS) {
        constexpr u32 EACH = SPLITS_MAX / 32;
        f32 tops[EACH], sums[EACH], top = LOWEST, sum = 0.0f;
#pragma unroll
        for (u32 j = 0; j < EACH; j++) {
            const u32 s = 32 * j + lane;
            tops[j] = s < splits ? load_fresh(stats_of(s) + 2 * row) : LOWEST;
            sums[j] = s < splits ? load_fresh(stats_of(s) + 2 * row + 1) : 0.0f;
        }
#pragma unroll
        for (u32 j = 0; j < EACH; j++) top = maximum(top, tops[j]);
#pragma unroll
        for (u32 mask = 16; mask > 0; mask /= 2) top = maximum(top, shuffle_xor(top, mask));
#pragma unroll
        for (u32 j = 0; j < EACH; j++) {
            const u32 s = 32 * j + lane;
            if (s >= splits) continue;
            const f32 factor = exponential_2(tops[j] - top);
            weights[s * ROWS + row] = factor;
            sum = fused(factor, sums[j], sum);
            store_8(stats_of(s) + 2 * row, {0, 0});
        }
#pragma unroll
        for (u32 mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
        if (lane == 0) norms[row] = 1.0f / sum;
    }
    if (thread_index() == 0) *counter = 0;
    sync_block();
    for (u32 i = thread_index(); i < rows_here * (HEAD_DIM / 4); i += 32 * WARPS) {
        const u32 row = i / (HEAD_DIM / 4), channel = i % (HEAD_DIM / 4) * 4;
        f32 x[4] = {};
#pragma unroll 8
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
