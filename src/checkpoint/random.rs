//! Models with random weights, made when asked for: what speed and memory are measured on when there is nothing to download.

use super::{
    Config, Error, FLOAT_BITS, Group, LayerWeights, LinearGroup, LinearWeights, Quantization, Table, TableValues,
    Weight,
};
use crate::kernels::{Affine, QuantizedMatrix, RowParams, Transform};
use half::f16;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use std::path::Path;

/// Each row of a tensor has a stream of random numbers of its own, so that tensors may be made in any order.
#[derive(Debug)]
pub(super) struct RandomModel {
    seed: u64,
    pub(super) quantization: Option<Quantization>,
    activation: Option<Affine>,
}

/// What stands for the path in messages.
pub(super) const PATH: &str = "random weights";

/// Tensors of a layer that are no linears.
const NORM: u64 = 16;
/// Tensors of a layer in all.
const TENSORS: u64 = 32;
/// Tensors of no layer stand behind those of this many.
const LAYERS: u64 = 1 << 20;
/// Rows of a tensor.
const ROWS: u64 = 1 << 32;

impl RandomModel {
    pub(super) fn new(seed: u64, quantization: Option<Quantization>) -> Result<Self, Error> {
        let path = Path::new(PATH);
        let mut activation = None;
        if let Some(q) = &quantization {
            let bad = |field: &str, expected: &str, got: String| Err(Error::config(path, field, expected, got));
            for (field, bits) in [("weight_bits", q.weight_bits), ("activation_bits", q.activation_bits)] {
                if !(2..=8).contains(&bits) && bits != FLOAT_BITS {
                    return bad(field, "2 to 8, or 16 for floating point", bits.to_string());
                }
            }
            if q.block != 0 && !(q.block.is_power_of_two() && q.block <= 4096) {
                return bad("block", "0, or a power of two up to 4096", q.block.to_string());
            }
            if q.permutations > 2 {
                return bad("permutations", "0 to 2", q.permutations.to_string());
            }
            if q.activation_bits != FLOAT_BITS {
                let affine = Affine::new(q.activation_bits, q.activation_clip)
                    .map_err(|fault| Error::malformed(path, fault.to_string()))?;
                activation = Some(if q.activation_symmetric { affine.symmetric() } else { affine });
            }
        }
        Ok(Self { seed, quantization, activation })
    }

    /// Linears whose outputs are about as large as their inputs; quantized as the model says, its transforms random as well.
    pub(super) fn layer(&self, index: usize, config: &Config) -> Result<LayerWeights, Error> {
        let quantization = self.quantization.as_ref();
        let first = index as u64 * TENSORS;
        let norm = |at: u64| -> Vec<f32> {
            let mut rng = self.rng(first + NORM + at, 0);
            (0..config.hidden).map(|_| 0.5 + uniform(&mut rng)).collect()
        };
        let group = |group: Group| -> Result<LinearGroup, Error> {
            let (_, k) = config.linear_shape(group.projections()[0]);
            let linears = group
                .projections()
                .iter()
                .map(|&projection| {
                    let (n, _) = config.linear_shape(projection);
                    let weight = self.weight(first + projection as u64, n, k, quantization)?;
                    Ok(LinearWeights { projection, weight, bias: None })
                })
                .collect::<Result<_, Error>>()?;
            let tensor = first + NORM + 2 + group as u64;
            let transform = quantization.map_or_else(|| Transform::identity(k), |q| self.transform(tensor, k, q));
            Ok(LinearGroup { transform, activation: self.activation, linears })
        };
        let [qkv, o, gate_up, down] = Group::ALL;
        Ok(LayerWeights {
            attention_norm: norm(0),
            mlp_norm: norm(1),
            groups: [group(qkv)?, group(o)?, group(gate_up)?, group(down)?],
        })
    }

    /// A weight whose entries have variance `1 / k`.
    fn weight(&self, tensor: u64, n: usize, k: usize, quantization: Option<&Quantization>) -> Result<Weight, Error> {
        let bits = quantization.map_or(FLOAT_BITS, |q| q.weight_bits);
        if bits == FLOAT_BITS {
            let mut values = vec![0.0; n * k];
            let reach = (12.0 / k as f32).sqrt();
            values.par_chunks_mut(k).enumerate().for_each(|(row, values)| {
                let mut rng = self.rng(tensor, row as u64);
                values.iter_mut().for_each(|value| *value = reach * (uniform(&mut rng) - 0.5));
            });
            return Ok(Weight::Float { n, k, values });
        }
        let codes = (1_u32 << bits) - 1;
        // Codes drawn evenly have the variance (codes^2 + 2 codes) / 12.
        let scale = (12.0 / ((codes * codes + 2 * codes) as f32 * k as f32)).sqrt();
        let row = |row: usize, out: &mut [u8]| {
            self.rng(tensor, row as u64).fill_bytes(out);
            out.iter_mut().for_each(|code| *code &= codes as u8);
            Ok(RowParams { scale, inverse_scale: 1.0 / scale, zero_point: (codes / 2) as u8 })
        };
        QuantizedMatrix::from_rows(n, k, bits, row)
            .map(Weight::Quantized)
            .map_err(|fault| Error::malformed(Path::new(PATH), fault.to_string()))
    }

    /// A transform of the kind that `quantization` names: reflections where a search would have found rotations, a shuffle where
    /// channels would have been dealt out.
    fn transform(&self, tensor: u64, k: usize, quantization: &Quantization) -> Transform {
        let block = match quantization.block {
            0 => return Transform::identity(k),
            wanted => 1 << k.trailing_zeros().min(wanted.ilog2()),
        };
        let hadamard = quantization.method == "quarot" || quantization.mode == "hadamard";
        let permutations = if quantization.permutation == "none" { 0 } else { quantization.permutations };
        let mut rng = self.rng(tensor, 0);
        let rotations = (0..=permutations)
            .flat_map(|_| if hadamard { sylvester(block) } else { reflection(block, &mut rng) })
            .collect();
        let permutations = (0..permutations)
            .flat_map(|_| {
                let mut channels: Vec<u32> = (0..k as u32).collect();
                for last in (1..k).rev() {
                    channels.swap(last, rng.random_range(0..=last));
                }
                channels
            })
            .collect();
        Transform { channels: k, block, rotations, permutations, inverse_smooth: None, hadamard }
    }

    /// The output head, or the embedding.
    pub(super) fn table(&self, head: bool, config: &Config) -> Table {
        let (rows, columns) = (config.vocabulary, config.hidden);
        let mut values = vec![f16::ZERO; rows * columns];
        values.par_chunks_mut(columns).enumerate().for_each(|(row, values)| {
            let mut rng = self.rng(LAYERS * TENSORS + u64::from(head), row as u64);
            values.iter_mut().for_each(|value| *value = f16::from_f32(uniform(&mut rng) - 0.5));
        });
        Table { rows, columns, values: TableValues::F16(values) }
    }

    fn rng(&self, tensor: u64, row: u64) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(tensor.wrapping_mul(ROWS) | row);
        rng
    }
}

/// From 0 up to 1.
fn uniform(rng: &mut impl Rng) -> f32 {
    (rng.next_u32() >> 8) as f32 * (1.0 / (1 << 24) as f32)
}

/// `I - 2 v v^T / |v|^2` for a random `v`, row-major: orthogonal and dense.
fn reflection(n: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let v: Vec<f64> = (0..n).map(|_| f64::from(uniform(rng)) - 0.5).collect();
    let norm: f64 = v.iter().map(|x| x * x).sum::<f64>().max(f64::MIN_POSITIVE);
    let entry = |at: usize| {
        let (i, j) = (at / n, at % n);
        (f64::from(u8::from(i == j)) - 2.0 * v[i] * v[j] / norm) as f32
    };
    (0..n * n).map(entry).collect()
}

fn sylvester(n: usize) -> Vec<f32> {
    let entry = 1.0 / (n as f32).sqrt();
    let sign = |at: usize| if ((at / n) & (at % n)).count_ones().is_multiple_of(2) { entry } else { -entry };
    (0..n * n).map(sign).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Checkpoint;
    use super::*;

    fn config() -> Config {
        let json = br#"{"model_type": "llama", "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 20}"#;
        super::super::parse_config(std::path::Path::new("config.json"), json).unwrap()
    }

    fn quantization(method: &str, permutations: usize) -> Quantization {
        Quantization {
            method: method.into(),
            weight_bits: 4,
            activation_bits: 4,
            block: if method == "rtn" { 0 } else { 32 },
            permutation: "zigzag".into(),
            permutations,
            ..Quantization::default()
        }
    }

    fn variance(x: &[f32]) -> f64 {
        x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / x.len() as f64
    }

    #[test]
    fn weights_depend_on_seed_and_place_and_have_unit_gain() {
        let draw = |seed| Checkpoint::random(config(), None, seed).unwrap();
        let (a, b, c) = (draw(1), draw(1), draw(2));
        assert_eq!(a.layer(1).unwrap(), b.layer(1).unwrap());
        assert_ne!(a.layer(1).unwrap(), c.layer(1).unwrap());
        assert_ne!(a.layer(0).unwrap(), a.layer(2).unwrap());
        assert_ne!(a.embedding().unwrap(), a.head().unwrap().unwrap());
        assert!(a.layer(3).is_err());
        for group in a.layer(0).unwrap().groups {
            for linear in group.linears {
                let Weight::Float { k, values, .. } = &linear.weight else { panic!("quantized") };
                let gain = variance(values) * *k as f64;
                assert!((0.9..1.1).contains(&gain), "{:?} {gain}", linear.projection);
            }
        }
    }

    #[test]
    fn quantized_weights_are_codes_with_valid_transforms() {
        for (method, permutations, rotations) in [("rtn", 0, 0), ("quarot", 0, 1), ("duquant", 1, 2), ("duquant", 2, 3)]
        {
            let checkpoint = Checkpoint::random(config(), Some(quantization(method, permutations)), 5).unwrap();
            for group in checkpoint.layer(0).unwrap().groups {
                group.transform.validate().unwrap();
                assert_eq!(group.transform.rotation_count(), rotations, "{method}");
                assert_eq!(group.transform.hadamard, method == "quarot");
                assert_eq!(group.activation.unwrap().bits, 4);
                for linear in group.linears {
                    let Weight::Quantized(matrix) = &linear.weight else { panic!("float") };
                    matrix.validate().unwrap();
                    let gain = variance(&matrix.dequantize()) * matrix.k as f64;
                    assert!((0.85..1.2).contains(&gain), "{gain}");
                }
            }
        }
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        let bad = Quantization { weight_bits: 9, ..quantization("rtn", 0) };
        assert!(Checkpoint::random(config(), Some(bad), 0).is_err());
        let bad = Quantization { activation_clip: 0.0, ..quantization("rtn", 0) };
        assert!(Checkpoint::random(config(), Some(bad), 0).is_err());
        let bad = Quantization { block: 3, ..quantization("duquant", 1) };
        assert!(Checkpoint::random(config(), Some(bad), 0).is_err());
    }
}
