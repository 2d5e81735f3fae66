// The arithmetic of transform_tokens.wgsl as a device does it fastest. Joined with silu.wgsl.

var<workgroup> squares: array<f32, WORKGROUP>;

// 1 / sqrt(mean(x^2) + epsilon) of token t, for all invocations.
fn norm_factor(t: u32, lid: u32) -> f32 {
    var sum = 0.0;
    for (var quad = lid; 4u * quad < CHANNELS; quad += WORKGROUP) {
        let x = source_quad(t * CHANNELS, quad);
        sum += dot(x, x);
    }
    squares[lid] = sum;
    workgroupBarrier();
    for (var width = WORKGROUP / 2u; width > 0u; width /= 2u) {
        if lid < width { squares[lid] += squares[lid + width]; }
        workgroupBarrier();
    }
    return inverseSqrt(squares[0] / f32(CHANNELS) + p.epsilon);
}

// In the order of the input channels.
fn add_products(sum: vec4<f32>, x: vec4<f32>, r: mat4x4<f32>) -> vec4<f32> {
    var out = sum;
    out += x.x * r[0];
    out += x.y * r[1];
    out += x.z * r[2];
    out += x.w * r[3];
    return out;
}

// What is computed so far; a compiler may join it with what comes after.
fn settled(x: vec4<f32>) -> vec4<f32> {
    return x;
}
