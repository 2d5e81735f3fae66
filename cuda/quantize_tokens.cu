// The prologue of a linear without rotations: (RMSNorm or SwiGLU), smoothing, per-token quantization, all in f32. A block a
// token, which reads its row again for every pass: it comes from the second-level cache then.
#include "token_sink.cuh"
#include "token_source.cuh"

using Input = DtypeOf<INPUT>::type;

struct QuantizeTokensArgs {
    TokenSource<Input> source;
    TokenSink sink;
};

KERNEL(quantize_tokens, QuantizeTokensArgs, 256, 4) {
    const auto &source = args.source;
    const auto &sink = args.sink;
    f32 *scratch = reinterpret_cast<f32 *>(shared_memory());
    const u32 token = block_x(), warp = warp_index(), warps = block_threads() / 32;
    // The tokens that fill up the last atom: their codes are 0.
    const bool there = token < source.tokens;
    f32 factor = 0.0f;
    if (there && source.kind == SOURCE_RMS_NORM) {
        for (u32 part = warp; part < NORM_PARTS; part += warps) {
            const f32 sum = square_sum_part(source, token, part);
            if (lane_index() == 0) scratch[part] = sum;
        }
        sync_block();
        factor = norm_factor(scratch, source.channels, source.epsilon);
        sync_block();
    }

    // Zero belongs to the range anyway.
    f32 least = 0.0f, most = 0.0f;
    bool finite = true;
    const u32 octets = there ? divide_up(source.channels, 8u) : 0;
    for (u32 i = thread_index(); i < octets; i += block_threads()) {
        RawOctet<Input> raw{};
        f32 x[8];
        if (source.wide) fetch_8(raw, source, token, 8 * i);
        source_8(x, raw, source, token, 8 * i, source.channels, factor);
#pragma unroll
        for (u32 j = 0; j < 8; j++) {
            least = minimum(least, x[j]);
            most = maximum(most, x[j]);
            finite &= is_finite(x[j]);
        }
    }
#pragma unroll
    for (u32 mask = 16; mask > 0; mask /= 2) {
        least = minimum(least, shuffle_xor(least, mask));
        most = maximum(most, shuffle_xor(most, mask));
    }
    if (lane_index() == 0) {
        scratch[warp] = least;
        scratch[warps + warp] = most;
    }
    finite = !sync_block_or(!finite);
    for (u32 i = 0; i < warps; i++) {
        least = minimum(least, scratch[i]);
        most = maximum(most, scratch[warps + i]);
    }
    const RowCoder row = row_coder(sink.affine, least, most, finite);

    // Lane 4 g + t has channels 32 w + 8 t of chunk g of the warp's eight.
    const u32 chunks = divide_up(source.channels, 128u);
    u32 sum = 0;
    for (u32 first = 8 * warp; first < chunks; first += 8 * warps) {
        const u32 chunk = first + lane_index() / 4;
        CodeOctet codes[4];
#pragma unroll
        for (u32 w = 0; w < 4; w++) {
            const u32 channel = 128 * chunk + 32 * w + 8 * (lane_index() % 4);
            const u32 live = there ? live_channels(channel, source.channels) : 0;
            f32 x[8] = {};
            if (live > 0) {
                RawOctet<Input> raw{};
                if (source.wide) fetch_8(raw, source, token, channel);
                source_8(x, raw, source, token, channel, source.channels, factor);
            }
            codes[w] = codes_of(row, x, live);
            sum = sum_of(codes[w], sum);
            if (sink.target != TARGET_CODES && live > 0) store_values(sink, token, channel, row, x, live);
        }
        if (sink.target == TARGET_CODES) store_codes(sink, chunk, token, codes, chunk < chunks);
    }
    if (sink.target == TARGET_CODES) {
        const i32 total = reduce_add(static_cast<i32>(sum));
        i32 *sums = reinterpret_cast<i32 *>(scratch + 2 * warps);
        if (lane_index() == 0) sums[warp] = total;
        sync_block();
        if (there && thread_index() == 0) {
            u32 all = 0;
            for (u32 i = 0; i < warps; i++) all += static_cast<u32>(sums[i]);
            store_params(sink, token, row, all);
        }
    }
}
