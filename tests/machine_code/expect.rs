//! What each kernel's machine code must hold.

use super::sass::Routine;
use duquant::kernels::cuda::{Arch, Kernel};

/// Of the entries that start with `entry`, on `archs`.
pub(crate) struct Expectation {
    pub(crate) entry: &'static str,
    pub(crate) archs: &'static [Arch],
    /// Whether it is of this variant.
    pub(crate) when: fn(&Kernel) -> bool,
    /// What the main loop is for: it is the innermost loop with the most of this. None for kernels whose work is no loop.
    pub(crate) work: Option<&'static str>,
    /// What else the main loop holds.
    pub(crate) in_loop: &'static [&'static str],
    /// What must be somewhere.
    pub(crate) anywhere: &'static [&'static str],
    /// What must be nowhere.
    pub(crate) nowhere: &'static [&'static str],
}

/// Loads and copies of 16 bytes from global memory.
pub(crate) const WIDE: &str = "LDG*.128|LDGSTS*.128|UBLKCP|UTMALDG";

const INT4: &[Arch] = &[Arch::Sm80, Arch::Sm86, Arch::Sm89];

fn always(_: &Kernel) -> bool {
    true
}

fn has(kernel: &Kernel, define: &str, value: u32) -> bool {
    kernel.defines.iter().any(|&(name, found)| name == define && found == value)
}

/// Activations of 4 bits: `FORM_FRAGMENTS4` of `types.cuh`.
fn four_bits(kernel: &Kernel) -> bool {
    has(kernel, "FORM", 0)
}

/// Activations of 8 bits: `FORM_FRAGMENTS8`.
fn eight_bits(kernel: &Kernel) -> bool {
    has(kernel, "FORM", 1)
}

/// The first that fits counts. A kernel that none fits is an error: say here what it must be.
pub(crate) const EXPECTATIONS: &[Expectation] = &[
    Expectation {
        entry: "rms_norm",
        archs: &Arch::ALL,
        when: always,
        work: Some("LDG*.128"),
        in_loop: &[],
        anywhere: &["STG*.128", "SHFL.BFLY", "MUFU.RSQ"],
        nowhere: &["IMMA", "HMMA"],
    },
    Expectation {
        entry: "silu_mul_rows",
        archs: &Arch::ALL,
        when: always,
        work: Some("LDG*.128"),
        in_loop: &["STG*.128", "MUFU.EX2"],
        anywhere: &[],
        nowhere: &["IMMA", "HMMA", "BAR"],
    },
    // The native INT4 instruction, fed from shared memory while the copies of later stages run.
    Expectation {
        entry: "gemm_w4a4_tiled",
        archs: INT4,
        when: four_bits,
        work: Some("IMMA.16864.U4.U4"),
        in_loop: &["LDS.128", "LDGSTS*.128", "BAR.SYNC"],
        anywhere: &["STG*.128"],
        nowhere: &["IMMA.16832", "HMMA"],
    },
    Expectation {
        entry: "gemm_w4a4_tiled",
        archs: INT4,
        when: eight_bits,
        work: Some("IMMA.16832.U8.U8"),
        in_loop: &["LDS.128", "LDGSTS*.128", "BAR.SYNC"],
        anywhere: &["STG*.128"],
        nowhere: &["IMMA.16864", "HMMA"],
    },
    // Weights from global memory into registers, past the first-level cache.
    Expectation {
        entry: "gemm_w4a4_stream",
        archs: INT4,
        when: four_bits,
        work: Some("IMMA.16864.U4.U4"),
        in_loop: &["LDG*.NA.128"],
        anywhere: &["RED", "MEMBAR*.GPU"],
        nowhere: &["IMMA.16832", "HMMA"],
    },
    Expectation {
        entry: "gemm_w4a4_stream",
        archs: INT4,
        when: eight_bits,
        work: Some("IMMA.16832.U8.U8"),
        in_loop: &["LDG*.NA.128"],
        anywhere: &["RED", "MEMBAR*.GPU"],
        nowhere: &["IMMA.16864", "HMMA"],
    },
    // Bulk copies by one thread, weights unpacked from 16-byte reads, multiplied from registers.
    Expectation {
        entry: "gemm_w4a4_sm90",
        archs: &[Arch::Sm90a],
        when: always,
        work: Some("IGMMA*.U8.U8"),
        in_loop: &["LDS.128", "WARPGROUP.ARRIVE", "WARPGROUP.DEPBAR", "SYNCS.PHASECHK"],
        anywhere: &["UBLKCP", "FENCE.VIEW.ASYNC", "REDG", "MEMBAR*.GPU"],
        nowhere: &["IMMA", "HMMA"],
    },
    // Nothing but the instruction.
    Expectation {
        entry: "ceiling_integer",
        archs: INT4,
        when: always,
        work: Some("IMMA.16864.U4.U4"),
        in_loop: &[],
        anywhere: &[],
        nowhere: &["IMMA.16832", "HMMA"],
    },
    Expectation {
        entry: "ceiling_integer_sm90",
        archs: &[Arch::Sm90a],
        when: always,
        work: Some("IGMMA*.U8.U8"),
        in_loop: &[],
        anywhere: &["UBLKCP"],
        nowhere: &["IMMA", "HMMA"],
    },
    // The rotations on tensor cores, their operand by transposed loads; the gather is in the stores between them.
    Expectation {
        entry: "transform_quantize",
        archs: &Arch::ALL,
        when: always,
        work: Some("HMMA.16816.F32"),
        in_loop: &[],
        anywhere: &["LDSM*.MT88", "LDG*.128", "STG*.128"],
        nowhere: &["IMMA"],
    },
    Expectation {
        entry: "quantize_tokens",
        archs: &Arch::ALL,
        when: always,
        work: Some("LDG*.128"),
        in_loop: &[],
        anywhere: &["SHFL.BFLY", "REDUX"],
        nowhere: &["IMMA", "HMMA"],
    },
    // A warp a head of a token: no loop, and no barrier.
    Expectation {
        entry: "rope_hadamard_quantize",
        archs: &Arch::ALL,
        when: always,
        work: None,
        in_loop: &[],
        anywhere: &["LDG*.128", "SHFL.BFLY"],
        nowhere: &["IMMA", "HMMA", "BAR"],
    },
    // Eight numbers a thread, and no loop.
    Expectation {
        entry: "embedding",
        archs: &Arch::ALL,
        when: always,
        work: None,
        in_loop: &[],
        anywhere: &["LDG*.128", "STG*.128"],
        nowhere: &["IMMA", "HMMA", "BAR"],
    },
    Expectation {
        entry: "argmax",
        archs: &Arch::ALL,
        when: always,
        work: Some("LDG*.128"),
        in_loop: &[],
        anywhere: &["SHFL.BFLY", "ATOMG"],
        nowhere: &["IMMA", "HMMA"],
    },
    // Scores and sums on tensor cores, keys and values by copies ahead of their use.
    Expectation {
        entry: "attention",
        archs: &Arch::ALL,
        when: always,
        work: Some("IMMA|HMMA"),
        in_loop: &[],
        anywhere: &["LDGSTS*.128|LDG*.128", "MUFU.EX2"],
        nowhere: &[],
    },
];

/// Instructions that compute on tensor cores.
pub(crate) const MATRIX: &str = "IMMA|HMMA|IGMMA|HGMMA|QGMMA";

impl Expectation {
    /// What is expected of a kernel.
    pub(crate) fn of(kernel: &Kernel, arch: Arch) -> Option<&'static Self> {
        EXPECTATIONS
            .iter()
            .find(|one| kernel.entry.starts_with(one.entry) && one.archs.contains(&arch) && (one.when)(kernel))
    }

    /// What is missing in the code, in words.
    pub(crate) fn faults(&self, routine: &Routine) -> Vec<String> {
        let mut faults = Vec::new();
        let main = self.work.and_then(|work| routine.main_loop(work));
        match (&main, self.work) {
            (None, Some(work)) => faults.push(format!("no loop holds {work}")),
            (Some(main), _) => {
                let missing = self.in_loop.iter().filter(|pattern| routine.count(pattern, &main.body) == 0);
                faults.extend(missing.map(|pattern| format!("the main loop has no {pattern}")));
            }
            (None, None) => {}
        }
        let missing = self.anywhere.iter().filter(|pattern| routine.count_all(pattern) == 0);
        faults.extend(missing.map(|pattern| format!("there is no {pattern}")));
        let present = self.nowhere.iter().chain(&["LDL", "STL"]).filter(|pattern| routine.count_all(pattern) > 0);
        faults.extend(present.map(|pattern| format!("there is {pattern}")));
        faults
    }
}
