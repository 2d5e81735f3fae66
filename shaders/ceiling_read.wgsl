// Reads memory and does next to nothing with it: how fast it comes at most.

struct Params {
    vectors: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> values: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;

@compute @workgroup_size(64)
fn ceiling_read(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
) {
    let stride = 64u * grid.x;
    var sum = vec4(0u);
    for (var i = 64u * group.x + lid; i < p.vectors; i += stride) {
        sum += values[i];
    }
    out[lid] = sum.x + sum.y + sum.z + sum.w;
}
