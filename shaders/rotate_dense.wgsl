// One chunk through a dense rotation: an invocation computes COLUMNS (1 or 2) quads of outputs of ROWS blocks (both from the
// prelude), so that few values are read for many products. The products of an output are summed in the order of the input
// channels.

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
        var sums: array<vec4<f32>, ROWS>;
        var more: array<vec4<f32>, ROWS>;
        for (var row = 0u; row < ROWS; row++) {
            sums[row] = vec4(0.0);
            more[row] = vec4(0.0);
        }
        let x = group * ROWS * quads;
        for (var k = 0u; k < quads; k++) {
            let at = (phase * BLOCK + 4u * k) * quads + column;
            let a = mat4x4(rotations[at], rotations[at + quads], rotations[at + 2u * quads], rotations[at + 3u * quads]);
            var b = a;
            if COLUMNS == 2u {
                let at = at + across;
                b = mat4x4(rotations[at], rotations[at + quads], rotations[at + 2u * quads], rotations[at + 3u * quads]);
            }
            for (var row = 0u; row < ROWS; row++) {
                let v = chunk[x + row * quads + k];
                sums[row] += v.x * a[0];
                sums[row] += v.y * a[1];
                sums[row] += v.z * a[2];
                sums[row] += v.w * a[3];
                if COLUMNS == 2u {
                    more[row] += v.x * b[0];
                    more[row] += v.y * b[1];
                    more[row] += v.z * b[2];
                    more[row] += v.w * b[3];
                }
            }
        }
        for (var row = 0u; row < ROWS; row++) {
            let quad = first + (group * ROWS + row) * quads + column;
            if 4u * quad < CHANNELS {
                write_area(phase, quad, sums[row]);
                if COLUMNS == 2u { write_area(phase, quad + across, more[row]); }
            }
        }
    }
    workgroupBarrier();
}
