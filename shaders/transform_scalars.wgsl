// Operands of transform_tokens.wgsl for any K; what lies behind the last channel is 0.
@group(0) @binding(0) var<storage, read> source: array<Value>;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(4) var<storage, read> inverse_smooth: array<f32>;

// `row` is where the row of the token begins, in channels.
fn source_quad(row: u32, quad: u32) -> vec4<f32> {
    var out: vec4<f32>;
    for (var i = 0u; i < 4u; i++) {
        if 4u * quad + i < CHANNELS { out[i] = f32(source[row + 4u * quad + i]); }
    }
    return out;
}

fn weight_quad(quad: u32) -> vec4<f32> {
    var out: vec4<f32>;
    for (var i = 0u; i < 4u; i++) {
        if 4u * quad + i < CHANNELS { out[i] = weight[4u * quad + i]; }
    }
    return out;
}

fn smooth_quad(quad: u32) -> vec4<f32> {
    var out: vec4<f32>;
    for (var i = 0u; i < 4u; i++) {
        if 4u * quad + i < CHANNELS { out[i] = inverse_smooth[4u * quad + i]; }
    }
    return out;
}
