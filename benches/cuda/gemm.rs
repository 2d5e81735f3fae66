//! `gemm_w4a4` and `transform_quantize` in front of it against cuBLASLt in FP16 and in INT8, on the linears of LLaMA2.

use super::Fault;
use super::machine::Machine;
use super::transform;
use duquant::kernels::cuda::{
    Buffer, Dtype, GemmW4A4Desc, GemmW4A4Plan, HostWeights, IntegerProduct, MatrixProduct, QuantizedTokens, TokenSource,
};
use serde_json::{Value, json};

/// Linears of a layer, `(name, N, K)`, those that share their input as one.
pub(crate) fn linears(model: &str, gpu: bool) -> Result<Vec<(&'static str, usize, usize)>, Fault> {
    if !gpu {
        return Ok(vec![("tiny", 192, 256)]);
    }
    let (hidden, intermediate) = match model {
        "llama2-7b" => (4096, 11008),
        "llama2-13b" => (5120, 13824),
        other => return Err(format!("unknown model {other}: expected llama2-7b or llama2-13b").into()),
    };
    Ok(vec![
        ("qkv", 3 * hidden, hidden),
        ("o", hidden, hidden),
        ("gate_up", 2 * intermediate, hidden),
        ("down", hidden, intermediate),
    ])
}

pub(crate) fn measure(machine: &Machine, models: &[String], tokens: &[usize]) -> Result<Value, Fault> {
    let tokens: &[usize] = if machine.is_gpu() { tokens } else { &[1, 9, 64] };
    let mut points = Vec::new();
    for model in models {
        for (name, n, k) in linears(model, machine.is_gpu())? {
            let linear = Linear::new(machine, n, k, tokens.iter().copied().max().unwrap_or(1))?;
            for &t in tokens {
                eprintln!("{model} {name} [{n}, {k}] x {t}");
                let mut point = linear.measure(machine, t)?;
                point["model"] = json!(model);
                point["linear"] = json!(name);
                points.push(point);
            }
        }
    }
    Ok(Value::Array(points))
}

/// One linear with all its operands, in as many copies as keep the weights out of the second-level cache.
struct Linear {
    n: usize,
    k: usize,
    plan: GemmW4A4Plan,
    weights: Vec<duquant::kernels::cuda::PackedWeights>,
    codes: QuantizedTokens,
    workspace: Buffer,
    /// Half precision, and the same bytes as 8-bit integers.
    dense: Vec<Buffer>,
    x: Buffer,
    y: Buffer,
    prologue: transform::Prologue,
}

impl Linear {
    fn new(machine: &Machine, n: usize, k: usize, m_max: usize) -> Result<Self, Fault> {
        let device = &machine.device;
        let desc = GemmW4A4Desc {
            m_max,
            n,
            k,
            weight_bits: 4,
            activation_bits: 4,
            out: Dtype::F16,
            bias: false,
            accumulate: false,
        };
        let plan = GemmW4A4Plan::plan(device.as_ref(), &desc)?;
        // Random codes; scales and zero points that keep the outputs in range.
        let codes = machine.random("codes", desc.weight_bytes(), u64::MAX)?;
        let mut host = HostWeights {
            weights: vec![0; desc.weight_bytes() as usize],
            channels: vec![0; desc.channel_bytes() as usize],
        };
        codes.read(&mut host.weights)?;
        for channel in host.channels.chunks_mut(16) {
            let words: [u32; 4] = [1e-4_f32.to_bits(), 8, 0, 0];
            channel.copy_from_slice(bytemuck::cast_slice(&words));
        }
        let copies = machine.copies(desc.weight_bytes());
        let weights = (0..copies).map(|_| host.upload(device)).collect::<Result<_, _>>()?;
        let tokens = QuantizedTokens::new(device, plan.tokens())?;
        let workspace = Buffer::zeroed(device, "workspace", plan.workspace_bytes().max(16))?;
        let dense = (0..machine.copies(2 * (n * k) as u64).max(2))
            .map(|_| machine.halves("weights", (n * k) as u64))
            .collect::<Result<_, _>>()?;
        let x = machine.halves("x", (m_max * k) as u64)?;
        let y = machine.random("y", 4 * (m_max * n) as u64, 0)?;
        let prologue = transform::Prologue::new(machine, k, m_max, TokenSource::Tokens)?;
        Ok(Self { n, k, plan, weights, codes: tokens, workspace, dense, x, y, prologue })
    }

    fn measure(&self, machine: &Machine, tokens: usize) -> Result<Value, Fault> {
        let Self { n, k, plan, weights, codes, workspace, dense, x, y, prologue } = self;
        let (n, k, device, stream) = (*n, *k, machine.device.as_ref(), machine.stream());
        // The prologue's codes are what the GEMM reads.
        let transform = prologue.time(machine, tokens, x, codes)?;
        let w4a4 = machine.time(weights.len(), |i| {
            // SAFETY: the operands were made for the plan and more tokens than these.
            unsafe {
                plan.enqueue(
                    device,
                    stream,
                    tokens,
                    codes.operand(),
                    weights[i].operand(),
                    y.address(),
                    workspace.address(),
                )
            }
        })?;
        let half = machine.time(dense.len(), |i| {
            machine.half_product(&MatrixProduct {
                tokens,
                n,
                k,
                input: Dtype::F16,
                output: Dtype::F16,
                x: x.address(),
                weight: dense[i].address(),
                bias: None,
                y: y.address(),
                accumulate: false,
            })
        })?;
        let integer = machine.time(dense.len(), |i| {
            let (x, weight, y) = (x.address(), dense[i].address(), y.address());
            machine.integer_product(&IntegerProduct { tokens, n, k, x, weight, y })
        })?;
        let (tn, nk, tk) = ((tokens * n) as f64, (n * k) as f64, (tokens * k) as f64);
        let operations = 2.0 * tn * k as f64;
        let code_bytes = if device.chip().arch.has_int4() { 0.5 } else { 1.0 };
        Ok(json!({
            "n": n, "k": k, "tokens": tokens, "kernel": plan.kernel(tokens),
            "transform_kernel": prologue.kernel(tokens), "weight_copies": weights.len(),
            "gemm_w4a4": w4a4.report(0.5 * nk + code_bytes * tk + 2.0 * tn, operations),
            "transform_quantize": transform.report((2.0 + code_bytes) * tk, prologue.operations(tokens)),
            "cublaslt_fp16": half.report(2.0 * (nk + tk + tn), operations),
            "cublaslt_int8": integer.report(nk + tk + 4.0 * tn, operations),
            "speedup_over_fp16": half.median() / w4a4.median(),
            "speedup_over_fp16_with_transform": half.median() / (w4a4.median() + transform.median()),
            "speedup_over_int8": integer.median() / w4a4.median(),
            "transform_share_of_linear": transform.median() / (w4a4.median() + transform.median()),
        }))
    }
}
