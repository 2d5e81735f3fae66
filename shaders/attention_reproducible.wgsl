// Causal attention with the CPU backend's operations in its order (src/kernels/cpu/attention/tile.rs), for prompts and single
// tokens alike: tiles of KEYS keys with an online softmax, one chain of fused multiply-adds over the keys for each channel.
// The prelude gives HEAD_DIM and WORDS, those of a query.
//
// A workgroup takes ROWS rows (heads that share a key head, and tokens). Scores: an invocation meets all rows with a key.
// Weights: an invocation is one of the LANES interleaved chains that sum a row's. Outputs: an invocation a row and a quad of
// channels.

@group(0) @binding(4) var<storage, read_write> out: array<u32>;

// Bits of an output number: 32 or 16.
override OUT_BITS: u32;

const ROWS: u32 = 4u;
const KEYS: u32 = 128u;
const LANES: u32 = 16u;
// Rows and quads of channels of an invocation.
const ITEMS: u32 = (ROWS * QUADS + 63u) / 64u;
// The score of a key that is not seen, and the largest score before the first.
const MASKED: f32 = -3.40282347e+38;

// [word] over rows.
var<workgroup> query: array<vec4<u32>, WORDS>;
// [row][key]: scores, then weights.
var<workgroup> scores: array<f32, ROWS * KEYS>;
// [row][lane]: largest scores, and sums of weights.
var<workgroup> highest: array<f32, ROWS * LANES>;
var<workgroup> sums: array<f32, ROWS * LANES>;
// [row][lane], all lanes the same: a row's total so far. In memory, lest a compiler fuse the product with the next sum.
var<workgroup> totals: array<f32, ROWS * LANES>;
// What the sums of a row shrink by.
var<workgroup> shrinks: array<f32, ROWS>;

// `y`, and NaN where `x` is, by its bits, since a compiler may take it that no number is NaN.
fn keep_nan(x: vec4<f32>, y: vec4<f32>) -> vec4<f32> {
    let bits = bitcast<vec4<u32>>(x);
    let nan = (bits & vec4(0x7fffffffu)) > vec4(0x7f800000u);
    return bitcast<vec4<f32>>(select(bitcast<vec4<u32>>(y), bits, nan));
}

// e^x.
fn exp_of(x: vec4<f32>) -> vec4<f32> {
    return keep_nan(x, exp_reproducible(x));
}

// Weights of keys: 0 below 2^-100, as on the CPU.
fn weights_of(x: vec4<f32>) -> vec4<f32> {
    let weight = exp_reproducible(x) - vec4(0x1p-100f);
    return keep_nan(x, select(weight, vec4(0.0), weight < vec4(0.0)));
}

fn dot_rows(q: vec4<u32>, k: u32) -> vec4<u32> {
    return vec4(dot4U8Packed(q.x, k), dot4U8Packed(q.y, k), dot4U8Packed(q.z, k), dot4U8Packed(q.w, k));
}

fn write_quad(at: u32, quad: vec4<f32>) {
    if (OUT_BITS == 16u) {
        out[at / 2u] = pack2x16float(quad.xy);
        out[at / 2u + 1u] = pack2x16float(quad.zw);
    } else {
        let words = bitcast<vec4<u32>>(quad);
        out[at] = words.x;
        out[at + 1u] = words.y;
        out[at + 2u] = words.z;
        out[at + 3u] = words.w;
    }
}

@compute @workgroup_size(64)
fn attention_reproducible(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let first_row = group.x * ROWS;
    let kv_head = group.y;
    let cache = kv_head * p.capacity;
    let rows = p.tokens * GROUP;
    // Rows past the last do the last one's work and write nothing.
    let row = min(vec4(first_row) + vec4(0u, 1u, 2u, 3u), vec4(rows - 1u));
    let position = row / GROUP + p.position;
    let seen = vec4(
        first_seen(position.x), first_seen(position.y), first_seen(position.z), first_seen(position.w)
    );
    var base = vec4(0u);
    for (var r = 0u; r < ROWS; r++) {
        base[r] = query_row(row[r] / GROUP, kv_head * GROUP + row[r] % GROUP);
    }
    for (var w = local; w < WORDS; w += 64u) {
        query[w] = vec4(queries[base.x + w], queries[base.y + w], queries[base.z + w], queries[base.w + w]);
    }
    var query_scale = vec4(SCALE);
    var query_zero = vec4(0i);
    var query_sum = vec4(0i);
    if (!key_is_float()) {
        for (var r = 0u; r < ROWS; r++) {
            let at = base[r] + QUADS;
            query_scale[r] *= bitcast<f32>(queries[at]);
            query_zero[r] = i32(queries[at + 1u]);
            query_sum[r] = i32(queries[at + 2u]);
        }
    }

    // As a chain of weights: its row, its lane and what it has seen.
    let my_row = local / LANES;
    let lane = local % LANES;
    let my_seen = seen[my_row];
    let my_end = position[my_row] + 1u;
    var largest = MASKED;
    var total = 0.0;
    // As a chain of values, over channels.
    var acc: array<vec4<f32>, ITEMS>;
    for (var i = 0u; i < ITEMS; i++) {
        acc[i] = vec4(0.0);
    }

    let end = position.w + 1u;
    for (var start = seen.x / KEYS * KEYS; start < end; start += KEYS) {
        // Weights have been read; the first time, queries are written.
        workgroupBarrier();
        for (var i = local; i < KEYS; i += 64u) {
            let key = start + i;
            let at = cache + min(key, end - 1u);
            var score = vec4(0.0);
            if (key_is_float()) {
                for (var w = 0u; w < WORDS; w++) {
                    score = fused4(bitcast<vec4<f32>>(query[w]), vec4(bitcast<f32>(key_word(at, w))), score);
                }
                score *= SCALE;
            } else {
                var dots = vec4(0u);
                for (var w = 0u; w < WORDS; w++) {
                    dots += dot_rows(query[w], key_word(at, w));
                }
                let zero = i32(params[at].y & 0xffffu);
                let sum = i32(params[at].y >> 16u);
                // Below 2^24, so that the CPU's f32 holds it exactly too.
                let integer = vec4<i32>(dots) - zero * query_sum - (sum - i32(HEAD_DIM) * zero) * query_zero;
                score = vec4<f32>(integer) * query_scale;
                score *= bitcast<f32>(params[at].x);
            }
            score = select(vec4(MASKED), score, (vec4(key) >= seen) & (vec4(key) <= position));
            scores[i] = score.x;
            scores[KEYS + i] = score.y;
            scores[2u * KEYS + i] = score.z;
            scores[3u * KEYS + i] = score.w;
        }
        workgroupBarrier();

        var high = MASKED;
        for (var i = my_row * KEYS + lane; i < (my_row + 1u) * KEYS; i += LANES) {
            high = select(high, scores[i], scores[i] > high);
        }
        highest[local] = high;
        workgroupBarrier();
        var next = largest;
        for (var i = 0u; i < LANES; i++) {
            let other = highest[my_row * LANES + i];
            next = select(next, other, other > next);
        }
        var sum = 0.0;
        for (var i = lane; i < KEYS; i += 4u * LANES) {
            let place = vec4(i, i + LANES, i + 2u * LANES, i + 3u * LANES);
            let at = my_row * KEYS + place;
            let weight = weights_of(vec4(scores[at.x], scores[at.y], scores[at.z], scores[at.w]) - next);
            for (var j = 0u; j < 4u; j++) {
                let key = start + place[j];
                var scaled = 0.0;
                // The value's scale goes into the weight, and only where it is seen: one that is NaN stays away from the
                // other queries.
                if (key >= my_seen && key < my_end) {
                    sum += weight[j];
                    scaled = weight[j] * value_scale(cache + key);
                }
                scores[at[j]] = scaled;
            }
        }
        var shrink = 1.0;
        if (next > largest) {
            shrink = exp_of(vec4(largest - next)).x;
        }
        largest = next;
        sums[local] = sum;
        totals[local] = total * shrink;
        if (lane == 0u) {
            shrinks[my_row] = shrink;
        }
        workgroupBarrier();
        var quads: array<vec4<f32>, 4>;
        for (var i = 0u; i < 4u; i++) {
            let at = my_row * LANES + 4u * i;
            quads[i] = vec4(sums[at], sums[at + 1u], sums[at + 2u], sums[at + 3u]);
        }
        total = totals[local] + sum_reproducible(quads[0], quads[1], quads[2], quads[3]);

        for (var i = 0u; i < ITEMS; i++) {
            let item = local + 64u * i;
            if (item < ROWS * QUADS) {
                let r = item / QUADS;
                let quad = item % QUADS;
                // A key that is not seen has weight 0, which changes no bit of a sum.
                let last = min(start + KEYS, position[r] + 1u);
                var chain = acc[i] * shrinks[r];
                for (var key = max(start, seen[r]); key < last; key++) {
                    let weight = scores[r * KEYS + key - start];
                    let value = value_quad(cache + key, quad);
                    chain = fused4_sticky(vec4(weight), value, chain);
                }
                acc[i] = chain;
            }
        }
    }

    workgroupBarrier();
    totals[local] = 1.0 / total;
    workgroupBarrier();
    for (var i = 0u; i < ITEMS; i++) {
        let item = local + 64u * i;
        let r = item / QUADS;
        if (item < ROWS * QUADS && first_row + r < rows) {
            let at = ((p.row + row[r] / GROUP) * p.kv_heads + kv_head) * GROUP + row[r] % GROUP;
            write_quad(at * HEAD_DIM + 4u * (item % QUADS), acc[i] * totals[r * LANES]);
        }
    }
}
