// Queries, keys and values of some tokens: RoPE, per-head Hadamard, quantization per token and head; keys and values go
// into the cache. The prelude gives HEAD_DIM; rope_fast.wgsl or rope_reproducible.wgsl how a pair turns.
//
// A workgroup takes ROWS heads of one token, LANES invocations each. A head lies in workgroup memory from its load to its
// codes, so that each barrier serves ROWS heads.

struct Immediates {
    position: u32,
    capacity: u32,
    heads: u32,
    kv_heads: u32,
    // Row of the first token in input and queries, which may hold other sequences' tokens too.
    row: u32,
}

var<immediate> p: Immediates;

// [T, (H + 2 Hkv) D], in f32 or, two to a word, in f16.
@group(0) @binding(0) var<storage, read> qkv: array<u32>;
// [positions, 2, D / 2]: cosines, then sines.
@group(0) @binding(1) var<storage, read> rope: array<f32>;
@group(0) @binding(2) var<storage, read_write> queries: array<u32>;
@group(0) @binding(3) var<storage, read_write> keys: array<u32>;
@group(0) @binding(4) var<storage, read_write> values: array<u32>;
// [Hkv, capacity, 4]: the key's scale and its zero point | sum << 16, then the value's.
@group(0) @binding(5) var<storage, read_write> params: array<u32>;

// Bits of an input number: 32 or 16.
override INPUT_BITS: u32;
// Bits that a number of a key or a value takes: 4 or 8 for codes, 16 or 32 for floating point.
override KEY_BITS: u32;
override VALUE_BITS: u32;
// Size of the Hadamard on queries and keys (1 for none), and one over its root.
override HADAMARD: u32;
override HADAMARD_SCALE: f32;
// Quantizers: L, 1 / L, the clip ratio, whether symmetric.
override KEY_LEVELS: f32;
override KEY_STEP: f32;
override KEY_CLIP: f32;
override KEY_SYMMETRIC: u32;
override VALUE_LEVELS: f32;
override VALUE_STEP: f32;
override VALUE_CLIP: f32;
override VALUE_SYMMETRIC: u32;

const ROWS: u32 = 8u;
const LANES: u32 = 8u;
const HALF: u32 = HEAD_DIM / 2u;

var<workgroup> x: array<f32, ROWS * HEAD_DIM>;
var<workgroup> low: array<f32, ROWS * LANES>;
var<workgroup> high: array<f32, ROWS * LANES>;
// Sums of codes; before them, whether a value is not finite.
var<workgroup> sums: array<u32, ROWS * LANES>;

struct Quantizer {
    levels: f32,
    zero: f32,
    inverse_scale: f32,
    finite: bool,
}

fn input(at: u32) -> f32 {
    if (INPUT_BITS == 16u) {
        let pair = unpack2x16float(qkv[at >> 1u]);
        return select(pair.x, pair.y, (at & 1u) == 1u);
    }
    return bitcast<f32>(qkv[at]);
}

// Two stages of butterflies on four values.
fn four(v: vec4<f32>) -> vec4<f32> {
    let pairs = vec4(v.x + v.y, v.x - v.y, v.z + v.w, v.z - v.w);
    return vec4(pairs.xy + pairs.zw, pairs.xy - pairs.zw);
}

// Codes of four channels from `at` on, one a byte.
fn codes(at: u32, factor: f32, quantizer: Quantizer) -> u32 {
    var word = 0u;
    for (var i = 0u; i < 4u; i++) {
        let scaled = round(x[at + i] * factor * quantizer.inverse_scale) + quantizer.zero;
        word |= u32(clamp(scaled, 0.0, quantizer.levels)) << (8u * i);
    }
    return select(0u, word, quantizer.finite);
}

fn byte_sum(word: u32) -> u32 {
    return dot4U8Packed(word, 0x01010101u);
}

fn write(is_query: bool, is_value: bool, at: u32, word: u32) {
    if (is_query) {
        queries[at] = word;
    } else if (is_value) {
        values[at] = word;
    } else {
        keys[at] = word;
    }
}

@compute @workgroup_size(64)
fn rope_hadamard_quantize(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let row = local / LANES;
    let lane = local % LANES;
    let all_heads = p.heads + 2u * p.kv_heads;
    let token = group.y;
    // Rows past the last head do the last one's work and write nothing.
    let wanted = group.x * ROWS + row;
    let head = min(wanted, all_heads - 1u);
    let writes = wanted < all_heads;
    let is_query = head < p.heads;
    let is_value = head >= p.heads + p.kv_heads;
    let position = p.position + token;
    let source = ((p.row + token) * all_heads + head) * HEAD_DIM;
    let base = row * HEAD_DIM;

    for (var i = lane; i < HALF; i += LANES) {
        let a = input(source + i);
        let b = input(source + HALF + i);
        if (is_value) {
            x[base + i] = a;
            x[base + HALF + i] = b;
        } else {
            let cosine = rope[position * HEAD_DIM + i];
            let sine = rope[position * HEAD_DIM + HALF + i];
            let pair = turned(a, b, cosine, sine);
            x[base + i] = pair.x;
            x[base + HALF + i] = pair.y;
        }
    }
    // Butterflies: three stages at a time as long as there are three, on eight values that meet no others in between.
    var h = 1u;
    for (; h * 8u <= HADAMARD; h = h << 3u) {
        workgroupBarrier();
        for (var i = lane; i < HEAD_DIM / 8u; i += LANES) {
            let at = base + ((i & ~(h - 1u)) << 3u) + (i & (h - 1u));
            if (!is_value) {
                let a = vec4(x[at], x[at + h], x[at + 2u * h], x[at + 3u * h]);
                let b = vec4(x[at + 4u * h], x[at + 5u * h], x[at + 6u * h], x[at + 7u * h]);
                let first = four(a);
                let second = four(b);
                let sum = first + second;
                let difference = first - second;
                x[at] = sum.x;
                x[at + h] = sum.y;
                x[at + 2u * h] = sum.z;
                x[at + 3u * h] = sum.w;
                x[at + 4u * h] = difference.x;
                x[at + 5u * h] = difference.y;
                x[at + 6u * h] = difference.z;
                x[at + 7u * h] = difference.w;
            }
        }
    }
    for (; h < HADAMARD; h = h << 1u) {
        workgroupBarrier();
        for (var i = lane; i < HALF; i += LANES) {
            let at = base + ((i & ~(h - 1u)) << 1u) + (i & (h - 1u));
            if (!is_value) {
                let a = x[at];
                let b = x[at + h];
                x[at] = a + b;
                x[at + h] = a - b;
            }
        }
    }
    workgroupBarrier();
    let factor = select(HADAMARD_SCALE, 1.0, is_value);

    var lo = 0.0;
    var hi = 0.0;
    var bad = 0u;
    for (var i = lane; i < HEAD_DIM; i += LANES) {
        let value = x[base + i] * factor;
        lo = min(lo, value);
        hi = max(hi, value);
        // By its bits: a compiler may take it that no number is NaN.
        bad |= select(0u, 1u, (bitcast<u32>(value) & 0x7f800000u) == 0x7f800000u);
    }
    low[local] = lo;
    high[local] = hi;
    sums[local] = bad;
    workgroupBarrier();
    for (var i = 0u; i < LANES; i++) {
        lo = min(lo, low[row * LANES + i]);
        hi = max(hi, high[row * LANES + i]);
        bad |= sums[row * LANES + i];
    }
    let clip = select(KEY_CLIP, VALUE_CLIP, is_value);
    lo = min(clip * lo, 0.0);
    hi = max(clip * hi, 0.0);
    if (select(KEY_SYMMETRIC, VALUE_SYMMETRIC, is_value) == 1u) {
        hi = max(-lo, hi);
        lo = -hi;
    }
    var quantizer: Quantizer;
    quantizer.levels = select(KEY_LEVELS, VALUE_LEVELS, is_value);
    let scale = max((hi - lo) * select(KEY_STEP, VALUE_STEP, is_value), 1e-8);
    quantizer.inverse_scale = 1.0 / scale;
    quantizer.zero = clamp(round(-lo * quantizer.inverse_scale), 0.0, quantizer.levels);
    quantizer.finite = bad == 0u && usable(scale);
    // The flags have been read before the sums take their place.
    workgroupBarrier();

    let slot = select(head - p.heads, head - p.heads - p.kv_heads, is_value) * p.capacity + position;
    // A query's codes are never packed: they meet every key.
    let query_bits = select(8u, 32u, KEY_BITS > 8u);
    let bits = select(select(KEY_BITS, VALUE_BITS, is_value), query_bits, is_query);
    let words = HEAD_DIM * bits / 32u;
    let query_row = ((p.row + token) * p.heads + head) * (words + select(0u, 4u, bits <= 8u));
    let place = select(slot * words, query_row, is_query);
    var sum = 0u;
    if (bits <= 8u) {
        for (var i = lane; i < HEAD_DIM / 8u; i += LANES) {
            let first = codes(base + 8u * i, factor, quantizer);
            let second = codes(base + 8u * i + 4u, factor, quantizer);
            sum += byte_sum(first) + byte_sum(second);
            if (bits == 4u) {
                if (writes) {
                    write(is_query, is_value, place + i, first | (second << 4u));
                }
            } else if (writes) {
                write(is_query, is_value, place + 2u * i, first);
                write(is_query, is_value, place + 2u * i + 1u, second);
            }
        }
    } else if (KEY_BITS > 8u || VALUE_BITS > 8u) {
        for (var i = lane; i < HALF; i += LANES) {
            let pair = vec2(x[base + 2u * i], x[base + 2u * i + 1u]) * factor;
            if (bits == 16u) {
                if (writes) {
                    write(is_query, is_value, place + i, pack2x16float(pair));
                }
            } else if (writes) {
                write(is_query, is_value, place + 2u * i, bitcast<u32>(pair.x));
                write(is_query, is_value, place + 2u * i + 1u, bitcast<u32>(pair.y));
            }
        }
    }
    sums[local] = sum;
    workgroupBarrier();
    if (lane != 0u || !writes || bits > 8u) {
        return;
    }
    var total = 0u;
    for (var i = 0u; i < LANES; i++) {
        total += sums[row * LANES + i];
    }
    let scale_bits = select(0x7fc00000u, bitcast<u32>(scale), quantizer.finite);
    let zero = select(0u, u32(quantizer.zero), quantizer.finite);
    if (is_query) {
        queries[place + words] = scale_bits;
        queries[place + words + 1u] = zero;
        queries[place + words + 2u] = total;
    } else {
        let at = slot * 4u + select(0u, 2u, is_value);
        params[at] = scale_bits;
        params[at + 1u] = zero | (total << 16u);
    }
}
