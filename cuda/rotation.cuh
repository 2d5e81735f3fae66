// The rotations of transform_quantize.cu, which says how the values lie.
#pragma once

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

// Row in the tile of the lane's first pair of results; pair i is pair_row(i) further. As hadamard_fragment of pack.rs: that matrix
// takes bits 0, 1, 3 and 4 of the row, sums and differences the others.
DEVICE u32 first_row(u32 part) {
    const u32 g = lane_index() / 4;
    return HADAMARD ? 16 * (g / 4) + g % 4 : 16 * part * STRIPS + g;
}
constexpr u32 pair_row(u32 i) { return HADAMARD ? 32 * (i / 4) + 4 * (i / 2 % 2) + 8 * (i % 2) : 8 * i; }

// The Sylvester matrix over the steps.
template <u32 COUNT>
DEVICE void sums_and_differences(f32 (&d)[COUNT][4]) {
#pragma unroll
    for (u32 stride = 1; stride < COUNT; stride *= 2) {
#pragma unroll
        for (u32 i = 0; i < COUNT; i++) {
            if (i & stride) continue;
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                const f32 p = d[i][j], q = d[i + stride][j];
                d[i][j] = p + q;
                d[i + stride][j] = p - q;
            }
        }
    }
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

constexpr u32 NOWHERE = 0xffffffff;

// Where the permutation puts columns 2 t and 2 t + 1 of a row, the second only where it is another segment's.
struct Places {
    u32 first, second;
};

// `at` is the row's entry for column 2 t. Rows that a tile has not, and channels that are not there, go nowhere.
DEVICE Places places_of(const TransformQuantizeArgs &args, const u32 *at, bool there) {
    Places places{NOWHERE, NOWHERE};
    if (there) {
        places.first = at[0];
        if (args.token_bits == 0) places.second = at[args.rows];
    }
    return places;
}

// The two columns' results as they are kept. Dense matrices are packed whole, Hadamards as signs.
DEVICE u32 pack_pair(const TransformQuantizeArgs &args, f32 low, f32 high) {
    return HADAMARD || SIZE == 32 ? pack_f16(low * args.factor, high * args.factor) : pack_f16(low, high);
}

// `to` is the buffer at the token of column 2 t.
DEVICE void scatter_pair(const TransformQuantizeArgs &args, u8 *to, const Places &places, u32 word) {
    if (args.token_bits > 0) {
        if (places.first != NOWHERE) *reinterpret_cast<u32 *>(to + places.first) = word;
    } else {
        if (places.first != NOWHERE) *reinterpret_cast<u16 *>(to + places.first) = static_cast<u16>(word);
        if (places.second != NOWHERE) *reinterpret_cast<u16 *>(to + places.second) = static_cast<u16>(word >> 16);
    }
}

// One rotation of all tiles: from the tokens (FIRST) or from `from`; to `to` and where `places` puts them, or (LAST) to their
// own rows of `to`, which is `from` unless they are the first too.
template <bool FIRST, bool LAST>
DEVICE void rotate(const TransformQuantizeArgs &args, const Shared &shared, const Warp &warp, const Column &column, u8 *from, u8 *to,
                   const u32 *places, u32 index, Extremes &extremes) {
    constexpr u32 MATRICES = HADAMARD ? 1 : STRIPS * STEPS;
    u32 a[MATRICES][4];
    const u8 *packed = args.rotations + (static_cast<u64>(index) * TILE_WARPS + warp.part) * MATRICES * 512;
#pragma unroll
    for (u32 i = 0; i < MATRICES; i++) {
        const Quad q = load_16_constant(packed + 512 * i + 16 * lane_index());
        a[i][0] = q.x, a[i][1] = q.y, a[i][2] = q.z, a[i][3] = q.w;
    }
    // Column 2 t, whose results the lane has beside those of column 2 t + 1.
    const u32 t = lane_index() % 4, segment = 2 * t >> args.token_bits, token = 2 * t & ((1 << args.token_bits) - 1);
    const u32 lane_row = first_row(warp.part);
    const u32 *lane_places = LAST ? nullptr : places + segment * args.rows + lane_row;
    u8 *lane_to = LAST ? to + 4 * t : to + 2 * token;
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
#pragma unroll
            for (u32 run = 0; run < RUNS; run++) {
                const u32 live = args.span > 32 * run ? args.span - 32 * run : 0;
                load_octets(x[run], shared, from, tile * args.span + 32 * run, live);
            }
            // The results replace what all of the tile's warps have read.
            if (LAST) sync_tile(warp);
        }
        const u32 *at = LAST ? nullptr : lane_places + tile * args.span;
        constexpr u32 PAIRS = HADAMARD ? 2 * STEPS : 2 * STRIPS;
        // Asked for before the sums where registers allow, so that they are there behind them.
        constexpr bool EARLY = !LAST && !HADAMARD && (SIZE == 32 || SIZE == 128);
        Places pairs[PAIRS];
#pragma unroll
        for (u32 i = 0; i < PAIRS && EARLY; i++) {
            pairs[i] = places_of(args, at + pair_row(i), lane_row + pair_row(i) < args.span);
        }
        f32 d[PAIRS / 2][4] = {};
#pragma unroll
        for (u32 step = 0; step < STEPS; step++) {
            const u32 b[2] = {x[step / 2][2 * (step % 2)], x[step / 2][2 * (step % 2) + 1]};
            if (HADAMARD) {
                mma_f16(d[HADAMARD ? step : 0], a[0], b);
            } else {
#pragma unroll
                for (u32 strip = 0; strip < STRIPS; strip++) mma_f16(d[strip], a[HADAMARD ? 0 : strip * STEPS + step], b);
            }
        }
        if (HADAMARD) sums_and_differences(d);
#pragma unroll
        for (u32 i = 0; i < PAIRS; i++) {
            const u32 word = pack_pair(args, d[i / 2][i % 2 * 2], d[i / 2][i % 2 * 2 + 1]);
            const bool there = lane_row + pair_row(i) < args.span;
            if (LAST) {
                extremes.least = minimum_nan_f16x2(extremes.least, word);
                extremes.most = maximum_nan_f16x2(extremes.most, word);
                if (there) *reinterpret_cast<u32 *>(row_of(lane_to, tile * args.span + lane_row + pair_row(i))) = word;
            } else {
                scatter_pair(args, lane_to, EARLY ? pairs[i] : places_of(args, at + pair_row(i), there), word);
            }
        }
    }
}
