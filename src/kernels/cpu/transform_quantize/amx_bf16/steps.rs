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
        // SAFETY: by the caller's promise.
        unsafe {
            self.first::<SLOT>();
            if self.two {
                self.second::<SLOT>();
            }
        }
    }

    /// [`Self::slot`] 0 or 1 of new sums in the place of those `before`, which are stored: a product follows each store, so
    /// that it is within reach when the sum before it is done.
    ///
    /// # Safety
    /// As [`Self::slot`] and [`Strip::store`].
    #[inline(always)]
    pub(super) unsafe fn begin<const SLOT: usize>(self, before: Option<&Strip>) {
        // SAFETY: by the caller's promise.
        unsafe {
            if let Some(before) = before {
                before.store_first::<SLOT>();
            }
            if SLOT == 0 {
                asm!("tilezero tmm0", options(nostack, nomem));
            } else {
                asm!("tilezero tmm2", options(nostack, nomem));
            }
            self.first::<SLOT>();
            if let Some(before) = before {
                before.store_second::<SLOT>();
            }
            if SLOT == 0 {
                asm!("tilezero tmm1", options(nostack, nomem));
            } else {
                asm!("tilezero tmm3", options(nostack, nomem));
            }
            if self.two {
                self.second::<SLOT>();
            }
        }
    }

    /// The tiles that a slot brings in for the first group or both, and the first group's product.
    ///
    /// # Safety
    /// As [`Self::slot`].
    #[inline(always)]
    unsafe fn first<const SLOT: usize>(self) {
        let (a, b, s) = (self.a, self.b0, 64_usize);
        // SAFETY: by the caller's promise.
        unsafe {
            match SLOT {
                0 => asm!(
                    "tileloadd tmm6, [{b} + {s} + 1024]",
                    "tileloaddt1 tmm4, [{a} + {s}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    a = in(reg) a, b = in(reg) b, s = in(reg) s, options(nostack, readonly)
                ),
                1 => asm!(
                    "tileloaddt1 tmm5, [{a} + {s} + 1024]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    a = in(reg) a, s = in(reg) s, options(nostack, readonly)
                ),
                2 => asm!(
                    "tileloadd tmm6, [{b} + {s}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    b = in(reg) b, s = in(reg) s, options(nostack, readonly)
                ),
                3 => asm!("tdpbf16ps tmm2, tmm5, tmm6", options(nostack, nomem)),
                4 => asm!(
                    "tileloaddt1 tmm4, [{a} + {s} + 2048]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    a = in(reg) a, s = in(reg) s, options(nostack, readonly)
                ),
                _ => asm!(
                    "tileloaddt1 tmm5, [{a} + {s} + 3072]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    a = in(reg) a, s = in(reg) s, options(nostack, readonly)
                ),
            }
        }
    }

    /// The second group's tile, where the slot brings one in, and its product.
    ///
    /// # Safety
    /// As [`Self::slot`].
    #[inline(always)]
    unsafe fn second<const SLOT: usize>(self) {
        let (b, s) = (self.b1, 64_usize);
        // SAFETY: by the caller's promise.
        unsafe {
            match SLOT {
                0 => asm!(
                    "tileloadd tmm7, [{b} + {s} + 1024]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    b = in(reg) b, s = in(reg) s, options(nostack, readonly)
                ),
                2 => asm!(
                    "tileloadd tmm7, [{b} + {s}]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    b = in(reg) b, s = in(reg) s, options(nostack, readonly)
                ),
                4 => asm!("tdpbf16ps tmm1, tmm4, tmm7", options(nostack, nomem)),
                _ => asm!("tdpbf16ps tmm3, tmm5, tmm7", options(nostack, nomem)),
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
            self.store_first::<0>();
            self.store_second::<0>();
            self.store_first::<1>();
            self.store_second::<1>();
        }
    }

    /// Half `HALF` of the outputs, of the first group.
    #[inline(always)]
    unsafe fn store_first<const HALF: usize>(&self) {
        let (c, s) = (self.out, 64_usize);
        // SAFETY: by the caller's promise.
        unsafe {
            match HALF {
                0 => asm!("tilestored [{c} + {s}], tmm0", c = in(reg) c, s = in(reg) s, options(nostack)),
                _ => asm!("tilestored [{c} + {s} + 1024], tmm2", c = in(reg) c, s = in(reg) s, options(nostack)),
            }
        }
    }

    /// Half `HALF` of the outputs, of the second group where there is one.
    #[inline(always)]
    unsafe fn store_second<const HALF: usize>(&self) {
        let (c, s) = (self.second(), 64_usize);
        // SAFETY: by the caller's promise.
        unsafe {
            match HALF {
                _ if !self.two => {}
                0 => asm!("tilestored [{c} + {s}], tmm1", c = in(reg) c, s = in(reg) s, options(nostack)),
                _ => asm!("tilestored [{c} + {s} + 1024], tmm3", c = in(reg) c, s = in(reg) s, options(nostack)),
            }
        }
    }
}
