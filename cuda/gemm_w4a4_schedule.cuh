// Which chunks of which tiles a block of a persistent GEMM takes: whole tiles in turn, then its run of the chunks of the tiles
// that are split. Counts come from src/kernels/cuda/gemm_w4a4/sm90.rs.
#pragma once

#include "types.cuh"
#include "ptx.cuh"

struct Work {
    u32 channel_tile, token_tile;
    u32 split;        // number among the split tiles
    u32 first, last;  // chunks

    METHOD u32 length() const { return last - first; }
};

struct Schedule {
    u32 chunks, whole, band, channel_tiles, token_tiles;
    u32 tile;       // the next whole one
    u32 unit, end;  // of this block's run of (split tile, chunk)

    // Each block takes `share` units, the first `longer` blocks one more.
    template <class Args>
    METHOD Schedule(const Args &args, u32 tile_tokens, u32 tile_blocks)
        : chunks(args.chunks), whole(args.whole), band(args.band), channel_tiles(divide_up(args.blocks, tile_blocks)),
          token_tiles(divide_up(args.out.tokens, tile_tokens)), tile(block_x()),
          unit(args.share * block_x() + smaller(block_x(), args.longer)),
          end(unit + args.share + (block_x() < args.longer ? 1 : 0)) {}

    METHOD bool next(Work &work) {
        u32 index = tile;
        if (tile < whole) {
            work.split = 0;
            work.first = 0;
            work.last = chunks;
            tile += grid_x();
        } else if (unit < end) {
            work.split = unit / chunks;
            index = whole + work.split;
            work.first = unit - work.split * chunks;
            work.last = smaller(chunks, work.first + end - unit);
            unit += work.length();
        } else {
            return false;
        }
        // Bands of channel tiles, so that what runs at the same time is near square and shares the second-level cache.
        const u32 in_band = band * token_tiles;
        const u32 first = index / in_band * band;
        const u32 width = smaller(band, channel_tiles - first);
        const u32 at = index - first * token_tiles;
        work.channel_tile = first + at % width;
        work.token_tile = at / width;
        return true;
    }
};
