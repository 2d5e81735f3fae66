// Causal attention of many queries: tiles of ROWS rows by KEYS keys with an online softmax.
//
// A row is a query of one head; the heads that share a key head are rows of the same tile, so that each key is read once
// for all. Invocation (tx, ty) holds the scores of rows 4 ty .. 4 ty + 4 with keys 4 tx .. 4 tx + 4 and the outputs of the
// same rows at channels 32 c + 4 tx .. 32 c + 4 tx + 4. Vectors run over the four rows unless said otherwise.

@group(0) @binding(4) var<storage, read_write> out: array<u32>;

// Bits of an output number: 32 or 16.
override OUT_BITS: u32;

const ROWS: u32 = 32u;
const KEYS: u32 = 32u;
// Words of a query and a key in workgroup memory at once.
const CHUNK: u32 = 32u;
// Parts of 32 channels.
const PARTS: u32 = (HEAD_DIM + 31u) / 32u;
// Parts of quantized values in workgroup memory at once, and all of them in whole rounds.
const ROUND: u32 = min(PARTS, 4u);
const PADDED_PARTS: u32 = (PARTS + ROUND - 1u) / ROUND * ROUND;

// [word][row / 4]
var<workgroup> query_tile: array<vec4<u32>, 256>;
// [word][key / 4] over keys; then values: of codes [key][tx] over four parts, a quad of codes each; of floating point
// [key][tx] over the channels of one part.
var<workgroup> key_tile: array<vec4<u32>, 256>;
// [key][row / 4]
var<workgroup> weight_tile: array<vec4<f32>, 256>;
// [tx][ty]
var<workgroup> partial: array<vec4<f32>, 64>;

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

// Four codes of a key with those of four rows.
fn dot_rows(q: vec4<u32>, k: u32) -> vec4<u32> {
    return vec4(dot4U8Packed(q.x, k), dot4U8Packed(q.y, k), dot4U8Packed(q.z, k), dot4U8Packed(q.w, k));
}

// The sum over the invocations of the same rows.
fn row_sum(mine: vec4<f32>, tx: u32, ty: u32) -> vec4<f32> {
    workgroupBarrier();
    partial[tx * 8u + ty] = mine;
    workgroupBarrier();
    var sum = vec4(0.0);
    for (var i = 0u; i < 8u; i++) {
        sum += partial[i * 8u + ty];
    }
    return sum;
}

@compute @workgroup_size(64)
fn attention_prefill(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let tx = local & 7u;
    let ty = local >> 3u;
    let rows = p.tokens * GROUP;
    let first_row = group.x * ROWS;
    let kv_head = group.y;
    let cache = kv_head * p.capacity;

    // Rows past the last do the last one's work and write nothing.
    let row = min(vec4(first_row + 4u * ty) + vec4(0u, 1u, 2u, 3u), vec4(rows - 1u));
    let token = row / GROUP;
    let head = row % GROUP + kv_head * GROUP;
    let position = token + p.position;
    var query_scale = vec4(SCALE);
    var query_zero = vec4(0i);
    var query_sum = vec4(0i);
    if (!key_is_float()) {
        for (var i = 0u; i < 4u; i++) {
            let at = query_row(token[i], head[i]) + QUADS;
            query_scale[i] *= bitcast<f32>(queries[at]);
            query_zero[i] = i32(queries[at + 1u]);
            query_sum[i] = i32(queries[at + 2u]);
        }
    }

    // Tiles stand at multiples of KEYS, whatever the call's position, so that their sums are the same.
    let begin = first_seen(p.position + first_row / GROUP) / KEYS * KEYS;
    let end = p.position + min(first_row + ROWS - 1u, rows - 1u) / GROUP + 1u;
    let chunks = (words() + CHUNK - 1u) / CHUNK;
    var highest = vec4(LOWEST);
    var total = vec4(0.0);
    // What the zero points of values add to the sums.
    var offset = vec4(0.0);
    // [part][row] over channels.
    var sums: array<vec4<f32>, 4u * PADDED_PARTS>;
    for (var i = 0u; i < 4u * PADDED_PARTS; i++) {
        sums[i] = vec4(0.0);
    }

    for (var start = begin; start < end; start += KEYS) {
        var dots: array<vec4<u32>, 4>;
        var scores: array<vec4<f32>, 4>;
        for (var j = 0u; j < 4u; j++) {
            dots[j] = vec4(0u);
            scores[j] = vec4(0.0);
        }
        for (var chunk = 0u; chunk < chunks; chunk++) {
            let first_word = chunk * CHUNK;
            let count = min(CHUNK, words() - first_word);
            // Everyone has read what was there.
            workgroupBarrier();
            for (var i = local; i < 8u * count; i += 64u) {
                let w = i % count;
                let quad = i / count;
                let key = min(vec4(start + 4u * quad) + vec4(0u, 1u, 2u, 3u), vec4(end - 1u)) + cache;
                let word = first_word + w;
                key_tile[w * 8u + quad] =
                    vec4(key_word(key.x, word), key_word(key.y, word), key_word(key.z, word), key_word(key.w, word));
                // Queries of one chunk stay.
                if (chunks > 1u || start == begin) {
                    let r = min(vec4(first_row + 4u * quad) + vec4(0u, 1u, 2u, 3u), vec4(rows - 1u));
                    let t = r / GROUP;
                    let h = r % GROUP + kv_head * GROUP;
                    query_tile[w * 8u + quad] = vec4(
                        queries[query_row(t.x, h.x) + word],
                        queries[query_row(t.y, h.y) + word],
                        queries[query_row(t.z, h.z) + word],
                        queries[query_row(t.w, h.w) + word],
                    );
                }
            }
            workgroupBarrier();
            if (key_is_float()) {
                for (var w = 0u; w < count; w++) {
                    let q = bitcast<vec4<f32>>(query_tile[w * 8u + ty]);
                    let k = bitcast<vec4<f32>>(key_tile[w * 8u + tx]);
                    scores[0] += q * k.x;
                    scores[1] += q * k.y;
                    scores[2] += q * k.z;
                    scores[3] += q * k.w;
                }
            } else {
                for (var w = 0u; w < count; w++) {
                    let q = query_tile[w * 8u + ty];
                    let k = key_tile[w * 8u + tx];
                    dots[0] += dot_rows(q, k.x);
                    dots[1] += dot_rows(q, k.y);
                    dots[2] += dot_rows(q, k.z);
                    dots[3] += dot_rows(q, k.w);
                }
            }
        }

        var tile_highest = vec4(LOWEST);
        for (var j = 0u; j < 4u; j++) {
            let key = start + 4u * tx + j;
            if (key_is_float()) {
                scores[j] *= SCALE;
            } else {
                let param = params[cache + min(key, end - 1u)];
                let zero = i32(param.y & 0xffffu);
                let sum = i32(param.y >> 16u);
                let integer = vec4<i32>(dots[j]) - zero * query_sum - (sum - i32(HEAD_DIM) * zero) * query_zero;
                scores[j] = query_scale * bitcast<f32>(param.x) * vec4<f32>(integer);
            }
            let seen = (vec4(key) <= position) & (position - min(vec4(key), position) < vec4(p.window));
            tile_highest = max(tile_highest, select(vec4(LOWEST), scores[j], seen));
        }
        partial[tx * 8u + ty] = tile_highest;
        workgroupBarrier();
        var next = highest;
        for (var i = 0u; i < 8u; i++) {
            next = max(next, partial[i * 8u + ty]);
        }
        let shrink = exp(highest - next);
        highest = next;
        total *= shrink;
        offset *= shrink;
        for (var j = 0u; j < 4u; j++) {
            let key = start + 4u * tx + j;
            let seen = (vec4(key) <= position) & (position - min(vec4(key), position) < vec4(p.window));
            let weight = exp(scores[j] - next);
            total += select(vec4(0.0), weight, seen);
            // The value's scale goes into the weight, and only where it is seen: one that is NaN stays away from the
            // other queries.
            let at = cache + min(key, end - 1u);
            let scaled = select(vec4(0.0), weight * value_scale(at), seen);
            if (VALUE_BITS <= 8u) {
                offset += scaled * value_zero(at);
            }
            weight_tile[(4u * tx + j) * 8u + ty] = scaled;
        }
        if (any(shrink != vec4(1.0))) {
            for (var part = 0u; part < PARTS; part++) {
                for (var i = 0u; i < 4u; i++) {
                    sums[part * 4u + i] *= shrink[i];
                }
            }
        }

        let count = min(KEYS, end - start);
        if (VALUE_BITS <= 8u) {
            for (var first = 0u; first < PARTS; first += ROUND) {
                // Keys, or the last round's values, have been read; the first time, weights are written.
                workgroupBarrier();
                for (var i = local; i < 8u * count; i += 64u) {
                    let at = cache + start + (i >> 3u);
                    var quads = vec4(0u);
                    for (var c = 0u; c < ROUND; c++) {
                        // Quads past the head's belong to no output.
                        quads[c] = value_codes(at, min((first + c) * 8u + (i & 7u), QUADS - 1u));
                    }
                    key_tile[i] = quads;
                }
                workgroupBarrier();
                for (var key = 0u; key < count; key++) {
                    let weight = weight_tile[key * 8u + ty];
                    let quads = key_tile[key * 8u + tx];
                    for (var c = 0u; c < ROUND; c++) {
                        let value = vec4<f32>(unpack4xU8(quads[c]));
                        let part = 4u * (first + c);
                        sums[part] += weight.x * value;
                        sums[part + 1u] += weight.y * value;
                        sums[part + 2u] += weight.z * value;
                        sums[part + 3u] += weight.w * value;
                    }
                }
            }
        } else {
            for (var part = 0u; part < PARTS; part++) {
                workgroupBarrier();
                for (var i = local; i < 8u * count; i += 64u) {
                    let quad = min(part * 8u + (i & 7u), QUADS - 1u);
                    key_tile[i] = bitcast<vec4<u32>>(value_quad(cache + start + (i >> 3u), quad));
                }
                workgroupBarrier();
                var s0 = sums[part * 4u];
                var s1 = sums[part * 4u + 1u];
                var s2 = sums[part * 4u + 2u];
                var s3 = sums[part * 4u + 3u];
                for (var key = 0u; key < count; key++) {
                    let weight = weight_tile[key * 8u + ty];
                    let value = bitcast<vec4<f32>>(key_tile[key * 8u + tx]);
                    s0 += weight.x * value;
                    s1 += weight.y * value;
                    s2 += weight.z * value;
                    s3 += weight.w * value;
                }
                sums[part * 4u] = s0;
                sums[part * 4u + 1u] = s1;
                sums[part * 4u + 2u] = s2;
                sums[part * 4u + 3u] = s3;
            }
        }
    }

    total = row_sum(total, tx, ty);
    offset = row_sum(offset, tx, ty);
    for (var i = 0u; i < 4u; i++) {
        if (first_row + 4u * ty + i < rows) {
            let at = ((p.row + token[i]) * p.kv_heads * GROUP + head[i]) * HEAD_DIM;
            for (var part = 0u; part < PARTS; part++) {
                let quad = part * 8u + tx;
                if (quad < QUADS) {
                    write_quad(at + 4u * quad, (sums[part * 4u + i] - offset[i]) / total[i]);
                }
            }
        }
    }
}
