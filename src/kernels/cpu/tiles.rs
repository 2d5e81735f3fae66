use super::aligned::{LINE, line_offset};
use rayon::prelude::*;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A value that begins on a cache line.
#[cfg(target_arch = "x86_64")]
#[repr(C, align(64))]
pub(super) struct Line<T>(pub(super) T);

/// Slack in `f32` that a workspace needs so that each job's part can begin on a cache line.
const SLACK: usize = LINE / size_of::<f32>();

/// Length of a workspace for `jobs` jobs of `per_job` values at a time, [`for_each_tile`]'s.
pub(super) fn workspace_len(per_job: usize, tiles: usize) -> usize {
    let jobs = rayon::current_num_threads().min(tiles).max(1);
    jobs * per_job.next_multiple_of(SLACK) + SLACK
}

/// Length of the smallest workspace that [`for_each_tile`] takes.
pub(super) fn least_workspace(per_job: usize) -> usize {
    per_job.next_multiple_of(SLACK) + SLACK
}

/// Runs `work(tile, scratch)` for each of `tiles`, the last first (with causal attention they are the longest), on as
/// many threads as there is workspace for; on this thread alone when `parallel` is false. `scratch` has `per_job` values
/// on a cache line, with anything in them. Which thread runs a tile changes nothing in its result.
pub(super) fn for_each_tile(
    workspace: &mut [f32],
    per_job: usize,
    tiles: usize,
    parallel: bool,
    work: impl Fn(usize, &mut [f32]) + Sync,
) {
    let start = line_offset(workspace).min(workspace.len());
    let workspace = &mut workspace[start..];
    let step = per_job.next_multiple_of(SLACK).max(1);
    let jobs = (workspace.len() / step).min(tiles);
    if !parallel || jobs <= 1 {
        for tile in (0..tiles).rev() {
            work(tile, &mut workspace[..per_job]);
        }
        return;
    }
    let jobs = jobs.min(rayon::current_num_threads());
    let next = AtomicUsize::new(0);
    workspace[..jobs * step].par_chunks_exact_mut(step).for_each(|scratch| {
        loop {
            let claimed = next.fetch_add(1, Ordering::Relaxed);
            if claimed >= tiles {
                return;
            }
            work(tiles - 1 - claimed, &mut scratch[..per_job]);
        }
    });
}

/// A slice whose parts several tiles write at once.
pub(super) struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out parts only through `part`, whose caller promises that no two overlap.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub(super) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), life: PhantomData }
    }

    /// Where element `at` lies, were it there.
    pub(super) fn address(&self, at: usize) -> *const T {
        self.start.wrapping_add(at)
    }

    /// `len` elements from `start` on.
    ///
    /// # Safety
    /// While the part lives, no other part overlaps it.
    #[allow(clippy::mut_from_ref, reason = "parts are disjoint by the caller's promise")]
    pub(super) unsafe fn part(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start, "part outside the slice");
        // SAFETY: inside the slice, and not aliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}
