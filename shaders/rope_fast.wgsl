// How rope_hadamard_quantize computes where nothing but speed counts.

// Two channels turned by an angle.
fn turned(a: f32, b: f32, cosine: f32, sine: f32) -> vec2<f32> {
    return vec2(a * cosine - b * sine, b * cosine + a * sine);
}

// Whether a scale can be used, given that the row is finite: infinity gives NaN later on as well.
fn usable(scale: f32) -> bool {
    return true;
}
