//! `transform_quantize` with its sources, beside the time that its memory traffic alone needs.

use super::Fault;
use super::machine::{Machine, Times};
use duquant::kernels::cuda::{
    Buffer, Dtype, QuantizedTokens, SourceOperand, TokenForm, TokenSource, TokensLayout, TransformOutput,
    TransformQuantizeDesc, TransformQuantizePlan, TransformShape, TransformTables, TransformTarget,
};
use duquant::kernels::{Affine, Transform};
use serde_json::{Value, json};

/// Rotation block of the paper.
const BLOCK: usize = 128;

/// A transform of two rotations and a permutation with its plan.
pub(crate) struct Prologue {
    plan: TransformQuantizePlan,
    tables: TransformTables,
    source: TokenSource,
    weight: Buffer,
    k: usize,
}

impl Prologue {
    pub(crate) fn new(machine: &Machine, k: usize, m_max: usize, source: TokenSource) -> Result<Self, Fault> {
        let transform = transform(k);
        let desc = TransformQuantizeDesc {
            m_max,
            shape: TransformShape::of(&transform),
            affine: Some(Affine::new(4, 0.9)?),
            source,
            input: Dtype::F16,
            target: TransformTarget::Codes,
        };
        let plan = TransformQuantizePlan::plan(machine.device.as_ref(), &desc)?;
        let tables = plan.pack(&machine.device, &transform)?;
        let weight = Buffer::upload(&machine.device, "norm", &vec![1.0_f32; k])?;
        Ok(Self { plan, tables, source, weight, k })
    }

    pub(crate) fn kernel(&self, tokens: usize) -> String {
        self.plan.kernel(tokens)
    }

    /// Two dense rotations.
    pub(crate) fn operations(&self, tokens: usize) -> f64 {
        4.0 * (tokens * self.k * BLOCK) as f64
    }

    pub(crate) fn time(
        &self,
        machine: &Machine,
        tokens: usize,
        x: &Buffer,
        out: &QuantizedTokens,
    ) -> Result<Times, Fault> {
        let source = match self.source {
            TokenSource::Tokens => SourceOperand::Tokens(x.address()),
            TokenSource::RmsNorm { .. } => SourceOperand::RmsNorm { x: x.address(), weight: self.weight.address() },
            TokenSource::SiluMul => SourceOperand::SiluMul(x.address()),
        };
        machine.time(8, |_| {
            // SAFETY: the operands were made for the plan and more tokens than these.
            unsafe {
                self.plan.enqueue(
                    machine.device.as_ref(),
                    machine.stream(),
                    tokens,
                    source,
                    &self.tables,
                    TransformOutput::Codes(out.operand()),
                )
            }
        })
    }
}

/// A transform of the paper's shape: orthogonal blocks that are not Hadamard matrices, a permutation that reaches far.
fn transform(k: usize) -> Transform {
    let block = if k.is_multiple_of(BLOCK) { BLOCK } else { 64 };
    // A Householder reflection is orthogonal and dense.
    let reflection = |seed: usize| -> Vec<f32> {
        let v: Vec<f64> = (0..block).map(|i| ((i * 37 + seed * 11) % 101) as f64 / 50.5 - 1.0).collect();
        let norm: f64 = v.iter().map(|v| v * v).sum();
        (0..block * block)
            .map(|at| {
                let (i, j) = (at / block, at % block);
                (f64::from(u8::from(i == j)) - 2.0 * v[i] * v[j] / norm) as f32
            })
            .collect()
    };
    let stride = (k / 2 + 1..k).find(|&s| gcd(s, k) == 1).unwrap_or(1);
    Transform {
        channels: k,
        block,
        rotations: [reflection(1), reflection(2)].concat(),
        permutations: (0..k).map(|i| (i * stride % k) as u32).collect(),
        inverse_smooth: None,
        hadamard: false,
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

pub(crate) fn measure(machine: &Machine, tokens: &[usize]) -> Result<Value, Fault> {
    let gpu = machine.is_gpu();
    let (tokens, channels): (&[usize], &[usize]) =
        if gpu { (tokens, &[4096, 5120, 11008, 13824]) } else { (&[1, 9], &[256]) };
    let m_max = tokens.iter().copied().max().unwrap_or(1);
    let mut points = Vec::new();
    for &k in channels {
        let x = machine.halves("x", (2 * m_max * k) as u64)?;
        let form = TokenForm::of(machine.device.chip().arch, 4);
        let codes = QuantizedTokens::new(&machine.device, TokensLayout { form, m_max, k })?;
        for (name, source, read) in [
            ("tokens", TokenSource::Tokens, 2.0),
            ("rms_norm", TokenSource::RmsNorm { epsilon: 1e-5 }, 2.0),
            ("silu_mul", TokenSource::SiluMul, 4.0),
        ] {
            let prologue = Prologue::new(machine, k, m_max, source)?;
            for &t in tokens {
                eprintln!("transform_quantize {name} {k} x {t}");
                let times = prologue.time(machine, t, &x, &codes)?;
                let code_bytes = form.atom_bytes() as f64 / 1024.0;
                let bytes = (read + code_bytes) * (t * k) as f64;
                points.push(json!({
                    "source": name, "k": k, "tokens": t, "kernel": prologue.kernel(t),
                    "transform_quantize": times.report(bytes, prologue.operations(t)),
                }));
            }
        }
    }
    Ok(Value::Array(points))
}
