// As mistakes.cu, with what only Hopper has.
#include "ptx_sm90.cuh"
#include "kernel.cuh"

struct MistakeArgs {
    const u32 *in;
    u32 *out;
    u32 planted;
    u32 unused;
};

#define PLANTED (args.planted != 0)

// The operand's words in shared memory, a barrier behind the last of them.
constexpr u32 BYTES = 192;
DEVICE u64 *barrier_of_block() { return reinterpret_cast<u64 *>(shared_memory() + BYTES); }
DEVICE u32 shared_word(u32 t) { return reinterpret_cast<const u32 *>(shared_memory())[t]; }

KERNEL(barrier_not_published, MistakeArgs, 64, 1) {
    const u32 t = thread_index();
    if (t == 0) {
        barrier_init(barrier_of_block(), 64);
        if (!PLANTED) barrier_init_fence();
    }
    sync_block();
    barrier_arrive(barrier_of_block());
    barrier_wait_parity(barrier_of_block(), 0);
    args.out[t] = args.in[t];
}

KERNEL(barrier_used_before_the_block_met, MistakeArgs, 64, 1) {
    const u32 t = thread_index();
    if (t == 0) {
        barrier_init(barrier_of_block(), 32);
        barrier_init_fence();
    }
    if (!PLANTED) sync_block();
    if (t < 32) {
        sync_warp();
        barrier_arrive(barrier_of_block());
        barrier_wait_parity(barrier_of_block(), 0);
    }
    args.out[t] = args.in[t];
}

KERNEL(bulk_copy_not_waited_for, MistakeArgs, 64, 1) {
    const u32 t = thread_index();
    if (t == 0) {
        barrier_init(barrier_of_block(), 1);
        barrier_init_fence();
    }
    sync_block();
    if (t == 0) {
        barrier_arrive_expect(barrier_of_block(), BYTES);
        copy_bulk(shared_memory(), args.in, BYTES, barrier_of_block());
    }
    if (!PLANTED) barrier_wait_parity(barrier_of_block(), 0);
    args.out[t] = args.in[t];
}

KERNEL(fewer_bytes_expected_than_copied, MistakeArgs, 64, 1) {
    const u32 t = thread_index();
    if (t == 0) {
        barrier_init(barrier_of_block(), 1);
        barrier_init_fence();
    }
    sync_block();
    if (t == 0) {
        barrier_arrive_expect(barrier_of_block(), PLANTED ? BYTES - 16 : BYTES);
        copy_bulk(shared_memory(), args.in, BYTES, barrier_of_block());
    }
    barrier_wait_parity(barrier_of_block(), 0);
    args.out[t] = t < BYTES / 4 ? shared_word(t) : args.in[t];
}

KERNEL(more_bytes_expected_than_copied, MistakeArgs, 64, 1) {
    const u32 t = thread_index();
    if (t == 0) {
        barrier_init(barrier_of_block(), 1);
        barrier_init_fence();
    }
    sync_block();
    if (t == 0) {
        barrier_arrive_expect(barrier_of_block(), PLANTED ? BYTES + 16 : BYTES);
        copy_bulk(shared_memory(), args.in, BYTES, barrier_of_block());
    }
    barrier_wait_parity(barrier_of_block(), 0);
    args.out[t] = t < BYTES / 4 ? shared_word(t) : args.in[t];
}

// Two warps start with 248 registers a thread.
KERNEL(more_registers_taken_than_given, MistakeArgs, 64, 1) {
    const u32 t = thread_index();
    if (t < 32) {
        if (PLANTED) {
            registers_give<248>();
        } else {
            registers_give<240>();
        }
    } else {
        registers_take<256>();
    }
    args.out[t] = args.in[t];
}
