// RMSNorm and SwiGLU's product on their own: the last norm of a model, and the floating-point baseline. A block a token.
#include "rows.cuh"

using Input = DtypeOf<INPUT>::type;
using Output = DtypeOf<OUTPUT>::type;

struct RmsNormArgs {
    const Input *x;       // [T, K]
    const f32 *weight;    // [K]
    Output *out;          // [T, K]
    u32 channels;         // K
    f32 epsilon;
};

// out = x / sqrt(mean(x^2) + epsilon) * weight, in f32.
KERNEL(rms_norm, RmsNormArgs, 256, 4) {
    f32 *scratch = reinterpret_cast<f32 *>(shared_memory());
    const u64 row = static_cast<u64>(block_x()) * args.channels;
    const Input *x = args.x + row;
    // Rows that start at a multiple of 16 bytes go eight numbers at a time.
    const u32 wide = args.channels % 8 == 0 ? args.channels / 8 : 0;
    f32 sum = 0.0f;
    for (u32 i = thread_index(); i < wide; i += block_threads()) {
        f32 v[8];
        load_row_8(v, x + 8 * i);
        for (u32 j = 0; j < 8; j++) sum = fused(v[j], v[j], sum);
    }
    for (u32 i = 8 * wide + thread_index(); i < args.channels; i += block_threads()) {
        const f32 v = to_f32(x[i]);
        sum = fused(v, v, sum);
    }
    const f32 mean = block_sum(sum, scratch) / static_cast<f32>(args.channels);
    const f32 factor = 1.0f / square_root(mean + args.epsilon);
    for (u32 i = thread_index(); i < wide; i += block_threads()) {
        f32 v[8], w[8];
        load_row_8(v, x + 8 * i);
        load_row_8(w, args.weight + 8 * i);
        for (u32 j = 0; j < 8; j++) v[j] = v[j] * factor * w[j];
        store_row_8(args.out + row + 8 * i, v);
    }
    for (u32 i = 8 * wide + thread_index(); i < args.channels; i += block_threads()) {
        args.out[row + i] = from_f32<Output>(to_f32(x[i]) * factor * args.weight[i]);
    }
}

struct SiluMulArgs {
    const Input *gate_up;  // [T, 2K], gate in the first K columns
    Output *out;           // [T, K]
    u32 channels;          // K
    u32 unused;
};

KERNEL(silu_mul_rows, SiluMulArgs, 256, 4) {
    const Input *gate = args.gate_up + 2 * static_cast<u64>(block_x()) * args.channels;
    const Input *up = gate + args.channels;
    Output *out = args.out + static_cast<u64>(block_x()) * args.channels;
    const u32 wide = args.channels % 8 == 0 ? args.channels / 8 : 0;
    for (u32 i = thread_index(); i < wide; i += block_threads()) {
        f32 g[8], u[8];
        load_row_8(g, gate + 8 * i);
        load_row_8(u, up + 8 * i);
        for (u32 j = 0; j < 8; j++) g[j] = silu_mul(g[j], u[j]);
        store_row_8(out + 8 * i, g);
    }
    for (u32 i = 8 * wide + thread_index(); i < args.channels; i += block_threads()) {
        out[i] = from_f32<Output>(silu_mul(to_f32(gate[i]), to_f32(up[i])));
    }
}
