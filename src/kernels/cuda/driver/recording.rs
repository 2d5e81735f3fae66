//! Captures, and waits for a whole context, keep out of each other's way: the driver fails such a wait while any stream of the
//! context records, in whichever thread, and spoils the capture.

use std::cell::Cell;
use std::sync::{PoisonError, RwLock, RwLockWriteGuard};

/// Written by who records, read by who waits: waits may overlap.
static RECORDING: RwLock<()> = RwLock::new(());

thread_local! {
    static MINE: Cell<bool> = const { Cell::new(false) };
}

/// A capture of this thread, as long as it lives.
pub(super) struct Recording {
    /// None inside of another.
    outer: Option<RwLockWriteGuard<'static, ()>>,
}

impl Recording {
    /// Begins when the waits of other threads are over.
    pub(super) fn begin() -> Self {
        let outer = (!MINE.get()).then(|| RECORDING.write().unwrap_or_else(PoisonError::into_inner));
        MINE.set(true);
        Self { outer }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        MINE.set(self.outer.is_none());
    }
}

/// Runs `wait` while no other thread records. In a thread that records it is the driver that refuses.
pub(super) fn without_captures<T>(wait: impl FnOnce() -> T) -> T {
    let _none = (!MINE.get()).then(|| RECORDING.read().unwrap_or_else(PoisonError::into_inner));
    wait()
}
