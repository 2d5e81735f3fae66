// The transform of tokens, x -> x S^-1 R_0 P_0 R_1 .. R_P (eq. 5), one token a workgroup: what transform_quantize and
// transform_float share. `rotate` comes from rotate_dense.wgsl or rotate_hadamard.wgsl, the operands that it reads from
// transform_quads.wgsl or transform_scalars.wgsl, the arithmetic from transform_fast.wgsl or transform_reproducible.wgsl,
// `Value` from the prelude. All go by quads, four channels at a time.
//
// The token lies in an area: phase i reads area (i - 1) % 2 through permutation i - 1 and fills area i % 2, a chunk of whole
// blocks at a time. Each of the two areas is in workgroup memory where it fits and otherwise in the caller's workspace.

// Shape: K, B and the number of rotations.
override CHANNELS: u32 = 64u;
override BLOCK: u32 = 4u;
override ROTATIONS: u32 = 0u;
// 0: tokens [T, K]. 1: RMSNorm of tokens [T, K]. 2: silu(gate) * up of [T, 2K].
override SOURCE: u32 = 0u;
override SMOOTH: bool = false;
// Invocations of a workgroup, and quads that a chunk holds: whole blocks.
override WORKGROUP: u32 = 64u;
override CHUNK: u32 = 1u;
// Quads of each area that lie in workgroup memory: K / 4 or, when the area is in the workspace, 1.
override AREA_0: u32 = 1u;
override AREA_1: u32 = 1u;
// Whether an area is in the workspace.
override FAR_0: bool = false;
override FAR_1: bool = false;
const RMS_NORM = 1u;
const SILU_MUL = 2u;

struct Params {
    tokens: u32,
    symmetric: u32,
    clip: f32,
    // L and 1/L.
    levels: f32,
    inverse_levels: f32,
    epsilon: f32,
}

var<immediate> p: Params;
@group(0) @binding(2) var<storage, read> rotations: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> permutations: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read_write> workspace: array<vec4<f32>>;

var<workgroup> area_0: array<vec4<f32>, AREA_0>;
var<workgroup> area_1: array<vec4<f32>, AREA_1>;
// Bit patterns of max(-x) and max(x) over the token, as far as they are positive. Non-negative floats order as their bits
// do, NaN above infinity, so that these two also tell whether every value is finite.
var<workgroup> range_low: atomic<u32>;
var<workgroup> range_high: atomic<u32>;
var<private> low: u32;
var<private> high: u32;

// Where the workspace of this workgroup begins.
var<private> own: u32;

fn read_area(area: u32, quad: u32) -> vec4<f32> {
    if area == 0u {
        if FAR_0 { return workspace[own + quad]; }
        return area_0[quad];
    }
    if FAR_1 { return workspace[own + select(0u, CHANNELS / 4u, FAR_0) + quad]; }
    return area_1[quad];
}

fn read_channel(area: u32, channel: u32) -> f32 {
    let quad = channel / 4u;
    let lane = channel % 4u;
    if area == 0u {
        if FAR_0 { return workspace[own + quad][lane]; }
        return area_0[quad][lane];
    }
    if FAR_1 { return workspace[own + select(0u, CHANNELS / 4u, FAR_0) + quad][lane]; }
    return area_1[quad][lane];
}

// Stores four outputs of a phase; those of the last phase widen the range.
fn write_area(phase: u32, quad: u32, value: vec4<f32>) {
    if phase % 2u == 0u {
        if FAR_0 { workspace[own + quad] = value; } else { area_0[quad] = value; }
    } else {
        if FAR_1 { workspace[own + select(0u, CHANNELS / 4u, FAR_0) + quad] = value; } else { area_1[quad] = value; }
    }
    if phase + 1u == ROTATIONS { widen_range(value); }
}

fn widen_range(value: vec4<f32>) {
    let bits = bitcast<vec4<u32>>(value);
    let magnitude = bits & vec4(0x7fffffffu);
    let positive = select(vec4(0u), magnitude, bits == magnitude);
    let negative = select(magnitude, vec4(0u), bits == magnitude);
    high = max(high, max(max(positive.x, positive.y), max(positive.z, positive.w)));
    low = max(low, max(max(negative.x, negative.y), max(negative.z, negative.w)));
}

// Four smoothed values before any rotation; 0 behind the last channel.
fn load(t: u32, quad: u32, factor: f32) -> vec4<f32> {
    var x: vec4<f32>;
    if SOURCE == SILU_MUL {
        let row = 2u * t * CHANNELS;
        x = silu(source_quad(row, quad)) * source_quad(row + CHANNELS, quad);
    } else {
        x = source_quad(t * CHANNELS, quad);
    }
    if SOURCE == RMS_NORM { x = x * factor * weight_quad(quad); }
    if SMOOTH { x *= smooth_quad(quad); }
    return settled(x);
}

// Four values that rotation `phase` reads; 0 behind the last channel.
fn input(t: u32, phase: u32, quad: u32, factor: f32) -> vec4<f32> {
    if 4u * quad >= CHANNELS { return vec4(0.0); }
    if phase == 0u { return load(t, quad, factor); }
    let area = (phase - 1u) % 2u;
    let channels = permutations[(phase - 1u) * (CHANNELS / 4u) + quad];
    return vec4(
        read_channel(area, channels.x),
        read_channel(area, channels.y),
        read_channel(area, channels.z),
        read_channel(area, channels.w),
    );
}

// Four transformed values, after `transform`.
fn output(t: u32, quad: u32, factor: f32) -> vec4<f32> {
    if ROTATIONS == 0u { return load(t, quad, factor); }
    return read_area((ROTATIONS - 1u) % 2u, quad);
}

// Transforms token t and leaves its range in range_low and range_high. Returns what `output` wants. Uniform.
fn transform(t: u32, lid: u32) -> f32 {
    low = 0u;
    high = 0u;
    if lid == 0u {
        atomicStore(&range_low, 0u);
        atomicStore(&range_high, 0u);
    }
    workgroupBarrier();
    var factor = 1.0;
    if SOURCE == RMS_NORM { factor = norm_factor(t, lid); }
    for (var phase = 0u; phase < ROTATIONS; phase++) {
        for (var first = 0u; 4u * first < CHANNELS; first += CHUNK) {
            rotate(t, phase, first, factor, lid);
        }
        storageBarrier();
        workgroupBarrier();
    }
    if ROTATIONS == 0u {
        for (var quad = lid; 4u * quad < CHANNELS; quad += WORKGROUP) { widen_range(load(t, quad, factor)); }
    }
    atomicMax(&range_low, low);
    atomicMax(&range_high, high);
    workgroupBarrier();
    return factor;
}

// Scale, its inverse and the zero point of the token (eq. 1), and whether it has any: not when a value is not finite.
struct Quantizer {
    scale: f32,
    inverse: f32,
    zero_point: f32,
    finite: bool,
}

fn quantizer() -> Quantizer {
    let low_bits = atomicLoad(&range_low);
    let high_bits = atomicLoad(&range_high);
    // -lo, so that no number changes its sign twice. The maxima with 0 keep compilers from joining the products into the sum
    // as fused multiply-adds, which would round the scale differently.
    var minus_lo = max(p.clip * bitcast<f32>(low_bits), 0.0);
    var hi = max(p.clip * bitcast<f32>(high_bits), 0.0);
    if p.symmetric != 0u {
        hi = max(hi, minus_lo);
        minus_lo = hi;
    }
    let scale = max((hi + minus_lo) * p.inverse_levels, 1e-8);
    let inverse = 1.0 / scale;
    let zero_point = clamp(round(minus_lo * inverse), 0.0, p.levels);
    let largest = max(max(low_bits, high_bits), bitcast<u32>(scale));
    return Quantizer(scale, inverse, zero_point, largest < 0x7f800000u);
}

fn code(x: vec4<f32>, q: Quantizer) -> vec4<f32> {
    return clamp(round(x * q.inverse) + q.zero_point, vec4(0.0), vec4(p.levels));
}
