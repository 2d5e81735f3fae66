// Tiles of both operands in workgroup memory, THREAD_TOKENS x THREAD_CHANNELS sums an invocation. In front of it:
// const TILE_TOKENS, TILE_CHANNELS, THREAD_TOKENS, THREAD_CHANNELS, STEP: u32; STEP counts quads.

const ACROSS: u32 = TILE_CHANNELS / THREAD_CHANNELS;
const DOWN: u32 = TILE_TOKENS / THREAD_TOKENS;
const THREADS: u32 = ACROSS * DOWN;
const OUTPUTS: u32 = THREAD_TOKENS * THREAD_CHANNELS;

// [quad, token] and [quad, channel].
var<workgroup> tile_x: array<vec4<f32>, STEP * TILE_TOKENS>;
var<workgroup> tile_w: array<vec4<f32>, STEP * TILE_CHANNELS>;

// Tokens and channels are unrolled by hand, with a constant in each call: drivers then keep the sums in registers, and
// lavapipe, which silently ends a shader after 65,535 iterations of all its loops, only counts those over K.
fn add_channel(
    c: u32,
    t: u32,
    values: vec4<f32>,
    w: ptr<function, array<vec4<f32>, THREAD_CHANNELS>>,
    sums: ptr<function, array<f32, OUTPUTS>>,
) {
    if c < THREAD_CHANNELS {
        (*sums)[t * THREAD_CHANNELS + c] = add_products(values, (*w)[c], (*sums)[t * THREAD_CHANNELS + c]);
    }
}

fn add_token(
    t: u32,
    at: u32,
    w: ptr<function, array<vec4<f32>, THREAD_CHANNELS>>,
    sums: ptr<function, array<f32, OUTPUTS>>,
) {
    if t < THREAD_TOKENS {
        let values = tile_x[at + t * DOWN];
        add_channel(0u, t, values, w, sums);
        add_channel(1u, t, values, w, sums);
        add_channel(2u, t, values, w, sums);
        add_channel(3u, t, values, w, sums);
        add_channel(4u, t, values, w, sums);
        add_channel(5u, t, values, w, sums);
        add_channel(6u, t, values, w, sums);
        add_channel(7u, t, values, w, sums);
    }
}

fn load_weight(c: u32, at: u32, w: ptr<function, array<vec4<f32>, THREAD_CHANNELS>>) {
    if c < THREAD_CHANNELS {
        (*w)[c] = tile_w[at + c * ACROSS];
    }
}

fn tiled(group: vec3<u32>, local: vec3<u32>, thread: u32) {
    let first_token = group.x * TILE_TOKENS;
    let first_channel = group.y * TILE_CHANNELS;
    let last_channel = p.panels * PANEL - 1u;
    var sums: array<f32, OUTPUTS>;
    for (var quad = 0u; quad < p.quads; quad += STEP) {
        for (var i = thread; i < TILE_TOKENS * STEP; i += THREADS) {
            let step = i % STEP;
            var values = vec4<f32>();
            if quad + step < p.quads {
                values = input(min(first_token + i / STEP, p.tokens - 1u), quad + step);
            }
            tile_x[step * TILE_TOKENS + i / STEP] = values;
        }
        for (var i = thread; i < TILE_CHANNELS * STEP; i += THREADS) {
            let step = i / TILE_CHANNELS;
            let n = min(first_channel + i % TILE_CHANNELS, last_channel);
            var values = vec4<f32>();
            if quad + step < p.quads {
                values = widen_weight(weights[(n / PANEL * p.quads + quad + step) * PANEL + n % PANEL]);
            }
            tile_w[i] = values;
        }
        workgroupBarrier();
        for (var step = 0u; step < STEP; step++) {
            var w: array<vec4<f32>, THREAD_CHANNELS>;
            let token = step * TILE_TOKENS + local.y;
            let channel = step * TILE_CHANNELS + local.x;
            load_weight(0u, channel, &w);
            load_weight(1u, channel, &w);
            load_weight(2u, channel, &w);
            load_weight(3u, channel, &w);
            load_weight(4u, channel, &w);
            load_weight(5u, channel, &w);
            load_weight(6u, channel, &w);
            load_weight(7u, channel, &w);
            add_token(0u, token, &w, &sums);
            add_token(1u, token, &w, &sums);
            add_token(2u, token, &w, &sums);
            add_token(3u, token, &w, &sums);
            add_token(4u, token, &w, &sums);
            add_token(5u, token, &w, &sums);
            add_token(6u, token, &w, &sums);
            add_token(7u, token, &w, &sums);
        }
        workgroupBarrier();
    }
    for (var o = 0u; o < OUTPUTS; o++) {
        let t = first_token + o / THREAD_CHANNELS * DOWN + local.y;
        write(t, first_channel + o % THREAD_CHANNELS * ACROSS + local.x, sums[o]);
    }
}

@compute @workgroup_size(ACROSS, DOWN)
fn gemm_f32_tiled(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    tiled(group, local, thread);
}

@compute @workgroup_size(ACROSS, DOWN)
fn gemm_f16_tiled(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    tiled(group, local, thread);
}
