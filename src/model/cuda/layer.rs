//! One decoder layer on a device.

use super::super::error::{At, Error};
use super::super::operation::Operation;
use super::group::{Group, Operands};
use super::scratch::Scratch;
use crate::checkpoint::{Config, Group as Name, LayerWeights};
use crate::kernels::cuda::{
    Address, AttentionOperands, AttentionPlan, Buffer, Device, Dtype, Error as DeviceError, KvCache,
    RopeHadamardQuantizeOperands, RopeHadamardQuantizePlan, Stream, TokenSource,
};
use std::sync::Arc;

/// The weights of one layer.
pub(super) struct Layer {
    attention_norm: Buffer,
    mlp_norm: Buffer,
    pub(super) groups: [Group; 4],
}

/// What the attention of every layer of a state shares.
pub(super) struct Attention {
    pub(super) rope: RopeHadamardQuantizePlan,
    pub(super) plan: AttentionPlan,
    /// Cosines and sines.
    pub(super) table: Buffer,
    /// Page numbers of all sequences.
    pub(super) pages: Buffer,
}

/// One pass of tokens on their way through the layers.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) device: &'a dyn Device,
    pub(super) stream: Stream,
    pub(super) tokens: usize,
    /// The [`Sequence`](crate::kernels::cuda::Sequence)s that the tokens belong to.
    pub(super) places: Address,
    /// How many of them.
    pub(super) sequences: usize,
    /// Tokens of the one that has most.
    pub(super) longest: usize,
    pub(super) scratch: &'a Scratch,
    pub(super) attention: &'a Attention,
}

impl Layer {
    /// Checks `weights` against `config` and packs them for chunks of up to `m_max` tokens; `float` is the type of those
    /// that are not quantized.
    pub(super) fn load(
        device: &Arc<dyn Device>,
        weights: LayerWeights,
        config: &Config,
        index: usize,
        m_max: usize,
        float: Dtype,
    ) -> Result<Self, Error> {
        let (hidden, queries) = (config.hidden, config.heads * config.head_dim);
        let keys = config.kv_heads * config.head_dim;
        let norm = TokenSource::RmsNorm { epsilon: config.norm_epsilon };
        let roles = [
            (norm, false, hidden, queries + 2 * keys),
            (TokenSource::Tokens, true, queries, hidden),
            (norm, false, hidden, 2 * config.intermediate),
            (TokenSource::SiluMul, true, config.intermediate, hidden),
        ];
        let LayerWeights { attention_norm, mlp_norm, groups } = weights;
        let mut loaded = Vec::with_capacity(4);
        for ((name, group), (source, accumulate, k, n)) in Name::ALL.into_iter().zip(groups).zip(roles) {
            let place = format!("layer {index}, {}", name.name());
            let group = Group::load(device, group, source, accumulate, m_max, float, &place)?;
            check_shape(&place, (n, k), (group.n(), group.k()))?;
            loaded.push(group);
        }
        let upload = |norm: &[f32], name: &str| {
            let place = format!("layer {index}, {name}");
            check_shape(&place, (1, hidden), (1, norm.len()))?;
            Buffer::upload(device, name, norm).at(|| place)
        };
        let (attention_norm, mlp_norm) = (upload(&attention_norm, "attention norm")?, upload(&mlp_norm, "MLP norm")?);
        let Ok(groups) = <[Group; 4]>::try_from(loaded) else {
            return Err(Error::Shape {
                place: format!("layer {index}"),
                expected: "4 groups".into(),
                got: "fewer".into(),
            });
        };
        Ok(Self { attention_norm, mlp_norm, groups })
    }

    /// Bytes of its weights on the device.
    pub(super) fn bytes(&self) -> u64 {
        self.attention_norm.bytes() + self.mlp_norm.bytes() + self.groups.iter().map(Group::bytes).sum::<u64>()
    }

    /// Enqueues the layer on the tokens of `call`, whose residual stream is in the scratch memory. `after` is called behind each
    /// operation.
    ///
    /// # Safety
    /// The call's memory must have room for its tokens, and the cache for its sequences.
    pub(super) unsafe fn enqueue(
        &self,
        call: &Call<'_>,
        cache: &KvCache,
        after: &mut dyn FnMut(Operation) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let Call { device, stream, tokens, scratch, attention, longest, .. } = *call;
        let Scratch { residual, qkv, attended, gate_up, .. } = *scratch;
        let (sequences, page_table) = (call.places, attention.pages.address());
        let operands = |x, norm, y| Operands { x, norm, y, scratch };
        // SAFETY: the caller's.
        unsafe { self.run(Name::Qkv, call, &operands(residual, self.attention_norm.address(), qkv), after)? };
        let rope = RopeHadamardQuantizeOperands {
            qkv,
            rope: attention.table.address(),
            queries: scratch.queries,
            cache: cache.operand(),
            sequences,
            page_table,
        };
        let attended_to = AttentionOperands {
            queries: scratch.queries,
            cache: cache.operand(),
            sequences,
            page_table,
            out: attended,
            workspace: scratch.attention,
        };
        // SAFETY: the caller's.
        unsafe {
            attention.rope.enqueue(device, stream, tokens, call.sequences, &rope)?;
            after(Operation::RopeHadamardQuantize)?;
            attention.plan.enqueue(device, stream, tokens, call.sequences, longest, &attended_to)?;
            after(Operation::Attention)?;
            self.run(Name::O, call, &operands(attended, 0, residual), after)?;
            self.run(Name::GateUp, call, &operands(residual, self.mlp_norm.address(), gate_up), after)?;
            self.run(Name::Down, call, &operands(gate_up, 0, residual), after)
        }
    }

    /// Enqueues one of the groups.
    ///
    /// # Safety
    /// As [`Layer::enqueue`].
    unsafe fn run(
        &self,
        name: Name,
        call: &Call<'_>,
        operands: &Operands<'_>,
        after: &mut dyn FnMut(Operation) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let group = &self.groups[name as usize];
        let between = || after(Operation::Prologue(name));
        // SAFETY: the caller's.
        unsafe { group.enqueue(call.device, call.stream, call.tokens, operands, between)? };
        after(Operation::Gemm(name))
    }
}

fn check_shape(place: &str, expected: (usize, usize), got: (usize, usize)) -> Result<(), Error> {
    if expected == got {
        return Ok(());
    }
    let text = |(n, k): (usize, usize)| format!("[{n}, {k}]");
    Err(Error::Shape { place: place.into(), expected: text(expected), got: text(got) })
}
