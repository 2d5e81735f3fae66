// The arithmetic of transform_tokens.wgsl in the CPU backend's order. Joined with reproducible.wgsl.

// Sums of squares in 16 interleaved chains: quad i, i + 4, i + 8, .. in lanes 4 i to 4 i + 3.
var<workgroup> squares: array<vec4<f32>, 4>;

// 1 / sqrt(mean(x^2) + epsilon) of token t, for all invocations.
fn norm_factor(t: u32, lid: u32) -> f32 {
    for (var chains = lid; chains < 4u; chains += WORKGROUP) {
        var sum = vec4(0.0);
        for (var quad = chains; 4u * quad < CHANNELS; quad += 4u) {
            let x = source_quad(t * CHANNELS, quad);
            sum = fused4(x, x, sum);
        }
        squares[chains] = sum;
    }
    workgroupBarrier();
    let sum = sum_reproducible(squares[0], squares[1], squares[2], squares[3]);
    return 1.0 / sqrt(sum / f32(CHANNELS) + p.epsilon);
}

// One chain of fused multiply-adds in the order of the input channels.
fn add_products(sum: vec4<f32>, x: vec4<f32>, r: mat4x4<f32>) -> vec4<f32> {
    var out = fused4(vec4(x.x), r[0], sum);
    out = fused4(vec4(x.y), r[1], out);
    out = fused4(vec4(x.z), r[2], out);
    return fused4(vec4(x.w), r[3], out);
}

// What is computed so far, rounded: no compiler knows that there are fewer than 2^31 tokens, so that none fuses the last
// multiplication with an addition behind it.
fn settled(x: vec4<f32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(x) ^ vec4(p.tokens >> 31u));
}
