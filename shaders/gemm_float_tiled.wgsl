// Tiles of both operands in workgroup memory, THREAD_TOKENS x THREAD_CHANNELS sums an invocation. In front of it:
// const TILE_TOKENS, TILE_CHANNELS, THREAD_TOKENS, THREAD_CHANNELS, STEP: u32; STEP counts quads.

const ACROSS: u32 = TILE_CHANNELS / THREAD_CHANNELS;
const DOWN: u32 = TILE_TOKENS / THREAD_TOKENS;
const THREADS: u32 = ACROSS * DOWN;
const OUTPUTS: u32 = THREAD_TOKENS * THREAD_CHANNELS;

// [quad, token] and [quad, channel].
var<workgroup> tile_x: array<vec4<f32>, STEP * TILE_TOKENS>;
var<workgroup> tile_w: array<vec4<f32>, STEP * TILE_CHANNELS>;

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
            for (var c = 0u; c < THREAD_CHANNELS; c++) {
                w[c] = tile_w[step * TILE_CHANNELS + c * ACROSS + local.x];
            }
            for (var t = 0u; t < THREAD_TOKENS; t++) {
                let values = tile_x[step * TILE_TOKENS + t * DOWN + local.y];
                for (var c = 0u; c < THREAD_CHANNELS; c++) {
                    sums[t * THREAD_CHANNELS + c] = add_products(values, w[c], sums[t * THREAD_CHANNELS + c]);
                }
            }
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
