/// Floating-point type of an operand in device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    #[default]
    F16,
    /// The upper half of single precision.
    Bf16,
}

impl Dtype {
    /// Bytes of one number.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// What the sources in `cuda/` call it: `DTYPE_F32`, `DTYPE_F16` or `DTYPE_BF16` of `types.cuh`.
    #[must_use]
    pub fn define(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Bf16 => 2,
        }
    }
}
