// From the sums of a warpgroup to y, on Hopper.
#pragma once

#include "ptx_sm90.cuh"
#include "gemm_w4a4_schedule.cuh"
#include "kernel.cuh"

#if OUTPUT == 3
using Output = i32;
#else
using Output = DtypeOf<OUTPUT>::type;
#endif

constexpr u32 RESULTS = TOKENS / 2;  // sums of a thread for 64 channels

struct GemmArgs {
    const u8 *weights;
    const ChannelParams *channels;
    const u8 *codes;
    const TokenParams *params;
    Output *y;
    i32 *partial;
    u32 *counters;
    u32 tokens, n, chunks, blocks;  // blocks of 64 channels
    u32 whole, share, longer, band;
    u32 accumulate, unused;
};

// What the 128 threads of a warpgroup share.
struct Meeting {
    u32 warpgroup, thread;
    u8 *staging;
    u32 *flag;
    DEVICE void sync() const { sync_named(1 + warpgroup, 128); }
};

// A thread's sums are two neighbouring channels of a token here and there, so that they go to y through shared memory, ROUND
// tokens of 64 channels at a time. The pair of channels p of token i lies at pair p ^ (i / 2 % 4) of the token's row: neither
// writing pairs nor reading 16 bytes then meets a bank twice.
constexpr u32 ROUND = smaller(TOKENS, 32);
constexpr u32 ROW = 64 * sizeof(Output);
constexpr u32 STAGING = ROUND * ROW;
constexpr u32 PIECES = ROW / 16;              // of a row
constexpr u32 PER_PIECE = 16 / sizeof(Output);  // numbers

DEVICE void swap(u32 &a, u32 &b, bool yes) {
    const u32 c = yes ? b : a;
    b = yes ? a : b;
    a = c;
}
// Sixteen bytes of a row, and their place: pairs are 4 bytes of half precision, else 8.
DEVICE Quad in_order(Quad q, u32 key) {
    if (sizeof(Output) == 2) {
        swap(q.x, q.y, key & 1);
        swap(q.z, q.w, key & 1);
        swap(q.x, q.z, key & 2);
        swap(q.y, q.w, key & 2);
    } else {
        swap(q.x, q.z, key & 1);
        swap(q.y, q.w, key & 1);
    }
    return q;
}
DEVICE Quad *piece_at(const Meeting &meeting, u32 token, u32 piece) {
    const u32 slot = sizeof(Output) == 2 ? piece : piece ^ (token / 4 % 2);
    return reinterpret_cast<Quad *>(meeting.staging + token * ROW + 16 * slot);
}

struct Numbers {
    Output x, y;
};

DEVICE i32 corrected(i32 sum, const TokenParams &token, const ChannelParams &channel) {
    return sum - channel.zero_point * token.row_sum - token.zero_point * channel.offset;
}
DEVICE void put(i32 &to, i32 exact, const TokenParams &, const ChannelParams &, u32) { to = exact; }
template <class T>
DEVICE void put(T &to, i32 exact, const TokenParams &token, const ChannelParams &channel, u32 accumulate) {
    f32 value = (token.scale * channel.scale) * static_cast<f32>(exact) + channel.bias;
    if (accumulate) value = value + to_f32(to);
    to = from_f32<T>(value);
}

// 64 channels from 64 * block on, TOKENS tokens from first_token on.
DEVICE void finish(const GemmArgs &args, const Meeting &meeting, const i32 (&sums)[RESULTS], u32 block, u32 first_token) {
    const u32 g = lane_index() / 4, t = lane_index() % 4, f = meeting.thread / 32;
    const u32 channel = 64 * block + 8 * g + 2 * f;
    const ChannelParams low = args.channels[smaller(channel, args.n - 1)];
    const ChannelParams high = args.channels[smaller(channel + 1, args.n - 1)];
    const bool wide = args.n % PER_PIECE == 0;
#pragma unroll
    for (u32 round = 0; round < TOKENS / ROUND; round++) {
        const u32 base = first_token + round * ROUND;
        if (base >= args.tokens) return;
        meeting.sync();
        if (args.accumulate) {
            for (u32 i = meeting.thread; i < ROUND * PIECES; i += 128) {
                const u32 token = i / PIECES, at = 64 * block + i % PIECES * PER_PIECE;
                if (base + token >= args.tokens || at >= args.n) continue;
                const Output *from = args.y + static_cast<u64>(base + token) * args.n + at;
                union { Quad q; Output y[PER_PIECE]; } held;
                if (wide) held.q = load_16(from);
                else for (u32 j = 0; j < PER_PIECE; j++) held.y[j] = from[smaller(j, args.n - 1 - at)];
                *piece_at(meeting, token, i % PIECES) = in_order(held.q, token / 2 % 4);
            }
            meeting.sync();
        }
#pragma unroll
        for (u32 j = 0; j < ROUND / 8; j++) {
#pragma unroll
            for (u32 e = 0; e < 2; e++) {
                const u32 at = 8 * j + 2 * t + e;
                const TokenParams token = args.params[smaller(base + at, args.tokens - 1)];
                Numbers *pair = reinterpret_cast<Numbers *>(meeting.staging + at * ROW) + ((4 * g + f) ^ t);
                Numbers numbers = *pair;
                const u32 i = round * (ROUND / 2) + 4 * j + e;
                put(numbers.x, corrected(sums[i], token, low), token, low, args.accumulate);
                put(numbers.y, corrected(sums[i + 2], token, high), token, high, args.accumulate);
                *pair = numbers;
            }
        }
        meeting.sync();
        for (u32 i = meeting.thread; i < ROUND * PIECES; i += 128) {
            const u32 token = i / PIECES, at = 64 * block + i % PIECES * PER_PIECE;
            if (base + token >= args.tokens || at >= args.n) continue;
            Output *to = args.y + static_cast<u64>(base + token) * args.n + at;
            union { Quad q; Output y[PER_PIECE]; } held;
            held.q = in_order(*piece_at(meeting, token, i % PIECES), token / 2 % 4);
            if (wide) store_16(to, held.q);
            else for (u32 j = 0; j < PER_PIECE; j++) if (at + j < args.n) to[j] = held.y[j];
        }
    }
}
