use super::super::{Error, Stream};
use super::Driver;
use super::context::Context;
use cudarc::driver::sys::{CUevent, CUstream, CUstream_flags};
use std::ffi::c_int;
use std::fmt;
use std::sync::Arc;

pub(super) fn raw(stream: Stream) -> CUstream {
    stream.raw().cast()
}

/// A stream for callers without one, destroyed when dropped. It does not wait for the legacy default stream.
pub struct OwnedStream {
    context: Arc<Context>,
    handle: CUstream,
}

// SAFETY: a stream may be used from any thread, and from several.
unsafe impl Send for OwnedStream {}
// SAFETY: as above.
unsafe impl Sync for OwnedStream {}

impl OwnedStream {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, Error> {
        let mut handle = std::ptr::null_mut();
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        let _current = context.enter()?;
        // SAFETY: a handle to write to.
        context.check("cuStreamCreate", unsafe { context.api.cuStreamCreate(&raw mut handle, flags) })?;
        Ok(Self { context: Arc::clone(context), handle })
    }

    /// The stream, borrowed.
    #[must_use]
    pub fn stream(&self) -> Stream {
        Stream::from_raw(self.handle.cast())
    }

    pub(super) fn handle(&self) -> CUstream {
        self.handle
    }
}

impl fmt::Debug for OwnedStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OwnedStream({:p})", self.handle)
    }
}

impl Drop for OwnedStream {
    fn drop(&mut self) {
        let Ok(_current) = self.context.enter() else { return };
        // SAFETY: the handle is this value's. Work that was enqueued still runs to its end.
        let _ = unsafe { self.context.api.cuStreamDestroy_v2(self.handle) };
    }
}

/// A point in a stream's work, for timing.
pub struct Event {
    context: Arc<Context>,
    handle: CUevent,
}

// SAFETY: as for streams.
unsafe impl Send for Event {}
// SAFETY: as for streams.
unsafe impl Sync for Event {}

impl Event {
    /// An event that is not recorded yet.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn new(driver: &Driver) -> Result<Self, Error> {
        let context = &driver.context;
        let mut handle = std::ptr::null_mut();
        let _current = context.enter()?;
        // SAFETY: a handle to write to; flags 0 is an event with a time.
        context.check("cuEventCreate", unsafe { context.api.cuEventCreate(&raw mut handle, 0) })?;
        Ok(Self { context: Arc::clone(context), handle })
    }

    /// Enqueues the event: it happens when what was enqueued before on the stream is done.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn record(&self, stream: Stream) -> Result<(), Error> {
        self.call("cuEventRecord", || {
            // SAFETY: the event is alive, and the stream as its owner says.
            unsafe { self.context.api.cuEventRecord(self.handle, raw(stream)) }
        })
    }

    /// Waits for the event and gives the milliseconds since `start` happened.
    ///
    /// # Errors
    /// [`Error::Driver`], also where one of them was never recorded or what ran in between failed.
    pub fn elapsed_ms(&self, start: &Self) -> Result<f32, Error> {
        let mut milliseconds = 0.0;
        self.call("cuEventSynchronize", || {
            // SAFETY: the event is alive.
            unsafe { self.context.api.cuEventSynchronize(self.handle) }
        })?;
        self.call("cuEventElapsedTime", || {
            // SAFETY: both events are alive; a number to write to.
            unsafe { self.context.api.cuEventElapsedTime(&raw mut milliseconds, start.handle, self.handle) }
        })?;
        Ok(milliseconds)
    }

    fn call(&self, what: &str, function: impl FnOnce() -> c_int) -> Result<(), Error> {
        let _current = self.context.enter()?;
        self.context.check(what, function())
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Event({:p})", self.handle)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let Ok(_current) = self.context.enter() else { return };
        // SAFETY: the handle is this value's.
        let _ = unsafe { self.context.api.cuEventDestroy_v2(self.handle) };
    }
}
