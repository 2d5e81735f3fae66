// The paged KV cache of src/kernels/cuda/kv_cache.rs.
#pragma once

#include "kernel.cuh"

constexpr u32 PAGE = 64;

// Sequence of kv_cache.rs.
struct alignas(16) Sequence {
    u32 first, tokens, position, table;
};

// A row of the cache's params: scale and zero | sum << 16 of the key, then of the value.
struct alignas(16) KvParams {
    f32 key_scale;
    u32 key_zero_sum;
    f32 value_scale;
    u32 value_zero_sum;
};

// Row of a token and head among [pages, Hkv, 64].
DEVICE u64 kv_row(u32 page, u32 kv_heads, u32 head, u32 token) {
    return (static_cast<u64>(page) * kv_heads + head) * PAGE + token % PAGE;
}

// Eight 4-bit codes of neighbouring channels as a word of the cache.
DEVICE u32 pack_kv_word(const u32 (&codes)[8]) {
    u32 word = 0;
#pragma unroll
    for (u32 i = 0; i < 4; i++) word |= codes[2 * i] << (4 * i) | codes[2 * i + 1] << (16 + 4 * i);
    return word;
}
