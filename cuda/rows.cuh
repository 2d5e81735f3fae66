// Rows of numbers of any type, eight at a time.
#pragma once

#include "kernel.cuh"

// Eight numbers as they travel: one 16-byte load of half precision, two of single.
DEVICE void load_row_8(f32 (&out)[8], const f32 *from) {
    for (u32 half = 0; half < 2; half++) {
        const Quad q = load_16(from + 4 * half);
        out[4 * half] = f32_of(q.x);
        out[4 * half + 1] = f32_of(q.y);
        out[4 * half + 2] = f32_of(q.z);
        out[4 * half + 3] = f32_of(q.w);
    }
}

template <class T>
DEVICE void load_row_8(f32 (&out)[8], const T *from) {
    const Quad q = load_16(from);
    const u32 words[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        out[2 * i] = to_f32(T{static_cast<u16>(words[i])});
        out[2 * i + 1] = to_f32(T{static_cast<u16>(words[i] >> 16)});
    }
}

DEVICE void store_row_8(f32 *to, const f32 (&x)[8]) {
    store_16(to, {bits_of(x[0]), bits_of(x[1]), bits_of(x[2]), bits_of(x[3])});
    store_16(to + 4, {bits_of(x[4]), bits_of(x[5]), bits_of(x[6]), bits_of(x[7])});
}
DEVICE void store_row_8(f16 *to, const f32 (&x)[8]) {
    store_16(to, {pack_f16(x[0], x[1]), pack_f16(x[2], x[3]), pack_f16(x[4], x[5]), pack_f16(x[6], x[7])});
}
DEVICE void store_row_8(bf16 *to, const f32 (&x)[8]) {
    store_16(to, {pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7])});
}

// The sum over the block in every thread; `scratch` holds 32 numbers and may be used again after the next barrier.
DEVICE f32 block_sum(f32 value, f32 *scratch) {
#pragma unroll
    for (u32 mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    const u32 warps = block_threads() / 32;
    if (lane_index() == 0) scratch[thread_index() / 32] = value;
    sync_block();
    f32 sum = 0.0f;
    for (u32 warp = 0; warp < warps; warp++) sum += scratch[warp];
    return sum;
}

// silu(gate) * up with silu(x) = x / (1 + e^-x).
DEVICE f32 silu_mul(f32 gate, f32 up) { return gate / (1.0f + exponential(-gate)) * up; }
