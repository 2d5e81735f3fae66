// The best of a token's candidates, which argmax.wgsl wrote: its index, or 0 when every logit was NaN.

override WORKGROUP: u32 = 64u;

struct Params {
    tokens: u32,
    slots: u32,
}

var<immediate> p: Params;
// [T, slots], each a key and an index; [T].
@group(0) @binding(0) var<storage, read> candidates: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read_write> ids: array<u32>;

@compute @workgroup_size(WORKGROUP)
fn argmax_merge(@builtin(global_invocation_id) invocation: vec3<u32>) {
    let t = invocation.x;
    if t >= p.tokens { return; }
    var best = vec2(0u, 0u);
    for (var i = 0u; i < p.slots; i++) {
        let other = candidates[t * p.slots + i];
        if other.x > best.x || (other.x == best.x && other.x > 0u && other.y < best.y) { best = other; }
    }
    ids[t] = best.y;
}
