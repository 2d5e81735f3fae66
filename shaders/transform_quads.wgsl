// Operands of transform_tokens.wgsl when K is a multiple of 4.
@group(0) @binding(0) var<storage, read> source: array<vec4<Value>>;
@group(0) @binding(1) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> inverse_smooth: array<vec4<f32>>;

// `row` is where the row of the token begins, in channels.
fn source_quad(row: u32, quad: u32) -> vec4<f32> {
    return vec4<f32>(source[row / 4u + quad]);
}

fn weight_quad(quad: u32) -> vec4<f32> {
    return weight[quad];
}

fn smooth_quad(quad: u32) -> vec4<f32> {
    return inverse_smooth[quad];
}
