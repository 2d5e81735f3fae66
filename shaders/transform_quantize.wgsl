// Tokens -> (RMSNorm or SwiGLU), smoothing, rotations and permutations -> per-token codes, scale, zero point and row sum.

// [T, STRIDE] codes of K channels and code 0 behind them, four to a word, and per token scale, zero point, row sum and 0.
override STRIDE: u32 = 64u;
@group(0) @binding(6) var<storage, read_write> codes: array<u32>;
@group(0) @binding(7) var<storage, read_write> params: array<vec4<u32>>;

var<workgroup> row_sum: atomic<u32>;

@compute @workgroup_size(WORKGROUP)
fn transform_quantize(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
) {
    own = workgroup.x * (CHANNELS / 4u) * (select(0u, 1u, FAR_0) + select(0u, 1u, FAR_1));
    for (var t = workgroup.x; t < p.tokens; t += grid.x) {
        if lid == 0u { atomicStore(&row_sum, 0u); }
        let factor = transform(t, lid);
        let q = quantizer();
        var sum = 0u;
        for (var word = lid; word < STRIDE / 4u; word += WORKGROUP) {
            var packed = 0u;
            if q.finite && 4u * word < CHANNELS {
                var four = vec4<u32>(code(output(t, word, factor), q));
                // Behind the last channel 0 stands for nothing, not for the number 0.
                four = select(vec4(0u), four, 4u * word + vec4(0u, 1u, 2u, 3u) < vec4(CHANNELS));
                sum += four.x + four.y + four.z + four.w;
                packed = four.x | (four.y << 8u) | (four.z << 16u) | (four.w << 24u);
            }
            codes[t * (STRIDE / 4u) + word] = packed;
        }
        atomicAdd(&row_sum, sum);
        workgroupBarrier();
        if lid == 0u {
            let row = vec4(bitcast<u32>(q.scale), u32(q.zero_point), atomicLoad(&row_sum), 0u);
            // NaN and nothing else: whatever is computed from the token is NaN.
            params[t] = select(vec4(0x7fc00000u, 0u, 0u, 0u), row, q.finite);
        }
        // The next token overwrites the areas and the sum.
        workgroupBarrier();
    }
}
