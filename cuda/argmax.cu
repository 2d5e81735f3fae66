// The first index of the largest logit of each token: greedy decoding without the host. Blocks take a segment of a row each and
// meet in one 64-bit maximum; the last to arrive writes the token, also to where the next step reads it.
#include "kv_cache.cuh"
#include "rows.cuh"

using Input = DtypeOf<INPUT>::type;

// A row's winner so far. All zero before a launch and after it.
struct alignas(16) Winner {
    u64 best;
    u32 arrived, unused;
};

struct ArgmaxArgs {
    const Input *logits;   // [T, V]
    u32 *ids;              // [T]
    u32 *next;             // [T], or null
    Sequence *sequences;   // [T], or null
    Winner *workspace;     // [T]
    u32 columns;           // V
    u32 segment;           // columns of a block, a multiple of 8
};

// Order of candidates is order of numbers, both zeros alike, and of two with the same number the first wins. 0 is NaN, below
// everything.
DEVICE u64 candidate(f32 x, u32 index) {
    const u32 bits = bits_of(x), magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return 0;
    const u32 key = bits == magnitude ? 0x80000000 + magnitude : 0x80000000 - magnitude;
    return static_cast<u64>(key) << 32 | static_cast<u32>(~index);
}

// Takes a later number if it is larger; the first one that is not NaN replaces the NaN of the start.
DEVICE void consider(f32 &best, u32 &at, f32 x, u32 index) {
    if (x == x && !(x <= best)) {
        best = x;
        at = index;
    }
}

KERNEL(argmax, ArgmaxArgs, 256, 4) {
    u64 *scratch = reinterpret_cast<u64 *>(shared_memory());
    const u32 token = block_x(), begin = block_y() * args.segment;
    const u32 end = smaller(begin + args.segment, args.columns);
    const Input *logits = args.logits + static_cast<u64>(token) * args.columns;
    f32 best = f32_of(0x7fffffff);
    u32 at = 0;
    // Rows that start at a multiple of 16 bytes go eight numbers at a time.
    if (args.columns % 8 == 0) {
#pragma unroll 2
        for (u32 i = begin + 8 * thread_index(); i < end; i += 8 * block_threads()) {
            f32 v[8];
            load_row_8(v, logits + i);
#pragma unroll
            for (u32 j = 0; j < 8; j++) consider(best, at, v[j], i + j);
        }
    } else {
        for (u32 i = begin + thread_index(); i < end; i += block_threads()) consider(best, at, to_f32(logits[i]), i);
    }

    u64 mine = candidate(best, at);
#pragma unroll
    for (u32 mask = 16; mask > 0; mask /= 2) mine = larger(mine, shuffle_xor(mine, mask));
    if (lane_index() == 0) scratch[thread_index() / 32] = mine;
    sync_block();
    if (thread_index() != 0) return;
    for (u32 warp = 1; warp < block_threads() / 32; warp++) mine = larger(mine, scratch[warp]);

    if (grid_y() > 1) {
        Winner *winner = args.workspace + token;
        atomic_max(&winner->best, mine);
        fence_device();
        if (atomic_add(&winner->arrived, 1u) != grid_y() - 1) return;
        // Every block's maximum is in: each fenced it before it counted itself.
        fence_device();
        mine = atomic_max(&winner->best, 0);
        winner->best = 0;
        winner->arrived = 0;
    }
    const u32 id = mine == 0 ? 0 : ~static_cast<u32>(mine);
    args.ids[token] = id;
    if (args.next != nullptr) args.next[token] = id;
    if (args.sequences != nullptr) {
        Sequence *sequence = args.sequences + token;
        sequence->position += sequence->tokens;
        sequence->tokens = smaller(sequence->tokens, 1u);
        sequence->first = token;
    }
}
