// Rows of a table [V, K] by token id, for the rows `first .. first + rows` that this binding holds. `Out` comes from the
// prelude.

override WORKGROUP: u32 = 64u;
// Table entries: 0 f32, 1 f16, 2 bf16; two of the latter share a word, the even column in the low half.
override TABLE: u32 = 0u;

struct Params {
    tokens: u32,
    channels: u32,
    first: u32,
    rows: u32,
    vocabulary: u32,
}

var<immediate> p: Params;
// Ids [T], the part of the table, out [T, K].
@group(0) @binding(0) var<storage, read> ids: array<u32>;
@group(0) @binding(1) var<storage, read> table: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<Out>;

// Half to single precision with integers alone, so that the device needs no half precision: exact, subnormals and NaN too.
fn widen(half: u32) -> f32 {
    let sign = (half & 0x8000u) << 16u;
    let exponent = (half >> 10u) & 31u;
    let fraction = half & 0x3ffu;
    if exponent == 0u { return select(1.0, -1.0, sign != 0u) * f32(fraction) * 0x1p-24; }
    return bitcast<f32>(sign | select((exponent + 112u) << 23u, 0x7f800000u, exponent == 31u) | (fraction << 13u));
}

fn entry(at: u32) -> f32 {
    if TABLE == 0u { return bitcast<f32>(table[at]); }
    let word = table[at / 2u];
    if TABLE == 1u { return widen(select(word & 0xffffu, word >> 16u, at % 2u == 1u)); }
    return bitcast<f32>(select(word << 16u, word & 0xffff0000u, at % 2u == 1u));
}

@compute @workgroup_size(WORKGROUP)
fn embedding(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
) {
    for (var t = workgroup.x; t < p.tokens; t += grid.x) {
        let id = ids[t];
        // An id outside the table belongs to the first part, which writes zeros.
        let inside = id >= p.first && id - p.first < p.rows;
        if inside || (p.first == 0u && id >= p.vocabulary) {
            for (var i = lid; i < p.channels; i += WORKGROUP) {
                var value = 0.0;
                if inside { value = entry((id - p.first) * p.channels + i); }
                out[t * p.channels + i] = Out(value);
            }
        }
    }
}
