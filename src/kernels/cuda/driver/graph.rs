use super::super::{Error, Stream, checks::unsupported};
use super::Driver;
use super::context::Context;
use super::recording::Recording;
use super::stream::raw;
use cudarc::driver::sys::{CUgraph, CUgraphExec, CUstreamCaptureMode};
use std::fmt;
use std::sync::Arc;

/// Enqueued work that is recorded once and launched many times, at the cost of one launch.
///
/// What the recorded kernels read and write must stay where it is as long as the graph is launched, and the [`Driver`] or the plans
/// must keep the kernels loaded.
pub struct Graph {
    context: Arc<Context>,
    executable: CUgraphExec,
}

// SAFETY: the driver orders launches; an executable graph is changed by nobody.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Graph {
    /// Records what `enqueue` enqueues on `stream`, without running it. It may neither allocate, free, wait nor read, nor
    /// wait for a thread that does, since frees and reads of other threads wait for the capture's end. Planning comes before, and
    /// so do the first [`Device::matrix_product`](super::super::Device::matrix_product) of a shape and the first on the stream.
    ///
    /// # Errors
    /// What `enqueue` gives. [`Error::Kernel`] for the legacy default stream, which cannot be captured; [`Error::Driver`] for
    /// what cannot be in a graph. The stream is as before in all cases.
    pub fn capture<E: From<Error>>(
        driver: &Driver,
        stream: Stream,
        enqueue: impl FnOnce() -> Result<(), E>,
    ) -> Result<Self, E> {
        if stream == Stream::DEFAULT {
            return unsupported("stream", "one of its own, for capture", "the legacy default").map_err(E::from);
        }
        let context = &driver.context;
        // Current until the end, so that nothing stands in the way of ending the capture.
        let _current = context.enter()?;
        let _recording = Recording::begin();
        let capture = Capture::begin(context, stream)?;
        let enqueued = enqueue();
        let graph = capture.end();
        // What the caller says went wrong tells more than that the capture failed.
        enqueued?;
        Ok(Self::instantiate(context, &graph?)?)
    }

    fn instantiate(context: &Arc<Context>, graph: &Recorded<'_>) -> Result<Self, Error> {
        let mut executable = std::ptr::null_mut();
        // SAFETY: a handle to write to; the graph is alive until after this call.
        let code = unsafe { context.api.cuGraphInstantiateWithFlags(&raw mut executable, graph.handle, 0) };
        context.check("cuGraphInstantiate", code)?;
        Ok(Self { context: Arc::clone(context), executable })
    }

    /// Enqueues the moving of the graph to the device, so that the first launch costs as little as the next.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn upload(&self, stream: Stream) -> Result<(), Error> {
        let _current = self.context.enter()?;
        // SAFETY: the graph is alive, and the stream as its owner says.
        let code = unsafe { self.context.api.cuGraphUpload(self.executable, raw(stream)) };
        self.context.check("cuGraphUpload", code)
    }

    /// Enqueues everything that was recorded.
    ///
    /// # Safety
    /// The operands of what was recorded, and the driver or the plans that it came from, must be alive until it has run.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub unsafe fn launch(&self, stream: Stream) -> Result<(), Error> {
        let _current = self.context.enter()?;
        // SAFETY: the graph is alive; the caller vouches for the rest.
        let code = unsafe { self.context.api.cuGraphLaunch(self.executable, raw(stream)) };
        self.context.check("cuGraphLaunch", code)
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Graph({:p})", self.executable)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let Ok(_current) = self.context.enter() else { return };
        // SAFETY: the handle is this value's. A launch under way runs to its end.
        let _ = unsafe { self.context.api.cuGraphExecDestroy(self.executable) };
    }
}

/// A stream that records; it stops when this is dropped, also by a panic of the caller's.
struct Capture<'a> {
    context: &'a Context,
    stream: Stream,
    ended: bool,
}

impl<'a> Capture<'a> {
    fn begin(context: &'a Context, stream: Stream) -> Result<Self, Error> {
        // Other threads may allocate meanwhile; this one may not.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is as its owner says.
        let code = unsafe { context.api.cuStreamBeginCapture_v2(raw(stream), mode) };
        context.check("cuStreamBeginCapture", code)?;
        Ok(Self { context, stream, ended: false })
    }

    fn end(mut self) -> Result<Recorded<'a>, Error> {
        self.ended = true;
        self.stop()
    }

    fn stop(&self) -> Result<Recorded<'a>, Error> {
        let mut recorded = Recorded { context: self.context, handle: std::ptr::null_mut() };
        // SAFETY: the stream records since `begin`; a handle to write to, null where the capture is spoilt.
        let code = unsafe { self.context.api.cuStreamEndCapture(raw(self.stream), &raw mut recorded.handle) };
        self.context.check("cuStreamEndCapture", code)?;
        Ok(recorded)
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.stop();
        }
    }
}

struct Recorded<'a> {
    context: &'a Context,
    handle: CUgraph,
}

impl Drop for Recorded<'_> {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: the handle is this value's.
            let _ = unsafe { self.context.api.cuGraphDestroy(self.handle) };
        }
    }
}
