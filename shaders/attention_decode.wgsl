// Causal attention of a few queries, split over the context: a workgroup meets ROWS rows (heads that share a key head,
// and tokens) with one span of SPAN keys and leaves the unnormalised output, the largest score and the sum of the weights
// in the workspace; attention_merge joins the spans. The prelude gives ROWS (at most 8) and WORDS, those of a query.
//
// Scores: an invocation a key. Outputs: 4 lanes of keys by 16 quads of channels.

// [T, H, splits, D + 2]: sums of weighted values, then the largest score and the sum of the weights.
@group(0) @binding(4) var<storage, read_write> workspace: array<f32>;

const SPAN: u32 = 256u;
// Parts of 64 channels.
const PARTS: u32 = (HEAD_DIM + 63u) / 64u;

var<workgroup> query: array<u32, ROWS * WORDS>;
// [row][key]: scores, then weights; at last [row][key lane][quad] of outputs.
var<workgroup> scores: array<f32, ROWS * SPAN>;
// [row][invocation]
var<workgroup> partial: array<f32, ROWS * 64u>;
// [row][8]
var<workgroup> eighths: array<f32, ROWS * 8u>;

@compute @workgroup_size(64)
fn attention_decode(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let rows = p.tokens * GROUP;
    let blocks = (rows + ROWS - 1u) / ROWS;
    let kv_head = group.y / blocks;
    let first_row = group.y % blocks * ROWS;
    let cache = kv_head * p.capacity;
    let heads = p.kv_heads * GROUP;

    // Per row, those past the last doing the last one's work.
    var position: array<u32, ROWS>;
    var base: array<u32, ROWS>;
    for (var r = 0u; r < ROWS; r++) {
        let row = min(first_row + r, rows - 1u);
        position[r] = p.position + row / GROUP;
        base[r] = query_row(row / GROUP, kv_head * GROUP + row % GROUP);
        for (var w = local; w < WORDS; w += 64u) {
            query[r * WORDS + w] = queries[base[r] + w];
        }
    }
    let start = (p.first_span + group.x) * SPAN;
    let end = p.position + min(first_row + ROWS - 1u, rows - 1u) / GROUP + 1u;
    // Blocks of earlier tokens may see nothing of the last span.
    let count = select(0u, min(SPAN, end - start), end > start);
    workgroupBarrier();

    var highest: array<f32, ROWS>;
    for (var r = 0u; r < ROWS; r++) {
        highest[r] = LOWEST;
    }
    for (var i = local; i < count; i += 64u) {
        let key = start + i;
        let at = cache + key;
        var score: array<f32, ROWS>;
        if (key_is_float()) {
            for (var r = 0u; r < ROWS; r++) {
                score[r] = 0.0;
            }
            for (var w = 0u; w < WORDS; w++) {
                let k = bitcast<f32>(key_word(at, w));
                for (var r = 0u; r < ROWS; r++) {
                    score[r] += bitcast<f32>(query[r * WORDS + w]) * k;
                }
            }
            for (var r = 0u; r < ROWS; r++) {
                score[r] *= SCALE;
            }
        } else {
            var dots: array<u32, ROWS>;
            for (var r = 0u; r < ROWS; r++) {
                dots[r] = 0u;
            }
            if (KEY_BITS == 4u) {
                for (var w = 0u; w < WORDS / 2u; w++) {
                    let word = keys[at * (HEAD_DIM / 8u) + w];
                    let low = word & 0x0f0f0f0fu;
                    let high = (word >> 4u) & 0x0f0f0f0fu;
                    for (var r = 0u; r < ROWS; r++) {
                        let q = r * WORDS + 2u * w;
                        dots[r] += dot4U8Packed(query[q], low) + dot4U8Packed(query[q + 1u], high);
                    }
                }
            } else {
                for (var w = 0u; w < WORDS; w++) {
                    let word = key_word(at, w);
                    for (var r = 0u; r < ROWS; r++) {
                        dots[r] += dot4U8Packed(query[r * WORDS + w], word);
                    }
                }
            }
            let param = params[at];
            let zero = i32(param.y & 0xffffu);
            let centered = i32(param.y >> 16u) - i32(HEAD_DIM) * zero;
            for (var r = 0u; r < ROWS; r++) {
                let q = base[r] + QUADS;
                let integer = i32(dots[r]) - zero * i32(queries[q + 2u]) - centered * i32(queries[q + 1u]);
                score[r] = SCALE * bitcast<f32>(queries[q]) * bitcast<f32>(param.x) * f32(integer);
            }
        }
        for (var r = 0u; r < ROWS; r++) {
            let seen = key <= position[r] && position[r] - min(key, position[r]) < p.window;
            scores[r * SPAN + i] = score[r];
            highest[r] = max(highest[r], select(LOWEST, score[r], seen));
        }
    }

    // The largest of 64 in two steps, eight by eight.
    for (var r = 0u; r < ROWS; r++) {
        partial[r * 64u + local] = highest[r];
    }
    workgroupBarrier();
    if (local < 8u * ROWS) {
        var largest = LOWEST;
        for (var i = 0u; i < 8u; i++) {
            largest = max(largest, partial[local * 8u + i]);
        }
        eighths[local] = largest;
    }
    workgroupBarrier();
    var total: array<f32, ROWS>;
    for (var r = 0u; r < ROWS; r++) {
        for (var i = 0u; i < 8u; i++) {
            highest[r] = max(highest[r], eighths[r * 8u + i]);
        }
        total[r] = 0.0;
    }

    for (var i = local; i < count; i += 64u) {
        let key = start + i;
        let scale = value_scale(cache + key);
        for (var r = 0u; r < ROWS; r++) {
            let seen = key <= position[r] && position[r] - min(key, position[r]) < p.window;
            let weight = exp(scores[r * SPAN + i] - highest[r]);
            total[r] += select(0.0, weight, seen);
            // As in attention_prefill, a scale that is NaN reaches only those that see it.
            scores[r * SPAN + i] = select(0.0, weight * scale, seen);
        }
    }
    for (var r = 0u; r < ROWS; r++) {
        partial[r * 64u + local] = total[r];
    }
    workgroupBarrier();

    let lane = local / 16u;
    let column = local % 16u;
    var sums: array<vec4<f32>, ROWS * PARTS>;
    for (var i = 0u; i < ROWS * PARTS; i++) {
        sums[i] = vec4(0.0);
    }
    for (var i = lane; i < count; i += 4u) {
        for (var part = 0u; part < PARTS; part++) {
            let quad = part * 16u + column;
            if (quad < QUADS) {
                let value = value_quad(cache + start + i, quad);
                for (var r = 0u; r < ROWS; r++) {
                    sums[r * PARTS + part] += scores[r * SPAN + i] * value;
                }
            }
        }
    }

    for (var part = 0u; part < PARTS; part++) {
        // Weights, or the last part's outputs, have been read.
        workgroupBarrier();
        for (var r = 0u; r < ROWS; r++) {
            let quad = sums[r * PARTS + part];
            for (var c = 0u; c < 4u; c++) {
                scores[r * SPAN + c * 64u + local] = quad[c];
            }
        }
        workgroupBarrier();
        for (var i = local; i < 64u * ROWS; i += 64u) {
            let r = i / 64u;
            let channel = i % 64u;
            let from_lane = r * SPAN + (channel % 4u) * 64u + channel / 4u;
            let row = first_row + r;
            if (row < rows && part * 64u + channel < HEAD_DIM) {
                let sum = (scores[from_lane] + scores[from_lane + 16u])
                    + (scores[from_lane + 32u] + scores[from_lane + 48u]);
                let place = (row / GROUP * heads + kv_head * GROUP + row % GROUP) * p.splits + group.x;
                workspace[place * (HEAD_DIM + 2u) + part * 64u + channel] = sum;
            }
        }
    }
    if (local < ROWS && first_row + local < rows) {
        var all = 0.0;
        for (var i = 0u; i < 64u; i++) {
            all += partial[local * 64u + i];
        }
        let row = first_row + local;
        let place = ((row / GROUP * heads + kv_head * GROUP + row % GROUP) * p.splits + group.x) * (HEAD_DIM + 2u);
        workspace[place + HEAD_DIM] = highest[local];
        workspace[place + HEAD_DIM + 1u] = all;
    }
}
