// Small kernels, each with a mistake that `planted` makes: tests/cuda_shim.rs asserts that the host shim finds it, and that it
// finds nothing in the kernel without it. Two warps; thread t is to give the number of a partner.
#include "kernel.cuh"

struct MistakeArgs {
    const u32 *in;
    u32 *out;
    u32 planted;
    u32 unused;
};

#define PLANTED (args.planted != 0)

DEVICE u32 *shared_words() { return reinterpret_cast<u32 *>(shared_memory()); }

KERNEL(no_barrier_before_reading, MistakeArgs, 64, 1) {
    const u32 t = thread_index();
    shared_words()[t] = args.in[t];
    if (!PLANTED) sync_block();
    args.out[t] = shared_words()[t ^ 32];
}

// Only one warp reads what the other writes, so that the mistake shows in one order of the warps alone.
KERNEL(no_barrier_for_the_upper_warp, MistakeArgs, 64, 1) {
    const u32 t = thread_index();
    shared_words()[t] = args.in[t];
    if (!PLANTED) sync_block();
    args.out[t] = shared_words()[t % 32];
}

KERNEL(no_barrier_for_the_lower_warp, MistakeArgs, 64, 1) {
    const u32 t = thread_index();
    shared_words()[t] = args.in[t];
    if (!PLANTED) sync_block();
    args.out[t] = shared_words()[32 + t % 32];
}

KERNEL(no_barrier_before_overwriting, MistakeArgs, 64, 1) {
    const u32 t = thread_index();
    u32 sum = 0;
    for (u32 round = 0; round < 4; round++) {
        shared_words()[t] = round * args.in[t];
        sync_block();
        sum += shared_words()[t ^ 32];
        if (!PLANTED) sync_block();
    }
    args.out[t] = sum;  // 0 + 1 + 2 + 3 times the partner's
}

KERNEL(no_warp_barrier, MistakeArgs, 64, 1) {
    const u32 t = thread_index();
    shared_words()[t] = args.in[t];
    if (!PLANTED) sync_warp();
    args.out[t] = shared_words()[t ^ 1];
}

// Sixteen threads copy 16 bytes each.
KERNEL(no_wait_for_a_copy, MistakeArgs, 64, 1) {
    const u32 t = thread_index();
    if (t < 16) copy_async_16(shared_words() + 4 * t, args.in + 4 * t);
    copy_async_commit();
    if (!PLANTED) copy_async_wait<0>();
    sync_block();
    args.out[t] = shared_words()[t ^ 32];
}

KERNEL(no_barrier_after_the_wait, MistakeArgs, 64, 1) {
    const u32 t = thread_index();
    if (t < 16) copy_async_16(shared_words() + 4 * t, args.in + 4 * t);
    copy_async_commit();
    copy_async_wait<0>();
    if (!PLANTED) sync_block();
    args.out[t] = shared_words()[t ^ 32];
}

KERNEL(waits_for_one_group_too_few, MistakeArgs, 64, 1) {
    const u32 t = thread_index();
    for (u32 half = 0; half < 2; half++) {
        if (t < 8) copy_async_16(shared_words() + 32 * half + 4 * t, args.in + 32 * half + 4 * t);
        copy_async_commit();
    }
    if (PLANTED) {
        copy_async_wait<1>();
    } else {
        copy_async_wait<0>();
    }
    sync_block();
    args.out[t] = shared_words()[t ^ 32];
}

KERNEL(copy_is_not_committed, MistakeArgs, 64, 1) {
    const u32 t = thread_index();
    if (t < 16) copy_async_16(shared_words() + 4 * t, args.in + 4 * t);
    if (!PLANTED) copy_async_commit();
    copy_async_wait<0>();
    sync_block();
    args.out[t] = shared_words()[t ^ 32];
}

KERNEL(copy_into_a_stage_that_is_read, MistakeArgs, 64, 1) {
    const u32 t = thread_index();
    if (t < 16) copy_async_16(shared_words() + 4 * t, args.in + 4 * t);
    copy_async_commit();
    copy_async_wait<0>();
    sync_block();
    const u32 partner = PLANTED ? 0 : shared_words()[t ^ 32];
    if (!PLANTED) sync_block();
    if (t < 16) copy_async_16(shared_words() + 4 * t, args.in + 64 + 4 * t);
    copy_async_commit();
    args.out[t] = PLANTED ? shared_words()[t ^ 32] : partner;
    copy_async_wait<0>();
}

KERNEL(unaligned_load, MistakeArgs, 64, 1) {
    const u32 t = thread_index();
    const Quad q = load_16(args.in + (t & ~3u) + PLANTED);
    args.out[t] = t % 4 == 0 ? q.x : t % 4 == 1 ? q.y : t % 4 == 2 ? q.z : q.w;
}

KERNEL(unaligned_copy, MistakeArgs, 64, 1) {
    const u32 t = thread_index();
    if (t < 16) copy_async_16(shared_words() + 4 * t, args.in + 4 * t + PLANTED);
    copy_async_commit();
    copy_async_wait<0>();
    sync_block();
    args.out[t] = shared_words()[t];
}

KERNEL(unaligned_matrix_row, MistakeArgs, 64, 1) {
    const u32 t = thread_index();
    shared_words()[t] = args.in[t];
    sync_block();
    u32 d[2];
    load_matrix_x2(d, shared_words() + 4 * (t % 16) + PLANTED);
    args.out[t] = d[t / 32];
}

KERNEL(lanes_at_different_instructions, MistakeArgs, 64, 1) {
    const u32 t = thread_index();
    const u32 mine = args.in[t];
    args.out[t] = PLANTED && t % 32 < 16 ? ballot(true) : shuffle_xor(mine, 1);
}

KERNEL(lanes_missing_at_a_shuffle, MistakeArgs, 64, 1) {
    const u32 t = thread_index();
    const u32 mine = args.in[t];
    if (PLANTED && t % 32 == 31) return;
    args.out[t] = shuffle_xor(mine, 1);
}

// What warp_index is on the device does not show in its name.
KERNEL(lanes_missing_at_the_index_of_their_warp, MistakeArgs, 64, 1) {
    const u32 t = thread_index();
    u32 warp = t / 32;
    if (!PLANTED || t % 32 < 4) warp = warp_index();
    sync_block();
    args.out[t] = args.in[32 * warp + t % 32];
}

KERNEL(barrier_not_reached_by_all, MistakeArgs, 64, 1) {
    const u32 t = thread_index();
    shared_words()[t] = args.in[t];
    if (!PLANTED || t < 32) sync_block();
    args.out[t] = shared_words()[t ^ 32];
}

KERNEL(barrier_of_different_counts, MistakeArgs, 64, 1) {
    const u32 t = thread_index();
    shared_words()[t] = args.in[t];
    sync_named(1, PLANTED && t < 32 ? 32 + 64 : 64);
    args.out[t] = shared_words()[t ^ 32];
}

KERNEL(shared_memory_not_written, MistakeArgs, 64, 1) {
    const u32 t = thread_index();
    if (!PLANTED || t != 17) shared_words()[t] = args.in[t];
    sync_block();
    args.out[t] = shared_words()[t ^ 32];
}

KERNEL(writes_behind_shared_memory, MistakeArgs, 64, 1) {
    const u32 t = thread_index();
    shared_words()[t + (PLANTED && t == 63)] = args.in[t];
    sync_block();
    args.out[t] = PLANTED && t == 31 ? args.in[63] : shared_words()[t ^ 32];
}

KERNEL(writes_in_front_of_shared_memory, MistakeArgs, 64, 1) {
    const u32 t = thread_index();
    shared_words()[t] = args.in[t];
    if (PLANTED && t == 0) *(shared_words() - 1) = 0;
    sync_block();
    args.out[t] = shared_words()[t ^ 32];
}

// The next block's words come from the one before, which may not have run.
KERNEL(relies_on_the_order_of_blocks, MistakeArgs, 64, 1) {
    const u32 t = thread_index(), at = 64 * block_x() + t;
    if (block_x() == 0) args.out[t] = args.in[t];
    if (block_x() > 0) args.out[at] = PLANTED ? args.out[at - 64] : args.in[t];
}

// These three end the process.
KERNEL(reads_far_behind_shared_memory, MistakeArgs, 64, 1) {
    const u32 t = thread_index();
    shared_words()[t] = args.in[t];
    sync_block();
    args.out[t] = shared_words()[(t ^ 32) + (PLANTED ? 1024 : 0)];
}

KERNEL(reads_behind_the_operand, MistakeArgs, 64, 1) {
    const u32 t = thread_index();
    args.out[t] = args.in[t + (PLANTED ? 65 : 0)];
}

KERNEL(writes_behind_the_operand, MistakeArgs, 64, 1) {
    const u32 t = thread_index();
    args.out[t + (PLANTED && t == 63)] = args.in[t];
}

// Sums for other blocks, and their count, which adds 0 to a word of the operand.
DEVICE u32 *count_of(const MistakeArgs &args) { return const_cast<u32 *>(args.in) + 127; }

KERNEL(no_fence_behind_the_barrier, MistakeArgs, 64, 1) {
    const u32 t = thread_index();
    args.out[t] = 0;
    reduce_to(reinterpret_cast<i32 *>(args.out + t), static_cast<i32>(args.in[t]));
    if (PLANTED) fence_device();
    sync_block();
    if (t == 0) {
        if (!PLANTED) fence_device();
        atomic_add(count_of(args), 0u);
    }
}

KERNEL(no_fence_behind_the_count, MistakeArgs, 64, 1) {
    const u32 t = thread_index();
    args.out[t] = 0;
    reduce_to(reinterpret_cast<i32 *>(args.out + t), static_cast<i32>(args.in[t]));
    sync_block();
    if (t == 0) {
        fence_device();
        atomic_add(count_of(args), 0u);
        if (!PLANTED) fence_device();
    }
    sync_block();
    args.out[t] = static_cast<u32>(load_fresh(reinterpret_cast<const i32 *>(args.out + t)));
}
