// One chunk through a dense rotation: an invocation computes COLUMNS quads of outputs of ROWS blocks (both from the prelude),
// so that few values are read for many products. The products of an output are summed in the order of the input channels.

var<workgroup> chunk: array<vec4<f32>, CHUNK>;

fn rotate(t: u32, phase: u32, first: u32, factor: f32, lid: u32) {
    for (var i = lid; i < CHUNK; i += WORKGROUP) { chunk[i] = input(t, phase, first + i, factor); }
    workgroupBarrier();
    // Quads of a block, and invocations for its columns.
    let quads = BLOCK / 4u;
    let across = quads / COLUMNS;
    // A workgroup of one block's columns reads the same values of a token in all its invocations; said so that a compiler
    // sees it.
    let group = select(lid / across, 0u, WORKGROUP == across);
    let column = select(lid % across, lid, WORKGROUP == across);
    if group < WORKGROUP / across {
        var sums: array<vec4<f32>, TILE>;
        for (var i = 0u; i < TILE; i++) { sums[i] = vec4(0.0); }
        let x = group * ROWS * quads;
        for (var k = 0u; k < quads; k++) {
            let at = (phase * BLOCK + 4u * k) * quads + column;
            for (var c = 0u; c < COLUMNS; c++) {
                let r0 = rotations[at + c * across];
                let r1 = rotations[at + c * across + quads];
                let r2 = rotations[at + c * across + 2u * quads];
                let r3 = rotations[at + c * across + 3u * quads];
                for (var row = 0u; row < ROWS; row++) {
                    let v = chunk[x + row * quads + k];
                    let i = c * ROWS + row;
                    sums[i] += v.x * r0;
                    sums[i] += v.y * r1;
                    sums[i] += v.z * r2;
                    sums[i] += v.w * r3;
                }
            }
        }
        for (var row = 0u; row < ROWS; row++) {
            for (var c = 0u; c < COLUMNS; c++) {
                let quad = first + (group * ROWS + row) * quads + column + c * across;
                if 4u * quad < CHANNELS { write_area(phase, quad, sums[c * ROWS + row]); }
            }
        }
    }
    workgroupBarrier();
}
