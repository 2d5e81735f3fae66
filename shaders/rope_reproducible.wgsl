// How rope_hadamard_quantize computes where the bits are to be the CPU backend's (src/kernels/cpu/rope_hadamard_quantize.rs).

// Two channels turned by an angle.
fn turned(a: f32, b: f32, cosine: f32, sine: f32) -> vec2<f32> {
    return vec2(fused(-b, sine, a * cosine), fused(a, sine, b * cosine));
}

// Whether a scale can be used: a row whose range overflows is stored as NaN.
fn usable(scale: f32) -> bool {
    return (bitcast<u32>(scale) & 0x7f800000u) != 0x7f800000u;
}
