// gemm_w4a4: y[t, n] = (sx sw) f32(I) (+ bias) (+ y), I = acc - zw rs - zx c, exact in 32-bit integers.
//
// Operands, output, products and epilogue, which both ways of walking the work share. In front of it stand:
//   alias Value = f32 | f16 | i32;   type of y; i32 asks for the integers I alone
//   const PAIRS: bool;               products as pairs in one multiplication instead of dot4U8Packed
//   const FLUSH: u32;                blocks after which the pairs' sums leave their 16 bits
//   const SPLIT: bool;               the pairs' sums do not even last for one block
//   const INTEGER, BIAS, ACCUMULATE: bool;
//
// A block is 32 input channels. codes: [T, blocks] of 2 vectors, four codes a word. weights: [panels, blocks, 32] vectors
// of 32 nibbles: the low nibbles of word j are codes 8j..8j+3, the high ones 8j+4..8j+7; for pairs the halves of every word
// are swapped. tokens: scale, zero point, row sum. channels: scale, zero point, c, bias.

struct Params {
    tokens: u32,
    n: u32,
    blocks: u32,
    panels: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> codes: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> tokens: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> weights: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> channels: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read_write> y: array<Value>;

const PANEL: u32 = 32u;

// Nibbles of half a block, one a byte.
fn expand(w: vec2<u32>) -> vec4<u32> {
    return vec4(w.x, w.x >> 4u, w.y, w.y >> 4u) & vec4(0x0f0f0f0fu);
}

// Sum of 16 products. As pairs: (x0 + x2 2^16) (w2 + w0 2^16) holds x0 w0 + x2 w2 in its upper half, one multiplication for
// two products; what lies in the lower half never carries within FLUSH blocks.
fn products(x: vec4<u32>, w: vec4<u32>) -> u32 {
    if PAIRS {
        let mask = vec4(0x00ff00ffu);
        let sums = (x & mask) * (w & mask) + ((x >> vec4(8u)) & mask) * ((w >> vec4(8u)) & mask);
        return sums.x + sums.y + sums.z + sums.w;
    }
    return dot4U8Packed(x.x, w.x) + dot4U8Packed(x.y, w.y) + dot4U8Packed(x.z, w.z) + dot4U8Packed(x.w, w.w);
}

// Sum of the products of one block, for pairs still in the upper half unless SPLIT.
fn block_products(x0: vec4<u32>, x1: vec4<u32>, w0: vec4<u32>, w1: vec4<u32>) -> u32 {
    if PAIRS && SPLIT {
        return (products(x0, w0) >> 16u) + (products(x1, w1) >> 16u);
    }
    return products(x0, w0) + products(x1, w1);
}

fn settle(part: u32) -> u32 {
    if PAIRS && !SPLIT {
        return part >> 16u;
    }
    return part;
}

fn write(t: u32, n: u32, sum: u32) {
    if t >= p.tokens || n >= p.n {
        return;
    }
    let token = tokens[t];
    let channel = channels[n];
    let integer = bitcast<i32>(sum - channel.y * token.z - token.y * channel.z);
    let at = t * p.n + n;
    if INTEGER {
        y[at] = Value(integer);
        return;
    }
    var out = (bitcast<f32>(token.x) * bitcast<f32>(channel.x)) * f32(integer);
    if BIAS {
        out += bitcast<f32>(channel.w);
    }
    if ACCUMULATE {
        out += f32(y[at]);
    }
    y[at] = Value(out);
}
