//! What a layer is made of, and how long each part takes.

use crate::checkpoint::Group;
use std::time::Instant;

/// An operation of a decoder layer. A layer runs them group by group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Norm or SiLU, transform and quantization in front of a group of linears.
    Prologue(Group),
    /// The product of a group of linears.
    Gemm(Group),
    /// RoPE, and Hadamard and quantization of queries, keys and values.
    RopeHadamardQuantize,
    /// Attention over the cache.
    Attention,
}

impl Operation {
    /// All of them, in the order in which a layer runs them.
    pub const ALL: [Operation; 10] = [
        Operation::Prologue(Group::Qkv),
        Operation::Gemm(Group::Qkv),
        Operation::RopeHadamardQuantize,
        Operation::Attention,
        Operation::Prologue(Group::O),
        Operation::Gemm(Group::O),
        Operation::Prologue(Group::GateUp),
        Operation::Gemm(Group::GateUp),
        Operation::Prologue(Group::Down),
        Operation::Gemm(Group::Down),
    ];
}

/// Adds up the time of each operation on this machine's processor.
#[derive(Debug, Clone)]
pub(super) struct Stopwatch {
    last: Instant,
    pub(super) seconds: [f64; Operation::ALL.len()],
}

impl Stopwatch {
    pub(super) fn new() -> Self {
        Self { last: Instant::now(), seconds: [0.0; Operation::ALL.len()] }
    }

    /// What follows is not counted to anything that was before.
    pub(super) fn start(&mut self) {
        self.last = Instant::now();
    }

    /// `operations` ran since the last call, each for its share of the time.
    pub(super) fn lap(&mut self, operations: &[(Operation, f64)]) {
        let now = Instant::now();
        let elapsed = now.duration_since(self.last).as_secs_f64();
        let all: f64 = operations.iter().map(|(_, share)| share).sum();
        for (operation, share) in operations {
            if let Some(at) = Operation::ALL.iter().position(|other| other == operation) {
                self.seconds[at] += elapsed * if all > 0.0 { share / all } else { 1.0 / operations.len() as f64 };
            }
        }
        self.last = now;
    }
}

/// Bytes of a model or a state by purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Memory {
    /// Weights, transforms and norms of the layers; of a whole model also embedding and output head.
    pub weights: u64,
    /// What flows between kernels.
    pub activations: u64,
    /// Keys and values of all sequences.
    pub kv_cache: u64,
    /// What kernels need for themselves.
    pub workspace: u64,
}

impl Memory {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.weights + self.activations + self.kv_cache + self.workspace
    }
}

impl std::ops::Add for Memory {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            weights: self.weights + other.weights,
            activations: self.activations + other.activations,
            kv_cache: self.kv_cache + other.kv_cache,
            workspace: self.workspace + other.workspace,
        }
    }
}
