// rms_norm.wgsl in the CPU backend's order. Joined with reproducible.wgsl.

override WORKGROUP: u32 = 64u;

struct Params {
    tokens: u32,
    channels: u32,
    epsilon: f32,
}

var<immediate> p: Params;
// [T, K], [K], [T, K].
@group(0) @binding(0) var<storage, read> x: array<Value>;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<Out>;

// Sums of squares in 16 interleaved chains.
var<workgroup> squares: array<f32, 16>;

fn squares_quad(first: u32) -> vec4<f32> {
    return vec4(squares[first], squares[first + 1u], squares[first + 2u], squares[first + 3u]);
}

@compute @workgroup_size(WORKGROUP)
fn rms_norm(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
) {
    for (var t = workgroup.x; t < p.tokens; t += grid.x) {
        let row = t * p.channels;
        for (var chain = lid; chain < 16u; chain += WORKGROUP) {
            var sum = 0.0;
            for (var i = chain; i < p.channels; i += 16u) {
                let v = f32(x[row + i]);
                sum = fused(v, v, sum);
            }
            squares[chain] = sum;
        }
        workgroupBarrier();
        let sum = sum_reproducible(squares_quad(0u), squares_quad(4u), squares_quad(8u), squares_quad(12u));
        let factor = 1.0 / sqrt(sum / f32(p.channels) + p.epsilon);
        for (var i = lid; i < p.channels; i += WORKGROUP) { out[row + i] = Out(f32(x[row + i]) * factor * weight[i]); }
        // The next token overwrites the sums.
        workgroupBarrier();
    }
}
