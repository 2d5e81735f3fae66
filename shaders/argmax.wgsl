// The first index of the largest logit of each token, over a range of columns at a time. NaN is never chosen.

override WORKGROUP: u32 = 64u;

struct Params {
    tokens: u32,
    // Columns of this part, and the index of the first of them in the vocabulary.
    columns: u32,
    first: u32,
    // Segments that a row of this part is cut into, one a workgroup.
    segments: u32,
    // Where the part's segments lie among those of all parts.
    slot: u32,
    slots: u32,
}

var<immediate> p: Params;
// Logits [T, columns]; candidates [T, slots], each an ordered key and an index.
@group(0) @binding(0) var<storage, read> logits: array<Value>;
@group(0) @binding(1) var<storage, read_write> candidates: array<vec2<u32>>;

var<workgroup> best: array<vec2<u32>, WORKGROUP>;

// Order of keys is order of numbers, both zeros alike; 0 stands for NaN, below everything.
fn key(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let magnitude = bits & 0x7fffffffu;
    if magnitude > 0x7f800000u { return 0u; }
    if bits == magnitude { return 0x80000000u + magnitude; }
    return 0x80000000u - magnitude;
}

// Whether `b` comes before `a`: a larger number, or the same and an earlier index.
fn better(a: vec2<u32>, b: vec2<u32>) -> bool {
    return b.x > a.x || (b.x == a.x && b.y < a.y);
}

@compute @workgroup_size(WORKGROUP)
fn argmax(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
) {
    let length = (p.columns + p.segments - 1u) / p.segments;
    let begin = workgroup.x * length;
    let end = min(begin + length, p.columns);
    for (var t = workgroup.y; t < p.tokens; t += grid.y) {
        var mine = vec2(0u, 0xffffffffu);
        for (var i = begin + lid; i < end; i += WORKGROUP) {
            let candidate = vec2(key(f32(logits[t * p.columns + i])), p.first + i);
            if better(mine, candidate) { mine = candidate; }
        }
        best[lid] = mine;
        workgroupBarrier();
        for (var width = WORKGROUP / 2u; width > 0u; width /= 2u) {
            if lid < width && better(best[lid], best[lid + width]) { best[lid] = best[lid + width]; }
            workgroupBarrier();
        }
        if lid == 0u { candidates[t * p.slots + p.slot + workgroup.x] = best[0]; }
        // The next token overwrites the candidates.
        workgroupBarrier();
    }
}
