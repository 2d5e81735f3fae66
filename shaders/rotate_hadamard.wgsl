// One chunk through a normalised Sylvester Hadamard matrix: butterflies of strides 1, 2, 4, .. and one multiplication.
// Strides 1 and 2 lie within a quad; the others go three at a time, on eight quads in registers.

// 1 / sqrt(BLOCK), rounded on the host.
override NORM: f32 = 1.0;
var<workgroup> chunk: array<vec4<f32>, CHUNK>;

fn within_quad(x: vec4<f32>) -> vec4<f32> {
    let y = vec4(x.x + x.y, x.x - x.y, x.z + x.w, x.z - x.w);
    return vec4(y.x + y.z, y.y + y.w, y.x - y.z, y.y - y.w);
}

fn rotate(t: u32, phase: u32, first: u32, factor: f32, lid: u32) {
    for (var i = lid; i < CHUNK; i += WORKGROUP) { chunk[i] = within_quad(input(t, phase, first + i, factor)); }
    workgroupBarrier();
    let quads = BLOCK / 4u;
    for (var stride = 1u; stride < quads; stride *= 8u) {
        let radix = min(8u, quads / stride);
        for (var i = lid; i < CHUNK / radix; i += WORKGROUP) {
            let base = (i / stride) * stride * radix + i % stride;
            var v: array<vec4<f32>, 8>;
            for (var j = 0u; j < 8u; j++) {
                if j < radix { v[j] = chunk[base + j * stride]; }
            }
            for (var s = 0u; s < 3u; s++) {
                let step = 1u << s;
                if step < radix {
                    for (var j = 0u; j < 4u; j++) {
                        let a = (j / step) * 2u * step + j % step;
                        let x = v[a];
                        let y = v[a + step];
                        v[a] = x + y;
                        v[a + step] = x - y;
                    }
                }
            }
            for (var j = 0u; j < 8u; j++) {
                if j < radix { chunk[base + j * stride] = v[j]; }
            }
        }
        workgroupBarrier();
    }
    for (var i = lid; i < CHUNK; i += WORKGROUP) {
        if 4u * (first + i) < CHANNELS { write_area(phase, first + i, chunk[i] * NORM); }
    }
    workgroupBarrier();
}
