// Tokens whose K is no multiple of 4: rows start anywhere, and the last quad is filled with zeros.

// Without a branch, so that the loads of a quad go out together.
fn element(row: u32, k: u32) -> f32 {
    return select(0.0, f32(x[row * p.k + min(k, p.k - 1u)]), k < p.k);
}

fn input(row: u32, quad: u32) -> vec4<f32> {
    let k = quad * 4u;
    return vec4(element(row, k), element(row, k + 1u), element(row, k + 2u), element(row, k + 3u));
}
