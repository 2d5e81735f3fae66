// One chunk through a dense rotation: an invocation computes one column of ROWS blocks (from the prelude), so that each entry
// of the matrix is read once for ROWS products. The products of an output are summed in the order of the input channels.

// CHUNK / 4; naga takes no expression of overrides as a length.
override QUADS: u32 = 1u;
var<workgroup> chunk: array<vec4<f32>, QUADS>;

fn rotate(t: u32, phase: u32, first: u32, factor: f32, lid: u32) {
    for (var i = lid; i < QUADS; i += WORKGROUP) {
        let channel = first + 4u * i;
        chunk[i] = vec4(
            input(t, phase, channel, factor),
            input(t, phase, channel + 1u, factor),
            input(t, phase, channel + 2u, factor),
            input(t, phase, channel + 3u, factor),
        );
    }
    workgroupBarrier();
    // A workgroup of one block's columns reads the same tokens in all its invocations; said so that a compiler sees it.
    let group = select(lid / BLOCK, 0u, WORKGROUP == BLOCK);
    let column = select(lid % BLOCK, lid, WORKGROUP == BLOCK);
    if group < WORKGROUP / BLOCK {
        var sums: array<f32, ROWS>;
        for (var row = 0u; row < ROWS; row++) { sums[row] = 0.0; }
        let x = group * ROWS * (BLOCK / 4u);
        for (var k = 0u; k < BLOCK / 4u; k++) {
            let at = (phase * BLOCK + 4u * k) * BLOCK + column;
            let r = vec4(rotations[at], rotations[at + BLOCK], rotations[at + 2u * BLOCK], rotations[at + 3u * BLOCK]);
            for (var row = 0u; row < ROWS; row++) {
                let v = chunk[x + row * (BLOCK / 4u) + k];
                sums[row] = fma(v.w, r.w, fma(v.z, r.z, fma(v.y, r.y, fma(v.x, r.x, sums[row]))));
            }
        }
        for (var row = 0u; row < ROWS; row++) {
            let channel = first + (group * ROWS + row) * BLOCK + column;
            if channel < CHANNELS {
                write_area(phase % 2u, channel, sums[row]);
                if phase + 1u == ROTATIONS { widen_range(sums[row]); }
            }
        }
    }
    workgroupBarrier();
}
