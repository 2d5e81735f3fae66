// Tokens whose K is a multiple of 4, read as vectors.

fn input(row: u32, quad: u32) -> vec4<f32> {
    return widen_input(x[row * p.quads + quad]);
}
