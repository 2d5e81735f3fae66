// Tokens whose K is no multiple of 4: rows start anywhere, and the last quad is filled with zeros.

fn element(row: u32, k: u32) -> f32 {
    if k < p.k {
        return f32(x[row * p.k + k]);
    }
    return 0.0;
}

fn input(row: u32, quad: u32) -> vec4<f32> {
    let k = quad * 4u;
    return vec4(element(row, k), element(row, k + 1u), element(row, k + 2u), element(row, k + 3u));
}
