// gemm_w4a4 on INT4 tensor cores for many tokens. A block owns a tile of TILE_CHANNELS by TILE_TOKENS of y, a warp 64 output
// channels of it by TILE_TOKENS / WARPS_T tokens.
//
// Both operands lie in memory as the fragments of the instruction, so chunks of 128 input channels pass through shared
// memory by plain 16-byte copies, STAGES of them ahead, and a fragment is one conflict-free 16-byte load. A block walks
// over tiles; the copies run on into its next tile while it finishes one.
//
// A warp of 64 x 64 reads 4 KiB of shared memory for the 32 instructions of a step. By the peak rates (128 bytes a cycle; 2
// cycles an instruction on sm_80, 4 on sm_86 and sm_89) that is half or a quarter of what shared memory gives in that time.
#include "gemm_w4a4_mma.cuh"

constexpr u32 WARPS_C = TILE_CHANNELS / 64;
constexpr u32 THREADS = 32 * WARPS_C * WARPS_T;
constexpr u32 WARP_GROUPS = TILE_TOKENS / 8 / WARPS_T;
constexpr u32 WEIGHT_BYTES = WARPS_C * UNIT_BYTES;
constexpr u32 TOKEN_BYTES = TILE_TOKENS / 8 * ATOM_BYTES;
constexpr u32 STAGE_BYTES = WEIGHT_BYTES + TOKEN_BYTES;
constexpr u32 ROUND_BYTES = 16 * THREADS;
static_assert(UNIT_BYTES % ROUND_BYTES == 0 && TOKEN_BYTES % ROUND_BYTES == 0, "every thread copies as much");

struct GemmTiledArgs {
    const u8 *weights;
    const u8 *codes;
    GemmOutputArgs out;
    u32 chunks;         // of 128 input channels
    u32 groups;         // of 8 tokens
    u32 blocks;         // of 64 output channels
    u32 channel_tiles;
    u32 token_tiles;
    u32 raster;         // tiles of channels that share their tokens in the second-level cache
};

struct Place {
    u32 channel_tile, token_tile;
};

// Tiles in the order in which they run: columns of `raster` tiles of channels.
DEVICE Place place_of(const GemmTiledArgs &args, u32 tile) {
    const u32 column_tiles = args.raster * args.token_tiles;
    const u32 column = tile / column_tiles, inside = tile % column_tiles;
    const u32 width = smaller(args.raster, args.channel_tiles - column * args.raster);
    return {column * args.raster + inside % width, inside / width};
}

// The copies of one thread, chunk after chunk and tile after tile.
struct Copies {
    const u8 *weights;
    const u8 *codes;
    i32 blocks;  // of the matrix from this tile on
    i32 groups;  // of the tokens from this thread's first on
    u32 left;    // chunks of the tile
    u32 tile;
};

DEVICE void start_tile(Copies &copies, const GemmTiledArgs &args) {
    const Place place = place_of(args, copies.tile);
    const u32 byte = 16 * thread_index();
    const u32 block = place.channel_tile * WARPS_C, group = place.token_tile * (TILE_TOKENS / 8);
    copies.weights = args.weights + static_cast<u64>(block) * args.chunks * UNIT_BYTES + byte;
    copies.codes = args.codes + static_cast<u64>(group) * ATOM_BYTES + byte;
    copies.blocks = static_cast<i32>(args.blocks - block);
    copies.groups = static_cast<i32>(args.groups - group) - static_cast<i32>(byte / ATOM_BYTES);
    copies.left = args.chunks;
}

// Starts the copies of the next chunk into `stage`. What lies behind the matrix or the tokens is 0 and not read.
DEVICE void copy_chunk(Copies &copies, const GemmTiledArgs &args, u8 *stage) {
    const u32 tiles = args.channel_tiles * args.token_tiles;
    if (copies.tile < tiles) {
        u8 *to = stage + 16 * thread_index();
        const u64 block_stride = static_cast<u64>(args.chunks) * UNIT_BYTES;
#pragma unroll
        for (u32 at = 0; at < WEIGHT_BYTES; at += ROUND_BYTES) {
            const u32 block = at / UNIT_BYTES;
            const u8 *from = copies.weights + block * block_stride + at % UNIT_BYTES;
            if (WARPS_C == 1) {
                copy_async_16(to + at, from);
            } else {
                copy_async_16_zero(to + at, from, static_cast<i32>(block) < copies.blocks ? 16 : 0);
            }
        }
#pragma unroll
        for (u32 at = 0; at < TOKEN_BYTES; at += ROUND_BYTES) {
            const bool there = static_cast<i32>(at / ATOM_BYTES) < copies.groups;
            copy_async_16_zero(to + WEIGHT_BYTES + at, copies.codes + at, there ? 16 : 0);
        }
        copies.weights += UNIT_BYTES;
        copies.codes += static_cast<u64>(args.groups) * ATOM_BYTES;
        copies.left--;
        if (copies.left == 0) {
            copies.tile += grid_x();
            if (copies.tile < tiles) start_tile(copies, args);
        }
    }
    copy_async_commit();
}

// Where a warp's lane reads in a stage.
struct Lane {
    u32 weights, tokens;
};

DEVICE void load_step(StepWeights &weights, const u8 *stage, const Lane &lane, u32 step) {
#pragma unroll
    for (u32 f = 0; f < 4; f++) {
        weights.fragment[f] = *reinterpret_cast<const Quad *>(stage + lane.weights + step * STEP_BYTES + f * 512);
    }
}

DEVICE Quad load_tokens(const u8 *stage, const Lane &lane, u32 j, u32 half) {
    return *reinterpret_cast<const Quad *>(stage + lane.tokens + j * ATOM_BYTES + half * 512);
}

// Half a chunk. Registers of tokens that have done their work are loaded with what comes next, from `next`: 4-bit tokens behind
// the second step, 8-bit tokens behind each.
template <u32 STEP>
DEVICE void multiply_step(Sums (&sums)[WARP_GROUPS], const Operand<EIGHT> &operand, Quad (&tokens)[WARP_GROUPS],
                          const u8 *next, const Lane &lane) {
#pragma unroll
    for (u32 j = 0; j < WARP_GROUPS; j++) {
        multiply<STEP>(sums[j], operand, tokens[j]);
        if (EIGHT || STEP == 1) tokens[j] = load_tokens(next, lane, j, EIGHT ? 1 - STEP : 0);
    }
}

KERNEL(gemm_w4a4_tiled, GemmTiledArgs, THREADS, BLOCKS) {
    u8 *shared = shared_memory();
    const u32 warp = warp_index();
    const u32 warp_channels = warp % WARPS_C, warp_tokens = warp / WARPS_C;
    const Lane lane = {warp_channels * UNIT_BYTES + 16 * lane_index(),
                       WEIGHT_BYTES + warp_tokens * WARP_GROUPS * ATOM_BYTES + 16 * lane_index()};
    const u32 tiles = args.channel_tiles * args.token_tiles;

    Copies copies;
    copies.tile = block_x();
    if (copies.tile < tiles) start_tile(copies, args);
    for (u32 stage = 0; stage < STAGES; stage++) copy_chunk(copies, args, shared + stage * STAGE_BYTES);

    u8 *stage = shared;
    for (u32 tile = block_x(); tile < tiles; tile += grid_x()) {
        Sums sums[WARP_GROUPS];
#pragma unroll
        for (u32 j = 0; j < WARP_GROUPS; j++) clear(sums[j]);
        copy_async_wait<STAGES - 1>();
        sync_block();
        StepWeights weights;
        Quad tokens[WARP_GROUPS];
        load_step(weights, stage, lane, 0);
#pragma unroll
        for (u32 j = 0; j < WARP_GROUPS; j++) tokens[j] = load_tokens(stage, lane, j, 0);

#pragma unroll 1
        for (u32 chunk = 0; chunk < args.chunks; chunk++) {
            u8 *next = stage + STAGE_BYTES == shared + STAGES * STAGE_BYTES ? shared : stage + STAGE_BYTES;
            Operand<EIGHT> operand;
            set_operand(operand, weights);
            load_step(weights, stage, lane, 1);
            multiply_step<0>(sums, operand, tokens, stage, lane);
            // The next chunk is there, and nobody reads this one any more: its stage takes the chunk STAGES on.
            copy_async_wait<STAGES - 2>();
            sync_block();
            copy_chunk(copies, args, stage);
            set_operand(operand, weights);
            load_step(weights, next, lane, 0);
            multiply_step<1>(sums, operand, tokens, next, lane);
            stage = next;
        }

        const Place place = place_of(args, tile);
        const u32 block = place.channel_tile * WARPS_C + warp_channels;
        const u32 first = 64 * block + 8 * (lane_index() / 4);
        if (first < args.out.n) {
            Quad channels[8];
#pragma unroll
            for (u32 i = 0; i < 8; i++) channels[i] = load_channel(args.out, first + i);
            const u32 group = place.token_tile * (TILE_TOKENS / 8) + warp_tokens * WARP_GROUPS;
#pragma unroll
            for (u32 j = 0; j < WARP_GROUPS; j++) {
                finish_group(args.out, sums[j], group + j, first, [&](u32 i) { return channels[i]; });
            }
        }
    }
}
