//! The device behind NVIDIA's driver.

mod api;
mod blas;
mod context;
mod cublaslt;
mod device;
mod graph;
mod memory;
mod module;
mod recording;
mod stream;

use api::installed_version;
pub use graph::Graph;
pub use memory::MemoryUse;
pub use stream::{Event, OwnedStream};

use super::{Address, Arch, Chip, Compiler, CubinCache, Error, Source, Stream, checks::unsupported};
use blas::Blas;
use context::Context;
use memory::Pool;
use module::Functions;
use std::ffi::c_void;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};

/// `y[T, N] = x[T, K] W[N, K]^T` of signed 8-bit integers in 32-bit ones, all row-major.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IntegerProduct {
    /// Tokens `T`.
    pub tokens: usize,
    /// Output channels `N`.
    pub n: usize,
    /// Input channels `K`.
    pub k: usize,
    /// `[T, K]`.
    pub x: Address,
    /// `[N, K]`.
    pub weight: Address,
    /// `[T, N]`.
    pub y: Address,
}

/// A CUDA device, by NVIDIA's driver.
///
/// Each call makes the device's context current in its thread and restores what was current before, so that it can be used from any
/// thread and next to other users of CUDA. Kernels stay loaded as long as the driver or a plan of theirs lives.
pub struct Driver {
    functions: Mutex<Functions>,
    blas: OnceLock<Result<Blas, Error>>,
    pool: Arc<Pool>,
    cubins: CubinCache,
    sources: &'static [Source],
    chip: Chip,
    capability: (u32, u32),
    name: String,
    // Last, so that it is released after what lives in it.
    context: Arc<Context>,
}

impl Driver {
    /// Device `ordinal` as `CUDA_VISIBLE_DEVICES` counts them, from 0, by its primary context: the one that the CUDA runtime and
    /// the frameworks above it use.
    ///
    /// # Errors
    /// [`Error::Library`] without a driver, [`Error::NoDevice`], [`Error::Chip`] for one that no kernel is written for,
    /// [`Error::Driver`].
    pub fn open(ordinal: usize) -> Result<Self, Error> {
        Self::of(Context::primary(ordinal)?)
    }

    /// The device of a `CUcontext` that the host runtime owns. It is never destroyed here.
    ///
    /// # Safety
    /// It must be a context of this process that outlives the driver and everything made with it: plans, buffers, streams, events
    /// and graphs.
    ///
    /// # Errors
    /// As [`Driver::open`].
    pub unsafe fn borrow(context: *mut c_void) -> Result<Self, Error> {
        if context.is_null() {
            return unsupported("context", "a CUcontext", "null");
        }
        // SAFETY: the caller's.
        Self::of(unsafe { Context::borrowed(context.cast()) }?)
    }

    fn of(context: Context) -> Result<Self, Error> {
        let context = Arc::new(context);
        Ok(Self {
            functions: Mutex::default(),
            blas: OnceLock::new(),
            pool: Arc::new(Pool::new(&context)?),
            cubins: CubinCache::of_user(),
            sources: &[],
            chip: context.chip()?,
            capability: context.capability()?,
            name: context.name()?,
            context,
        })
    }

    /// Runs the kernels of another architecture, as those of sm_80 on Hopper: for tests, since they are not the fastest there.
    ///
    /// # Errors
    /// [`Error::Kernel`] for one that is newer than the device or has more shared memory.
    pub fn with_arch(mut self, arch: Arch) -> Result<Self, Error> {
        let own = self.chip.arch;
        if arch > own || arch.shared_per_block() > own.shared_per_block() {
            return unsupported("arch", format!("one whose kernels run on {}", own.name()), arch.name());
        }
        self.chip.arch = arch;
        self.functions = Mutex::default();
        Ok(self)
    }

    /// Keeps machine code elsewhere than [`CubinCache::of_user`] says.
    #[must_use]
    pub fn with_cache(mut self, cubins: CubinCache) -> Self {
        self.cubins = cubins;
        self
    }

    /// Also loads kernels of `sources`, which may include this crate's headers. They are compiled whenever they are loaded.
    #[must_use]
    pub fn with_sources(mut self, sources: &'static [Source]) -> Self {
        self.sources = sources;
        self
    }

    /// Major and minor compute capability.
    #[must_use]
    pub fn capability(&self) -> (u32, u32) {
        self.capability
    }

    /// What compilers call the device: `sm_86`, or `sm_90a` where there are instructions of that chip alone.
    #[must_use]
    pub fn arch_option(&self) -> String {
        arch_option(self.capability)
    }

    /// The newest CUDA version that the driver knows, as `12.8`.
    #[must_use]
    pub fn driver_version(&self) -> String {
        // It answered when the driver was opened.
        let version = installed_version().unwrap_or(0);
        format!("{}.{}", version / 1000, version % 1000 / 10)
    }

    /// NVRTC's version, as `12.8`.
    ///
    /// # Errors
    /// [`Error::Library`] where there is none.
    pub fn compiler_version(&self) -> Result<String, Error> {
        Ok(Compiler::open()?.version())
    }

    /// What is allocated, and what is left.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn memory(&self) -> Result<MemoryUse, Error> {
        self.pool.usage()
    }

    /// Counts [`MemoryUse::peak`] from what is allocated now.
    pub fn reset_peak(&self) {
        self.pool.reset_peak();
    }

    /// A stream of its own, for callers without one.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn stream(&self) -> Result<OwnedStream, Error> {
        OwnedStream::new(&self.context)
    }

    /// Enqueues cuBLASLt's product of 8-bit integers: what W4A4 is measured against.
    ///
    /// # Safety
    /// The operands must be the device's and as large as the shape says until the product has run.
    ///
    /// # Errors
    /// As [`Device::matrix_product`](super::Device::matrix_product); the library refuses a `k` or an `n` that is no multiple of 4.
    pub unsafe fn integer_product(&self, stream: Stream, product: &IntegerProduct) -> Result<(), Error> {
        // SAFETY: the caller's.
        unsafe { self.blas()?.integer_product(stream, product) }
    }

    fn blas(&self) -> Result<&Blas, Error> {
        self.blas.get_or_init(|| Blas::open(&self.context, &self.pool)).as_ref().map_err(Clone::clone)
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Driver({}, {})", self.name, self.chip.arch.name())
    }
}

/// The CUDA versions whose libraries to look for: the driver's, if there is one, before the others.
pub(super) fn majors() -> [u32; 2] {
    if installed_version().is_some_and(|version| version < 13_000) { [12, 13] } else { [13, 12] }
}

fn arch_option((major, minor): (u32, u32)) -> String {
    format!("sm_{major}{minor}{}", if major >= 9 { "a" } else { "" })
}

#[cfg(test)]
mod tests {
    #[test]
    fn hopper_has_instructions_of_its_own() {
        assert_eq!([(8, 0), (8, 7), (9, 0)].map(super::arch_option), ["sm_80", "sm_87", "sm_90a"]);
    }
}
