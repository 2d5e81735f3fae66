use super::super::{Address, Error};
use super::context::Context;
use super::recording::without_captures;
use super::stream::OwnedStream;
use cudarc::driver::sys::{CUdevice_attribute, CUresult};
use std::ffi::c_int;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a device's memory is used for, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryUse {
    /// What is allocated through this device now.
    pub current: u64,
    /// The most that was allocated at once, since the start or the last [`super::Driver::reset_peak`].
    pub peak: u64,
    /// What the driver has left, for all processes.
    pub free: u64,
    /// What the device has.
    pub total: u64,
}

/// The device's own pool of memory, or plain allocations where it has none, with counters.
pub(super) struct Pool {
    context: Arc<Context>,
    /// The stream of allocations in the pool; nothing else runs on it. None without pools.
    stream: Option<OwnedStream>,
    current: AtomicU64,
    peak: AtomicU64,
}

impl Pool {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, Error> {
        let pools = context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? != 0;
        let stream = if pools { Some(OwnedStream::new(context)?) } else { None };
        Ok(Self { context: Arc::clone(context), stream, current: AtomicU64::new(0), peak: AtomicU64::new(0) })
    }

    /// Memory that any stream may use from now on.
    pub(super) fn allocate(&self, what: &str, bytes: u64) -> Result<Address, Error> {
        const OUT_OF_MEMORY: c_int = CUresult::CUDA_ERROR_OUT_OF_MEMORY as c_int;
        let exhausted = || Error::OutOfMemory { what: what.to_owned(), bytes };
        // The driver gives nothing for an empty operand; the kernels want an address.
        let size = usize::try_from(bytes.max(16)).map_err(|_| exhausted())?;
        let _current = self.context.enter()?;
        let (api, mut address) = (self.context.api, 0);
        // SAFETY: an address to write to; the stream is this pool's.
        let code = unsafe {
            match &self.stream {
                Some(stream) => api.cuMemAllocAsync(&raw mut address, size, stream.handle()),
                None => api.cuMemAlloc_v2(&raw mut address, size),
            }
        };
        if code == OUT_OF_MEMORY {
            return Err(exhausted());
        }
        api.check(format!("allocating {bytes} bytes for {what}"), code)?;
        if let Some(stream) = &self.stream {
            // Allocated in the order of its own stream; once that is waited for, it is there for all streams.
            // SAFETY: the stream is this pool's.
            let code = unsafe { api.cuStreamSynchronize(stream.handle()) };
            if let Err(error) = api.check(format!("waiting for {bytes} bytes for {what}"), code) {
                // SAFETY: nobody else has the address.
                let _ = unsafe { api.cuMemFreeAsync(address, stream.handle()) };
                return Err(error);
            }
        }
        let now = self.current.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(now, Ordering::Relaxed);
        Ok(address)
    }

    /// Gives memory back once everything enqueued on any stream is done.
    pub(super) fn free(&self, address: Address, bytes: u64) {
        let Ok(_current) = self.context.enter() else { return };
        let api = self.context.api;
        // SAFETY: the address is an allocation's, which its owner gives up. The pool frees in the order of its stream alone, so
        // the others are waited for; the plain call waits by itself. After a failed kernel all of them fail and the memory goes
        // with the context.
        let _ = unsafe {
            match &self.stream {
                Some(stream) => {
                    let _ = without_captures(|| api.cuCtxSynchronize());
                    api.cuMemFreeAsync(address, stream.handle())
                }
                None => without_captures(|| api.cuMemFree_v2(address)),
            }
        };
        self.current.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn usage(&self) -> Result<MemoryUse, Error> {
        let _current = self.context.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: two numbers to write to.
        let code = unsafe { self.context.api.cuMemGetInfo_v2(&raw mut free, &raw mut total) };
        self.context.check("cuMemGetInfo", code)?;
        let (current, peak) = (self.current.load(Ordering::Relaxed), self.peak.load(Ordering::Relaxed));
        Ok(MemoryUse { current, peak, free: free as u64, total: total as u64 })
    }

    pub(super) fn reset_peak(&self) {
        self.peak.store(self.current.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}
