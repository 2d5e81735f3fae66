// One chunk through a normalised Sylvester Hadamard matrix: butterflies of strides 1, 2, 4, .. and one multiplication. An
// invocation takes up to 16 channels through up to four strides in registers.

// 1 / sqrt(BLOCK), rounded on the host.
override NORM: f32 = 1.0;
var<workgroup> chunk: array<f32, CHUNK>;

fn rotate(t: u32, phase: u32, first: u32, factor: f32, lid: u32) {
    for (var i = lid; i < CHUNK; i += WORKGROUP) { chunk[i] = input(t, phase, first + i, factor); }
    workgroupBarrier();
    for (var stride = 1u; stride < BLOCK; stride *= 16u) {
        let radix = min(16u, BLOCK / stride);
        for (var i = lid; i < CHUNK / radix; i += WORKGROUP) {
            let base = (i / stride) * stride * radix + i % stride;
            var v: array<f32, 16>;
            for (var j = 0u; j < 16u; j++) {
                if j < radix { v[j] = chunk[base + j * stride]; }
            }
            for (var step = 1u; step < radix; step *= 2u) {
                for (var j = 0u; j < 8u; j++) {
                    if 2u * j < radix {
                        let a = (j / step) * 2u * step + j % step;
                        let x = v[a];
                        let y = v[a + step];
                        v[a] = x + y;
                        v[a + step] = x - y;
                    }
                }
            }
            for (var j = 0u; j < 16u; j++) {
                if j < radix { chunk[base + j * stride] = v[j]; }
            }
        }
        workgroupBarrier();
    }
    for (var i = lid; i < min(CHUNK, CHANNELS - first); i += WORKGROUP) {
        let y = chunk[i] * NORM;
        write_area(phase % 2u, first + i, y);
        if phase + 1u == ROTATIONS { widen_range(y); }
    }
    workgroupBarrier();
}
