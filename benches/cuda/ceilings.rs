//! What this device can do at most: bytes a second, half-precision and 8-bit operations a second of cuBLASLt, and integer
//! operations of the instruction that `gemm_w4a4` is made of.

use super::Fault;
use super::machine::Machine;
use duquant::kernels::cuda::{Dtype, IntegerProduct, MatrixProduct, ceilings};
use serde_json::{Value, json};

pub(crate) fn measure(machine: &Machine) -> Result<Value, Fault> {
    let (bytes, side) = if machine.is_gpu() { (2_u64 << 30, 8192) } else { (1 << 16, 16) };
    let (from, to) = (machine.random("from", bytes, u64::MAX)?, machine.random("to", bytes, u64::MAX)?);
    let copy = machine.time(1, |_| machine.device.copy(machine.stream(), from.address(), to.address(), bytes))?;
    let count = (side * side) as u64;
    let (x, weight) = (machine.halves("x", count)?, machine.halves("weight", count)?);
    let y = machine.random("y", 4 * count, 0)?;
    let product = MatrixProduct {
        tokens: side,
        n: side,
        k: side,
        input: Dtype::F16,
        output: Dtype::F16,
        x: x.address(),
        weight: weight.address(),
        bias: None,
        y: y.address(),
        accumulate: false,
    };
    let operations = 2.0 * (side as f64).powi(3);
    let half = machine.time(1, |_| machine.half_product(&product))?;
    let product =
        IntegerProduct { tokens: side, n: side, k: side, x: x.address(), weight: weight.address(), y: y.address() };
    let integer = machine.time(1, |_| machine.integer_product(&product))?;
    let instruction = ceilings::integer_per_second(&machine.device)?;
    Ok(json!({
        "copy": copy.report(2.0 * bytes as f64, 0.0),
        "fp16_8192": half.report(0.0, operations),
        "int8_8192": integer.report(0.0, operations),
        "integer_instruction": { "tera_operations_per_second": (instruction / 1e10).round() / 1e2 },
    }))
}
