//! One decoder layer.

use super::super::batch::{Segment, rows};
use super::super::error::{At, Error};
use super::super::operation::{Operation, Stopwatch};
use super::Settings;
use super::attend::{Lane, attend};
use super::group::GroupRunner;
use super::scratch::{Buffers, Workspace};
use crate::checkpoint::{Config, Group, LayerWeights};
use crate::kernels::cpu::{KvCache, RopeTable, Source, rms_norm, silu_mul};

/// Sees the input of every group as floating point, before its transform: what calibration collects.
pub trait Observer {
    /// `x` is `[tokens, K]`, row-major.
    fn input(&mut self, group: Group, x: &[f32], tokens: usize);
}

/// One decoder layer, packed for the CPU.
pub struct Layer {
    index: usize,
    norm_epsilon: f32,
    window: Option<usize>,
    attention_norm: Vec<f32>,
    mlp_norm: Vec<f32>,
    groups: [GroupRunner; 4],
}

impl Layer {
    /// Checks `weights` against `config`, takes them over and packs them for chunks of up to `m_max` tokens.
    ///
    /// # Errors
    /// [`Error::Shape`] when a weight does not fit the configuration, [`Error::Kernel`] when no kernel takes it.
    pub fn load(
        weights: LayerWeights,
        config: &Config,
        index: usize,
        m_max: usize,
        settings: Settings,
    ) -> Result<Self, Error> {
        let (hidden, queries) = (config.hidden, config.heads * config.head_dim);
        let keys = config.kv_heads * config.head_dim;
        let shapes = [
            (hidden, queries + 2 * keys),
            (queries, hidden),
            (hidden, 2 * config.intermediate),
            (config.intermediate, hidden),
        ];
        let LayerWeights { attention_norm, mlp_norm, groups } = weights;
        let mut runners = Vec::with_capacity(4);
        for ((group, data), (k, n)) in Group::ALL.into_iter().zip(groups).zip(shapes) {
            let place = || format!("layer {index}, {}", group.name());
            let runner = GroupRunner::load(group, data, m_max, settings).at(place)?;
            if (runner.n(), runner.k()) != (n, k) {
                return Err(Error::Shape {
                    place: place(),
                    expected: format!("[{n}, {k}]"),
                    got: format!("[{}, {}]", runner.n(), runner.k()),
                });
            }
            runners.push(runner);
        }
        for norm in [&attention_norm, &mlp_norm] {
            if norm.len() != hidden {
                return Err(Error::Shape {
                    place: format!("layer {index}, norm"),
                    expected: format!("[{hidden}]"),
                    got: format!("[{}]", norm.len()),
                });
            }
        }
        let Ok(groups) = <[GroupRunner; 4]>::try_from(runners) else {
            return Err(Error::Shape {
                place: format!("layer {index}"),
                expected: "4 groups".into(),
                got: "fewer".into(),
            });
        };
        let (norm_epsilon, window) = (config.norm_epsilon, config.sliding_window);
        Ok(Self { index, norm_epsilon, window, attention_norm, mlp_norm, groups })
    }

    pub(crate) fn groups(&self) -> &[GroupRunner] {
        &self.groups
    }

    /// Bytes of its weights as they lie in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let norms = size_of_val(self.attention_norm.as_slice()) + size_of_val(self.mlp_norm.as_slice());
        norms + self.groups.iter().map(GroupRunner::bytes).sum::<usize>()
    }

    /// Runs the tokens of `segments` through the layer in place: `buffers.residual` is read and written, keys and values go to
    /// the cache of each segment's sequence. `rope` must reach to the caches' positions plus their tokens.
    pub(in crate::model) fn forward(
        &self,
        segments: &[Segment],
        rope: &RopeTable,
        caches: &mut [KvCache],
        lanes: &mut [Lane],
        buffers: &mut Buffers,
        workspace: &mut Workspace,
        mut observer: Option<&mut dyn Observer>,
        mut stopwatch: Option<&mut Stopwatch>,
    ) -> Result<(), Error> {
        let tokens = rows(segments);
        let [qkv, o, gate_up, down] = &self.groups;
        let at = |group: Group| move || format!("layer {}, {}", self.index, group.name());
        let Buffers { residual, qkv: qkv_out, attention: attended, gate_up: gate_up_out } = buffers;
        let residual = &mut residual[..tokens * qkv.k()];
        let qkv_out = &mut qkv_out[..tokens * qkv.n()];
        let attended = &mut attended[..tokens * o.k()];
        let gate_up_out = &mut gate_up_out[..tokens * gate_up.n()];
        let epsilon = self.norm_epsilon;

        if let Some(observer) = observer.as_deref_mut() {
            let mut x = vec![0.0; residual.len()];
            rms_norm(residual, &self.attention_norm, epsilon, &mut x).at(at(Group::Qkv))?;
            observer.input(Group::Qkv, &x, tokens);
        }
        let source = Source::RmsNorm { x: residual, weight: &self.attention_norm, epsilon };
        qkv.run(source, tokens, false, qkv_out, workspace, stopwatch.as_deref_mut()).at(at(Group::Qkv))?;

        let shares = attend(segments, rope, self.window, qkv_out, attended, caches, lanes).at(at(Group::O))?;
        if let Some(stopwatch) = stopwatch.as_deref_mut() {
            let [rope, attention] = shares;
            stopwatch.lap(&[(Operation::RopeHadamardQuantize, rope), (Operation::Attention, attention)]);
        }

        if let Some(observer) = observer.as_deref_mut() {
            observer.input(Group::O, attended, tokens);
        }
        let source = Source::Tokens(attended);
        o.run(source, tokens, true, residual, workspace, stopwatch.as_deref_mut()).at(at(Group::O))?;

        if let Some(observer) = observer.as_deref_mut() {
            let mut x = vec![0.0; residual.len()];
            rms_norm(residual, &self.mlp_norm, epsilon, &mut x).at(at(Group::GateUp))?;
            observer.input(Group::GateUp, &x, tokens);
        }
        let source = Source::RmsNorm { x: residual, weight: &self.mlp_norm, epsilon };
        gate_up.run(source, tokens, false, gate_up_out, workspace, stopwatch.as_deref_mut()).at(at(Group::GateUp))?;

        if let Some(observer) = observer {
            let mut x = vec![0.0; tokens * down.k()];
            silu_mul(gate_up_out, tokens, down.k(), &mut x).at(at(Group::Down))?;
            observer.input(Group::Down, &x, tokens);
        }
        let source = Source::SiluMul { gate_up: gate_up_out };
        down.run(source, tokens, true, residual, workspace, stopwatch).at(at(Group::Down))
    }
}
