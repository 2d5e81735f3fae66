// gemm_w4a4 on INT4 tensor cores for up to TILE_TOKENS tokens, where the time is that of reading the weights.
//
// The weights lie as units of 64 output by 128 input channels, 4 KiB, K fastest. Every block takes an equal run of them,
// whether or not that ends with a row of units, and its warps take turns in the run. A unit goes from memory straight to
// registers, once, while the one before is multiplied and across the end of a row as well. At the end of each row the
// warps' sums meet in shared memory; where other blocks have a part of the row, all add theirs to the workspace and the
// last to come finishes.
//
// A warp waits with 4 to 8 KiB on their way, a multiprocessor with its 8 or 16 warps with 32 KiB and more. To keep memory
// busy takes its bandwidth by its latency: at 0.6 microseconds, 9 KiB for each multiprocessor of an A100 and 7 KiB of a
// 3090.
#include "gemm_w4a4_mma.cuh"

constexpr u32 WARPS = 8;
constexpr u32 THREADS = 32 * WARPS;
constexpr u32 GROUPS = TILE_TOKENS / 8;
constexpr u32 TOKEN_QUADS = EIGHT ? 2 : 1;
// Groups whose sums are in shared memory at a time.
constexpr u32 PASS = smaller(GROUPS, 4u);
static_assert(GROUPS <= WARPS && GROUPS % PASS == 0, "a warp finishes a group");

struct GemmStreamArgs {
    const u8 *weights;
    const u8 *codes;
    GemmOutputArgs out;
    i32 *partials;   // [blocks of the grid, GROUPS, 16, 32], 0 between launches
    u32 *counters;   // [blocks of the grid], 0 between launches
    u32 chunks;      // of 128 input channels: the units of a row
    u32 groups;      // of 8 tokens
    u32 units;
    u32 unused;
};

// Units are dealt to the blocks of the grid in runs of `share`, the first `extra` of them one longer.
struct Deal {
    u32 share, extra;
};

DEVICE u32 first_unit(const Deal &deal, u32 block) { return block * deal.share + smaller(block, deal.extra); }
// Whose unit it is.
DEVICE u32 block_of(const Deal &deal, u32 unit) {
    const u32 longer = deal.extra * (deal.share + 1);
    return unit < longer ? unit / (deal.share + 1) : deal.extra + (unit - longer) / deal.share;
}

struct Unit {
    StepWeights step[2];
};

struct Tokens {
    Quad of[GROUPS][TOKEN_QUADS];
};

DEVICE void load_unit(Unit &to, const u8 *from) {
#pragma unroll
    for (u32 i = 0; i < 8; i++) to.step[i / 4].fragment[i % 4] = load_16_once(from + 512 * i);
}

DEVICE void load_group(Quad (&to)[TOKEN_QUADS], const u8 *chunk, u32 j) {
#pragma unroll
    for (u32 i = 0; i < TOKEN_QUADS; i++) to[i] = load_16_constant(chunk + j * ATOM_BYTES + 512 * i);
}

// Multiplies a unit, and loads the tokens of `next` where the old ones have done their work.
DEVICE void multiply_unit(Sums (&sums)[GROUPS], const Unit &unit, Tokens &tokens, const u8 *next, u32 groups) {
    Operand<EIGHT> operand;
    set_operand(operand, unit.step[0]);
#pragma unroll
    for (u32 j = 0; j < GROUPS; j++) multiply<0>(sums[j], operand, tokens.of[j][0]);
    set_operand(operand, unit.step[1]);
#pragma unroll
    for (u32 j = 0; j < GROUPS; j++) {
        multiply<1>(sums[j], operand, tokens.of[j][TOKEN_QUADS - 1]);
        if (j < groups) load_group(tokens.of[j], next, j);
    }
}

// The sums of all warps, group j in warp j.
DEVICE void reduce_warps(Sums &total, const Sums (&sums)[GROUPS], u32 warp) {
    Quad *shared = reinterpret_cast<Quad *>(shared_memory()) + lane_index();
    clear(total);
#pragma unroll
    for (u32 pass = 0; pass < GROUPS / PASS; pass++) {
        sync_block();
#pragma unroll
        for (u32 i = 0; i < 4 * PASS; i++) {
            const i32(&s)[4] = sums[pass * PASS + i / 4].of[i % 4];
            shared[(warp * 4 * PASS + i) * 32] = {static_cast<u32>(s[0]), static_cast<u32>(s[1]), static_cast<u32>(s[2]),
                                                  static_cast<u32>(s[3])};
        }
        sync_block();
        if (warp / PASS == pass) {
#pragma unroll
            for (u32 i = 0; i < 4 * WARPS; i++) {
                const Quad q = shared[((i / 4) * 4 * PASS + 4 * (warp % PASS) + i % 4) * 32];
                i32(&s)[4] = total.of[i % 4];
                s[0] += static_cast<i32>(q.x);
                s[1] += static_cast<i32>(q.y);
                s[2] += static_cast<i32>(q.z);
                s[3] += static_cast<i32>(q.w);
            }
        }
    }
}

// Adds this block's part of a row to that of the others, which share `slot` of the workspace. True in the block that comes
// last, which then has the whole sum; the workspace is 0 again.
DEVICE bool reduce_blocks(Sums &total, const GemmStreamArgs &args, u32 slot, u32 sharers, bool owner) {
    i32 *partials = args.partials + (static_cast<u64>(slot) * GROUPS + warp_index()) * 512 + lane_index();
    if (owner) {
#pragma unroll
        for (u32 i = 0; i < 16; i++) reduce_to(partials + 32 * i, total.of[i / 4][i % 4]);
    }
    sync_block();
    bool last = false;
    if (thread_index() == 0) {
        u32 *counter = args.counters + slot;
        // What the barrier brought is there before the count, and what others counted is there behind it: a fence holds for
        // all that happened before it, not for its own thread's alone.
        fence_device();
        last = atomic_add(counter, 1u) + 1 == sharers;
        fence_device();
        if (last) *counter = 0;
    }
    if (!sync_block_or(last)) return false;
    if (owner) {
#pragma unroll
        for (u32 i = 0; i < 16; i++) total.of[i / 4][i % 4] = load_fresh(partials + 32 * i);
#pragma unroll
        for (u32 i = 0; i < 16; i++) partials[32 * i] = 0;
    }
    return true;
}

KERNEL(gemm_w4a4_stream, GemmStreamArgs, THREADS, BLOCKS) {
    const u32 warp = warp_index(), lane = lane_index();
    const Deal deal = {args.units / grid_x(), args.units % grid_x()};
    const u32 begin = first_unit(deal, block_x()), end = first_unit(deal, block_x() + 1);

    // This warp's next unit to multiply, and the chunk of its tokens; weights are loaded ahead.
    u32 unit = begin + warp;
    u32 chunk = unit % args.chunks;
    const u32 turn_chunks = WARPS % args.chunks;
    const u64 chunk_bytes = static_cast<u64>(args.groups) * ATOM_BYTES;
    const u8 *weights = args.weights + static_cast<u64>(unit) * UNIT_BYTES + 16 * lane;
    const u8 *codes = args.codes + 16 * lane;
    const auto turn = [&](Sums(&sums)[GROUPS], const Unit &held, Tokens &tokens) {
        // The last turn may end behind the run; there are tokens for it all the same, and unused.
        chunk += turn_chunks;
        if (chunk >= args.chunks) chunk -= args.chunks;
        multiply_unit(sums, held, tokens, codes + chunk * chunk_bytes, args.groups);
        unit += WARPS;
        weights += WARPS * UNIT_BYTES;
    };

    Unit even = {};
    Tokens tokens = {};
    if (unit < end) load_unit(even, weights);
#pragma unroll
    for (u32 j = 0; j < GROUPS; j++) {
        if (j < args.groups) load_group(tokens.of[j], codes + chunk * chunk_bytes, j);
    }

#pragma unroll 1
    for (u32 row = begin / args.chunks; row * args.chunks < end; row++) {
        const u32 row_begin = row * args.chunks, row_end = row_begin + args.chunks;
        const u32 stop = smaller(row_end, end);
        Sums sums[GROUPS];
#pragma unroll
        for (u32 j = 0; j < GROUPS; j++) clear(sums[j]);
        // Two units are on their way while one is waited for. At the end of the row `even` has the next one, be it of the next
        // row: its load runs on while this one is finished. `odd` never does, for the registers.
        Unit odd = {};
        bool pair = unit + WARPS < stop;
        if (pair) load_unit(odd, weights + WARPS * UNIT_BYTES);
#pragma unroll 1
        while (unit < stop) {
            turn(sums, even, tokens);
            if (!pair) {
                if (unit < end) load_unit(even, weights);
                break;
            }
            if (unit + WARPS < end) load_unit(even, weights + WARPS * UNIT_BYTES);
            turn(sums, odd, tokens);
            pair = unit + WARPS < stop;
            if (pair) load_unit(odd, weights + WARPS * UNIT_BYTES);
        }

        Sums total;
        reduce_warps(total, sums, warp);
        const bool owner = warp < GROUPS && warp < args.groups;
        bool finishes = true;
        if (begin > row_begin || end < row_end) {
            const u32 slot = block_of(deal, row_begin), last = block_of(deal, row_end - 1);
            finishes = reduce_blocks(total, args, slot, last - slot + 1, owner);
        }
        const u32 first = 64 * row + 8 * (lane / 4);
        if (finishes && owner && first < args.out.n) {
            finish_group(args.out, total, warp, first, [&](u32 i) { return load_channel(args.out, first + i); });
        }
    }
}
