// Causal attention of many queries of a sequence over the paged cache: softmax(q k^T / sqrt(D)) v with an online softmax, after
// FlashAttention-2. A block takes rows of one key head, queries x the heads of its group, so that a page that it fetches serves
// the whole group; a warp takes 16 TILES rows and goes through the pages that they see, on its own but for the barrier of a page.
//
// Quantized: score = (acc - zk sum(q) - zq sum(k) + D zq zk) sq sk / sqrt(D), whole up to the scales. The value's scale sv goes
// into the exponent, p = 2^(score log2 e + log2 sv - m), with m the largest exponent of the row so far: p is at most 1 whatever
// the scales, what rounding it to f16 loses is small against the largest term of the output, and a token that the row does not
// see cannot change it. Then out = sum p (c - zv) / sum (p / sv).
#include "attention_prefill_weights.cuh"
#include "attention_prefill_out.cuh"

// More than any context; the difference of two positions that wraps is larger still.
constexpr u32 NO_WINDOW = 1u << 31;
constexpr u32 BUFFERS = CODES ? 2 : 1;
static_assert(CODES || SPAN == KEYS, "keys and values of one buffer are fetched in turns");

// Shared memory: keys, values, and what is known of the keys' rows.
constexpr u32 KEY_BYTES = KEYS * KEY_STRIDE, VALUE_BYTES = KEYS * VALUE_STRIDE;
constexpr u32 PAIR_BYTES = CODES ? KEYS / 2 * sizeof(KeyPair) : 0;
constexpr u32 BUFFER_BYTES = KEY_BYTES + VALUE_BYTES + PAIR_BYTES;
constexpr u32 RAW_BYTES = CODES ? KEYS * sizeof(KvParams) : 0;
// Of each row, for the pages that only some rows see: it costs a division.
constexpr u32 POSITION_BYTES = ROWS * sizeof(u32);
static_assert(SHARED_BYTES == BUFFERS * BUFFER_BYTES + RAW_BYTES + QUERY_BYTES + POSITION_BYTES, "as prefill.rs counts it");

KERNEL(attention_prefill, AttentionArgs, THREADS, BLOCKS) {
    const Sequence sequence = args.sequences[block_z()];
    const u32 group = args.heads / args.kv_heads, count = sequence.tokens * group;
    const u32 window = smaller(args.window, NO_WINDOW);
    // The last rows see the most: they begin first.
    const u32 block_row = (grid_x() - 1 - block_x()) * ROWS;
    if (block_row >= count) return;
    const u32 lane = lane_index(), kv_head = block_y();
    const u32 first_row = block_row + warp_index() * 16 * TILES;

    // The pages that the block sees, and of them those that the warp does.
    const auto position_of = [&](u32 row) { return sequence.position + smaller(row, count - 1) / group; };
    const auto first_seen = [&](u32 position) { return position < window ? 0 : position + 1 - window; };
    const u32 end = position_of(block_row + ROWS - 1) / KEYS + 1;
    const u32 warp_first = position_of(first_row), warp_last = position_of(first_row + 16 * TILES - 1);
    const bool idle = first_row >= count;
    u32 tile = first_seen(position_of(block_row)) / KEYS;

    Rows rows;
    Sums sums;
    Queries q;
    u32 *const all_positions = reinterpret_cast<u32 *>(shared_memory() + SHARED_BYTES - POSITION_BYTES);
    for (u32 i = thread_index(); i < ROWS; i += THREADS) all_positions[i] = position_of(block_row + i);
    const u32 *const positions = all_positions + (first_row - block_row) + lane / 4;
    Quad *const stored = reinterpret_cast<Quad *>(shared_memory() + BUFFERS * BUFFER_BYTES + RAW_BYTES) + thread_index();
#pragma unroll
    for (u32 m = 0; m < TILES; m++) {
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            const u32 row = first_row + 16 * m + 8 * h + lane / 4;
            const bool there = row < count;
            const u64 query = query_row(sequence, args.heads, group, kv_head, smaller(row, count - 1));
            load_queries(q[m], h, args.query_codes + query * (HEAD_DIM * (CODES ? 1 : 2)), there);
            rows.most[m][h] = LEAST;
            rows.total[m][h] = 0.0f;
            rows.scale[m][h] = args.score_scale;
#if KEY_BITS != 16
            const TokenParams params = reinterpret_cast<const TokenParams *>(args.query_params)[query];
            rows.scale[m][h] *= params.scale;
            rows.sum[m][h] = static_cast<Whole>(params.row_sum - static_cast<i32>(HEAD_DIM) * params.zero_point);
            rows.zero[m][h] = static_cast<Whole>(params.zero_point);
#endif
        }
        if (QUERIES_SHARED) {
#pragma unroll
            for (u32 s = 0; s < STEPS; s++) stored[(m * STEPS + s) * THREADS] = {q[m][s][0], q[m][s][1], q[m][s][2], q[m][s][3]};
        }
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            if (CODES) sums.zero[m][i] = 0.0f;
#pragma unroll
            for (u32 f = 0; f < FRAGMENTS; f++) sums.value[m][f][i] = 0.0f;
        }
    }

    u8 *const shared = shared_memory();
    const u32 *const table = args.page_table + sequence.table;
    const u32 context = sequence.position + sequence.tokens;
    const auto row_of = [&](u32 page, u32 at) { return kv_row(page, args.kv_heads, kv_head, at * KEYS); };
    const auto copy_keys = [&](u8 *buffer, u32 page, u32 at) {
        copy_tile<KEY_ROW, KEY_STRIDE, false>(buffer, args.keys + row_of(page, at) * KEY_ROW, KEYS);
    };
    // What was never written may be NaN, which the weight 0 would not hide.
    const auto copy_values = [&](u8 *buffer, u32 page, u32 at) {
        const u8 *const from = args.values + row_of(page, at) * VALUE_ROW;
        copy_tile<VALUE_ROW, VALUE_STRIDE, !CODES>(buffer + KEY_BYTES, from, context - at * KEYS);
    };
    KvParams *const raw = reinterpret_cast<KvParams *>(shared + BUFFERS * BUFFER_BYTES) + thread_index();
    const bool has_key = CODES && thread_index() < KEYS;
    const auto copy_codes = [&](u8 *buffer, u32 page, u32 at) {
        copy_keys(buffer, page, at);
        copy_values(buffer, page, at);
        if (has_key) copy_async_16(raw, args.cache_params + row_of(page, at) + thread_index());
    };

    u32 page = table[tile * KEYS / PAGE];
    if (CODES) {
        copy_codes(shared, page, tile);
    } else {
        copy_keys(shared, page, tile);
    }
    copy_async_commit();
    u32 next_page = tile + 1 < end ? table[(tile + 1) * KEYS / PAGE] : 0;

    for (u32 turn = 0; tile < end; tile++, turn ^= CODES ? 1 : 0) {
        u8 *const buffer = shared + turn * BUFFER_BYTES;
        KeyPair *const all_pairs = reinterpret_cast<KeyPair *>(buffer + KEY_BYTES + VALUE_BYTES);
        const bool more = tile + 1 < end;
        copy_async_wait<0>();
        if (has_key) put_key(all_pairs, *raw);
        // Everybody has the tile, and nobody reads the one before.
        sync_block();
        if (CODES) {
            if (more) copy_codes(shared + (turn ^ 1) * BUFFER_BYTES, next_page, tile + 1);
        } else {
            copy_values(buffer, page, tile);
        }
        copy_async_commit();
        page = next_page;
        if (tile + 2 < end) next_page = table[(tile + 2) * KEYS / PAGE];

        const u32 first_key = tile * KEYS;
        const bool seen = !idle && first_key <= warp_last && first_key + KEYS > first_seen(warp_first);
        const bool masked = first_key + KEYS - 1 > warp_first || first_key < first_seen(warp_last);
#pragma unroll 1
        for (u32 span = 0; span < KEYS; span += SPAN) {
            const KeyPair *pairs = all_pairs + span / 2;
            Dot dots[TILES][SPAN / 8][4];
            if (CODES && !seen) break;
            dot_products(dots, q, stored, buffer + span * KEY_STRIDE);
            if (!CODES) {
                // The values have come, and nobody reads the keys.
                copy_async_wait<0>();
                sync_block();
                if (more) copy_keys(shared, page, tile + 1);
                copy_async_commit();
                if (!seen) break;
            }
            f32 y[TILES][SPAN / 8][4];
            u32 p[TILES][SPAN / 16][4];
            exponents(y, dots, rows, pairs);
            if (masked) mask(y, positions, first_key + span, window);
            grow(rows, sums, y);
            if (masked) {
                weights<true>(p, y, rows, pairs);
            } else {
                weights<false>(p, y, rows, pairs);
            }
            weigh_values(sums.value, p, buffer + KEY_BYTES + (span + lane) * VALUE_STRIDE);
            if (CODES) weigh_zeros(sums.zero, p, pairs);
        }
    }
    // The last tile's copy of nothing.
    copy_async_wait<0>();

#pragma unroll
    for (u32 m = 0; m < TILES; m++) {
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            f32 total = rows.total[m][h];
            total += shuffle_xor(total, 1);
            total += shuffle_xor(total, 2);
            const u32 at = first_row + 16 * m + 8 * h + lane / 4;
            if (at < count) write_row(args, query_row(sequence, args.heads, group, kv_head, at), sums, m, h, reciprocal(total));
        }
    }
}
