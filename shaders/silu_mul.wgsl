// SwiGLU's product: out = silu(gate) * up with silu(x) = x / (1 + e^-x). `Value` and `Out` come from the prelude,
// `silu` from silu.wgsl or reproducible.wgsl.

override WORKGROUP: u32 = 64u;

struct Params {
    tokens: u32,
    channels: u32,
}

var<immediate> p: Params;
// [T, 2K], gate in the first K columns of each row; [T, K].
@group(0) @binding(0) var<storage, read> gate_up: array<Value>;
@group(0) @binding(1) var<storage, read_write> out: array<Out>;

@compute @workgroup_size(WORKGROUP)
fn silu_mul(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
) {
    for (var t = workgroup.x; t < p.tokens; t += grid.x) {
        for (var i = lid; i < p.channels; i += WORKGROUP) {
            let at = 2u * t * p.channels + i;
            let gate = silu(vec4(f32(gate_up[at]))).x;
            out[t * p.channels + i] = Out(gate * f32(gate_up[at + p.channels]));
        }
    }
}
