//! What this device can do at most: the library's ceilings, and 8-bit operations a second of cuBLASLt.

use super::Fault;
use super::machine::Machine;
use duquant::kernels::cuda::{IntegerProduct, ceilings};
use serde_json::{Value, json};

pub(crate) fn measure(machine: &Machine) -> Result<Value, Fault> {
    let (bytes, side) = if machine.is_gpu() { (2_u64 << 30, 8192) } else { (1 << 16, 16) };
    let rounded = |rate: f64, unit: f64| (rate / unit * 1e2).round() / 1e2;
    let copy = ceilings::bytes_per_second(&machine.device, bytes)?;
    let half = ceilings::half_per_second(&machine.device, side)?;
    let instruction = ceilings::integer_per_second(&machine.device)?;
    let count = (side * side) as u64;
    let (x, weight) = (machine.halves("x", count)?, machine.halves("weight", count)?);
    let y = machine.random("y", 4 * count, 0)?;
    let product =
        IntegerProduct { tokens: side, n: side, k: side, x: x.address(), weight: weight.address(), y: y.address() };
    let integer = machine.time(1, |_| machine.integer_product(&product))?;
    Ok(json!({
        "copy": { "gigabytes_per_second": rounded(copy, 1e9) },
        "fp16_8192": { "tera_operations_per_second": rounded(half, 1e12) },
        "integer_instruction": { "tera_operations_per_second": rounded(instruction, 1e12) },
        "int8_8192": integer.report(0.0, 2.0 * (side as f64).powi(3)),
    }))
}
