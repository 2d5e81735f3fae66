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
#include "token_sink.cuh"
#include "token_source.cuh"

using Input = DtypeOf<INPUT>::type;

// SIZE: rows and columns of the padded rotation, 32 to 256. HADAMARD: a Sylvester matrix, of which 16 x 16 are multiplied and the
// rest are sums and differences.
constexpr u32 STEPS = SIZE / 16;
constexpr u32 STRIPS = HADAMARD ? STEPS : SIZE == 256 ? 1 : SIZE == 128 ? 2 : STEPS;
// Warps that share a tile, SIZE rows of the eight columns.
constexpr u32 TILE_WARPS = STEPS / STRIPS;
constexpr u32 RUNS = SIZE / 32;

constexpr f32 SHRINK = 1.0f / 16.0f, GROW = 16.0f;

struct TransformQuantizeArgs {
    TokenSource<Input> source;
    TokenSink sink;
    const u8 *rotations;       // packed, one after the other
    const u32 *places;         // [P, 8 >> token_bits, rows]: bytes from the buffer's start to where the permutation puts a row
    u32 rotation_count;        // P + 1
    u32 token_bits;            // a block takes 1 << token_bits tokens
    u32 rows;                  // of a column, a multiple of 128
    u32 span;                  // rows of a tile that are used, at most SIZE
    u32 tiles;                 // of a column
    f32 factor;                // of the packed matrix
    u32 clear;                 // some rows belong to no channel
    u32 unused;
};

struct Shared {
    u8 *mid, *other;  // [rows][8] f16, the second for a third rotation
    u8 *zeros;        // a row of zeros
    u8 *stage;        // octets that the warps of a tile give each other
    f32 *factors;     // [8] of the norm
    f32 *parts;       // [8][NORM_PARTS]; later [warps][8] extremes and row sums
};

DEVICE Shared shared_of(const TransformQuantizeArgs &args) {
    u8 *at = shared_memory();
    Shared shared;
    shared.mid = at;
    at += 16 * args.rows;
    shared.other = at;
    if (args.rotation_count > 2) at += 16 * args.rows;
    shared.zeros = at;
    shared.factors = reinterpret_cast<f32 *>(at + 16);
    shared.parts = reinterpret_cast<f32 *>(at + 48);
    shared.stage = at + 48 + 1024;
    return shared;
}

// Rows lie so that eight neighbours, and the rows 8 t + i and 8 t + i + 1 of an octet's ldmatrix, are in banks of their own.
DEVICE u8 *row_of(u8 *mid, u32 row) { return mid + 16 * (row ^ (row >> 2 & 6)); }

// The octets of rows `first` to first + 31 of all columns; rows from `live` on are read as zeros.
DEVICE void load_octets(u32 (&x)[4], const Shared &shared, u8 *mid, u32 first, u32 live) {
    const u32 lane = lane_index();
    const u32 row = 8 * (lane % 8 / 2) + 2 * (lane / 8) + lane % 2;
    load_matrix_x4_transposed(x, row < live ? row_of(mid, first + row) : shared.zeros);
}

struct Warp {
    u32 group, part, groups;  // tile group, which warp of it, how many groups
};

DEVICE void sync_tile(const Warp &warp) {
    if (TILE_WARPS == 1) {
        sync_warp();
    } else {
        sync_named(1 + warp.group, 32 * TILE_WARPS);
    }
}

// Row in the tile of fragment row g; that of row g + 8 is 8 further.
DEVICE u32 strip_row(u32 strip, u32 part) {
    const u32 g = lane_index() / 4;
    // As hadamard_fragment of pack.rs: the matrix takes bits 0, 1, 3 and 4 of the row, sums and differences the others.
    if (HADAMARD) return 32 * (strip / 2) + 4 * (strip % 2) + 16 * (g / 4) + g % 4;
    return 16 * (part * STRIPS + strip) + g;
}

// Column g, the lane's.
struct Column {
    u32 token, first;  // first: the channel of row 0
    bool there;
    f32 factor;
};

// Asks for run `run` (32 rows) of a tile of the tokens.
DEVICE void fetch_run(RawOctet<Input> &raw, const TransformQuantizeArgs &args, const Column &column, u32 tile, u32 run) {
    const u32 row = 32 * run + 8 * (lane_index() % 4), channel = column.first + tile * args.span + row;
    if (args.source.wide && column.there && row < args.span && channel < args.source.channels) {
        fetch_8(raw, args.source, column.token, channel);
    }
}

DEVICE void convert_run(u32 (&x)[4], const RawOctet<Input> &raw, const TransformQuantizeArgs &args, const Column &column,
                        u32 tile, u32 run) {
    const u32 row = 32 * run + 8 * (lane_index() % 4), start = column.first + tile * args.span, channel = start + row;
    x[0] = x[1] = x[2] = x[3] = 0;
    if (column.there && row < args.span && channel < args.source.channels) {
        f32 v[8];
        source_8(v, raw, args.source, column.token, channel, smaller(start + args.span, args.source.channels), column.factor);
#pragma unroll
        for (u32 i = 0; i < 4; i++) x[i] = pack_f16(v[2 * i] * SHRINK, v[2 * i + 1] * SHRINK);
    }
}

struct Extremes {
    u32 least, most;  // of columns 2 t and 2 t + 1, in f16; NaN once a value was
};

// Where a warp's results go.
struct Target {
    u8 *to;
    const u32 *places;  // of this rotation's permutation; null: the rows stay where they are
    bool last;
};

constexpr u32 NOWHERE = 0xffffffff;

// Places of columns 2 t and 2 t + 1 of a row of the tile; the second is asked for only where it is another segment's. The host
// marks channels that are not there.
struct Places {
    u32 first, second;
};

DEVICE Places places_of(const TransformQuantizeArgs &args, const Target &target, u32 tile, u32 in_tile) {
    const u32 row = tile * args.span + in_tile;
    if (target.places == nullptr || in_tile >= args.span || row >= args.rows) return {NOWHERE, NOWHERE};
    const u32 *at = target.places + (2 * (lane_index() % 4) >> args.token_bits) * args.rows + row;
    return {at[0], args.token_bits == 0 ? at[args.rows] : NOWHERE};
}

// Stores the pair of columns of a row.
DEVICE void store_pair(const TransformQuantizeArgs &args, const Target &target, f32 low, f32 high, u32 tile, u32 in_tile,
                       const Places &places, Extremes &extremes) {
    const u32 word = pack_f16(low * args.factor, high * args.factor);
    if (target.last) {
        extremes.least = minimum_nan_f16x2(extremes.least, word);
        extremes.most = maximum_nan_f16x2(extremes.most, word);
    }
    const u32 t = lane_index() % 4;
    if (target.places == nullptr) {
        const u32 row = tile * args.span + in_tile;
        if (in_tile < args.span && row < args.rows) *reinterpret_cast<u32 *>(row_of(target.to, row) + 4 * t) = word;
    } else if (args.token_bits > 0) {
        const u32 token = 2 * t & ((1 << args.token_bits) - 1);
        if (places.first != NOWHERE) *reinterpret_cast<u32 *>(target.to + places.first + 2 * token) = word;
    } else {
        if (places.first != NOWHERE) *reinterpret_cast<u16 *>(target.to + places.first) = static_cast<u16>(word);
        if (places.second != NOWHERE) *reinterpret_cast<u16 *>(target.to + places.second) = static_cast<u16>(word >> 16);
    }
}

// One rotation of all tiles: from the tokens (FIRST) or from `from`.
template <bool FIRST>
DEVICE void rotate(const TransformQuantizeArgs &args, const Shared &shared, const Warp &warp, const Column &column, u8 *from,
                   const Target &target, u32 index, Extremes &extremes) {
    constexpr u32 MATRICES = HADAMARD ? 1 : STRIPS * STEPS;
    u32 a[MATRICES][4];
    const u8 *packed = args.rotations + (static_cast<u64>(index) * TILE_WARPS + warp.part) * MATRICES * 512;
#pragma unroll
    for (u32 i = 0; i < MATRICES; i++) {
        const Quad q = load_16_constant(packed + 512 * i + 16 * lane_index());
        a[i][0] = q.x, a[i][1] = q.y, a[i][2] = q.z, a[i][3] = q.w;
    }
    RawOctet<Input> raw{};
    const bool gives = TILE_WARPS == 1 || warp.part < RUNS;
    if (FIRST && TILE_WARPS > 1 && gives && warp.group < args.tiles) fetch_run(raw, args, column, warp.group, warp.part);
    u32 turn = 0;
    for (u32 tile = warp.group; tile < args.tiles; tile += warp.groups) {
        u32 x[RUNS][4];
        if (FIRST && TILE_WARPS > 1) {
            // Each warp converts a run, all take it from the stage. Two stages, so one barrier a tile: who writes a stage again
            // has met, one tile ago, everybody who read it.
            u8 *stage = shared.stage + (2 * warp.group + turn) * (RUNS * 512) + 16 * lane_index();
            turn ^= 1;
            if (gives) {
                u32 mine[4];
                convert_run(mine, raw, args, column, tile, warp.part);
                *reinterpret_cast<Quad *>(stage + 512 * warp.part) = {mine[0], mine[1], mine[2], mine[3]};
                if (tile + warp.groups < args.tiles) fetch_run(raw, args, column, tile + warp.groups, warp.part);
            }
            sync_tile(warp);
#pragma unroll
            for (u32 run = 0; run < RUNS; run++) {
                const Quad q = *reinterpret_cast<const Quad *>(stage + 512 * run);
                x[run][0] = q.x, x[run][1] = q.y, x[run][2] = q.z, x[run][3] = q.w;
            }
        } else if (FIRST) {
#pragma unroll
            for (u32 run = 0; run < RUNS; run++) {
                fetch_run(raw, args, column, tile, run);
                convert_run(x[run], raw, args, column, tile, run);
            }
        } else {
            const u32 first = tile * args.span, live = smaller(args.span, args.rows - first);
#pragma unroll
            for (u32 run = 0; run < RUNS; run++) {
                load_octets(x[run], shared, from, first + 32 * run, live > 32 * run ? live - 32 * run : 0);
            }
            // The results replace what all of the tile's warps have read.
            if (target.to == from) sync_tile(warp);
        }
        if (HADAMARD) {
            f32 d[STEPS][4] = {};
#pragma unroll
            for (u32 step = 0; step < STEPS; step++) {
                const u32 b[2] = {x[step / 2][2 * (step % 2)], x[step / 2][2 * (step % 2) + 1]};
                mma_f16(d[step], a[0], b);
            }
#pragma unroll
            for (u32 stride = 1; stride < STEPS; stride *= 2) {
#pragma unroll
                for (u32 i = 0; i < STEPS; i++) {
                    if (i & stride) continue;
#pragma unroll
                    for (u32 j = 0; j < 4; j++) {
                        const f32 p = d[i][j], q = d[i + stride][j];
                        d[i][j] = p + q;
                        d[i + stride][j] = p - q;
                    }
                }
            }
#pragma unroll
            for (u32 i = 0; i < 2 * STEPS; i++) {
                const u32 row = strip_row(i / 2, 0) + i % 2 * 8;
                const Places places = places_of(args, target, tile, row);
                store_pair(args, target, d[i / 2][i % 2 * 2], d[i / 2][i % 2 * 2 + 1], tile, row, places, extremes);
            }
        } else {
            // Asked for before the sums where registers allow, so that they are there behind them.
            constexpr bool EARLY = SIZE == 32 || SIZE == 128;
            Places places[2 * STRIPS];
#pragma unroll
            for (u32 i = 0; i < 2 * STRIPS && EARLY; i++) {
                places[i] = places_of(args, target, tile, strip_row(i / 2, warp.part) + i % 2 * 8);
            }
            f32 d[STRIPS][4] = {};
#pragma unroll
            for (u32 step = 0; step < STEPS; step++) {
                const u32 b[2] = {x[step / 2][2 * (step % 2)], x[step / 2][2 * (step % 2) + 1]};
#pragma unroll
                for (u32 strip = 0; strip < STRIPS; strip++) mma_f16(d[strip], a[strip * STEPS + step], b);
            }
#pragma unroll
            for (u32 i = 0; i < 2 * STRIPS; i++) {
                const u32 row = strip_row(i / 2, warp.part) + i % 2 * 8;
                if (!EARLY) places[i] = places_of(args, target, tile, row);
                store_pair(args, target, d[i / 2][i % 2 * 2], d[i / 2][i % 2 * 2 + 1], tile, row, places[i], extremes);
            }
        }
    }
}

// The quantizer of the lane's column g, for values as they are kept, in every lane. Ends behind a barrier; `parts` may be written after another.
DEVICE RowCoder coder_of(const TransformQuantizeArgs &args, const Shared &shared, Extremes extremes) {
    const u32 lane = lane_index(), warps = block_threads() / 32;
#pragma unroll
    for (u32 mask = 4; mask < 32; mask *= 2) {
        extremes.least = minimum_nan_f16x2(extremes.least, shuffle_xor(extremes.least, mask));
        extremes.most = maximum_nan_f16x2(extremes.most, shuffle_xor(extremes.most, mask));
    }
    u32 *words = reinterpret_cast<u32 *>(shared.parts);  // [warps][least, most][4 pairs of columns]
    if (lane < 4) {
        words[8 * warp_index() + lane] = extremes.least;
        words[8 * warp_index() + 4 + lane] = extremes.most;
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
    u8 *from = shared.mid, *to = shared.mid;
    const u32 last = args.rotation_count - 1;
    if (!idle) {
        rotate<true>(args, shared, warp, column, nullptr, {to, last > 0 ? args.places : nullptr, last == 0}, 0, extremes);
    }
    for (u32 i = 1; i <= last && !idle; i++) {
        sync_block();
        from = to;
        // The last one works in place; in between, a permutation scatters into the other buffer.
        if (i < last) to = from == shared.mid ? shared.other : shared.mid;
        const u32 *places = args.places + i * (args.rows << 3 >> args.token_bits);
        rotate<false>(args, shared, warp, column, from, {to, i < last ? places : nullptr, i == last}, i, extremes);
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
