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

fn always(_: &Kernel) -> bool {
    true
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
