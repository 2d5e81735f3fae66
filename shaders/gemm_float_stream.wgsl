// Weights go from memory to registers, each once for TOKENS tokens; lanes lie along the channels of PANELS panels, and
// SLICES invocations share a channel's input channels. In front of it: const TOKENS, PANELS, SLICES: u32.

const OUTPUTS: u32 = TOKENS * PANELS;
const SHARED: u32 = select(OUTPUTS * PANEL * SLICES, 1u, SLICES == 1u);

var<workgroup> shared_sums: array<f32, SHARED>;

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
        for (var c = 0u; c < PANELS; c++) {
            w[c] = widen_weight(weights[columns[c] + quad * PANEL]);
        }
        for (var t = 0u; t < TOKENS; t++) {
            let values = input(rows[t], quad);
            for (var c = 0u; c < PANELS; c++) {
                sums[t * PANELS + c] = add_products(values, w[c], sums[t * PANELS + c]);
            }
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
