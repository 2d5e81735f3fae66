// gemm_f32, gemm_f16: y[t, n] = sum_k x[t, k] w[n, k] (+ y) (+ bias), summed in f32.
//
// Operands, output and epilogue, which both ways of walking the work share. In front of it stand:
//   alias Input = vec4<f32> | vec2<u32> | f32 | f16;   scalars where K is no multiple of 4
//   alias Weight = vec4<f32> | vec2<u32>;              halves go two to a word: fewer loads, and no feature needed
//   alias Value = f32 | f16;                           type of y
//   fn widen_weight(quad: Weight) -> vec4<f32>; and widen_input where K is a multiple of 4
//   const BIAS, ACCUMULATE: bool;
// and `fn input(row: u32, quad: u32) -> vec4<f32>` from gemm_float_quads.wgsl or gemm_float_scalars.wgsl.
//
// A quad is 4 input channels. weights: [panels, quads, 32] of the channels `first..first + rows` of `n`, padded with zeros.

struct Params {
    tokens: u32,
    n: u32,
    k: u32,
    quads: u32,
    first: u32,
    rows: u32,
    panels: u32,
    unused: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<Input>;
@group(0) @binding(1) var<storage, read> weights: array<Weight>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<Value>;

const PANEL: u32 = 32u;

fn add_products(x: vec4<f32>, w: vec4<f32>, sum: f32) -> f32 {
    return fma(x.w, w.w, fma(x.z, w.z, fma(x.y, w.y, fma(x.x, w.x, sum))));
}

// `row` counts from the part's first channel.
fn write(t: u32, row: u32, sum: f32) {
    if t >= p.tokens || row >= p.rows {
        return;
    }
    let at = t * p.n + p.first + row;
    var out = sum;
    if ACCUMULATE {
        out += f32(y[at]);
    }
    if BIAS {
        out += bias[row];
    }
    y[at] = Value(out);
}
