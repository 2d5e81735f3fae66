//! The tile registers of AMX. The compiler never uses them, so that they keep their contents from one `asm!` to the next.

use super::tiles::Line;
use std::arch::asm;

/// Bytes of a tile: 16 rows of 64.
pub(super) const TILE: usize = 1024;

/// What `ldtilecfg` reads: palette 1, every tile 16 rows of 64 bytes.
static CONFIG: Line<[u8; 64]> = {
    let mut config = [0_u8; 64];
    config[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        config[16 + 2 * tile] = 64;
        config[48 + tile] = 16;
        tile += 1;
    }
    Line(config)
};

/// Makes all eight registers tiles of 16 rows of 64 bytes, on this thread, until [`release`].
///
/// # Safety
/// AMX is granted to this process: [`super::Isa::Amx`] is available.
#[inline(always)]
pub(super) unsafe fn configure() {
    // SAFETY: the configuration is 64 readable bytes of palette 1.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, readonly)) };
}

/// Frees the registers that [`configure`] took: what is left in them would be saved at every switch of threads.
///
/// # Safety
/// As [`configure`].
#[inline(always)]
pub(super) unsafe fn release() {
    // SAFETY: by the caller's promise.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
}
