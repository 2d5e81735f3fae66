use super::super::{Define, Error, Function, Kernel, Launch};
use super::context::Context;
use cudarc::driver::sys::{CUdevice_attribute, CUfunction, CUfunction_attribute, CUmodule};
use std::collections::HashMap;
use std::ffi::{CString, c_int};
use std::sync::Arc;

/// A file of kernels, loaded.
pub(super) struct Module {
    context: Arc<Context>,
    handle: CUmodule,
}

// SAFETY: a module is only read once it is loaded.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Loads machine code.
    pub(super) fn load(context: &Arc<Context>, what: &str, image: &[u8]) -> Result<Arc<Self>, Error> {
        let mut handle = std::ptr::null_mut();
        let _current = context.enter()?;
        // SAFETY: a handle to write to; the image is a whole ELF file, which says its own length.
        let code = unsafe { context.api.cuModuleLoadData(&raw mut handle, image.as_ptr().cast()) };
        context.check(what, code)?;
        Ok(Arc::new(Self { context: Arc::clone(context), handle }))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let Ok(_current) = self.context.enter() else { return };
        // SAFETY: no function of the module is left: each keeps it alive.
        let _ = unsafe { self.context.api.cuModuleUnload(self.handle) };
    }
}

/// What [`Function::keep`] is for functions of a driver.
struct Loaded {
    module: Arc<Module>,
    /// Bytes of dynamic shared memory that a block may have.
    shared_limit: u32,
    /// Threads that a block may have, by its registers.
    threads_limit: u32,
}

/// Every kernel that was asked for.
#[derive(Default)]
pub(super) struct Functions {
    functions: HashMap<Kernel, Arc<Function>>,
    modules: HashMap<(&'static str, Vec<Define>), Arc<Module>>,
}

impl Functions {
    pub(super) fn get(&self, kernel: &Kernel) -> Option<Arc<Function>> {
        self.functions.get(kernel).map(Arc::clone)
    }

    /// Loads a kernel, of a module that is there or of what `load` gives.
    pub(super) fn load(
        &mut self,
        kernel: &Kernel,
        load: impl FnOnce() -> Result<Arc<Module>, Error>,
    ) -> Result<Arc<Function>, Error> {
        let key = (kernel.file, kernel.defines.clone());
        let module = match self.modules.get(&key) {
            Some(module) => Arc::clone(module),
            None => Arc::clone(self.modules.entry(key).or_insert(load()?)),
        };
        let function = Arc::new(function(module, kernel)?);
        self.functions.insert(kernel.clone(), Arc::clone(&function));
        Ok(function)
    }
}

fn function(module: Arc<Module>, kernel: &Kernel) -> Result<Function, Error> {
    let context = &module.context;
    let api = context.api;
    let named = |what: &str| format!("{what} of {kernel}");
    let entry = CString::new(kernel.entry)
        .map_err(|fault| Error::Driver { what: named("the name"), message: fault.to_string() })?;
    let current = context.enter()?;
    let mut handle = std::ptr::null_mut();
    // SAFETY: a handle to write to, a module that is loaded, a string that ends in 0.
    let code = unsafe { api.cuModuleGetFunction(&raw mut handle, module.handle, entry.as_ptr()) };
    api.check(named("cuModuleGetFunction"), code)?;
    let attribute = |attribute: CUfunction_attribute| -> Result<u32, Error> {
        let mut value = 0;
        // SAFETY: a number to write to; the function was just got.
        api.check(named("cuFuncGetAttribute"), unsafe { api.cuFuncGetAttribute(&raw mut value, attribute, handle) })?;
        Ok(value.max(0) as u32)
    };
    // Blocks may take what the device has. It is raised here, once, so that launches are only launches.
    let most = context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
    let shared_limit = most.saturating_sub(attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?);
    let raised = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    // SAFETY: the function was just got.
    let code = unsafe { api.cuFuncSetAttribute(handle, raised, shared_limit as c_int) };
    api.check(named("cuFuncSetAttribute"), code)?;
    let threads_limit = attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?;
    drop(current);
    let keep = Box::new(Loaded { module, shared_limit, threads_limit });
    Ok(Function { kernel: kernel.clone(), handle: handle as usize, keep })
}

/// The function of a launch, if it is of this context and the launch is one that the driver takes.
pub(super) fn checked(context: &Context, launch: &Launch) -> Result<CUfunction, Error> {
    let kernel = &launch.function.kernel;
    let loaded = launch.function.keep.downcast_ref::<Loaded>();
    let Some(loaded) = loaded.filter(|loaded| loaded.module.context.same(context)) else {
        return Err(Error::Driver {
            what: format!("launching {kernel}"),
            message: "expected a kernel that this device loaded, got another device's".into(),
        });
    };
    let limits = [
        ("blocks in x", launch.grid[0], i32::MAX as u32),
        ("blocks in y", launch.grid[1], 65_535),
        ("blocks in z", launch.grid[2], 65_535),
        ("threads of a block", launch.block, loaded.threads_limit),
        ("bytes of shared memory", launch.shared, loaded.shared_limit),
    ];
    match limits.into_iter().find(|(_, got, limit)| got > limit) {
        Some((what, got, limit)) => {
            Err(Error::Limit { what: format!("{kernel}, {what}"), limit: limit.into(), got: got.into() })
        }
        None => Ok(launch.function.handle as CUfunction),
    }
}
