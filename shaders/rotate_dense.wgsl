// One chunk through a dense rotation: an invocation computes COLUMNS (1, 2 or 4) quads of outputs of ROWS blocks (both from the
// prelude), so that few values are read for many products. The products of an output are summed in the order of the input
// channels.

var<workgroup> chunk: array<vec4<f32>, CHUNK>;

// Four rows of the matrix, one quad of columns.
fn entries(at: u32) -> mat4x4<f32> {
    let quads = BLOCK / 4u;
    return mat4x4(rotations[at], rotations[at + quads], rotations[at + 2u * quads], rotations[at + 3u * quads]);
}

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
        // One array a quad of columns, so that every index is known once the loops are unrolled.
        var sums_0: array<vec4<f32>, ROWS>;
        var sums_1: array<vec4<f32>, ROWS>;
        var sums_2: array<vec4<f32>, ROWS>;
        var sums_3: array<vec4<f32>, ROWS>;
        for (var row = 0u; row < ROWS; row++) {
            sums_0[row] = vec4(0.0);
            sums_1[row] = vec4(0.0);
            sums_2[row] = vec4(0.0);
            sums_3[row] = vec4(0.0);
        }
        let x = group * ROWS * quads;
        for (var k = 0u; k < quads; k++) {
            let at = (phase * BLOCK + 4u * k) * quads + column;
            let r_0 = entries(at);
            var r_1 = r_0;
            var r_2 = r_0;
            var r_3 = r_0;
            if COLUMNS >= 2u { r_1 = entries(at + across); }
            if COLUMNS == 4u {
                r_2 = entries(at + 2u * across);
                r_3 = entries(at + 3u * across);
            }
            for (var row = 0u; row < ROWS; row++) {
                let v = chunk[x + row * quads + k];
                sums_0[row] = add_products(sums_0[row], v, r_0);
                if COLUMNS >= 2u { sums_1[row] = add_products(sums_1[row], v, r_1); }
                if COLUMNS == 4u {
                    sums_2[row] = add_products(sums_2[row], v, r_2);
                    sums_3[row] = add_products(sums_3[row], v, r_3);
                }
            }
        }
        for (var row = 0u; row < ROWS; row++) {
            let quad = first + (group * ROWS + row) * quads + column;
            if 4u * quad < CHANNELS {
                write_area(phase, quad, sums_0[row]);
                if COLUMNS >= 2u { write_area(phase, quad + across, sums_1[row]); }
                if COLUMNS == 4u {
                    write_area(phase, quad + 2u * across, sums_2[row]);
                    write_area(phase, quad + 3u * across, sums_3[row]);
                }
            }
        }
    }
    workgroupBarrier();
}
