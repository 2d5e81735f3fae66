//! The tile instructions of a rotation: outputs in tmm0 to tmm3 (`[tile of outputs][group]`), rotation in tmm4 and tmm5,
//! groups in tmm6 and tmm7.
//!
//! A step is 32 input channels by 32 outputs: the high parts of the rotation by the low ones of the groups, high by high and
//! low by high, in this order for each output. It is cut into [`SLOTS`] pieces with vector work in between: a piece relies
//! on the tiles that those before it have loaded. The rotation's are loaded with the hint that they are not needed again
//! soon: in a first-level cache they would take the place of the groups, which are.

use crate::kernels::cpu::tile_registers::TILE;
use std::arch::asm;

/// Input channels of a step.
pub(super) const DEPTH: usize = 32;
/// Pieces of a step.
pub(super) const SLOTS: usize = 6;

/// Bytes of the operand that a group becomes: `[B / 32][high, low][16 pairs of channels][16 lanes][2]`.
pub(super) const fn group_bytes(block: usize) -> usize {
    block / DEPTH * 2 * TILE
}

/// The operands of a step, and how many groups there are.
#[derive(Clone, Copy)]
pub(super) struct Step {
    /// `[high, low][2 tiles of outputs]`.
    pub(super) a: *const u8,
    /// `[high, low]` of each group.
    pub(super) b0: *const u8,
    pub(super) b1: *const u8,
    pub(super) two: bool,
}

impl Step {
    /// # Safety
    /// The tiles are configured and the operands are there.
    #[inline(always)]
    pub(super) unsafe fn slot<const SLOT: usize>(self) {
        let Self { a, b0, b1, two } = self;
        // SAFETY: by the caller's promise.
        unsafe {
            match (SLOT, two) {
                (0, true) => asm!(
                    "tileloadd tmm6, [{b0} + {s} + 1024]",
                    "tileloaddt1 tmm4, [{a} + {s}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{b1} + {s} + 1024]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    a = in(reg) a, b0 = in(reg) b0, b1 = in(reg) b1, s = in(reg) 64_usize, options(nostack, readonly)
                ),
                (1, true) => asm!(
                    "tileloaddt1 tmm5, [{a} + {s} + 1024]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    a = in(reg) a, s = in(reg) 64_usize, options(nostack, readonly)
                ),
                (2, true) => asm!(
                    "tileloadd tmm6, [{b0} + {s}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{b1} + {s}]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    b0 = in(reg) b0, b1 = in(reg) b1, s = in(reg) 64_usize, options(nostack, readonly)
                ),
                (3, true) => asm!("tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7", options(nostack, nomem)),
                (4, true) => asm!(
                    "tileloaddt1 tmm4, [{a} + {s} + 2048]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    a = in(reg) a, s = in(reg) 64_usize, options(nostack, readonly)
                ),
                (5, true) => asm!(
                    "tileloaddt1 tmm5, [{a} + {s} + 3072]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    a = in(reg) a, s = in(reg) 64_usize, options(nostack, readonly)
                ),
                (0, false) => asm!(
                    "tileloadd tmm6, [{b} + {s} + 1024]",
                    "tileloaddt1 tmm4, [{a} + {s}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    a = in(reg) a, b = in(reg) b0, s = in(reg) 64_usize, options(nostack, readonly)
                ),
                (1, false) => asm!(
                    "tileloaddt1 tmm5, [{a} + {s} + 1024]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    a = in(reg) a, s = in(reg) 64_usize, options(nostack, readonly)
                ),
                (2, false) => asm!(
                    "tileloadd tmm6, [{b} + {s}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    b = in(reg) b0, s = in(reg) 64_usize, options(nostack, readonly)
                ),
                (3, false) => asm!("tdpbf16ps tmm2, tmm5, tmm6", options(nostack, nomem)),
                (4, false) => asm!(
                    "tileloaddt1 tmm4, [{a} + {s} + 2048]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    a = in(reg) a, s = in(reg) 64_usize, options(nostack, readonly)
                ),
                _ => asm!(
                    "tileloaddt1 tmm5, [{a} + {s} + 3072]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    a = in(reg) a, s = in(reg) 64_usize, options(nostack, readonly)
                ),
            }
        }
    }

    /// Stores the sums `before` and does [`Self::slot`] 0 or 1 of new ones: a product follows each store, so that it is
    /// within reach when the sum before it is done.
    ///
    /// # Safety
    /// As [`Self::slot`] and [`Strip::store`].
    #[inline(always)]
    pub(super) unsafe fn begin<const SLOT: usize>(self, before: Option<&Strip>) {
        let Self { a, b0, b1, two } = self;
        // SAFETY: by the caller's promise.
        unsafe {
            match before {
                Some(before) if before.two && two => {
                    let (c0, c1) = (before.out, before.second());
                    if SLOT == 0 {
                        asm!(
                            "tilestored [{c0} + {s}], tmm0",
                            "tilezero tmm0",
                            "tileloadd tmm6, [{b0} + {s} + 1024]",
                            "tileloaddt1 tmm4, [{a} + {s}]",
                            "tdpbf16ps tmm0, tmm4, tmm6",
                            "tilestored [{c1} + {s}], tmm1",
                            "tilezero tmm1",
                            "tileloadd tmm7, [{b1} + {s} + 1024]",
                            "tdpbf16ps tmm1, tmm4, tmm7",
                            a = in(reg) a, b0 = in(reg) b0, b1 = in(reg) b1, c0 = in(reg) c0, c1 = in(reg) c1,
                            s = in(reg) 64_usize, options(nostack)
                        );
                    } else {
                        asm!(
                            "tilestored [{c0} + {s} + 1024], tmm2",
                            "tilezero tmm2",
                            "tileloaddt1 tmm5, [{a} + {s} + 1024]",
                            "tdpbf16ps tmm2, tmm5, tmm6",
                            "tilestored [{c1} + {s} + 1024], tmm3",
                            "tilezero tmm3",
                            "tdpbf16ps tmm3, tmm5, tmm7",
                            a = in(reg) a, c0 = in(reg) c0, c1 = in(reg) c1, s = in(reg) 64_usize, options(nostack)
                        );
                    }
                }
                _ => {
                    if SLOT == 0 {
                        if let Some(before) = before {
                            before.store();
                        }
                        asm!(
                            "tilezero tmm0",
                            "tilezero tmm1",
                            "tilezero tmm2",
                            "tilezero tmm3",
                            options(nostack, nomem)
                        );
                    }
                    self.slot::<SLOT>();
                }
            }
        }
    }
}

/// 32 outputs of one or two groups.
#[derive(Clone, Copy)]
pub(super) struct Strip {
    /// Of the first group, `[32][16 lanes]`; the second's lie a group behind.
    pub(super) out: *mut f32,
    pub(super) block: usize,
    pub(super) two: bool,
}

impl Strip {
    /// Those of the second group.
    #[inline(always)]
    pub(super) fn second(&self) -> *mut f32 {
        self.out.wrapping_add(self.block * 16)
    }

    /// # Safety
    /// The sums are in the configured tiles, and there is room for them.
    #[inline(always)]
    pub(super) unsafe fn store(&self) {
        // SAFETY: by the caller's promise.
        unsafe {
            asm!(
                "tilestored [{c} + {s}], tmm0",
                "tilestored [{c} + {s} + 1024], tmm2",
                c = in(reg) self.out, s = in(reg) 64_usize, options(nostack)
            );
            if self.two {
                asm!(
                    "tilestored [{c} + {s}], tmm1",
                    "tilestored [{c} + {s} + 1024], tmm3",
                    c = in(reg) self.second(), s = in(reg) 64_usize, options(nostack)
                );
            }
        }
    }
}
