// From the sums of a warpgroup to y, on Hopper.
#pragma once

#include "ptx_sm90.cuh"
#include "gemm_w4a4.cuh"
#include "gemm_w4a4_schedule.cuh"

constexpr u32 RESULTS = TOKENS / 2;  // sums of a thread for 64 channels

struct GemmArgs {
    const u8 *weights;  // [blocks, chunks] of 4096 bytes, HostWeights of pack.rs
    const u8 *codes;    // [chunks, ceil(T / 8)] of 1024 bytes, TokenForm::Tiles8
    GemmOutputArgs out;
    i32 *partial;   // sums of split tiles, and how many chunks of them are there: zero between launches
    u32 *counters;
    u32 blocks, chunks;              // of 64 output, of 128 input channels
    u32 whole, share, longer, band;  // Schedule
};

// What the 128 threads of a warpgroup share.
struct Meeting {
    u32 warpgroup, thread;
    u8 *staging;
    u32 *flag;
    METHOD void sync() const { sync_named(1 + warpgroup, 128); }
};

// A thread's sums are two neighbouring channels of a token here and there, so they go through shared memory, ROUND tokens of 64
// channels at a time. Channels 2 p and 2 p + 1 of token i lie at pair p ^ (i / 2 % 4) of its row, so that neither writing pairs
// nor reading 16 bytes meets a bank twice.
constexpr u32 ROUND = smaller(TOKENS, 128);
constexpr u32 ROW = 64 * 4;
constexpr u32 STAGING = ROUND * ROW;

DEVICE void swap(u32 &a, u32 &b, bool yes) {
    const u32 c = yes ? b : a;
    b = yes ? a : b;
    a = c;
}

// Eight neighbouring sums of a token. Half of the lanes read the second 16 of their 32 bytes first.
DEVICE void read_sums(i32 (&sums)[8], const u8 *row, u32 eighth, u32 key) {
    const u32 turn = eighth / 4;
    const Quad a = *reinterpret_cast<const Quad *>(row + 32 * eighth + 16 * turn);
    const Quad b = *reinterpret_cast<const Quad *>(row + 32 * eighth + 16 * (1 - turn));
    const bool swap_halves = (turn ^ key >> 1) != 0, swap_pairs = key % 2 != 0;
    u32 words[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (u32 i = 0; i < 4; i++) swap(words[i], words[4 + i], swap_halves);
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        swap(words[i], words[2 + i], swap_pairs);
        swap(words[4 + i], words[6 + i], swap_pairs);
    }
#pragma unroll
    for (u32 i = 0; i < 8; i++) sums[i] = static_cast<i32>(words[i]);
}

// Writes 64 channels from 64 * block on, of TOKENS tokens from first_token on.
DEVICE void write_sums(const GemmOutputArgs &out, const Meeting &meeting, const i32 (&sums)[RESULTS], u32 block, u32 first_token) {
    const u32 g = lane_index() / 4, t = lane_index() % 4, f = meeting.thread / 32;
    u8 *mine = meeting.staging + 2 * t * ROW + 8 * ((4 * g + f) ^ t);
    // This thread finishes eight channels of every 16th token.
    const u32 eighth = meeting.thread % 8, key = meeting.thread / 16 % 4;
    const u32 channel = 64 * block + 8 * eighth;
    Quad channels[8];
#pragma unroll
    for (u32 i = 0; i < 8; i++) channels[i] = load_channel(out, channel + i);
#pragma unroll
    for (u32 round = 0; round < TOKENS / ROUND; round++) {
        const u32 base = first_token + round * ROUND;
        if (base >= out.tokens) return;
        // Everybody has read what was staged before.
        meeting.sync();
#pragma unroll
        for (u32 i = 0; i < ROUND / 2; i += 4) {
#pragma unroll
            for (u32 e = 0; e < 2; e++) {
                const u32 at = round * (ROUND / 2) + i + e;
                *reinterpret_cast<Pair *>(mine + (2 * i + e) * ROW) =
                    Pair{static_cast<u32>(sums[at]), static_cast<u32>(sums[at + 2])};
            }
        }
        meeting.sync();
        const u32 count = channel < out.n ? smaller(ROUND, out.tokens - base) : 0;
#pragma unroll 1
        for (u32 at = meeting.thread / 8; at < count; at += 16) {
            const Quad token = load_token(out, base + at);
            i32 eight[8];
            u32 bits[8];
            read_sums(eight, meeting.staging + at * ROW, eighth, key);
#pragma unroll
            for (u32 i = 0; i < 8; i++) bits[i] = finish(out, token, channels[i], eight[i]);
            store_8(out, base + at, channel, bits);
        }
    }
}
