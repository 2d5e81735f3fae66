//! The tile instructions of a rotation: outputs in tmm0 to tmm3 (`[tile of outputs][group]`), rotation in tmm4 and tmm5,
//! groups in tmm6 and tmm7.
//!
//! A step is 32 input channels by 32 outputs. It is cut into pieces of two products with vector work in between: a piece relies on the
//! tiles that those before it have loaded. Where numbers are two bfloat16 each (`FINE`) there are six: the high parts of the rotation
//! by the low ones of the groups, high by high and low by high, in this order for each output; else two.

use crate::kernels::cpu::tile_registers::TILE;
use std::arch::asm;

/// Input channels of a step.
pub(super) const DEPTH: usize = 32;

/// bfloat16 that stand for a number.
pub(super) const fn parts(fine: bool) -> usize {
    if fine { 2 } else { 1 }
}

/// Bytes of the operand that a group becomes: `[B / 32][high, low][16 pairs of channels][16 lanes][2]`, or high parts alone.
pub(super) const fn group_bytes(block: usize, fine: bool) -> usize {
    block / DEPTH * parts(fine) * TILE
}

/// Begins new sums with zeros.
///
/// # Safety
/// The tiles are configured.
#[inline(always)]
pub(super) unsafe fn zero() {
    // SAFETY: by the caller's promise.
    unsafe { asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem)) };
}

/// The operands of a step, of one group or `TWO`.
#[derive(Clone, Copy)]
pub(super) struct Step<const TWO: bool, const FINE: bool> {
    /// `[high, low][2 tiles of outputs]`, or high parts alone.
    pub(super) a: *const u8,
    /// `[high, low]` of each group, or the high part.
    pub(super) b0: *const u8,
    pub(super) b1: *const u8,
}

impl<const TWO: bool, const FINE: bool> Step<TWO, FINE> {
    /// The whole step.
    ///
    /// # Safety
    /// The tiles are configured and the operands are there.
    #[inline(always)]
    pub(super) unsafe fn all(self) {
        // SAFETY: by the caller's promise.
        unsafe {
            self.first::<0>();
            self.second::<0>();
            self.first::<1>();
            self.second::<1>();
            if !FINE {
                return;
            }
            self.first::<2>();
            self.second::<2>();
            self.first::<3>();
            self.second::<3>();
            self.first::<4>();
            self.second::<4>();
            self.first::<5>();
            self.second::<5>();
        }
    }

    /// The tiles that piece `PIECE` brings in for the first group or both, and the first group's product.
    ///
    /// # Safety
    /// As [`Self::all`].
    #[inline(always)]
    pub(super) unsafe fn first<const PIECE: usize>(self) {
        let (a, b, s) = (self.a, self.b0, 64_usize);
        // SAFETY: by the caller's promise.
        unsafe {
            match PIECE {
                0 if !FINE => asm!(
                    "tileloadd tmm6, [{b} + {s}]",
                    "tileloadd tmm4, [{a} + {s}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    a = in(reg) a, b = in(reg) b, s = in(reg) s, options(nostack, readonly)
                ),
                1 if !FINE => asm!(
                    "tileloadd tmm5, [{a} + {s} + 1024]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    a = in(reg) a, s = in(reg) s, options(nostack, readonly)
                ),
                // From here on the rotation's are loaded with the hint that they are not needed again soon: in a first-level cache,
                // into which they do not fit, they would take the place of the groups, which are.
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

    /// The second group's tile, where the piece brings one in, and its product.
    ///
    /// # Safety
    /// As [`Self::all`].
    #[inline(always)]
    pub(super) unsafe fn second<const PIECE: usize>(self) {
        if !TWO {
            return;
        }
        let (b, s) = (self.b1, 64_usize);
        // SAFETY: by the caller's promise.
        unsafe {
            match PIECE {
                0 if !FINE => asm!(
                    "tileloadd tmm7, [{b} + {s}]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    b = in(reg) b, s = in(reg) s, options(nostack, readonly)
                ),
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
        let (c, s) = (self.out, 64_usize);
        // SAFETY: by the caller's promise.
        unsafe {
            asm!(
                "tilestored [{c} + {s}], tmm0",
                "tilestored [{c} + {s} + 1024], tmm2",
                c = in(reg) c, s = in(reg) s, options(nostack)
            );
            if self.two {
                asm!(
                    "tilestored [{c} + {s}], tmm1",
                    "tilestored [{c} + {s} + 1024], tmm3",
                    c = in(reg) self.second(), s = in(reg) s, options(nostack)
                );
            }
        }
    }
}
