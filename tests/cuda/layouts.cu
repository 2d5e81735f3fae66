// Matrix instructions on registers that a test fills, one warp a block: tests/cuda_layouts.rs proves where the numbers of a matrix
// lie in them.
#include "kernel.cuh"

struct RegisterArgs {
    const u32 *a;  // [blocks, 32, 4]
    const u32 *b;  // [blocks, 32, 2]
    const u32 *c;  // [blocks, 32, 4]
    u32 *d;        // [blocks, 32, 4]
};

DEVICE u32 this_thread() { return 32 * block_x() + lane_index(); }

template <class T, void (*MULTIPLY)(T (&)[4], const u32 (&)[4], const u32 (&)[2])>
DEVICE void multiply(const RegisterArgs &args) {
    const u32 at = this_thread();
    u32 a[4], b[2];
    T d[4];
    for (u32 i = 0; i < 4; i++) a[i] = args.a[4 * at + i];
    for (u32 i = 0; i < 2; i++) b[i] = args.b[2 * at + i];
    for (u32 i = 0; i < 4; i++) d[i] = reinterpret_cast<const T *>(args.c)[4 * at + i];
    MULTIPLY(d, a, b);
    for (u32 i = 0; i < 4; i++) reinterpret_cast<T *>(args.d)[4 * at + i] = d[i];
}

KERNEL(multiply_u4, RegisterArgs, 32, 1) { multiply<i32, mma_u4>(args); }
KERNEL(multiply_u8, RegisterArgs, 32, 1) { multiply<i32, mma_u8>(args); }
KERNEL(multiply_f16, RegisterArgs, 32, 1) { multiply<f32, mma_f16>(args); }
KERNEL(multiply_bf16, RegisterArgs, 32, 1) { multiply<f32, mma_bf16>(args); }

struct MatrixArgs {
    const u32 *rows;   // [32, 4]: rows of 16 bytes
    const u32 *order;  // [32]: which row lane l names
    u32 *d;            // [4, 32, 4]: x4, x4 transposed, x2, x2 transposed
    u32 unused, unused_too;
};

KERNEL(load_matrices, MatrixArgs, 32, 1) {
    const u32 lane = lane_index();
    Quad *rows = reinterpret_cast<Quad *>(shared_memory());
    rows[lane] = load_16(args.rows + 4 * lane);
    sync_block();
    const Quad *mine = rows + args.order[lane];
    u32 d[4][4] = {};
    u32 two[2];
    load_matrix_x4(d[0], mine);
    load_matrix_x4_transposed(d[1], mine);
    load_matrix_x2(two, mine);
    d[2][0] = two[0];
    d[2][1] = two[1];
    load_matrix_x2_transposed(two, mine);
    d[3][0] = two[0];
    d[3][1] = two[1];
    for (u32 i = 0; i < 4; i++) {
        for (u32 j = 0; j < 4; j++) args.d[128 * i + 4 * lane + j] = d[i][j];
    }
}

struct AtomArgs {
    const u32 *weight;  // [32, 2, 4]: 16 rows of 128 4-bit codes as A fragments of mma_u4
    const u8 *tokens;   // an atom
    i32 *d;             // [32, 4]
};

DEVICE void load_weight(const AtomArgs &args, u32 step, u32 (&a)[4]) {
    const Quad q = load_16(args.weight + 8 * lane_index() + 4 * step);
    a[0] = q.x;
    a[1] = q.y;
    a[2] = q.z;
    a[3] = q.w;
}

// The codes of nibble `high` of each byte, one to a byte: channels 2 j + high of the 8 of a word.
DEVICE void widen(const u32 (&from)[4], u32 high, u32 (&to)[4]) {
    for (u32 i = 0; i < 4; i++) to[i] = (from[i] >> (4 * high)) & 0x0f0f0f0f;
}

DEVICE void store_sums(const AtomArgs &args, const i32 (&d)[4]) {
    for (u32 i = 0; i < 4; i++) args.d[4 * lane_index() + i] = d[i];
}

// The atoms of TokenForm as the matrix instructions read them.
KERNEL(multiply_fragments4, AtomArgs, 32, 1) {
    const Quad q = load_16(args.tokens + 16 * lane_index());
    const u32 b[2][2] = {{q.x, q.y}, {q.z, q.w}};
    i32 d[4] = {};
    for (u32 step = 0; step < 2; step++) {
        u32 a[4];
        load_weight(args, step, a);
        mma_u4(d, a, b[step]);
    }
    store_sums(args, d);
}

KERNEL(multiply_fragments8, AtomArgs, 32, 1) {
    i32 d[4] = {};
    for (u32 step = 0; step < 2; step++) {
        const Quad q = load_16(args.tokens + 512 * step + 16 * lane_index());
        const u32 b[2][2] = {{q.x, q.y}, {q.z, q.w}};
        u32 a[4], wide[4];
        load_weight(args, step, a);
        for (u32 high = 0; high < 2; high++) {
            widen(a, high, wide);
            mma_u8(d, wide, b[high]);
        }
    }
    store_sums(args, d);
}

// As wgmma reads it: rows of 128 bytes, whose 16-byte pieces are exchanged by bits 7 to 9 of the address (128-byte swizzle); an
// instruction takes 32 bytes of each row.
KERNEL(multiply_tiles8, AtomArgs, 32, 1) {
    const u32 token = lane_index() / 4, quarter = lane_index() % 4;
    i32 d[4] = {};
    for (u32 step = 0; step < 4; step++) {
        u32 a[4], wide[4], b[2];
        load_weight(args, step / 2, a);
        widen(a, step % 2, wide);
        for (u32 i = 0; i < 2; i++) {
            const u32 linear = 128 * token + 32 * step + 16 * i + 4 * quarter;
            const u32 swizzled = linear ^ ((linear >> 7 & 7) << 4);
            b[i] = *reinterpret_cast<const u32 *>(args.tokens + swizzled);
        }
        mma_u8(d, wide, b);
    }
    store_sums(args, d);
}
