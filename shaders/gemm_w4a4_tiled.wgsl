// Tiles of both operands in workgroup memory, THREAD_TOKENS x THREAD_CHANNELS sums an invocation. In front of it:
// const TILE_TOKENS, TILE_CHANNELS, THREAD_TOKENS, THREAD_CHANNELS, STEP: u32; STEP counts blocks and is 1 or 2, which
// divides the blocks of a row.

const ACROSS: u32 = TILE_CHANNELS / THREAD_CHANNELS;
const DOWN: u32 = TILE_TOKENS / THREAD_TOKENS;
const THREADS: u32 = ACROSS * DOWN;
const HALVES: u32 = 2u * STEP;
const OUTPUTS: u32 = THREAD_TOKENS * THREAD_CHANNELS;

// [half block, token] and [half block, channel], one code a byte.
var<workgroup> tile_x: array<vec4<u32>, HALVES * TILE_TOKENS>;
var<workgroup> tile_w: array<vec4<u32>, HALVES * TILE_CHANNELS>;

// Tokens and channels are unrolled by hand, with a constant in each call: drivers then keep the sums in registers, and
// lavapipe, which silently ends a shader after 65,535 iterations of all its loops, only counts those over K.
fn add_channel(
    c: u32,
    t: u32,
    x0: vec4<u32>,
    x1: vec4<u32>,
    low: ptr<function, array<vec4<u32>, THREAD_CHANNELS>>,
    high: ptr<function, array<vec4<u32>, THREAD_CHANNELS>>,
    sums: ptr<function, array<u32, OUTPUTS>>,
) {
    if c < THREAD_CHANNELS {
        (*sums)[t * THREAD_CHANNELS + c] += settle(block_products(x0, x1, (*low)[c], (*high)[c]));
    }
}

fn add_token(
    t: u32,
    at: u32,
    low: ptr<function, array<vec4<u32>, THREAD_CHANNELS>>,
    high: ptr<function, array<vec4<u32>, THREAD_CHANNELS>>,
    sums: ptr<function, array<u32, OUTPUTS>>,
) {
    if t < THREAD_TOKENS {
        let x0 = tile_x[at + t * DOWN];
        let x1 = tile_x[at + TILE_TOKENS + t * DOWN];
        add_channel(0u, t, x0, x1, low, high, sums);
        add_channel(1u, t, x0, x1, low, high, sums);
        add_channel(2u, t, x0, x1, low, high, sums);
        add_channel(3u, t, x0, x1, low, high, sums);
        add_channel(4u, t, x0, x1, low, high, sums);
        add_channel(5u, t, x0, x1, low, high, sums);
        add_channel(6u, t, x0, x1, low, high, sums);
        add_channel(7u, t, x0, x1, low, high, sums);
    }
}

fn load_weight(
    c: u32,
    at: u32,
    low: ptr<function, array<vec4<u32>, THREAD_CHANNELS>>,
    high: ptr<function, array<vec4<u32>, THREAD_CHANNELS>>,
) {
    if c < THREAD_CHANNELS {
        (*low)[c] = tile_w[at + c * ACROSS];
        (*high)[c] = tile_w[at + TILE_CHANNELS + c * ACROSS];
    }
}

@compute @workgroup_size(ACROSS, DOWN)
fn gemm_w4a4_tiled(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let first_token = group.x * TILE_TOKENS;
    let first_channel = group.y * TILE_CHANNELS;
    let last_channel = p.panels * PANEL - 1u;
    var sums: array<u32, OUTPUTS>;
    for (var block = 0u; block < p.blocks; block += STEP) {
        for (var i = thread; i < TILE_TOKENS * HALVES; i += THREADS) {
            let row = min(first_token + i / HALVES, p.tokens - 1u);
            tile_x[i % HALVES * TILE_TOKENS + i / HALVES] = codes[(row * p.blocks + block) * 2u + i % HALVES];
        }
        for (var i = thread; i < TILE_CHANNELS * STEP; i += THREADS) {
            let step = i / TILE_CHANNELS;
            let column = i % TILE_CHANNELS;
            let n = min(first_channel + column, last_channel);
            let w = weights[(n / PANEL * p.blocks + block + step) * PANEL + n % PANEL];
            tile_w[2u * step * TILE_CHANNELS + column] = expand(w.xy);
            tile_w[(2u * step + 1u) * TILE_CHANNELS + column] = expand(w.zw);
        }
        workgroupBarrier();
        for (var step = 0u; step < STEP; step++) {
            var low: array<vec4<u32>, THREAD_CHANNELS>;
            var high: array<vec4<u32>, THREAD_CHANNELS>;
            let token = 2u * step * TILE_TOKENS + local.y;
            let channel = 2u * step * TILE_CHANNELS + local.x;
            load_weight(0u, channel, &low, &high);
            load_weight(1u, channel, &low, &high);
            load_weight(2u, channel, &low, &high);
            load_weight(3u, channel, &low, &high);
            load_weight(4u, channel, &low, &high);
            load_weight(5u, channel, &low, &high);
            load_weight(6u, channel, &low, &high);
            load_weight(7u, channel, &low, &high);
            add_token(0u, token, &low, &high, &sums);
            add_token(1u, token, &low, &high, &sums);
            add_token(2u, token, &low, &high, &sums);
            add_token(3u, token, &low, &high, &sums);
            add_token(4u, token, &low, &high, &sums);
            add_token(5u, token, &low, &high, &sums);
            add_token(6u, token, &low, &high, &sums);
            add_token(7u, token, &low, &high, &sums);
        }
        workgroupBarrier();
    }
    for (var o = 0u; o < OUTPUTS; o++) {
        let t = first_token + o / THREAD_CHANNELS * DOWN + local.y;
        write(t, first_channel + o % THREAD_CHANNELS * ACROSS + local.x, sums[o]);
    }
}
