//! The functions of `libcuda` that this crate calls, all of CUDA 12.0 and so in every driver since.

use super::super::Error;
use super::super::library::{Name, functions};
use cudarc::driver::sys::{
    self, CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUevent, CUfunction, CUfunction_attribute, CUgraph,
    CUgraphExec, CUmodule, CUstream, CUstreamCaptureMode,
};
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_uchar, c_uint, c_ulonglong, c_void};
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

functions! {
    Functions like sys: CUresult {
        cuInit(flags: c_uint);
        cuDriverGetVersion(version: *mut c_int);
        cuDeviceGetCount(count: *mut c_int);
        cuDeviceGet(device: *mut CUdevice, ordinal: c_int);
        cuDeviceGetName(name: *mut c_char, bytes: c_int, device: CUdevice);
        cuDeviceGetAttribute(value: *mut c_int, attribute: CUdevice_attribute, device: CUdevice);
        cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice);
        cuDevicePrimaryCtxRelease_v2(device: CUdevice);
        cuCtxGetCurrent(context: *mut CUcontext);
        cuCtxPushCurrent_v2(context: CUcontext);
        cuCtxPopCurrent_v2(context: *mut CUcontext);
        cuCtxGetDevice(device: *mut CUdevice);
        cuCtxSynchronize();
        cuModuleLoadData(module: *mut CUmodule, image: *const c_void);
        cuModuleUnload(module: CUmodule);
        cuModuleGetFunction(function: *mut CUfunction, module: CUmodule, name: *const c_char);
        cuFuncGetAttribute(value: *mut c_int, attribute: CUfunction_attribute, function: CUfunction);
        cuFuncSetAttribute(function: CUfunction, attribute: CUfunction_attribute, value: c_int);
        cuLaunchKernel(
            function: CUfunction,
            grid_x: c_uint,
            grid_y: c_uint,
            grid_z: c_uint,
            block_x: c_uint,
            block_y: c_uint,
            block_z: c_uint,
            shared: c_uint,
            stream: CUstream,
            arguments: *mut *mut c_void,
            extra: *mut *mut c_void,
        );
        cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
        cuMemAlloc_v2(address: *mut CUdeviceptr, bytes: usize);
        cuMemFree_v2(address: CUdeviceptr);
        cuMemAllocAsync(address: *mut CUdeviceptr, bytes: usize, stream: CUstream);
        cuMemFreeAsync(address: CUdeviceptr, stream: CUstream);
        cuMemcpyHtoD_v2(to: CUdeviceptr, from: *const c_void, bytes: usize);
        cuMemcpyDtoH_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize);
        cuMemcpyDtoDAsync_v2(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream);
        cuMemsetD8Async(to: CUdeviceptr, byte: c_uchar, bytes: usize, stream: CUstream);
        cuStreamCreate(stream: *mut CUstream, flags: c_uint);
        cuStreamDestroy_v2(stream: CUstream);
        cuStreamSynchronize(stream: CUstream);
        cuStreamBeginCapture_v2(stream: CUstream, mode: CUstreamCaptureMode);
        cuStreamEndCapture(stream: CUstream, graph: *mut CUgraph);
        cuGraphInstantiateWithFlags(executable: *mut CUgraphExec, graph: CUgraph, flags: c_ulonglong);
        cuGraphUpload(executable: CUgraphExec, stream: CUstream);
        cuGraphLaunch(executable: CUgraphExec, stream: CUstream);
        cuGraphDestroy(graph: CUgraph);
        cuGraphExecDestroy(executable: CUgraphExec);
        cuEventCreate(event: *mut CUevent, flags: c_uint);
        cuEventDestroy_v2(event: CUevent);
        cuEventRecord(event: CUevent, stream: CUstream);
        cuEventSynchronize(event: CUevent);
        cuEventElapsedTime(milliseconds: *mut f32, start: CUevent, end: CUevent);
    }
}

functions! {
    // The bindings take an enumeration, which a newer driver's code might not be in.
    Messages {
        cuGetErrorName(code: c_int, name: *mut *const c_char);
        cuGetErrorString(code: c_int, text: *mut *const c_char);
    }
}

/// The driver's library.
pub(super) struct Api {
    functions: Functions,
    messages: Messages,
}

impl Deref for Api {
    type Target = Functions;

    fn deref(&self) -> &Functions {
        &self.functions
    }
}

const NAME: Name = Name {
    library: "libcuda",
    remedy: "install NVIDIA's driver (525 or newer) and see that nvidia-smi runs; in a container, start it with --gpus all",
};

impl Api {
    fn of(library: Arc<Library>) -> Result<Self, String> {
        Ok(Self { functions: Functions::of(Arc::clone(&library))?, messages: Messages::of(library)? })
    }

    /// The driver's library, opened once.
    pub(super) fn open() -> Result<&'static Self, Error> {
        static API: OnceLock<Result<Api, Error>> = OnceLock::new();
        let names: &[&str] = if cfg!(windows) {
            &["nvcuda.dll"]
        } else {
            // By name on most systems; where NixOS, WSL and some containers have it otherwise.
            &[
                "libcuda.so.1",
                "/run/opengl-driver/lib/libcuda.so.1",
                "/usr/lib/wsl/lib/libcuda.so.1",
                "/usr/local/nvidia/lib64/libcuda.so.1",
            ]
        };
        let files: Vec<_> = names.iter().map(PathBuf::from).collect();
        API.get_or_init(|| NAME.open(&files, Self::of)).as_ref().map_err(Clone::clone)
    }

    /// Ok for `CUDA_SUCCESS`, and otherwise what the driver says of the code.
    pub(super) fn check(&self, what: impl Into<String>, code: c_int) -> Result<(), Error> {
        if code == 0 { Ok(()) } else { Err(Error::Driver { what: what.into(), message: self.describe(code) }) }
    }

    /// As `CUDA_ERROR_INVALID_VALUE (1): invalid argument`.
    fn describe(&self, code: c_int) -> String {
        let (mut name, mut text) = (std::ptr::null(), std::ptr::null());
        // SAFETY: each writes a pointer, to a string that is never freed, or to nothing for a code that it does not know.
        unsafe {
            self.messages.cuGetErrorName(code, &raw mut name);
            self.messages.cuGetErrorString(code, &raw mut text);
        }
        // SAFETY: as above.
        let string = |at: *const c_char| (!at.is_null()).then(|| unsafe { CStr::from_ptr(at) }.to_string_lossy());
        match (string(name), string(text)) {
            (Some(name), Some(text)) => format!("{name} ({code}): {text}"),
            _ => format!("error {code}, which this driver does not explain"),
        }
    }
}

/// The CUDA version of the installed driver, as 12080; none where there is no driver.
pub(super) fn installed_version() -> Option<u32> {
    let api = Api::open().ok()?;
    let mut version = 0;
    // SAFETY: a number to write to; it needs no cuInit.
    let code = unsafe { api.cuDriverGetVersion(&raw mut version) };
    (code == 0).then_some(version.unsigned_abs())
}
