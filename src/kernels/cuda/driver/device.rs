use super::super::super::Error as KernelError;
use super::super::checks::unsupported;
use super::super::device::same_kind;
use super::super::{
    Address, Chip, Compiler, Device, Error, Function, Kernel, Launch, Mark, MatrixProduct, Replay, Stream,
};
use super::blas::Workspace;
use super::module::{self, Module};
use super::recording::without_captures;
use super::stream::raw;
use super::{Driver, Event, Graph, api::installed_version};
use std::ffi::c_int;
use std::sync::{Arc, PoisonError};

impl Driver {
    /// Calls a function of the driver's in the context.
    fn call(&self, what: &str, function: impl FnOnce() -> c_int) -> Result<(), Error> {
        let _current = self.context.enter()?;
        self.context.check(what, function())
    }

    fn compile(&self, kernel: &Kernel) -> Result<Arc<Module>, Error> {
        let compiler = Compiler::open()?;
        let option = self.arch_option();
        let image = match self.sources.iter().find(|source| source.name == kernel.file) {
            Some(own) => compiler.compile_source(own, kernel, &option, self.chip.arch)?,
            None => self.cubins.compile(compiler, kernel, &option, self.chip.arch)?.image,
        };
        let mut what = format!("loading {kernel} for {option} as NVRTC {} made it", compiler.version());
        if installed_version().is_some_and(|version| version / 1000 < compiler.major()) {
            let driver = self.driver_version();
            what += &format!(" (the driver knows CUDA {driver}: install an NVRTC of that major version)");
        }
        Module::load(&self.context, &what, &image)
    }
}

impl Device for Driver {
    fn chip(&self) -> Chip {
        self.chip
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn driver(&self) -> Option<String> {
        Some(self.driver_version())
    }

    fn load(&self, kernel: &Kernel) -> Result<Arc<Function>, Error> {
        if !kernel.archs.contains(&self.chip.arch) {
            let expected = kernel.archs.iter().map(|arch| arch.name()).collect::<Vec<_>>().join(", ");
            return unsupported("architecture of the kernel", expected, self.chip.arch.name());
        }
        // A panic while it was locked left it as it was: entries are whole.
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        match functions.get(kernel) {
            Some(function) => Ok(function),
            None => functions.load(kernel, || self.compile(kernel)),
        }
    }

    unsafe fn launch(&self, stream: Stream, launch: &Launch) -> Result<(), Error> {
        if launch.is_empty() {
            return Ok(());
        }
        let function = module::checked(&self.context, launch)?;
        let ([x, y, z], api) = (launch.grid, self.context.api);
        let mut arguments = [launch.arguments().as_ptr().cast_mut().cast()];
        let _current = self.context.enter()?;
        // SAFETY: the function is this context's and its module loaded; it takes one argument, which the driver copies before
        // it returns; the caller vouches for the addresses in it.
        let code = unsafe {
            let (arguments, none) = (arguments.as_mut_ptr(), std::ptr::null_mut());
            api.cuLaunchKernel(function, x, y, z, launch.block, 1, 1, launch.shared, raw(stream), arguments, none)
        };
        if code == 0 { Ok(()) } else { api.check(format!("launching {}", launch.function.kernel), code) }
    }

    unsafe fn matrix_product(&self, stream: Stream, product: &MatrixProduct) -> Result<(), Error> {
        if product.tokens == 0 || product.n == 0 {
            return Ok(());
        }
        let blas = self.blas()?;
        // SAFETY: the caller vouches for the addresses.
        unsafe { blas.product(stream, product) }
    }

    fn allocate(&self, what: &str, bytes: u64) -> Result<Address, Error> {
        self.pool.allocate(what, bytes)
    }

    fn taken_bytes(&self) -> Option<u64> {
        self.memory().ok().map(|memory| memory.total.saturating_sub(memory.free))
    }

    fn free(&self, address: Address, bytes: u64) {
        self.pool.free(address, bytes);
    }

    fn write(&self, address: Address, bytes: &[u8]) -> Result<(), Error> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.call("copying to the device", || {
            let api = self.context.api;
            // SAFETY: the caller's memory has room, by this trait's word. The copy from pageable memory may be under way when
            // it returns, so the stream that it went to is waited for.
            unsafe {
                match api.cuMemcpyHtoD_v2(address, bytes.as_ptr().cast(), bytes.len()) {
                    0 => api.cuStreamSynchronize(std::ptr::null_mut()),
                    code => code,
                }
            }
        })
    }

    fn read(&self, address: Address, bytes: &mut [u8]) -> Result<(), Error> {
        self.call("waiting for the device", || {
            // SAFETY: the context is current.
            without_captures(|| unsafe { self.context.api.cuCtxSynchronize() })
        })?;
        if bytes.is_empty() {
            return Ok(());
        }
        self.call("copying from the device", || {
            // SAFETY: as for writing.
            unsafe { self.context.api.cuMemcpyDtoH_v2(bytes.as_mut_ptr().cast(), address, bytes.len()) }
        })
    }

    fn copy(&self, stream: Stream, from: Address, to: Address, bytes: u64) -> Result<(), Error> {
        let bytes = extent(bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        self.call("copying within the device", || {
            // SAFETY: as for writing.
            unsafe { self.context.api.cuMemcpyDtoDAsync_v2(to, from, bytes, raw(stream)) }
        })
    }

    fn fill(&self, stream: Stream, address: Address, byte: u8, bytes: u64) -> Result<(), Error> {
        let bytes = extent(bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        self.call("filling memory", || {
            // SAFETY: as for writing.
            unsafe { self.context.api.cuMemsetD8Async(address, byte, bytes, raw(stream)) }
        })
    }

    fn synchronize(&self, stream: Stream) -> Result<(), Error> {
        self.call("waiting for the stream", || {
            // SAFETY: the stream is as its owner says.
            unsafe { self.context.api.cuStreamSynchronize(raw(stream)) }
        })
    }

    fn capture(&self, record: &mut dyn FnMut(Stream) -> Result<(), Error>) -> Result<Option<Box<dyn Replay>>, Error> {
        // A stream of its own: the legacy default cannot be captured, and what is under way elsewhere goes on.
        let owned = self.stream()?;
        let stream = owned.stream();
        let blas = self.blas.get().and_then(|blas| blas.as_ref().ok());
        blas.map_or(Ok(()), |blas| blas.reserve(stream))?;
        let graph = Graph::capture(self, stream, || record(stream));
        // The stream goes, and another may have its name; the graph's products still want their memory.
        let workspace = blas.and_then(|blas| blas.release(stream));
        Ok(Some(Box::new(Captured { graph: graph?, _workspace: workspace })))
    }

    fn mark(&self, stream: Stream) -> Result<Box<dyn Mark>, Error> {
        let event = Event::new(self)?;
        event.record(stream)?;
        Ok(Box::new(event))
    }
}

impl Mark for Event {
    fn seconds_since(&self, earlier: &dyn Mark) -> Result<f64, Error> {
        Ok(f64::from(self.elapsed_ms(same_kind(earlier)?)?) * 1e-3)
    }
}

/// A graph with what its products need. Dropped in this order.
struct Captured {
    graph: Graph,
    _workspace: Option<Workspace>,
}

impl Replay for Captured {
    unsafe fn replay(&self, stream: Stream) -> Result<(), Error> {
        // SAFETY: the caller's.
        unsafe { self.graph.launch(stream) }
    }
}

fn extent(bytes: u64) -> Result<usize, Error> {
    usize::try_from(bytes).map_err(|_| {
        let (expected, got) = (usize::MAX.to_string(), bytes.to_string());
        KernelError::Unsupported { what: "bytes", expected, got }.into()
    })
}
