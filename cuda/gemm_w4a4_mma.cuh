// What the kernels of gemm_w4a4 for mma.sync share: a step of 64 output channels, 64 input channels and 8 tokens.
// HostWeights of src/kernels/cuda/gemm_w4a4/pack.rs and TokenForm of tokens.rs draw the layouts.
#pragma once

#include "gemm_w4a4.cuh"

// FORM: FORM_FRAGMENTS4, or FORM_FRAGMENTS8 where activations are wider than 4 bits.
constexpr bool EIGHT = FORM == FORM_FRAGMENTS8;
constexpr u32 ATOM_BYTES = EIGHT ? 1024 : 512;
// A block of 64 output channels by a chunk of 128 input channels: two steps.
constexpr u32 STEP_BYTES = 2048;
constexpr u32 UNIT_BYTES = 2 * STEP_BYTES;

// The weights of a step: fragment f as lane's word.
struct StepWeights {
    Quad fragment[4];
};

// The sums of 64 output channels by 8 tokens. Lane 4 g + t has, in [f][2 h + u], channel 8 g + 2 f + h and token 2 t + u.
struct Sums {
    i32 of[4][4];
};

DEVICE void clear(Sums &sums) {
#pragma unroll
    for (u32 i = 0; i < 16; i++) sums.of[i / 4][i % 4] = 0;
}

// The left operands of a step. 4-bit tokens: one k64 instruction a fragment. Tokens of 8 bits: the even and the odd codes
// of the weights are the operands of two k32 instructions, whose input channels FORM_FRAGMENTS8 orders in the same way.
template <bool WIDE>
struct Operand {
    u32 a[WIDE ? 2 : 1][4][4];
};

DEVICE void set_operand(Operand<false> &operand, const StepWeights &weights) {
#pragma unroll
    for (u32 f = 0; f < 4; f++) {
        const Quad &q = weights.fragment[f];
        operand.a[0][f][0] = q.x;
        operand.a[0][f][1] = q.y;
        operand.a[0][f][2] = q.z;
        operand.a[0][f][3] = q.w;
    }
}

DEVICE void set_operand(Operand<true> &operand, const StepWeights &weights) {
#pragma unroll
    for (u32 f = 0; f < 4; f++) {
        const u32 words[4] = {weights.fragment[f].x, weights.fragment[f].y, weights.fragment[f].z, weights.fragment[f].w};
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            operand.a[0][f][i] = words[i] & 0x0f0f0f0f;
            operand.a[1][f][i] = words[i] >> 4 & 0x0f0f0f0f;
        }
    }
}

// Adds the products of a step and 8 tokens. A quad of 4-bit tokens holds both steps of a chunk, one of 8-bit tokens this step.
template <u32 STEP>
DEVICE void multiply(Sums &sums, const Operand<false> &operand, const Quad &tokens) {
    const u32 b[2] = {STEP == 0 ? tokens.x : tokens.z, STEP == 0 ? tokens.y : tokens.w};
#pragma unroll
    for (u32 f = 0; f < 4; f++) mma_u4(sums.of[f], operand.a[0][f], b);
}

template <u32 STEP>
DEVICE void multiply(Sums &sums, const Operand<true> &operand, const Quad &tokens) {
    const u32 even[2] = {tokens.x, tokens.y}, odd[2] = {tokens.z, tokens.w};
#pragma unroll
    for (u32 f = 0; f < 4; f++) mma_u8(sums.of[f], operand.a[0][f], even);
#pragma unroll
    for (u32 f = 0; f < 4; f++) mma_u8(sums.of[f], operand.a[1][f], odd);
}

// The two tokens of this lane among the eight of `sums`, by all its channels, whose parameters are `channel(0)` to
// `channel(7)`.
template <class Channel>
DEVICE void finish_group(const GemmOutputArgs &out, const Sums &sums, u32 group, u32 first, Channel channel) {
#pragma unroll
    for (u32 u = 0; u < 2; u++) {
        const u32 token = 8 * group + 2 * (lane_index() % 4) + u;
        if (token < out.tokens) {
            const Quad params = load_token(out, token);
            u32 bits[8];
#pragma unroll
            for (u32 i = 0; i < 8; i++) bits[i] = finish(out, params, channel(i), sums.of[i / 2][2 * (i % 2) + u]);
            store_8(out, token, first, bits);
        }
    }
}
