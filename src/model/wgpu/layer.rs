//! One decoder layer on a device.

use super::super::batch::{Segment, rows};
use super::super::error::{At, Error};
use super::super::operation::Operation;
use super::group::{BoundGroup, Group};
use super::scratch::Scratch;
use crate::checkpoint::{Config, Group as Name, LayerWeights};
use crate::kernels::wgpu::{
    AttentionOperands, AttentionPlan, BoundAttention, BoundRopeHadamardQuantize, Dtype, Error as DeviceError, Gpu,
    KvCache, Recorder, RopeHadamardQuantizeOperands, RopeHadamardQuantizePlan, SourceBinding, TokenSource,
};
use ::wgpu::{Buffer, BufferBinding};

/// The weights of one layer.
pub(super) struct Layer {
    attention_norm: Buffer,
    mlp_norm: Buffer,
    pub(super) groups: [Group; 4],
}

/// What the attention of every layer and sequence of a state shares: kernels run one behind the other.
pub(super) struct AttentionParts<'a> {
    pub(super) rope_plan: &'a RopeHadamardQuantizePlan,
    pub(super) plan: &'a AttentionPlan,
    pub(super) rope: &'a Buffer,
    pub(super) queries: &'a Buffer,
    pub(super) workspace: &'a Buffer,
}

/// A layer with the memory of a state, ready to be recorded.
pub(super) struct BoundLayer {
    groups: [BoundGroup; 4],
    /// Of each sequence: they differ in the cache.
    heads: Vec<(BoundRopeHadamardQuantize, BoundAttention)>,
}

impl Layer {
    /// Checks `weights` against `config` and packs them for chunks of up to `m_max` tokens; `float` is the type of those
    /// that are not quantized.
    pub(super) fn load(
        gpu: &Gpu,
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
            let group = Group::load(gpu, group, source, accumulate, m_max, float, &place)?;
            check_shape(&place, (n, k), (group.n(), group.k()))?;
            loaded.push(group);
        }
        let upload = |norm: &[f32], name: &str| {
            let place = format!("layer {index}, {name}");
            check_shape(&place, (1, hidden), (1, norm.len()))?;
            gpu.upload(name, bytemuck::cast_slice(norm)).at(|| place)
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
        self.attention_norm.size() + self.mlp_norm.size() + self.groups.iter().map(Group::bytes).sum::<u64>()
    }

    /// Joins the layer with a state's memory and the cache of each of its sequences.
    pub(super) fn bind(
        &self,
        gpu: &Gpu,
        scratch: &Scratch,
        parts: &AttentionParts<'_>,
        caches: &[KvCache],
        index: usize,
    ) -> Result<BoundLayer, Error> {
        let place = |group: Name| format!("layer {index}, {}", group.name());
        let Scratch { residual, qkv, attended, gate_up, .. } = scratch;
        let norm = |weight| SourceBinding::RmsNorm { x: entire(residual), weight: entire(weight) };
        let [qkv_group, o_group, gate_up_group, down_group] = &self.groups;
        let groups = [
            qkv_group.bind(gpu, norm(&self.attention_norm), scratch, entire(qkv), &place(Name::Qkv))?,
            o_group.bind(gpu, SourceBinding::Tokens(entire(attended)), scratch, entire(residual), &place(Name::O))?,
            gate_up_group.bind(gpu, norm(&self.mlp_norm), scratch, entire(gate_up), &place(Name::GateUp))?,
            down_group.bind(
                gpu,
                SourceBinding::SiluMul(entire(gate_up)),
                scratch,
                entire(residual),
                &place(Name::Down),
            )?,
        ];
        let bind = |cache: &KvCache| {
            let operands = RopeHadamardQuantizeOperands {
                qkv: entire(qkv),
                rope: entire(parts.rope),
                queries: entire(parts.queries),
                cache: cache.binding(),
            };
            let rope = parts.rope_plan.bind(gpu, &operands).at(|| place(Name::Qkv))?;
            let operands = AttentionOperands {
                queries: entire(parts.queries),
                cache: cache.binding(),
                out: entire(attended),
                workspace: entire(parts.workspace),
            };
            Ok((rope, parts.plan.bind(gpu, &operands).at(|| place(Name::O))?))
        };
        Ok(BoundLayer { groups, heads: caches.iter().map(bind).collect::<Result<_, Error>>()? })
    }
}

impl BoundLayer {
    /// Records the tokens of `segments`, behind `length` others that each sequence has.
    pub(super) fn enqueue(
        &self,
        recorder: &mut Recorder<'_>,
        segments: &[Segment],
        length: usize,
    ) -> Result<(), DeviceError> {
        Operation::ALL.into_iter().try_for_each(|operation| self.operate(recorder, operation, segments, length))
    }

    /// Records one operation of it.
    pub(super) fn operate(
        &self,
        recorder: &mut Recorder<'_>,
        operation: Operation,
        segments: &[Segment],
        length: usize,
    ) -> Result<(), DeviceError> {
        let mut heads = segments.iter().filter_map(|segment| Some((segment, self.heads.get(segment.sequence)?)));
        match operation {
            Operation::Prologue(name) => self.groups[name as usize].enqueue_prologue(recorder, rows(segments)),
            Operation::Gemm(name) => self.groups[name as usize].enqueue_gemm(recorder, rows(segments)),
            Operation::RopeHadamardQuantize => heads.try_for_each(|(segment, (rope, _))| {
                rope.enqueue_at(recorder, segment.first, segment.tokens, length + segment.offset)
            }),
            Operation::Attention => heads.try_for_each(|(segment, (_, attention))| {
                attention.enqueue_at(recorder, segment.first, segment.tokens, length + segment.offset)
            }),
        }
    }

    /// Records the rope of the first sequence alone, of the first `tokens` rows.
    pub(super) fn append(
        &self,
        recorder: &mut Recorder<'_>,
        tokens: usize,
        position: usize,
    ) -> Result<(), DeviceError> {
        self.heads.first().map_or(Ok(()), |(rope, _)| rope.enqueue(recorder, tokens, position))
    }
}

fn entire(buffer: &Buffer) -> BufferBinding<'_> {
    buffer.as_entire_buffer_binding()
}

fn check_shape(place: &str, expected: (usize, usize), got: (usize, usize)) -> Result<(), Error> {
    if expected == got {
        return Ok(());
    }
    let text = |(n, k): (usize, usize)| format!("[{n}, {k}]");
    Err(Error::Shape { place: place.into(), expected: text(expected), got: text(got) })
}
