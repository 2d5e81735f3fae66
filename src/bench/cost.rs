//! What the operations of a layer must move and compute at least, and what a run must hold.

use super::method::{Bits, Method};
use crate::checkpoint::{Config, Group};
use crate::model::Operation;
use crate::model::cpu::Float;

/// Rotation block of the random transforms; narrower where it does not divide the channels.
const BLOCK: usize = 128;

/// A run of `tokens` tokens of each of `batch` sequences behind `context` others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work<'a> {
    pub(super) config: &'a Config,
    pub(super) method: Method,
    pub(super) bits: Bits,
    pub(super) batch: usize,
    pub(super) tokens: usize,
    pub(super) context: usize,
    /// Bytes of a number that flows between kernels.
    pub(super) float_bytes: f64,
}

/// Bytes and operations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Cost {
    pub(super) bytes: f64,
    pub(super) ops: f64,
}

impl Work<'_> {
    /// The least that `operation` moves (operands once, results once) and computes (2 a multiply-add).
    pub(super) fn cost(&self, operation: Operation) -> Cost {
        let Self { config, float_bytes, .. } = *self;
        let rows = (self.batch * self.tokens) as f64;
        let (heads, kv_heads, dim) = (config.heads as f64, config.kv_heads as f64, config.head_dim as f64);
        match operation {
            Operation::Prologue(group) => {
                let k = self.k(group) as f64;
                let read = if group == Group::Down { 2.0 } else { 1.0 } * rows * k * float_bytes;
                let (rotations, each, tables) = self.transform(group);
                // Norm or SiLU, range and rounding: some ten operations a number.
                Cost {
                    bytes: read + rows * k * self.activation_bytes() + tables,
                    ops: rows * k * (10.0 + rotations * each),
                }
            }
            Operation::Gemm(group) => {
                let (n, k) = (self.n(group) as f64, self.k(group) as f64);
                let out = rows * n * float_bytes * if matches!(group, Group::O | Group::Down) { 2.0 } else { 1.0 };
                Cost {
                    bytes: n * k * self.weight_bytes() + rows * k * self.activation_bytes() + out,
                    ops: 2.0 * rows * n * k,
                }
            }
            Operation::RopeHadamardQuantize => {
                let numbers = rows * (heads + 2.0 * kv_heads) * dim;
                let butterflies = if self.method.is_float() { 0.0 } else { dim.log2() };
                Cost { bytes: numbers * (float_bytes + self.kv_bytes()), ops: numbers * (6.0 + butterflies) }
            }
            Operation::Attention => {
                let window = config.sliding_window.unwrap_or(usize::MAX);
                let seen = |token: usize| (self.context + token + 1).min(window) as f64;
                let pairs: f64 = self.batch as f64 * (0..self.tokens).map(seen).sum::<f64>();
                let cached =
                    self.batch as f64 * (self.context + self.tokens).min(window.saturating_add(self.tokens)) as f64;
                let bytes = cached * 2.0 * kv_heads * dim * self.kv_bytes()
                    + rows * heads * dim * (self.kv_bytes() + float_bytes);
                Cost { bytes, ops: 4.0 * pairs * heads * dim }
            }
        }
    }

    fn n(&self, group: Group) -> usize {
        group.projections().iter().map(|&projection| self.config.linear_shape(projection).0).sum()
    }

    fn k(&self, group: Group) -> usize {
        self.config.linear_shape(group.projections()[0]).1
    }

    /// Rotations, operations of one a number, and bytes of all tables.
    fn transform(&self, group: Group) -> (f64, f64, f64) {
        let k = self.k(group);
        let block = (1_usize << k.trailing_zeros()).min(BLOCK) as f64;
        match self.method {
            Method::Float(_) | Method::Rtn => (0.0, 0.0, 0.0),
            Method::QuaRot => (1.0, block.log2(), 0.0),
            Method::DuQuant(permutations) => {
                let rotations = permutations as f64 + 1.0;
                (rotations, 2.0 * block, 4.0 * (rotations * block * block + (permutations * k) as f64))
            }
        }
    }

    fn weight_bytes(&self) -> f64 {
        match self.method {
            Method::Float(float) => float_bytes(float),
            _ => f64::from(self.bits.weight) / 8.0,
        }
    }

    fn activation_bytes(&self) -> f64 {
        if self.method.is_float() { self.float_bytes } else { f64::from(self.bits.activation) / 8.0 }
    }

    fn kv_bytes(&self) -> f64 {
        // Numbers that are not quantized are cached as they flow.
        self.activation_bytes()
    }

    /// Bytes that `layers` layers and a state for them hold at most, roughly: for refusing what cannot fit.
    pub(super) fn footprint(&self, layers: usize, rows: usize) -> f64 {
        let weights: f64 =
            Group::ALL.iter().map(|&g| (self.n(g) * self.k(g)) as f64).sum::<f64>() * self.weight_bytes();
        let config = self.config;
        let positions = (self.batch * (self.context + self.tokens)) as f64;
        let width = (2 * config.kv_heads * config.head_dim) as f64;
        let cache = positions * (width * self.kv_bytes() + (config.kv_heads * 20) as f64);
        let flowing = config.hidden * 2 + 3 * config.heads * config.head_dim + 3 * config.intermediate;
        layers as f64 * (weights + cache) + rows as f64 * flowing as f64 * self.float_bytes
    }
}

pub(super) fn float_bytes(float: Float) -> f64 {
    match float {
        Float::F32 => 4.0,
        Float::F16 | Float::Bf16 => 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::super::preset;
    use super::*;

    #[test]
    fn costs_of_a_7b_layer_are_the_textbooks() {
        let config = preset("llama2-7b").unwrap();
        let work = |method, batch, tokens, context| Work {
            config: &config,
            method,
            bits: Bits { weight: 4, activation: 4 },
            batch,
            tokens,
            context,
            float_bytes: 4.0,
        };
        let prefill = work(Method::DuQuant(1), 2, 100, 0);
        let ops: f64 = Group::ALL.iter().map(|&g| prefill.cost(Operation::Gemm(g)).ops).sum();
        // 202 million weights a layer.
        assert_eq!(ops, 2.0 * 200.0 * (4.0 * 4096.0 * 4096.0 + 3.0 * 4096.0 * 11008.0));
        assert_eq!(prefill.cost(Operation::Attention).ops, 4.0 * 2.0 * 5050.0 * 4096.0);
        let decode = work(Method::Float(Float::F32), 3, 1, 2047);
        assert_eq!(decode.cost(Operation::Attention).ops, 4.0 * 3.0 * 2048.0 * 4096.0);
        let weights: f64 = Group::ALL.iter().map(|&g| decode.cost(Operation::Gemm(g)).bytes).sum();
        assert!((weights / (4.0 * 202.4e6) - 1.0).abs() < 0.01, "{weights}");
        let float = work(Method::Float(Float::F16), 1, 512, 0).footprint(32, 512);
        let quantized = work(Method::Rtn, 1, 512, 0).footprint(32, 512);
        assert!((12.5e9..14.5e9).contains(&float) && (3.2e9..3.6e9).contains(&quantized), "{float} {quantized}");
    }

    #[test]
    fn a_window_bounds_attention() {
        let config = Config { sliding_window: Some(10), ..preset("mistral-7b").unwrap() };
        let work = Work {
            config: &config,
            method: Method::Rtn,
            bits: Bits { weight: 4, activation: 4 },
            batch: 1,
            tokens: 1,
            context: 1000,
            float_bytes: 4.0,
        };
        assert_eq!(work.cost(Operation::Attention).ops, 4.0 * 10.0 * 4096.0);
    }
}
