// What the attention kernels read: queries and the cache, as rope_hadamard_quantize writes them. The prelude gives
// HEAD_DIM.

struct Immediates {
    tokens: u32,
    // Of the first token.
    position: u32,
    capacity: u32,
    kv_heads: u32,
    // Tokens that a query sees at most, itself included.
    window: u32,
    // Of attention_decode: spans of keys, and which span is the first.
    splits: u32,
    first_span: u32,
    // Row of the first token in queries and output, which may hold other sequences' tokens too.
    row: u32,
}

var<immediate> p: Immediates;

// [T, H] rows of codes, one a byte, and then scale, zero point, sum and an unused word; or of f32.
@group(0) @binding(0) var<storage, read> queries: array<u32>;
// [Hkv, capacity] rows.
@group(0) @binding(1) var<storage, read> keys: array<u32>;
@group(0) @binding(2) var<storage, read> values: array<u32>;
// [Hkv, capacity]: the key's scale and its zero point | sum << 16, then the value's.
@group(0) @binding(3) var<storage, read> params: array<vec4<u32>>;

// Bits that a number of a key or a value takes: 4 or 8 for codes, 16 or 32 for floating point.
override KEY_BITS: u32;
override VALUE_BITS: u32;
// Query heads to a key head.
override GROUP: u32;
// One over the root of the head dimension.
override SCALE: f32;

const QUADS: u32 = HEAD_DIM / 4u;
// Below every score: exp of its distance to one is 0.
const LOWEST: f32 = -1e38;

fn key_is_float() -> bool {
    return KEY_BITS > 8u;
}

// Words of a query: one of four codes, or one of an f32.
fn words() -> u32 {
    return select(QUADS, HEAD_DIM, key_is_float());
}

fn query_row(token: u32, head: u32) -> u32 {
    return ((p.row + token) * p.kv_heads * GROUP + head) * select(QUADS + 4u, HEAD_DIM, key_is_float());
}

// Word `w` of a key: four codes, one a byte, or the bits of an f32.
fn key_word(row: u32, w: u32) -> u32 {
    if (KEY_BITS == 4u) {
        return (keys[row * (HEAD_DIM / 8u) + (w >> 1u)] >> ((w & 1u) * 4u)) & 0x0f0f0f0fu;
    }
    if (KEY_BITS == 8u) {
        return keys[row * QUADS + w];
    }
    if (KEY_BITS == 16u) {
        let pair = unpack2x16float(keys[row * (HEAD_DIM / 2u) + (w >> 1u)]);
        return bitcast<u32>(select(pair.x, pair.y, (w & 1u) == 1u));
    }
    return keys[row * HEAD_DIM + w];
}

// Codes of channels 4 quad .. 4 quad + 4 of a value, one a byte.
fn value_codes(row: u32, quad: u32) -> u32 {
    if (VALUE_BITS == 4u) {
        return (values[row * (HEAD_DIM / 8u) + (quad >> 1u)] >> ((quad & 1u) * 4u)) & 0x0f0f0f0fu;
    }
    return values[row * QUADS + quad];
}

fn value_zero(row: u32) -> f32 {
    return f32(params[row].w & 0xffffu);
}

// Channels 4 quad .. 4 quad + 4 of a value: its codes less their zero point, or its numbers. The scale is not in them.
fn value_quad(row: u32, quad: u32) -> vec4<f32> {
    if (VALUE_BITS <= 8u) {
        return vec4<f32>(unpack4xU8(value_codes(row, quad))) - value_zero(row);
    }
    if (VALUE_BITS == 16u) {
        let at = row * (HEAD_DIM / 2u) + 2u * quad;
        return vec4(unpack2x16float(values[at]), unpack2x16float(values[at + 1u]));
    }
    let at = row * HEAD_DIM + 4u * quad;
    return bitcast<vec4<f32>>(vec4(values[at], values[at + 1u], values[at + 2u], values[at + 3u]));
}

fn value_scale(row: u32) -> f32 {
    if (VALUE_BITS <= 8u) {
        return bitcast<f32>(params[row].z);
    }
    return 1.0;
}

// The first key that a query at `position` sees.
fn first_seen(position: u32) -> u32 {
    return select(0u, position + 1u - p.window, position + 1u > p.window);
}
