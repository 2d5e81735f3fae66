// Weights go from memory to registers, each once for TOKENS tokens; lanes lie along the channels of PANELS panels, and
// SLICES invocations share a channel's input channels. In front of it: const TOKENS, PANELS, SLICES: u32.

const OUTPUTS: u32 = TOKENS * PANELS;
const SHARED: u32 = select(OUTPUTS * PANEL * SLICES, 1u, SLICES == 1u);

var<workgroup> shared_sums: array<u32, SHARED>;

// Tokens and channels are unrolled by hand, with a constant in each call: drivers then keep the sums in registers, and
// lavapipe, which silently ends a shader after 65,535 iterations of all its loops, only counts those over K.
fn add_channel(
    c: u32,
    t: u32,
    x0: vec4<u32>,
    x1: vec4<u32>,
    low: ptr<function, array<vec4<u32>, PANELS>>,
    high: ptr<function, array<vec4<u32>, PANELS>>,
    parts: ptr<function, array<u32, OUTPUTS>>,
) {
    if c < PANELS {
        (*parts)[t * PANELS + c] += block_products(x0, x1, (*low)[c], (*high)[c]);
    }
}

fn add_token(
    t: u32,
    block: u32,
    rows: ptr<function, array<u32, TOKENS>>,
    low: ptr<function, array<vec4<u32>, PANELS>>,
    high: ptr<function, array<vec4<u32>, PANELS>>,
    parts: ptr<function, array<u32, OUTPUTS>>,
) {
    if t < TOKENS {
        let at = (*rows)[t] + block * 2u;
        let x0 = codes[at];
        let x1 = codes[at + 1u];
        add_channel(0u, t, x0, x1, low, high, parts);
        add_channel(1u, t, x0, x1, low, high, parts);
        add_channel(2u, t, x0, x1, low, high, parts);
        add_channel(3u, t, x0, x1, low, high, parts);
        add_channel(4u, t, x0, x1, low, high, parts);
        add_channel(5u, t, x0, x1, low, high, parts);
        add_channel(6u, t, x0, x1, low, high, parts);
        add_channel(7u, t, x0, x1, low, high, parts);
    }
}

fn load_weight(
    c: u32,
    block: u32,
    columns: ptr<function, array<u32, PANELS>>,
    low: ptr<function, array<vec4<u32>, PANELS>>,
    high: ptr<function, array<vec4<u32>, PANELS>>,
) {
    if c < PANELS {
        let w = weights[(*columns)[c] + block * PANEL];
        (*low)[c] = expand(w.xy);
        (*high)[c] = expand(w.zw);
    }
}

@compute @workgroup_size(PANEL, SLICES)
fn gemm_w4a4_stream(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let lane = local.x;
    // One slice is spelled as a constant, so that the tokens' addresses are the same in all lanes.
    let slice = select(local.y, 0u, SLICES == 1u);
    let first_token = group.x * TOKENS;
    let first_panel = group.y * PANELS;
    var rows: array<u32, TOKENS>;
    for (var t = 0u; t < TOKENS; t++) {
        rows[t] = min(first_token + t, p.tokens - 1u) * p.blocks * 2u;
    }
    var columns: array<u32, PANELS>;
    for (var c = 0u; c < PANELS; c++) {
        columns[c] = min(first_panel + c, p.panels - 1u) * p.blocks * PANEL + lane;
    }
    var sums: array<u32, OUTPUTS>;
    for (var start = slice * FLUSH; start < p.blocks; start += SLICES * FLUSH) {
        let end = min(start + FLUSH, p.blocks);
        var parts: array<u32, OUTPUTS>;
        for (var o = 0u; o < OUTPUTS; o++) {
            parts[o] = 0u;
        }
        for (var block = start; block < end; block++) {
            var low: array<vec4<u32>, PANELS>;
            var high: array<vec4<u32>, PANELS>;
            load_weight(0u, block, &columns, &low, &high);
            load_weight(1u, block, &columns, &low, &high);
            load_weight(2u, block, &columns, &low, &high);
            load_weight(3u, block, &columns, &low, &high);
            load_weight(4u, block, &columns, &low, &high);
            load_weight(5u, block, &columns, &low, &high);
            load_weight(6u, block, &columns, &low, &high);
            load_weight(7u, block, &columns, &low, &high);
            add_token(0u, block, &rows, &low, &high, &parts);
            add_token(1u, block, &rows, &low, &high, &parts);
            add_token(2u, block, &rows, &low, &high, &parts);
            add_token(3u, block, &rows, &low, &high, &parts);
            add_token(4u, block, &rows, &low, &high, &parts);
            add_token(5u, block, &rows, &low, &high, &parts);
            add_token(6u, block, &rows, &low, &high, &parts);
            add_token(7u, block, &rows, &low, &high, &parts);
        }
        for (var o = 0u; o < OUTPUTS; o++) {
            sums[o] += settle(parts[o]);
        }
    }
    if SLICES == 1u {
        for (var o = 0u; o < OUTPUTS; o++) {
            write(first_token + o / PANELS, (first_panel + o % PANELS) * PANEL + lane, sums[o]);
        }
        return;
    }
    for (var o = 0u; o < OUTPUTS; o++) {
        shared_sums[(o * SLICES + slice) * PANEL + lane] = sums[o];
    }
    workgroupBarrier();
    for (var o = slice; o < OUTPUTS; o += SLICES) {
        var sum = 0u;
        for (var s = 0u; s < SLICES; s++) {
            sum += shared_sums[(o * SLICES + s) * PANEL + lane];
        }
        write(first_token + o / PANELS, (first_panel + o % PANELS) * PANEL + lane, sum);
    }
}
