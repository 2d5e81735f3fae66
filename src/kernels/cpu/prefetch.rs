//! Memory that will be read soon.

use super::aligned::LINE;

/// Has the cache line at `x` brought near, where the machine can be asked to. It need not be there.
#[inline(always)]
pub(super) fn prefetch_line<T>(x: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a hint, which touches nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(x.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = x;
}

/// [`prefetch_line`] of every line of `x`.
#[inline(always)]
pub(super) fn prefetch<T>(x: &[T]) {
    for at in (0..size_of_val(x)).step_by(LINE) {
        prefetch_line(x.as_ptr().cast::<u8>().wrapping_add(at));
    }
}
