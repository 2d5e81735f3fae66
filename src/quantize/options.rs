use crate::checkpoint::{Group, Quantization};
use crate::kernels::Affine;
use crate::transform::PermutationKind;

/// Which recipe turns the floating-point model into a quantized one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Smoothing, rotation, permutation, rotation (the paper).
    DuQuant,
    /// Round-to-nearest, no transform.
    Rtn,
    /// Smoothing alone.
    SmoothQuant,
    /// One Hadamard rotation, no smoothing, no permutation.
    QuaRot,
}

impl Method {
    /// The name that the command line and the checkpoint use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Method::DuQuant => "duquant",
            Method::Rtn => "rtn",
            Method::SmoothQuant => "smoothquant",
            Method::QuaRot => "quarot",
        }
    }
}

/// How DuQuant finds its rotations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// For each group the one of `paper`, `left` and Hadamard with the smallest measured output error.
    Best,
    /// Algorithm 1 as printed.
    Paper,
    /// What the released code does.
    Official,
    /// As `paper` with the random factor on the left, which keeps the uniform first row.
    Left,
    /// No search: a Hadamard in the place of every rotation, with smoothing and permutation as they are.
    Hadamard,
}

impl Mode {
    /// The name that the command line and the checkpoint use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Mode::Best => "best",
            Mode::Paper => "paper",
            Mode::Official => "official",
            Mode::Left => "left",
            Mode::Hadamard => "hadamard",
        }
    }
}

/// Which activations calibrate a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Those behind the already quantized layers (the paper's way).
    Quantized,
    /// Those of the floating-point model.
    Float,
}

/// What is smoothed, and by which statistic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Smoothing {
    /// Every group by maxima, as in the official DuQuant code: those of q_proj speak for q, k, v, those of up_proj for
    /// gate, up.
    All,
    /// The same for the groups behind a norm alone, as in SmoothQuant.
    Norms,
    /// Every group, by root mean squares in the place of maxima, with strength 1/2: the scale that is best in front of a
    /// rotation.
    Balanced,
}

/// How a weight becomes a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// To the nearest code, as in the paper.
    Nearest,
    /// With the error carried on to the columns not yet rounded, measured on the samples (GPTQ).
    Compensated,
}

/// Everything that decides what `quantize` writes. With the same options, samples and checkpoint, the result is the same
/// bit for bit on any number of threads.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The recipe.
    pub method: Method,
    /// How DuQuant finds its rotations.
    pub mode: Mode,
    /// Bits of weights, 2 to 8, or 16 for floating point.
    pub weight_bits: u32,
    /// Bits of activations, 2 to 8, or 16 for floating point.
    pub activation_bits: u32,
    /// Bits of queries, keys and values, 2 to 8, or 16 for floating point.
    pub kv_bits: u32,
    /// Whether the range of weights is symmetric around zero.
    pub symmetric_weights: bool,
    /// Whether the range of activations is symmetric around zero.
    pub symmetric_activations: bool,
    /// Largest rotation block; channels that it does not divide take the largest power of two that does.
    pub block: usize,
    /// Greedy steps of a rotation.
    pub steps: usize,
    /// Permutations between rotations, 0 to 2.
    pub permutations: usize,
    /// How a permutation is found.
    pub permutation: PermutationKind,
    /// Which groups, in the order of [`Group::ALL`], are rotated and permuted; the others get smoothing alone (table 7).
    pub transformed: [bool; 4],
    /// Smoothing strength; `None` for no smoothing. Balanced smoothing has a strength of its own.
    pub alpha: Option<f32>,
    /// What is smoothed, and by which statistic.
    pub smoothing: Smoothing,
    /// Clip ratio of activations, and of queries and keys.
    pub activation_clip: f32,
    /// Clip ratio of weights.
    pub weight_clip: f32,
    /// How a weight becomes a code.
    pub rounding: Rounding,
    /// Which activations calibrate a layer.
    pub propagation: Propagation,
    /// Seed of every random draw.
    pub seed: u64,
}

impl Options {
    /// The defaults of a method: 4 bits everywhere; clips and smoothing as in the paper where a rotation follows the
    /// smoothing, none otherwise.
    #[must_use]
    pub fn new(method: Method) -> Self {
        let duquant = method == Method::DuQuant;
        Self {
            method,
            mode: Mode::Best,
            weight_bits: 4,
            activation_bits: 4,
            kv_bits: 4,
            symmetric_weights: false,
            symmetric_activations: false,
            block: 128,
            steps: 256,
            permutations: usize::from(duquant),
            permutation: if duquant { PermutationKind::Zigzag } else { PermutationKind::None },
            transformed: [true; 4],
            alpha: match method {
                Method::DuQuant => Some(0.6),
                Method::SmoothQuant => Some(0.5),
                Method::Rtn | Method::QuaRot => None,
            },
            activation_clip: if duquant { 0.9 } else { 1.0 },
            weight_clip: if duquant { 0.8 } else { 1.0 },
            smoothing: if duquant { Smoothing::Balanced } else { Smoothing::All },
            rounding: if duquant { Rounding::Compensated } else { Rounding::Nearest },
            propagation: Propagation::Float,
            seed: 2,
        }
    }

    /// DuQuant in one of its modes. [`Mode::Best`] balances and compensates; the others smooth by maxima and round to
    /// nearest, as the paper does.
    #[must_use]
    pub fn duquant(mode: Mode) -> Self {
        let best = Self { mode, ..Self::new(Method::DuQuant) };
        if mode == Mode::Best {
            return best;
        }
        Self { smoothing: Smoothing::All, rounding: Rounding::Nearest, ..best }
    }

    /// Whether anything is measured on samples.
    #[must_use]
    pub fn needs_samples(&self) -> bool {
        let permutes = self.permutations > 0 && self.permutation != PermutationKind::None;
        match self.method {
            Method::DuQuant | Method::SmoothQuant => true,
            Method::QuaRot if permutes => true,
            Method::QuaRot | Method::Rtn => self.alpha.is_some() || self.rounding == Rounding::Compensated,
        }
    }

    /// What the checkpoint records; `calibration` says where the samples came from.
    ///
    /// # Errors
    /// [`crate::kernels::Error::Unsupported`] for bits or clip ratios out of range.
    pub fn quantization(&self, calibration: &str) -> Result<Quantization, crate::kernels::Error> {
        let (key, value) = (self.key()?, self.value()?);
        let duquant = self.method == Method::DuQuant;
        let rotates = matches!(self.method, Method::DuQuant | Method::QuaRot);
        let permutation = if rotates { self.permutation } else { PermutationKind::None };
        let permutes = permutation != PermutationKind::None;
        let kept = Group::ALL.into_iter().zip(self.transformed).filter(|(_, transformed)| rotates && !transformed);
        Ok(Quantization {
            method: self.method.name().into(),
            mode: if duquant { self.mode.name() } else { "none" }.into(),
            weight_bits: self.weight_bits,
            activation_bits: self.activation_bits,
            kv_bits: self.kv_bits,
            block: if rotates { self.block } else { 0 },
            permutation: permutation.name().into(),
            permutations: if permutes { self.permutations } else { 0 },
            untransformed: kept.map(|(group, _)| group.name().into()).collect(),
            steps: if duquant { self.steps } else { 0 },
            weight_clip: self.weight_clip,
            activation_clip: self.activation_clip,
            alpha: self.alpha.unwrap_or(0.0),
            smoothing: match self.smoothing {
                Smoothing::Norms => "norms",
                Smoothing::All => "all",
                Smoothing::Balanced => "balanced",
            }
            .into(),
            rounding: match self.rounding {
                Rounding::Nearest => "nearest",
                Rounding::Compensated => "compensated",
            }
            .into(),
            propagation: match self.propagation {
                Propagation::Float => "float",
                Propagation::Quantized => "quantized",
            }
            .into(),
            weight_symmetric: self.symmetric_weights,
            activation_symmetric: self.symmetric_activations,
            seed: self.seed,
            calibration: calibration.into(),
            rotate_heads: key.is_some(),
            query: key,
            key,
            value,
        })
    }

    /// Quantizer of activations, `None` for floating point.
    pub(crate) fn activation(&self) -> Result<Option<Affine>, crate::kernels::Error> {
        affine(self.activation_bits, self.activation_clip, self.symmetric_activations)
    }

    /// Quantizer of weights, `None` for floating point.
    pub(crate) fn weight(&self) -> Result<Option<Affine>, crate::kernels::Error> {
        affine(self.weight_bits, self.weight_clip, self.symmetric_weights)
    }

    /// Quantizer of queries and keys, `None` for floating point.
    pub(crate) fn key(&self) -> Result<Option<Affine>, crate::kernels::Error> {
        affine(self.kv_bits, self.activation_clip, false)
    }

    /// Quantizer of values, `None` for floating point.
    pub(crate) fn value(&self) -> Result<Option<Affine>, crate::kernels::Error> {
        affine(self.kv_bits, 1.0, false)
    }
}

fn affine(bits: u32, clip: f32, symmetric: bool) -> Result<Option<Affine>, crate::kernels::Error> {
    if bits == 16 {
        return Ok(None);
    }
    let settings = Affine::new(bits, clip)?;
    Ok(Some(if symmetric { settings.symmetric() } else { settings }))
}
