// Tokens -> (RMSNorm or SwiGLU), smoothing, rotations and permutations, in floating point; through the quantizer and back
// when DEQUANTIZE. `Out` comes from the prelude.

override DEQUANTIZE: bool = false;
@group(0) @binding(6) var<storage, read_write> out: array<Out>;

@compute @workgroup_size(WORKGROUP)
fn transform_float(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
) {
    own = workgroup.x * (CHANNELS / 4u) * (select(0u, 1u, FAR_0) + select(0u, 1u, FAR_1));
    for (var t = workgroup.x; t < p.tokens; t += grid.x) {
        let factor = transform(t, lid);
        let q = quantizer();
        for (var quad = lid; 4u * quad < CHANNELS; quad += WORKGROUP) {
            var x = output(t, quad, factor);
            if DEQUANTIZE {
                x = q.scale * (code(x, q) - q.zero_point);
                // NaN, made from a number that no compiler knows.
                if !q.finite { x = vec4(bitcast<f32>(max(bitcast<u32>(q.scale), 0x7fc00000u))); }
            }
            for (var i = 0u; i < 4u; i++) {
                if 4u * quad + i < CHANNELS { out[t * CHANNELS + 4u * quad + i] = Out(x[i]); }
            }
        }
        // The next token overwrites the areas.
        workgroupBarrier();
    }
}
