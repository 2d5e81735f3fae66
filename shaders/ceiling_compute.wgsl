// Chains of what a GEMM is made of, and nothing else: how much the device can compute at most. In front of it stand Value,
// value and step. Each link needs the one before it, so that none can be left out.

struct Params {
    rounds: u32,
    // Bits of the factor, which a compiler must not know.
    factor: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> out: array<Value>;

@compute @workgroup_size(64)
fn ceiling_compute(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let factor = value(p.factor);
    // Twelve chains an invocation: more than latency times throughput, and few enough for 16 registers.
    var a = vec4(Value(lid));
    var b = a + vec4(Value(1));
    var c = a + vec4(Value(2));
    for (var round = 0u; round < p.rounds; round++) {
        a = step(a, factor);
        b = step(b, factor);
        c = step(c, factor);
        a = step(a, factor);
        b = step(b, factor);
        c = step(c, factor);
        a = step(a, factor);
        b = step(b, factor);
        c = step(c, factor);
        a = step(a, factor);
        b = step(b, factor);
        c = step(c, factor);
    }
    let sum = a + b + c;
    // All workgroups write the same place: what they find is of no interest.
    out[lid] = sum.x + sum.y + sum.z + sum.w;
}
