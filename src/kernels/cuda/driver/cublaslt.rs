//! The functions of cuBLASLt that this crate calls, and the objects that it makes with them.

use super::super::Error;
use super::super::library::{Name, candidates, functions};
use cudarc::cublaslt::sys::{
    self, cublasComputeType_t, cublasLtHandle_t, cublasLtMatmulAlgo_t, cublasLtMatmulDesc_t,
    cublasLtMatmulDescAttributes_t, cublasLtMatmulHeuristicResult_t, cublasLtMatmulPreference_t,
    cublasLtMatmulPreferenceAttributes_t, cublasLtMatrixLayout_t, cudaDataType, cudaStream_t,
};
use std::ffi::{c_int, c_void};
use std::sync::Arc;

functions! {
    Lt like sys: cublasStatus_t {
        cublasLtCreate(handle: *mut cublasLtHandle_t);
        cublasLtDestroy(handle: cublasLtHandle_t);
        cublasLtMatmulDescCreate(desc: *mut cublasLtMatmulDesc_t, compute: cublasComputeType_t, scale: cudaDataType);
        cublasLtMatmulDescDestroy(desc: cublasLtMatmulDesc_t);
        cublasLtMatmulDescSetAttribute(
            desc: cublasLtMatmulDesc_t,
            attribute: cublasLtMatmulDescAttributes_t,
            value: *const c_void,
            bytes: usize,
        );
        cublasLtMatrixLayoutCreate(
            layout: *mut cublasLtMatrixLayout_t,
            dtype: cudaDataType,
            rows: u64,
            columns: u64,
            stride: i64,
        );
        cublasLtMatrixLayoutDestroy(layout: cublasLtMatrixLayout_t);
        cublasLtMatmulPreferenceCreate(preference: *mut cublasLtMatmulPreference_t);
        cublasLtMatmulPreferenceDestroy(preference: cublasLtMatmulPreference_t);
        cublasLtMatmulPreferenceSetAttribute(
            preference: cublasLtMatmulPreference_t,
            attribute: cublasLtMatmulPreferenceAttributes_t,
            value: *const c_void,
            bytes: usize,
        );
        cublasLtMatmulAlgoGetHeuristic(
            handle: cublasLtHandle_t,
            desc: cublasLtMatmulDesc_t,
            a: cublasLtMatrixLayout_t,
            b: cublasLtMatrixLayout_t,
            c: cublasLtMatrixLayout_t,
            d: cublasLtMatrixLayout_t,
            preference: cublasLtMatmulPreference_t,
            asked: c_int,
            results: *mut cublasLtMatmulHeuristicResult_t,
            got: *mut c_int,
        );
        cublasLtMatmul(
            handle: cublasLtHandle_t,
            desc: cublasLtMatmulDesc_t,
            alpha: *const c_void,
            a: *const c_void,
            a_layout: cublasLtMatrixLayout_t,
            b: *const c_void,
            b_layout: cublasLtMatrixLayout_t,
            beta: *const c_void,
            c: *const c_void,
            c_layout: cublasLtMatrixLayout_t,
            d: *mut c_void,
            d_layout: cublasLtMatrixLayout_t,
            algorithm: *const cublasLtMatmulAlgo_t,
            workspace: *mut c_void,
            workspace_bytes: usize,
            stream: cudaStream_t,
        );
    }
}

const NAME: Name = Name {
    library: "libcublasLt",
    remedy: "install cuBLAS (pip install nvidia-cublas, nvidia-cublas-cu12 for a CUDA 12 driver, or the CUDA toolkit) and put \
             its folder on LD_LIBRARY_PATH if it is in none of the usual ones",
};

impl Lt {
    /// Opens the library, that of the driver's CUDA version before others.
    pub(super) fn open() -> Result<Arc<Self>, Error> {
        NAME.open(&candidates("cublasLt", "cublas", &super::majors()), Self::of).map(Arc::new)
    }
}

/// Ok for status 0, and otherwise its name.
pub(super) fn check(what: &str, status: c_int) -> Result<(), Error> {
    let name = match status {
        0 => return Ok(()),
        1 => "CUBLAS_STATUS_NOT_INITIALIZED",
        3 => "CUBLAS_STATUS_ALLOC_FAILED",
        7 => "CUBLAS_STATUS_INVALID_VALUE",
        8 => "CUBLAS_STATUS_ARCH_MISMATCH",
        11 => "CUBLAS_STATUS_MAPPING_ERROR",
        13 => "CUBLAS_STATUS_EXECUTION_FAILED",
        14 => "CUBLAS_STATUS_INTERNAL_ERROR",
        15 => "CUBLAS_STATUS_NOT_SUPPORTED",
        _ => "an unknown status",
    };
    Err(Error::Driver { what: what.to_owned(), message: format!("{name} ({status})") })
}

/// A descriptor of the library's, destroyed when dropped.
pub(super) struct Object<T> {
    lt: Arc<Lt>,
    raw: *mut T,
    destroy: unsafe fn(&Lt, *mut T) -> c_int,
}

// SAFETY: a descriptor is plain memory of the host's, bound to no thread.
unsafe impl<T> Send for Object<T> {}

impl<T> Object<T> {
    /// What `create` writes, to be destroyed with `destroy`.
    ///
    /// # Safety
    /// `destroy` must be the library's function for what `create` makes.
    pub(super) unsafe fn new(
        lt: &Arc<Lt>,
        what: &str,
        create: impl FnOnce(*mut *mut T) -> c_int,
        destroy: unsafe fn(&Lt, *mut T) -> c_int,
    ) -> Result<Self, Error> {
        let mut raw = std::ptr::null_mut();
        check(what, create(&raw mut raw))?;
        Ok(Self { lt: Arc::clone(lt), raw, destroy })
    }

    pub(super) fn raw(&self) -> *mut T {
        self.raw
    }
}

impl<T> Drop for Object<T> {
    fn drop(&mut self) {
        // SAFETY: the object is this value's, as `new` was told.
        let _ = unsafe { (self.destroy)(&self.lt, self.raw) };
    }
}
