//! What the tensors of a LLaMA model are called in each format.

use super::{Group, Projection};

/// A tensor of a LLaMA model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parameter {
    Embedding,
    Head,
    FinalNorm,
    AttentionNorm(usize),
    MlpNorm(usize),
    Weight(usize, Projection),
    Bias(usize, Projection),
}

impl Parameter {
    /// The name in Hugging Face's checkpoints.
    pub(crate) fn hugging_face(self) -> String {
        match self {
            Self::Embedding => "model.embed_tokens.weight".into(),
            Self::Head => "lm_head.weight".into(),
            Self::FinalNorm => "model.norm.weight".into(),
            Self::AttentionNorm(i) => format!("model.layers.{i}.input_layernorm.weight"),
            Self::MlpNorm(i) => format!("model.layers.{i}.post_attention_layernorm.weight"),
            Self::Weight(i, projection) => format!("{}.weight", linear(i, projection)),
            Self::Bias(i, projection) => format!("{}.bias", linear(i, projection)),
        }
    }

    /// The name in GGUF files.
    pub(crate) fn gguf(self) -> String {
        match self {
            Self::Embedding => "token_embd.weight".into(),
            Self::Head => "output.weight".into(),
            Self::FinalNorm => "output_norm.weight".into(),
            Self::AttentionNorm(i) => format!("blk.{i}.attn_norm.weight"),
            Self::MlpNorm(i) => format!("blk.{i}.ffn_norm.weight"),
            Self::Weight(i, projection) => format!("blk.{i}.{}.weight", gguf_linear(projection)),
            Self::Bias(i, projection) => format!("blk.{i}.{}.bias", gguf_linear(projection)),
        }
    }
}

/// `model.layers.{i}.self_attn.q_proj` and its like.
pub(crate) fn linear(layer: usize, projection: Projection) -> String {
    let (part, name) = match projection {
        Projection::Q => ("self_attn", "q_proj"),
        Projection::K => ("self_attn", "k_proj"),
        Projection::V => ("self_attn", "v_proj"),
        Projection::O => ("self_attn", "o_proj"),
        Projection::Gate => ("mlp", "gate_proj"),
        Projection::Up => ("mlp", "up_proj"),
        Projection::Down => ("mlp", "down_proj"),
    };
    format!("model.layers.{layer}.{part}.{name}")
}

/// `model.layers.{i}.qkv` and its like: where a DuQuant folder keeps a group's transform.
pub(crate) fn group(layer: usize, group: Group) -> String {
    format!("model.layers.{layer}.{}", group.name())
}

fn gguf_linear(projection: Projection) -> &'static str {
    match projection {
        Projection::Q => "attn_q",
        Projection::K => "attn_k",
        Projection::V => "attn_v",
        Projection::O => "attn_output",
        Projection::Gate => "ffn_gate",
        Projection::Up => "ffn_up",
        Projection::Down => "ffn_down",
    }
}
