// As ceiling.cu on Hopper: wgmma on bytes, with weights in registers and tokens in shared memory, as gemm_w4a4_sm90.
#include "ptx_sm90.cuh"
#include "kernel.cuh"

constexpr u32 TOKENS = 256, STEPS = 4, BYTES = 128 * TOKENS;

struct CeilingArgs {
    u32 *out;          // [threads of a block]
    const u8 *tile;    // BYTES
    u32 rounds;        // of four steps
    u32 operand;       // codes
};

KERNEL(ceiling_integer_sm90, CeilingArgs, 256, 1) {
    u8 *tile = shared_memory();
    u64 *barrier = reinterpret_cast<u64 *>(tile + BYTES);
    if (thread_index() == 0) {
        barrier_init(barrier, 1);
        barrier_init_fence();
    }
    sync_block();
    if (thread_index() == 0) {
        barrier_arrive_expect(barrier, BYTES);
        copy_bulk(tile, args.tile, BYTES, barrier);
    }
    barrier_wait_parity(barrier, 0);

    i32 sums[TOKENS / 2] = {};
    const u32 mine = args.operand ^ lane_index();
    const u32 a[4] = {mine, mine, mine, mine};
    const TileDescriptor descriptor = tile_descriptor(tile);
#pragma unroll 1
    for (u32 round = 0; round < args.rounds; round++) {
        wgmma_fence();
#pragma unroll
        for (u32 step = 0; step < STEPS; step++) wgmma_u8(sums, a, tile_step(descriptor, step), true);
        wgmma_commit();
        wgmma_wait<1>();
    }
    wgmma_wait<0>();
    wgmma_settle(sums);
    u32 found = 0;
#pragma unroll
    for (u32 i = 0; i < TOKENS / 2; i++) found ^= static_cast<u32>(sums[i]);
    args.out[thread_index()] = found;
}
