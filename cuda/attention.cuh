// What the attention kernels share: their operands, and rows of the paged cache as matrix fragments.
#pragma once

#include "kv_cache.cuh"

// CommonArgs of src/kernels/cuda/attention/mod.rs.
struct AttentionArgs {
    const u8 *query_codes;   // [T, H] rows of D
    const u8 *query_params;  // [T, H] of 16 bytes: scale, zero point, sum of codes
    const u8 *keys;          // [pages, Hkv, 64] rows of D
    const u8 *values;        // [pages, Hkv, 64] rows of D
    const KvParams *cache_params;
    const Sequence *sequences;
    const u32 *page_table;
    void *out;  // [T, H D]
    u8 *workspace;
    u32 heads, kv_heads;
    u32 window;
    u32 out_type;
    f32 score_scale;  // log2(e) / sqrt(D)
    u32 unused;
};

struct alignas(16) QueryParams {
    f32 scale;
    u32 zero_point, sum, unused;
};
