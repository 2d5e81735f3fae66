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
            var w0: array<vec4<u32>, THREAD_CHANNELS>;
            var w1: array<vec4<u32>, THREAD_CHANNELS>;
            for (var c = 0u; c < THREAD_CHANNELS; c++) {
                w0[c] = tile_w[2u * step * TILE_CHANNELS + c * ACROSS + local.x];
                w1[c] = tile_w[(2u * step + 1u) * TILE_CHANNELS + c * ACROSS + local.x];
            }
            for (var t = 0u; t < THREAD_TOKENS; t++) {
                let x0 = tile_x[2u * step * TILE_TOKENS + t * DOWN + local.y];
                let x1 = tile_x[(2u * step + 1u) * TILE_TOKENS + t * DOWN + local.y];
                for (var c = 0u; c < THREAD_CHANNELS; c++) {
                    sums[t * THREAD_CHANNELS + c] += settle(block_products(x0, x1, w0[c], w1[c]));
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
