// What ceiling_compute repeats: two products of codes and their sum in one multiplication, 4 operations a number.

alias Value = u32;

fn value(bits: u32) -> Value {
    return bits;
}

fn step(sum: vec4<Value>, factor: Value) -> vec4<Value> {
    return sum * factor + vec4(factor);
}
