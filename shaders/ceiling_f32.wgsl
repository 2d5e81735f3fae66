// What ceiling_compute repeats: a single-precision multiply-add, 2 operations a number.

alias Value = f32;

fn value(bits: u32) -> Value {
    return bitcast<f32>(bits);
}

fn step(sum: vec4<Value>, factor: Value) -> vec4<Value> {
    return sum * factor + vec4(factor);
}
