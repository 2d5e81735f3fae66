// Joins the spans of attention_decode: a workgroup a query and head. The prelude gives HEAD_DIM.

struct Immediates {
    splits: u32,
    // Of the output: the first query and head.
    first: u32,
}

var<immediate> p: Immediates;

// [T, H, splits, D + 2], as attention_decode leaves it.
@group(0) @binding(0) var<storage, read> workspace: array<f32>;
// [T, H, D], in f32 or, two to a word, in f16.
@group(0) @binding(1) var<storage, read_write> out: array<u32>;

// Bits of an output number: 32 or 16.
override OUT_BITS: u32;

const WIDTH: u32 = HEAD_DIM + 2u;

@compute @workgroup_size(64)
fn attention_merge(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let first = group.x * p.splits;
    var highest = workspace[first * WIDTH + HEAD_DIM];
    for (var split = 1u; split < p.splits; split++) {
        highest = max(highest, workspace[(first + split) * WIDTH + HEAD_DIM]);
    }
    for (var pair = local; pair < HEAD_DIM / 2u; pair += 64u) {
        var sum = vec2(0.0);
        var total = 0.0;
        for (var split = 0u; split < p.splits; split++) {
            let at = (first + split) * WIDTH;
            let shrink = exp(workspace[at + HEAD_DIM] - highest);
            total += shrink * workspace[at + HEAD_DIM + 1u];
            sum += shrink * vec2(workspace[at + 2u * pair], workspace[at + 2u * pair + 1u]);
        }
        let result = sum / total;
        let place = (p.first + group.x) * HEAD_DIM + 2u * pair;
        if (OUT_BITS == 16u) {
            out[place / 2u] = pack2x16float(result);
        } else {
            out[place] = bitcast<u32>(result.x);
            out[place + 1u] = bitcast<u32>(result.y);
        }
    }
}
