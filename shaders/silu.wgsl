// x / (1 + e^-x) as a device does it fastest; reproducible.wgsl has the other one. Never overflows: the exponential is that of
// a number <= 0.
fn silu(x: vec4<f32>) -> vec4<f32> {
    let e = exp(-abs(x));
    return x * select(e, vec4(1.0), x > vec4(0.0)) / (1.0 + e);
}
