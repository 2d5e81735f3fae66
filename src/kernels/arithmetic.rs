/// In which order, and how exactly, kernels compute in floating point.
///
/// A W4A4 model is chaotic: where a value lies next to a tie between two codes, the last bit of a sum decides, and the
/// tokens behind it part. So two backends, or two instruction sets of the CPU, give the same text only when they give the
/// same bits. Either way what a kernel gives for a token depends on that token alone, and the same call gives the same
/// bits again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Arithmetic {
    /// Whatever is fastest on the machine at hand: rotations multiply half-precision numbers in CUDA and bfloat16 on AMX. A code
    /// that is near a tie may be another than [`Arithmetic::Reproducible`]'s.
    #[default]
    Fast,
    /// The CPU's scalar operations in their order: on the CPU the same bits on every instruction set.
    ///
    /// In WGSL codes and hidden states are the CPU's bit for bit where the device divides, takes roots and multiplies and
    /// adds as IEEE 754 says. Software adapters, which do not fuse multiply-adds, round them out of `f64` (an error of the
    /// last bit in 10^8 of them) and need `SHADER_F64`.
    Reproducible,
}

impl Arithmetic {
    /// `fast` or `reproducible`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Reproducible => "reproducible",
        }
    }
}
