use super::names::Parameter;
use super::output::{OutTensor, OutputFolder};
use super::{Checkpoint, Error, LinearGroup, Table, TableValues, Weight};
use crate::kernels::Transform;
use half::bf16;
use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::Value;
use std::path::Path;

/// Number format of exported tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 32-bit floats: what the quantized model computes with, to float rounding.
    F32,
    /// bfloat16: half the size, 8 bits of precision.
    Bf16,
}

/// Writes `checkpoint` as a plain Hugging Face folder for any other tool: weights dequantized and their transform undone
/// (`W = W~ G^T`, eq. 5 backwards), the model's own `config.json` and tokenizer. Smoothing that was folded into norms and
/// weights stays there, since it does not change the function. Quantization of activations and of the cache is a matter of
/// the runner and is not in the output. One layer is in memory at a time; `out` appears whole or not at all.
///
/// # Errors
/// [`Error::Occupied`] when `out` exists and is not an empty folder, and whatever reading or writing meets.
pub fn export(checkpoint: &Checkpoint, out: &Path, precision: Precision) -> Result<(), Error> {
    let config = checkpoint.config();
    let tokenizer = checkpoint.tokenizer()?.to_json()?;
    let mut output = OutputFolder::create(out, &tokenizer, |_| Ok(false))?;
    for index in 0..config.layers {
        let layer = checkpoint.layer(index)?;
        let mut tensors = vec![
            tensor(Parameter::AttentionNorm(index), &[config.hidden], layer.attention_norm, precision),
            tensor(Parameter::MlpNorm(index), &[config.hidden], layer.mlp_norm, precision),
        ];
        for group in layer.groups {
            push_group(&mut tensors, index, group, precision);
        }
        output.shard(&format!("model-layer-{index:05}.safetensors"), &tensors)?;
    }
    let mut tensors = vec![tensor(Parameter::FinalNorm, &[config.hidden], checkpoint.final_norm()?, precision)];
    tensors.push(table(Parameter::Embedding, checkpoint.embedding()?, precision));
    if let Some(head) = checkpoint.head()? {
        tensors.push(table(Parameter::Head, head, precision));
    }
    output.shard("model-tables.safetensors", &tensors)?;
    output.index()?;
    let mut json = checkpoint.config_json().clone();
    if let Value::Object(fields) = &mut json {
        fields.remove("quantization_config");
        fields.remove("dtype");
        let name = if precision == Precision::F32 { "float32" } else { "bfloat16" };
        fields.insert("torch_dtype".into(), name.into());
    }
    output.finish(&json)
}

fn push_group(tensors: &mut Vec<OutTensor<'static>>, layer: usize, group: LinearGroup, precision: Precision) {
    for linear in group.linears {
        let shape = [linear.weight.n(), linear.weight.k()];
        let mut values = match linear.weight {
            Weight::Float { values, .. } => values,
            Weight::Quantized(matrix) => matrix.dequantize(),
        };
        undo_transform(&group.transform, &mut values);
        tensors.push(tensor(Parameter::Weight(layer, linear.projection), &shape, values, precision));
        if let Some(bias) = linear.bias {
            let shape = [bias.len()];
            tensors.push(tensor(Parameter::Bias(layer, linear.projection), &shape, bias, precision));
        }
    }
}

fn tensor(parameter: Parameter, shape: &[usize], values: Vec<f32>, precision: Precision) -> OutTensor<'static> {
    let (dtype, bytes) = match precision {
        Precision::F32 => (Dtype::F32, bytemuck::cast_slice(&values).to_vec()),
        Precision::Bf16 => {
            (Dtype::BF16, values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect::<Vec<u8>>())
        }
    };
    OutTensor { name: parameter.hugging_face(), dtype, shape: shape.into(), bytes: bytes.into() }
}

fn table(parameter: Parameter, table: Table, precision: Precision) -> OutTensor<'static> {
    let shape = [table.rows, table.columns];
    let values = match table.values {
        TableValues::F32(values) => values,
        TableValues::F16(values) => values.into_iter().map(f32::from).collect(),
        TableValues::Bf16(values) => values.into_iter().map(f32::from).collect(),
    };
    tensor(parameter, &shape, values, precision)
}

/// Takes rows of `W S R_0 P_0 R_1 ..` back to rows of `W`, in f64. Rotations are orthogonal, so that their transpose undoes
/// them; a gather `y[j] = x[p[j]]` is undone by the scatter `x[p[j]] = y[j]`.
fn undo_transform(transform: &Transform, weight: &mut [f32]) {
    let k = transform.channels;
    if k == 0 || (transform.rotation_count() == 0 && transform.inverse_smooth.is_none()) {
        return;
    }
    weight.par_chunks_mut(k).for_each_init(
        || (vec![0.0_f64; k], vec![0.0_f64; k]),
        |(row, scratch), weight| {
            row.iter_mut().zip(weight.iter()).for_each(|(x, &w)| *x = f64::from(w));
            for i in (0..transform.rotation_count()).rev() {
                rotate_back(transform.rotation(i), transform.block, row, scratch);
                if i == 0 {
                    break;
                }
                for (&from, &y) in transform.permutation(i - 1).iter().zip(row.iter()) {
                    scratch[from as usize] = y;
                }
                std::mem::swap(row, scratch);
            }
            if let Some(inverse) = &transform.inverse_smooth {
                row.iter_mut().zip(inverse).for_each(|(x, &s)| *x *= f64::from(s));
            }
            weight.iter_mut().zip(row.iter()).for_each(|(w, &x)| *w = x as f32);
        },
    );
}

/// `x_block <- x_block R^T` for every block.
fn rotate_back(rotation: &[f32], block: usize, row: &mut Vec<f64>, scratch: &mut Vec<f64>) {
    for (x, y) in row.chunks_exact(block).zip(scratch.chunks_exact_mut(block)) {
        for (y, r) in y.iter_mut().zip(rotation.chunks_exact(block)) {
            *y = x.iter().zip(r).map(|(&x, &r)| x * f64::from(r)).sum();
        }
    }
    std::mem::swap(row, scratch);
}
