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
    own = workgroup.x * (select(CHANNELS, 0u, AREA_0 > 1u) + select(CHANNELS, 0u, AREA_1 > 1u));
    for (var t = workgroup.x; t < p.tokens; t += grid.x) {
        let factor = transform(t, lid);
        let q = quantizer();
        for (var i = lid; i < CHANNELS; i += WORKGROUP) {
            var x = output(t, i, factor);
            if DEQUANTIZE {
                x = q.scale * (code(x, q) - q.zero_point);
                if !q.finite { x = bitcast<f32>(max(bitcast<u32>(q.scale), 0x7fc00000u)); }
            }
            out[t * CHANNELS + i] = Out(x);
        }
        // The next token overwrites the areas.
        workgroupBarrier();
    }
}
