use super::super::{Arch, Chip, Error};
use super::api::Api;
use cudarc::driver::sys::{CUcontext, CUdevice, CUdevice_attribute as Attribute};
use std::ffi::{CStr, c_char, c_int};
use std::marker::PhantomData;

/// A CUDA context: the device's primary one, retained, or one of a host that owns it.
pub(super) struct Context {
    pub(super) api: &'static Api,
    raw: CUcontext,
    device: CUdevice,
    retained: bool,
}

// SAFETY: a context may be current in any thread, and in several; the driver's functions take locks of their own.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Retains the primary context of device `ordinal`.
    pub(super) fn primary(ordinal: usize) -> Result<Self, Error> {
        let api = start(ordinal)?;
        let mut count = 0;
        // SAFETY: a number to write to.
        api.check("cuDeviceGetCount", unsafe { api.cuDeviceGetCount(&raw mut count) })?;
        let count = count.max(0) as usize;
        if ordinal >= count {
            return Err(Error::NoDevice { ordinal, count });
        }
        let (mut device, mut raw) = (0, std::ptr::null_mut());
        // SAFETY: a number to write to.
        api.check("cuDeviceGet", unsafe { api.cuDeviceGet(&raw mut device, ordinal as c_int) })?;
        // SAFETY: the device was just got; what is retained here is released when this is dropped.
        let code = unsafe { api.cuDevicePrimaryCtxRetain(&raw mut raw, device) };
        api.check("cuDevicePrimaryCtxRetain", code)?;
        Ok(Self { api, raw, device, retained: true })
    }

    /// A context of the host's.
    ///
    /// # Safety
    /// It must be a context that outlives this.
    pub(super) unsafe fn borrowed(raw: CUcontext) -> Result<Self, Error> {
        let api = start(0)?;
        let mut context = Self { api, raw, device: 0, retained: false };
        let mut device = 0;
        {
            let _current = context.enter()?;
            // SAFETY: a number to write to; the context is current.
            api.check("cuCtxGetDevice", unsafe { api.cuCtxGetDevice(&raw mut device) })?;
        }
        context.device = device;
        Ok(context)
    }

    /// Makes the context current in this thread until the guard is dropped.
    pub(super) fn enter(&self) -> Result<Entered<'_>, Error> {
        let mut current = std::ptr::null_mut();
        // SAFETY: a pointer to write to.
        self.check("cuCtxGetCurrent", unsafe { self.api.cuCtxGetCurrent(&raw mut current) })?;
        let pushed = current != self.raw;
        if pushed {
            // SAFETY: the context is alive, as its owner keeps it.
            self.check("cuCtxPushCurrent", unsafe { self.api.cuCtxPushCurrent_v2(self.raw) })?;
        }
        Ok(Entered { context: self, pushed, thread: PhantomData })
    }

    /// Whether both are the same context of the driver's.
    pub(super) fn same(&self, other: &Self) -> bool {
        self.raw == other.raw
    }

    pub(super) fn check(&self, what: &str, code: c_int) -> Result<(), Error> {
        self.api.check(what, code)
    }

    pub(super) fn attribute(&self, attribute: Attribute) -> Result<u32, Error> {
        let mut value = 0;
        // SAFETY: a number to write to; the device is the context's.
        let code = unsafe { self.api.cuDeviceGetAttribute(&raw mut value, attribute, self.device) };
        self.check("cuDeviceGetAttribute", code)?;
        Ok(value.max(0) as u32)
    }

    /// Major and minor compute capability.
    pub(super) fn capability(&self) -> Result<(u32, u32), Error> {
        let major = self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        Ok((major, self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?))
    }

    pub(super) fn chip(&self) -> Result<Chip, Error> {
        let (major, minor) = self.capability()?;
        Ok(Chip {
            arch: Arch::of_capability(major, minor)?,
            multiprocessors: self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            l2_bytes: self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?.into(),
        })
    }

    pub(super) fn name(&self) -> Result<String, Error> {
        let mut name = [0 as c_char; 256];
        // SAFETY: 256 bytes to write to, the last of which stays 0.
        let code = unsafe { self.api.cuDeviceGetName(name.as_mut_ptr(), 255, self.device) };
        self.check("cuDeviceGetName", code)?;
        // SAFETY: it ends in 0.
        Ok(unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned())
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.retained {
            // SAFETY: retained once, by `primary`. Nothing can be done about a failure.
            let _ = unsafe { self.api.cuDevicePrimaryCtxRelease_v2(self.device) };
        }
    }
}

/// Opens and initialises the driver.
fn start(ordinal: usize) -> Result<&'static Api, Error> {
    const NO_DEVICE: c_int = cudarc::driver::sys::CUresult::CUDA_ERROR_NO_DEVICE as c_int;
    let api = Api::open()?;
    // SAFETY: it may be called again and again.
    match unsafe { api.cuInit(0) } {
        NO_DEVICE => Err(Error::NoDevice { ordinal, count: 0 }),
        code => api.check("cuInit", code).map(|()| api),
    }
}

/// A context that is current; what was current before is restored when this is dropped.
pub(super) struct Entered<'a> {
    context: &'a Context,
    pushed: bool,
    /// Contexts are current in a thread, so the guard stays in it.
    thread: PhantomData<*const ()>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if self.pushed {
            let mut popped = std::ptr::null_mut();
            // SAFETY: pops what `enter` pushed in this thread.
            let _ = unsafe { self.context.api.cuCtxPopCurrent_v2(&raw mut popped) };
        }
    }
}
