// The prologue of a W4A4 linear in one kernel: (RMSNorm or SwiGLU), smoothing, rotations with permutations between them,
// per-token quantization.
//
// A rotation is D = R^T X^T on the tensor cores: R^T is the operand of 16 rows and stays in a warp's registers, the eight columns
// are tokens. All blocks of channels share R, so that a column need not be a token of its own: with fewer tokens a block,
// the columns are those tokens in 8 / TOKENS segments of the channels. No column is wasted at one token, and
// shared memory, 16 bytes a row for all eight columns, holds 28,672 channels on every chip.
//
// Values are kept 16 times smaller than they are: a power of two costs no precision down to 1e-3 (below it roundings are by at most
// 2^-22), and moves f16's end from 65,504, which a massive outlier can reach, to a million.
//
// Row r of column j is channel j % segments * rows + r of its token. Between rotations the values lie in shared memory as f16,
// [rows][8 columns]; the sums are f32. The permutation is where the results are stored.
//
// A lane 4 g + t always holds octets: eight neighbouring channels 8 t of a run of 32, of column g. They come so from global
// memory in one load and from shared memory in one ldmatrix, and they leave so as codes. The sum over k may go in any order, so
// they are the operand of two matrix instructions as they are, and R is packed to match (pack.rs).
#include "rotation.cuh"

// The quantizer of the lane's column g, for values as they are kept, in every lane. Ends behind a barrier; `parts` may be written after another.
DEVICE RowCoder coder_of(const TransformQuantizeArgs &args, const Shared &shared, Extremes extremes) {
    const u32 lane = lane_index(), warps = block_threads() / 32;
#pragma unroll
    for (u32 mask = 4; mask < 32; mask *= 2) {
        extremes.least = minimum_nan_f16x2(extremes.least, shuffle_xor(extremes.least, mask));
        extremes.most = maximum_nan_f16x2(extremes.most, shuffle_xor(extremes.most, mask));
    }
    u32 *words = reinterpret_cast<u32 *>(shared.parts);  // [warps][least, most][4 pairs of columns]
    const u32 warp = warp_index();
    if (lane < 4) {
        words[8 * warp + lane] = extremes.least;
        words[8 * warp + 4 + lane] = extremes.most;
    }
    sync_block();
    // Lane l begins with pair l % 4 of warps l / 4 and l / 4 + 8.
    u32 least = words[8 * smaller(lane / 4, warps - 1) + lane % 4], most = words[8 * smaller(lane / 4, warps - 1) + 4 + lane % 4];
    if (lane / 4 + 8 < warps) {
        least = minimum_nan_f16x2(least, words[8 * (lane / 4 + 8) + lane % 4]);
        most = maximum_nan_f16x2(most, words[8 * (lane / 4 + 8) + 4 + lane % 4]);
    }
#pragma unroll
    for (u32 mask = 4; mask < 32; mask *= 2) {
        least = minimum_nan_f16x2(least, shuffle_xor(least, mask));
        most = maximum_nan_f16x2(most, shuffle_xor(most, mask));
    }
    // Column l % 8, then over the segments of its token.
    const u32 half = lane % 2 * 16;
    f32 low = to_f32(f16{static_cast<u16>(shuffle(least, lane % 8 / 2) >> half)});
    f32 high = to_f32(f16{static_cast<u16>(shuffle(most, lane % 8 / 2) >> half)});
    bool finite = is_finite(low) && is_finite(high);
#pragma unroll
    for (u32 mask = 1; mask < 8; mask *= 2) {
        const f32 other_low = shuffle_xor(low, mask), other_high = shuffle_xor(high, mask);
        const bool other_finite = shuffle_xor(static_cast<u32>(finite), mask);
        if (mask >> args.token_bits) {
            low = minimum(low, other_low);
            high = maximum(high, other_high);
            finite &= other_finite;
        }
    }
    const RowCoder row = row_coder(args.sink.affine, low * GROW, high * GROW, finite);
    const u32 g = lane / 4;
    // x * (inverse * 16) is (x * 16) * inverse, bit for bit.
    return {shuffle(row.scale, g),   shuffle(row.inverse_scale * GROW, g), shuffle(row.lowest, g),
            shuffle(row.highest, g), shuffle(row.shift, g),                shuffle(row.marked, g)};
}

KERNEL(transform_quantize, TransformQuantizeArgs, 512, 1) {
    const Shared shared = shared_of(args);
    const u32 lane = lane_index(), g = lane / 4, index = warp_index(), warps = block_threads() / 32;
    const u32 first_token = block_x() << args.token_bits, tokens = 1 << args.token_bits;
    const Warp warp{index / TILE_WARPS, index % TILE_WARPS, warps / TILE_WARPS};

    if (thread_index() < 4) reinterpret_cast<u32 *>(shared.zeros)[thread_index()] = 0;
    if (args.clear) {
        for (u32 row = thread_index(); row < args.rows; row += block_threads()) {
            *reinterpret_cast<Quad *>(shared.mid + 16 * row) = {0, 0, 0, 0};
            if (args.rotation_count > 2) *reinterpret_cast<Quad *>(shared.other + 16 * row) = {0, 0, 0, 0};
        }
    }
    // A block of nothing but tokens that fill up the last atom: their codes are 0.
    const bool idle = first_token >= args.source.tokens;
    if (args.source.kind == SOURCE_RMS_NORM && !idle) {
        for (u32 i = index; i < tokens * NORM_PARTS; i += warps) {
            const u32 token = first_token + i / NORM_PARTS;
            const f32 sum = token < args.source.tokens ? square_sum_part(args.source, token, i % NORM_PARTS) : 0.0f;
            if (lane == 0) shared.parts[i] = sum;
        }
        sync_block();
        if (thread_index() < tokens) {
            const f32 *parts = shared.parts + NORM_PARTS * thread_index();
            shared.factors[thread_index()] = norm_factor(parts, args.source.channels, args.source.epsilon);
        }
    }
    sync_block();

    Column column;
    column.token = first_token + (g & (tokens - 1));
    column.first = (g >> args.token_bits) * args.rows;
    column.there = column.token < args.source.tokens;
    column.factor = args.source.kind == SOURCE_RMS_NORM ? shared.factors[g & (tokens - 1)] : 1.0f;

    Extremes extremes{0, 0};
    u8 *to = shared.mid;
    const u32 last = args.rotation_count - 1;
    if (!idle && last == 0) {
        rotate<true, true>(args, shared, warp, column, nullptr, to, nullptr, 0, extremes);
    } else if (!idle) {
        rotate<true, false>(args, shared, warp, column, nullptr, to, args.places, 0, extremes);
        for (u32 i = 1; i < last; i++) {
            u8 *from = to;
            to = from == shared.mid ? shared.other : shared.mid;
            sync_block();
            const u32 *places = args.places + i * (args.rows << 3 >> args.token_bits);
            rotate<false, false>(args, shared, warp, column, from, to, places, i, extremes);
        }
        sync_block();
        rotate<false, true>(args, shared, warp, column, to, to, nullptr, last, extremes);
    }
    const RowCoder row = coder_of(args, shared, extremes);
    // Behind coder_of's barrier all of the last rotation is in `to`.

    const TokenSink &sink = args.sink;
    const u32 chunks = divide_up(sink.channels, 128u);
    u32 sum = 0;
    for (u32 chunk = index; chunk < args.rows / 128; chunk += warps) {
        const u32 first = column.first + 128 * chunk;
        CodeOctet codes[4];
#pragma unroll
        for (u32 w = 0; w < 4; w++) {
            u32 packed[4];
            load_octets(packed, shared, to, 128 * chunk + 32 * w, 32);
            const u32 channel = first + 32 * w + 8 * (lane % 4);
            const u32 live = column.there ? live_channels(channel, sink.channels) : 0;
            f32 x[8];
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                x[2 * i] = to_f32(f16{static_cast<u16>(packed[i])});
                x[2 * i + 1] = to_f32(f16{static_cast<u16>(packed[i] >> 16)});
            }
            if (sink.target == TARGET_CODES) {
                codes[w] = codes_of(row, x, live);
                sum = sum_of(codes[w], sum);
            } else if (live > 0) {
                if (sink.target == TARGET_FLOAT) {
#pragma unroll
                    for (u32 i = 0; i < 8; i++) x[i] = x[i] * GROW;
                }
                store_values(sink, column.token, channel, row, x, live);
            }
        }
        if (sink.target == TARGET_CODES) store_codes(sink, first / 128, column.token, codes, first / 128 < chunks);
    }
    if (sink.target != TARGET_CODES) return;

    // Row sums: over the four lanes of a column, its token's segments, and the warps.
#pragma unroll
    for (u32 mask = 1; mask < 4; mask *= 2) sum += shuffle_xor(sum, mask);
#pragma unroll
    for (u32 mask = 1; mask < 8; mask *= 2) {
        const u32 other = shuffle_xor(sum, 4 * mask);
        if (mask >> args.token_bits) sum += other;
    }
    u32 *sums = reinterpret_cast<u32 *>(shared.parts) + 128;  // behind the extremes, which other warps may still read
    if (lane % 4 == 0) sums[8 * index + g] = sum;
    sync_block();
    if (index == 0 && lane % 4 == 0 && g < tokens && column.there) {
        u32 all = 0;
        for (u32 i = 0; i < warps; i++) all += sums[8 * i + g];
        store_params(sink, column.token, row, all);
    }
}
