// RMSNorm of each token: out = x / sqrt(mean(x^2) + epsilon) * weight. One token a workgroup.
// `Value` and `Out` come from the prelude.

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

var<workgroup> squares: array<f32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn rms_norm(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
) {
    for (var t = workgroup.x; t < p.tokens; t += grid.x) {
        let row = t * p.channels;
        var sum = 0.0;
        for (var i = lid; i < p.channels; i += WORKGROUP) {
            let v = f32(x[row + i]);
            sum += v * v;
        }
        squares[lid] = sum;
        workgroupBarrier();
        for (var width = WORKGROUP / 2u; width > 0u; width /= 2u) {
            if lid < width { squares[lid] += squares[lid + width]; }
            workgroupBarrier();
        }
        let factor = inverseSqrt(squares[0] / f32(p.channels) + p.epsilon);
        for (var i = lid; i < p.channels; i += WORKGROUP) { out[row + i] = Out(f32(x[row + i]) * factor * weight[i]); }
        // The next token overwrites the sums.
        workgroupBarrier();
    }
}
