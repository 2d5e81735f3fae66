// The CPU backend's arithmetic (src/kernels/cpu/lanes/math.rs), operation by operation, so that the bits are the same.
// `fused` and `fused4` come from the prelude; every other operation is one that IEEE 754 rounds, in the order written.

// e^x to about one unit in the last place, for x clamped to -87..=88; NaN stays NaN.
fn exp_reproducible(x: vec4<f32>) -> vec4<f32> {
    // By comparisons that are false for NaN: what min and max make of it is the device's choice.
    let above = select(x, vec4(-87.0), x < vec4(-87.0));
    let clamped = select(above, vec4(88.0), above > vec4(88.0));
    let n = round(clamped * 1.44269504);
    // ln 2 in two parts, so that n times the first is exact.
    var r = fused4(-n, vec4(0.6933594), clamped);
    r = fused4(-n, vec4(-2.1219444e-4), r);
    var p = vec4(1.9875691e-4);
    p = fused4(p, r, vec4(1.3982e-3));
    p = fused4(p, r, vec4(8.333452e-3));
    p = fused4(p, r, vec4(4.1665796e-2));
    p = fused4(p, r, vec4(1.6666665e-1));
    p = fused4(p, r, vec4(0.5));
    p = fused4(p, r * r, r) + 1.0;
    // n is in -126..=127, so that 2^n is a normal number.
    return p * bitcast<vec4<f32>>((vec4<i32>(n) + 127) << vec4(23u));
}

// x / (1 + e^-x).
fn silu(x: vec4<f32>) -> vec4<f32> {
    return x / (1.0 + exp_reproducible(0.0 - x));
}

// Sum of 16 chains, four in each argument: halves first, then the halves of the halves.
fn sum_reproducible(a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>) -> f32 {
    let quad = (a + c) + (b + d);
    let pair = quad.xy + quad.zw;
    return pair.x + pair.y;
}
