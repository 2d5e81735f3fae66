// gemm_w4a4 on Hopper, whose tensor cores have no INT4: Y^T = W X^T in INT8 by wgmma. The weights stay packed until they are in
// registers, where they become the A operand; the activations come in bytes (TokenForm::Tiles8) and are B, in shared memory.
//
// A block is three warpgroups: two threads of the first copy, the second and the third multiply 64 x TILES channels each by the
// same TOKENS tokens. A stage of the ring is one chunk of 128 input channels. Blocks are as many as multiprocessors and take whole
// tiles in turn; what is left of the tiles is cut into equal runs of chunks, whose sums meet in the workspace.
#include "gemm_w4a4_sm90_epilogue.cuh"

constexpr u32 GROUPS = TOKENS / 8;             // of 8 tokens
constexpr u32 CONSUMERS = 2;                   // warpgroups
constexpr u32 ATOM = 1024, BLOCK_CHUNK = 4096; // bytes of a chunk of 8 tokens, of 64 channels
constexpr u32 BLOCKS = CONSUMERS * TILES;      // of 64 channels, in a tile
constexpr u32 STAGE = GROUPS * ATOM + BLOCKS * BLOCK_CHUNK;
// Where the rest of shared memory lies behind the stages.
constexpr u32 STAGING_AT = STAGES * STAGE;
constexpr u32 BARRIERS_AT = STAGING_AT + CONSUMERS * STAGING;
constexpr u32 FLAGS_AT = BARRIERS_AT + 16 * STAGES;
// With many accumulators the warps that multiply take registers of those that copy.
constexpr bool TRADES = TOKENS * TILES >= 128;

// A place in the ring of stages, and the parity of its barriers.
struct Place {
    u32 stage, parity;
    METHOD void next() {
        stage++;
        if (stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

DEVICE u64 *full_barrier(u8 *shared, u32 stage) { return reinterpret_cast<u64 *>(shared + BARRIERS_AT) + stage; }
DEVICE u64 *empty_barrier(u8 *shared, u32 stage) { return full_barrier(shared, STAGES + stage); }

// Few tokens are one tile of tokens, for which each weight is read once.
DEVICE void copy_weights(u8 *to, const u8 *from, u64 *full) {
    if (TOKENS <= 64) {
        copy_bulk_once(to, from, BLOCK_CHUNK, full);
    } else {
        copy_bulk(to, from, BLOCK_CHUNK, full);
    }
}

// Two threads of different warps fill the stages, one with weights and one with the tokens' codes: in decode a chunk lasts only
// some hundreds of clocks, which one thread would spend on issuing copies.
template <bool WEIGHTS>
DEVICE void produce(const GemmArgs &args, u8 *shared) {
    Schedule schedule(args, TOKENS, BLOCKS);
    const u32 groups = divide_up(args.out.tokens, 8u);
    const u64 chunk_bytes = static_cast<u64>(groups) * ATOM, block_bytes = static_cast<u64>(args.chunks) * BLOCK_CHUNK;
    Place place{0, 1};
    for (Work work; schedule.next(work);) {
        const u32 first_group = work.token_tile * GROUPS, first_block = work.channel_tile * BLOCKS;
        const u32 blocks = smaller(BLOCKS, args.blocks - first_block);
        const u32 bytes = WEIGHTS ? blocks * BLOCK_CHUNK : smaller(GROUPS, groups - first_group) * ATOM;
        const u8 *from = WEIGHTS ? args.weights + first_block * block_bytes + static_cast<u64>(work.first) * BLOCK_CHUNK
                                 : args.codes + work.first * chunk_bytes + static_cast<u64>(first_group) * ATOM;
#pragma unroll 1
        for (u32 i = 0; i < work.length(); i++) {
            u8 *to = shared + place.stage * STAGE + (WEIGHTS ? GROUPS * ATOM : 0);
            u64 *full = full_barrier(shared, place.stage);
            barrier_wait_parity(empty_barrier(shared, place.stage), place.parity);
            barrier_arrive_expect(full, bytes);
            if constexpr (WEIGHTS) {
#pragma unroll
                for (u32 block = 0; block < BLOCKS; block++) {
                    if (block < blocks) copy_weights(to + block * BLOCK_CHUNK, from + block * block_bytes, full);
                }
            } else {
                copy_bulk(to, from, bytes, full);
            }
            from += WEIGHTS ? BLOCK_CHUNK : chunk_bytes;
            place.next();
        }
    }
}

// The weights of 64 channels and a chunk as this thread's A registers of the four k32 steps.
DEVICE void unpack(u32 (&a)[4][4], const u8 *block) {
#pragma unroll
    for (u32 s = 0; s < 2; s++) {
        const Quad q = *reinterpret_cast<const Quad *>(block + 2048 * s + 16 * (thread_index() % 128));
        const u32 words[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            a[2 * s][i] = words[i] & 0x0f0f0f0f;
            a[2 * s + 1][i] = words[i] >> 4 & 0x0f0f0f0f;
        }
    }
}

// What a warpgroup that multiplies knows of the ring.
struct Consumer {
    u8 *shared;
    u32 warpgroup;
    Place place{0, 0};
    u32 held = 0;  // the stage that is still read

    // Multiplies the chunk at `place`; while the tensor cores work on it the next one is unpacked, into other registers.
    METHOD void step(i32 (&sums)[TILES][RESULTS], u32 (&a)[TILES][4][4], bool first) {
        const u8 *stage = shared + place.stage * STAGE;
        barrier_wait_parity(full_barrier(shared, place.stage), place.parity);
#pragma unroll
        for (u32 m = 0; m < TILES; m++) {
            unpack(a[m], stage + GROUPS * ATOM + (warpgroup * TILES + m) * BLOCK_CHUNK);
        }
        const TileDescriptor tile = tile_descriptor(stage);
        wgmma_fence();
#pragma unroll
        for (u32 k = 0; k < 4; k++) {
#pragma unroll
            for (u32 m = 0; m < TILES; m++) wgmma_u8(sums[m], a[m][k], tile_step(tile, k), !first || k > 0);
        }
        wgmma_commit();
        // The chunk before is done: its registers and its stage are free.
        wgmma_wait<1>();
        if (!first) give_back();
        held = place.stage;
        place.next();
    }
    METHOD void give_back() {
        sync_warp();
        if (lane_index() == 0) barrier_arrive(empty_barrier(shared, held));
    }
    // All chunks of one piece of work. Two sets of A registers take turns.
    METHOD void multiply(i32 (&sums)[TILES][RESULTS], u32 chunks) {
        u32 even[TILES][4][4], odd[TILES][4][4];
        bool first = true;
        for (;;) {
            step(sums, even, first);
            first = false;
            if (--chunks == 0) break;
            step(sums, odd, false);
            if (--chunks == 0) break;
        }
        wgmma_wait<0>();
#pragma unroll
        for (u32 m = 0; m < TILES; m++) wgmma_settle(sums[m]);
        give_back();
    }
};

// Adds what this block has of a split tile to the workspace. Whoever brings the last chunk leaves with the sums of all and
// true; the workspace is zero again.
DEVICE bool sum_up(const GemmArgs &args, const Work &work, Meeting meeting, i32 (&sums)[TILES][RESULTS], u32 groups) {
    const u64 part = static_cast<u64>(work.split) * CONSUMERS + meeting.warpgroup;
    i32 *partial = args.partial + part * (TILES * RESULTS * 128) + meeting.thread;
#pragma unroll
    for (u32 i = 0; i < TILES * RESULTS; i++) {
        if (i % RESULTS / 4 < groups) reduce_to(partial + 128 * i, sums[i / RESULTS][i % RESULTS]);
    }
    meeting.sync();
    if (meeting.thread == 0) {
        // What the barrier brought is there before the count, and what others counted is there behind it: a fence holds for
        // all that happened before it, not for its own thread's alone.
        fence_device();
        const u32 there = atomic_add(args.counters + part, work.length()) + work.length();
        fence_device();
        if (there == args.chunks) args.counters[part] = 0;
        *meeting.flag = there;
    }
    meeting.sync();
    if (*meeting.flag != args.chunks) return false;
#pragma unroll
    for (u32 i = 0; i < TILES * RESULTS; i++) {
        if (i % RESULTS / 4 < groups) {
            sums[i / RESULTS][i % RESULTS] = load_fresh(partial + 128 * i);
            partial[128 * i] = 0;
        }
    }
    return true;
}

KERNEL(gemm_w4a4_sm90, GemmArgs, 384, 1) {
    u8 *shared = shared_memory();
    if (thread_index() == 0) {
        for (u32 i = 0; i < STAGES; i++) {
            barrier_init(full_barrier(shared, i), 2);
            barrier_init(empty_barrier(shared, i), 4 * CONSUMERS);
        }
        barrier_init_fence();
    }
    sync_block();
    if (warp_index() < 4) {
        if constexpr (TRADES) registers_give<40>();
        if (thread_index() == 0) produce<true>(args, shared);
        if (thread_index() == 32) produce<false>(args, shared);
        return;
    }
    if constexpr (TRADES) registers_take<232>();
    Consumer consumer{shared, warp_index() / 4 - 1};
    Meeting meeting;
    meeting.warpgroup = consumer.warpgroup;
    meeting.thread = thread_index() % 128;
    meeting.staging = shared + STAGING_AT + meeting.warpgroup * STAGING;
    meeting.flag = reinterpret_cast<u32 *>(shared + FLAGS_AT) + meeting.warpgroup;
    Schedule schedule(args, TOKENS, BLOCKS);
    for (Work work; schedule.next(work);) {
        i32 sums[TILES][RESULTS];
        consumer.multiply(sums, work.length());
        const u32 first_token = work.token_tile * TOKENS;
        const u32 first_block = work.channel_tile * BLOCKS + meeting.warpgroup * TILES;
        // The last tile of channels may have no work for this warpgroup.
        if (first_block >= args.blocks) continue;
        const u32 groups = divide_up(args.out.tokens - first_token, 8u);
        if (work.length() < args.chunks && !sum_up(args, work, meeting, sums, groups)) continue;
#pragma unroll
        for (u32 m = 0; m < TILES; m++) {
            if (first_block + m < args.blocks) write_sums(args.out, meeting, sums[m], first_block + m, first_token);
        }
    }
}
