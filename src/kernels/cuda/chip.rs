use super::Error;

/// The architectures that kernels are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arch {
    /// A100: INT4 tensor cores, 163 KiB of shared memory a block.
    Sm80,
    /// RTX 3090: INT4 tensor cores, 99 KiB.
    Sm86,
    /// RTX 4090, L40S: INT4 tensor cores, 99 KiB.
    Sm89,
    /// H100, H200: no INT4 tensor core; `wgmma` in INT8, 227 KiB.
    Sm90a,
}

impl Arch {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Sm80, Self::Sm86, Self::Sm89, Self::Sm90a];

    /// What runs best on a device of compute capability `major.minor`.
    ///
    /// # Errors
    /// [`Error::Chip`] for a device that none of the kernels run on.
    pub fn of_capability(major: u32, minor: u32) -> Result<Self, Error> {
        match (major, minor) {
            (8, 0) => Ok(Self::Sm80),
            (8, 6 | 7) => Ok(Self::Sm86),
            (8, 9) => Ok(Self::Sm89),
            (9, 0) => Ok(Self::Sm90a),
            _ => Err(Error::Chip { major, minor }),
        }
    }

    /// As compilers spell it, `sm_80`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sm80 => "sm_80",
            Self::Sm86 => "sm_86",
            Self::Sm89 => "sm_89",
            Self::Sm90a => "sm_90a",
        }
    }

    /// The number that the sources see as `ARCH`: 800, 860, 890 or 900.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::Sm80 => 800,
            Self::Sm86 => 860,
            Self::Sm89 => 890,
            Self::Sm90a => 900,
        }
    }

    /// Whether its tensor cores multiply 4-bit integers (`mma.m16n8k64`).
    #[must_use]
    pub fn has_int4(self) -> bool {
        self != Self::Sm90a
    }

    /// Bytes of shared memory that one block may ask for.
    #[must_use]
    pub fn shared_per_block(self) -> u32 {
        match self {
            Self::Sm80 => 163 * 1024,
            Self::Sm86 | Self::Sm89 => 99 * 1024,
            Self::Sm90a => 227 * 1024,
        }
    }

    /// Bytes of shared memory of a multiprocessor; a block takes 1 KiB more than it asks for.
    #[must_use]
    pub fn shared_per_multiprocessor(self) -> u32 {
        match self {
            Self::Sm80 => 164 * 1024,
            Self::Sm86 | Self::Sm89 => 100 * 1024,
            Self::Sm90a => 228 * 1024,
        }
    }
}

/// What plans ask of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chip {
    /// What kernels are compiled for. It may be older than the device: sm_80 kernels run on Hopper, for tests.
    pub arch: Arch,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of second-level cache.
    pub l2_bytes: u64,
}

impl Chip {
    /// A device that is not there: the largest common one of its architecture (A100, RTX 3090, RTX 4090, H100 SXM). For
    /// planning without a GPU.
    #[must_use]
    pub fn typical(arch: Arch) -> Self {
        let (multiprocessors, l2_mib) = match arch {
            Arch::Sm80 => (108, 40),
            Arch::Sm86 => (82, 6),
            Arch::Sm89 => (128, 72),
            Arch::Sm90a => (132, 50),
        };
        Self { arch, multiprocessors, l2_bytes: l2_mib << 20 }
    }
}
