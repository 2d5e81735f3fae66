// Weights go from memory to registers, each once for TOKENS tokens; lanes lie along the channels of PANELS panels, and
// SLICES invocations share a channel's input channels. In front of it: const TOKENS, PANELS, SLICES: u32.

const OUTPUTS: u32 = TOKENS * PANELS;
const SHARED: u32 = select(OUTPUTS * PANEL * SLICES, 1u, SLICES == 1u);

var<workgroup> shared_sums: array<f32, SHARED>;

// Tokens and channels are unrolled by hand, with a constant in each call: drivers then keep the sums in registers, and
// lavapipe, which silently ends a shader after 65,535 iterations of all its loops, only counts those over K.
fn add_channel(
    c: u32,
    t: u32,
    values: vec4<f32>,
    w: ptr<function, array<vec4<f32>, PANELS>>,
    sums: ptr<function, array<f32, OUTPUTS>>,
) {
    if c < PANELS {
        (*sums)[t * PANELS + c] = add_products(values, (*w)[c], (*sums)[t * PANELS + c]);
    }
}

fn add_token(
    t: u32,
    quad: u32,
    rows: ptr<function, array<u32, TOKENS>>,
    w: ptr<function, array<vec4<f32>, PANELS>>,
    sums: ptr<function, array<f32, OUTPUTS>>,
) {
    if t < TOKENS {
        let values = input((*rows)[t], quad);
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

fn load_weight(
    c: u32,
    quad: u32,
    columns: ptr<function, array<u32, PANELS>>,
    w: ptr<function, array<vec4<f32>, PANELS>>,
) {
    if c < PANELS {
        (*w)[c] = widen_weight(weights[(*columns)[c] + quad * PANEL]);
    }
}

fn stream(group: vec3<u32>, local: vec3<u32>) {
    let lane = local.x;
    // One slice is spelled as a constant, so that the tokens' addresses are the same in all lanes.
    let slice = select(local.y, 0u, SLICES == 1u);
    let first_token = group.x * TOKENS;
    let first_panel = group.y * PANELS;
    var rows: array<u32, TOKENS>;
    for (var t = 0u; t < TOKENS; t++) {
        rows[t] = min(first_token + t, p.tokens - 1u);
    }
    var columns: array<u32, PANELS>;
    for (var c = 0u; c < PANELS; c++) {
        columns[c] = min(first_panel + c, p.panels - 1u) * p.quads * PANEL + lane;
    }
    var sums: array<f32, OUTPUTS>;
    for (var quad = slice; quad < p.quads; quad += SLICES) {
        var w: array<vec4<f32>, PANELS>;
        load_weight(0u, quad, &columns, &w);
        load_weight(1u, quad, &columns, &w);
        load_weight(2u, quad, &columns, &w);
        load_weight(3u, quad, &columns, &w);
        load_weight(4u, quad, &columns, &w);
        load_weight(5u, quad, &columns, &w);
        load_weight(6u, quad, &columns, &w);
        load_weight(7u, quad, &columns, &w);
        add_token(0u, quad, &rows, &w, &sums);
        add_token(1u, quad, &rows, &w, &sums);
        add_token(2u, quad, &rows, &w, &sums);
        add_token(3u, quad, &rows, &w, &sums);
        add_token(4u, quad, &rows, &w, &sums);
        add_token(5u, quad, &rows, &w, &sums);
        add_token(6u, quad, &rows, &w, &sums);
        add_token(7u, quad, &rows, &w, &sums);
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
        var sum = 0.0;
        for (var s = 0u; s < SLICES; s++) {
            sum += shared_sums[(o * SLICES + s) * PANEL + lane];
        }
        write(first_token + o / PANELS, (first_panel + o % PANELS) * PANEL + lane, sum);
    }
}

@compute @workgroup_size(PANEL, SLICES)
fn gemm_f32_stream(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    stream(group, local);
}

@compute @workgroup_size(PANEL, SLICES)
fn gemm_f16_stream(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    stream(group, local);
}
