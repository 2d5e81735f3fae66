use std::sync::OnceLock;

/// The instruction sets that a CPU kernel is written for, from the plainest to the fastest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Scalar Rust, everywhere.
    Portable,
    /// 128-bit NEON with dot product (`aarch64`).
    Neon,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI.
    Avx512Vnni,
    /// AVX-512 VNNI and AMX-INT8 tiles, where the CPU has them and the kernel grants them to this process.
    Amx,
}

impl Isa {
    /// Every instruction set that this machine has, plainest first. [`Isa::Portable`] is always there.
    #[must_use]
    pub fn available() -> &'static [Isa] {
        static AVAILABLE: OnceLock<Vec<Isa>> = OnceLock::new();
        AVAILABLE.get_or_init(detect)
    }

    /// The fastest instruction set of this machine, or the one that the environment variable `DUQUANT_ISA` names
    /// (`portable`, `neon`, `avx2`, `avx512`, `amx`) when the machine has it.
    #[must_use]
    pub fn best() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| {
            let wanted = std::env::var("DUQUANT_ISA").ok();
            let named = wanted.and_then(|name| Self::available().iter().copied().find(|isa| isa.name() == name));
            named.or_else(|| Self::available().last().copied()).unwrap_or(Isa::Portable)
        })
    }

    /// Short name, as `DUQUANT_ISA` takes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Neon => "neon",
            Isa::Avx2 => "avx2",
            Isa::Avx512Vnni => "avx512",
            Isa::Amx => "amx",
        }
    }
}

/// Whether the machine multiplies tiles of bfloat16 too. Every one with AMX that is sold does, but CPUID says so apart.
#[cfg(target_arch = "x86_64")]
pub(super) fn amx_bf16() -> bool {
    Isa::available().contains(&Isa::Amx) && std::arch::x86_64::__cpuid_count(7, 0).edx >> 22 & 1 == 1
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Vec<Isa> {
    let mut found = vec![Isa::Portable];
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
        found.push(Isa::Avx2);
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
        {
            found.push(Isa::Avx512Vnni);
            if amx_granted() {
                found.push(Isa::Amx);
            }
        }
    }
    found
}

#[cfg(target_arch = "aarch64")]
fn detect() -> Vec<Isa> {
    let mut found = vec![Isa::Portable];
    if std::arch::is_aarch64_feature_detected!("dotprod") {
        found.push(Isa::Neon);
    }
    found
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn detect() -> Vec<Isa> {
    vec![Isa::Portable]
}

/// Whether CPUID reports AMX-TILE and AMX-INT8 and Linux grants the tile state to this process.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn amx_granted() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    if __cpuid(0).eax < 7 {
        return false;
    }
    let edx = __cpuid_count(7, 0).edx;
    let (tile, int8) = (edx >> 24 & 1 == 1, edx >> 25 & 1 == 1);
    if !(tile && int8) {
        return false;
    }
    // SAFETY: arch_prctl with ARCH_REQ_XCOMP_PERM takes a feature number and no pointer; a kernel that does not know it
    // answers with an error.
    let status = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) };
    status == 0
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn amx_granted() -> bool {
    false
}
