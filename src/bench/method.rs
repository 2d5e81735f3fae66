//! The ways to run a layer that are set beside each other.

use crate::checkpoint::{FLOAT_BITS, Quantization};
use crate::kernels::Affine;
use crate::model::Backend;
use crate::model::cpu::Float;

/// Rotation block of the paper.
const BLOCK: usize = 128;
/// Clip ratio of activations in the paper.
const CLIP: f32 = 0.9;

/// What happens to weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Nothing: the baseline.
    Float(Float),
    /// Round-to-nearest, no transform.
    Rtn,
    /// One Hadamard rotation.
    QuaRot,
    /// Rotations with so many permutations between them, 0 to 2.
    DuQuant(usize),
}

/// Bits of weights and activations; queries, keys and values have those of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bits {
    /// Of weights.
    pub weight: u32,
    /// Of activations.
    pub activation: u32,
}

impl Method {
    /// Names that [`Method::parse`] takes.
    pub const NAMES: [&str; 8] = ["fp32", "fp16", "bf16", "rtn", "quarot", "duquant0", "duquant", "duquant2"];

    /// The method of that name; `duquant` has the paper's one permutation.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "fp32" => Self::Float(Float::F32),
            "fp16" => Self::Float(Float::F16),
            "bf16" => Self::Float(Float::Bf16),
            "rtn" => Self::Rtn,
            "quarot" => Self::QuaRot,
            "duquant0" => Self::DuQuant(0),
            "duquant" | "duquant1" => Self::DuQuant(1),
            "duquant2" => Self::DuQuant(2),
            _ => return None,
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Float(Float::F32) => "fp32",
            Self::Float(Float::F16) => "fp16",
            Self::Float(Float::Bf16) => "bf16",
            Self::Rtn => "rtn",
            Self::QuaRot => "quarot",
            Self::DuQuant(0) => "duquant0",
            Self::DuQuant(1) => "duquant",
            Self::DuQuant(_) => "duquant2",
        }
    }

    /// Whether it is a baseline.
    #[must_use]
    pub fn is_float(self) -> bool {
        matches!(self, Self::Float(_))
    }

    /// The floating-point type that `backend` is usually run with.
    #[must_use]
    pub fn baseline(backend: &Backend) -> Float {
        match backend {
            Backend::Cpu(_) => Float::F32,
            #[cfg(feature = "wgpu")]
            Backend::Wgpu { gpu, .. } => {
                if gpu.has_f16() {
                    Float::F16
                } else {
                    Float::F32
                }
            }
            #[cfg(feature = "cuda")]
            Backend::Cuda { .. } => Float::F16,
        }
    }

    /// Name of the bits that it runs with.
    #[must_use]
    pub fn bits_name(self, bits: Bits) -> String {
        match self {
            Self::Float(float) => Self::Float(float).name().to_uppercase(),
            _ => bits.name(),
        }
    }

    /// The settings of a checkpoint that is quantized so, without weights; `None` for floating point.
    pub(super) fn quantization(self, bits: Bits) -> Result<Option<Quantization>, crate::kernels::Error> {
        let (name, block, permutations) = match self {
            Self::Float(_) => return Ok(None),
            Self::Rtn => ("rtn", 0, 0),
            Self::QuaRot => ("quarot", BLOCK, 0),
            Self::DuQuant(permutations) => ("duquant", BLOCK, permutations),
        };
        let affine = |clip| (bits.activation != FLOAT_BITS).then(|| Affine::new(bits.activation, clip)).transpose();
        let key = affine(CLIP)?;
        Ok(Some(Quantization {
            method: name.into(),
            weight_bits: bits.weight,
            activation_bits: bits.activation,
            kv_bits: bits.activation,
            block,
            permutation: if permutations == 0 { "none" } else { "zigzag" }.into(),
            permutations,
            activation_clip: CLIP,
            rotate_heads: key.is_some(),
            query: key,
            key,
            value: affine(1.0)?,
            ..Quantization::default()
        }))
    }

    /// `backend` with the floating-point type of this baseline; other methods leave it as it is.
    ///
    /// # Errors
    /// In words, where the backend has no such type.
    pub(super) fn on(self, backend: &Backend) -> Result<Backend, String> {
        let Self::Float(float) = self else { return Ok(backend.clone()) };
        Ok(match backend {
            Backend::Cpu(settings) => Backend::Cpu(crate::model::cpu::Settings { float, ..*settings }),
            #[cfg(feature = "wgpu")]
            Backend::Wgpu { gpu, .. } => {
                let float = match float {
                    Float::F32 => crate::kernels::wgpu::Dtype::F32,
                    Float::F16 if gpu.has_f16() => crate::kernels::wgpu::Dtype::F16,
                    Float::F16 => return Err("this device has no half precision: expected fp32".into()),
                    Float::Bf16 => return Err("wgpu has no bfloat16: expected fp32 or fp16".into()),
                };
                Backend::Wgpu { gpu: gpu.clone(), float }
            }
            #[cfg(feature = "cuda")]
            Backend::Cuda { device, chunk, .. } => {
                let float = match float {
                    Float::F32 => return Err("CUDA's layers flow in 16 bits: expected fp16 or bf16".into()),
                    Float::F16 => crate::kernels::cuda::Dtype::F16,
                    Float::Bf16 => crate::kernels::cuda::Dtype::Bf16,
                };
                Backend::Cuda { device: device.clone(), float, chunk: *chunk }
            }
        })
    }
}

impl Bits {
    /// `W4A4`, `W4A8` and the like.
    ///
    /// # Errors
    /// What was expected.
    pub fn parse(name: &str) -> Result<Self, String> {
        let parsed = name.strip_prefix(['W', 'w']).and_then(|rest| rest.split_once(['A', 'a'])).and_then(|(w, a)| {
            let bits = |text: &str| text.parse().ok().filter(|bits| (2..=8).contains(bits));
            Some(Self { weight: bits(w)?, activation: bits(a)? })
        });
        parsed.ok_or_else(|| "expected bits as W4A4, W4A8 or W8A8, each 2 to 8".into())
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> String {
        format!("W{}A{}", self.weight, self.activation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for name in Method::NAMES {
            assert_eq!(Method::parse(name).unwrap().name(), name);
        }
        assert!(Method::parse("gptq").is_none());
        assert_eq!(Bits::parse("w4a8").unwrap().name(), "W4A8");
        for bad in ["", "W4", "W1A4", "W4A9", "4A4", "WxAy"] {
            assert!(Bits::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn methods_become_settings() {
        let bits = Bits { weight: 4, activation: 8 };
        assert!(Method::Float(Float::F16).quantization(bits).unwrap().is_none());
        let settings = Method::DuQuant(2).quantization(bits).unwrap().unwrap();
        assert_eq!((settings.weight_bits, settings.activation_bits, settings.permutations), (4, 8, 2));
        assert_eq!(settings.key.unwrap().bits, 8);
        assert_eq!(Method::Rtn.quantization(bits).unwrap().unwrap().block, 0);
    }
}
