// What ceiling_compute repeats: four products of codes and their sum, 8 operations a number.

alias Value = u32;

fn value(bits: u32) -> Value {
    return bits;
}

fn step(sum: vec4<Value>, factor: Value) -> vec4<Value> {
    return sum
        + vec4(
            dot4U8Packed(sum.x, factor),
            dot4U8Packed(sum.y, factor),
            dot4U8Packed(sum.z, factor),
            dot4U8Packed(sum.w, factor),
        );
}
