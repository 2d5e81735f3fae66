use super::checks::unsupported;
use super::{Address, Chip, Dtype, Error, Kernel, Launch, Stream};
use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

/// What kernels run on. A host runtime with its own way of loading and launching may bring its own.
pub trait Device: Send + Sync {
    /// What plans choose by.
    fn chip(&self) -> Chip;

    /// A name for reports, as `NVIDIA H100 80GB HBM3`.
    fn name(&self) -> String;

    /// Version of the driver, as `12.8`, where there is one.
    fn driver(&self) -> Option<String> {
        None
    }

    /// The compiled `kernel`, the same one each time.
    ///
    /// # Errors
    /// [`Error::Compile`], [`Error::Library`] or [`Error::Driver`].
    fn load(&self, kernel: &Kernel) -> Result<Arc<Function>, Error>;

    /// Enqueues `launch`, without waiting or allocating. An empty grid is nothing to do.
    ///
    /// # Safety
    /// The addresses in its arguments must be the device's and large enough for what the kernel reads and writes, until it
    /// has run.
    ///
    /// # Errors
    /// [`Error::Driver`].
    unsafe fn launch(&self, stream: Stream, launch: &Launch) -> Result<(), Error>;

    /// Enqueues a floating-point matrix product of the vendor's library (cuBLASLt): the baseline, and the output head.
    ///
    /// # Safety
    /// As [`Device::launch`].
    ///
    /// # Errors
    /// [`Error::Library`] where there is no such library, [`Error::Driver`].
    unsafe fn matrix_product(&self, stream: Stream, product: &MatrixProduct) -> Result<(), Error>;

    /// Memory at a multiple of 16 at least, with whatever was in it.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] with `what` it was for.
    fn allocate(&self, what: &str, bytes: u64) -> Result<Address, Error>;

    /// Bytes of the device's memory that are taken, by anything and anyone, as its driver counts them; `None` where nobody counts.
    fn taken_bytes(&self) -> Option<u64> {
        None
    }

    /// Gives back what [`Device::allocate`] gave, when everything enqueued before is done.
    fn free(&self, address: Address, bytes: u64);

    /// Copies to the device and waits. The memory must be of [`Device::allocate`] or the host runtime's.
    ///
    /// # Errors
    /// [`Error::Driver`].
    fn write(&self, address: Address, bytes: &[u8]) -> Result<(), Error>;

    /// Waits for everything that was enqueued and copies from the device.
    ///
    /// # Errors
    /// [`Error::Driver`], also for what failed before.
    fn read(&self, address: Address, bytes: &mut [u8]) -> Result<(), Error>;

    /// Enqueues a copy within the device.
    ///
    /// # Errors
    /// [`Error::Driver`].
    fn copy(&self, stream: Stream, from: Address, to: Address, bytes: u64) -> Result<(), Error>;

    /// Enqueues the filling of memory with a byte.
    ///
    /// # Errors
    /// [`Error::Driver`].
    fn fill(&self, stream: Stream, address: Address, byte: u8, bytes: u64) -> Result<(), Error>;

    /// Waits for the stream.
    ///
    /// # Errors
    /// [`Error::Driver`] for what failed before.
    fn synchronize(&self, stream: Stream) -> Result<(), Error>;

    /// Runs `record` on a stream that notes down what is enqueued to it in place of running it (a CUDA graph), for replaying
    /// launches whose operands all stay where they are. `None`, without a call of `record`, on a device that cannot.
    ///
    /// # Errors
    /// What `record` gives; [`Error::Driver`].
    fn capture(&self, record: &mut dyn FnMut(Stream) -> Result<(), Error>) -> Result<Option<Box<dyn Replay>>, Error> {
        let _ = record;
        Ok(None)
    }

    /// Marks where the stream's work stands now, so that two marks tell the time between them. A device without events waits for
    /// the stream and takes this machine's clock.
    ///
    /// # Errors
    /// [`Error::Driver`].
    fn mark(&self, stream: Stream) -> Result<Box<dyn Mark>, Error> {
        self.synchronize(stream)?;
        Ok(Box::new(Instant::now()))
    }
}

/// What [`Device::mark`] gives.
pub trait Mark: Any + Send + Sync {
    /// Waits for the mark and gives the seconds since `earlier`, a mark of the same device.
    ///
    /// # Errors
    /// [`Error::Driver`], also for what failed in between; [`Error::Kernel`](super::Error::Kernel) for another device's mark.
    fn seconds_since(&self, earlier: &dyn Mark) -> Result<f64, Error>;
}

impl Mark for Instant {
    fn seconds_since(&self, earlier: &dyn Mark) -> Result<f64, Error> {
        Ok(self.duration_since(*same_kind::<Self>(earlier)?).as_secs_f64())
    }
}

/// `mark` as one of a device's own.
pub(super) fn same_kind<M: Mark>(mark: &dyn Mark) -> Result<&M, Error> {
    let mark: &dyn Any = mark;
    match mark.downcast_ref() {
        Some(mark) => Ok(mark),
        None => unsupported("mark", "one of the same device", "another device's"),
    }
}

/// What [`Device::capture`] noted down.
pub trait Replay: Send + Sync {
    /// Enqueues all of it.
    ///
    /// # Safety
    /// As [`Device::launch`], for every launch of it; it must not run twice at the same time.
    ///
    /// # Errors
    /// [`Error::Driver`].
    unsafe fn replay(&self, stream: Stream) -> Result<(), Error>;
}

/// A kernel that is loaded on a device.
pub struct Function {
    /// Which one.
    pub kernel: Kernel,
    /// A `CUfunction`, or whatever the device launches.
    pub handle: usize,
    /// What keeps the handle alive.
    pub keep: Box<dyn Any + Send + Sync>,
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Function({})", self.kernel)
    }
}

/// `y[T, N] = x[T, K] W[N, K]^T (+ bias) (+ y)`, all row-major, summed in `f32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatrixProduct {
    /// Tokens `T`.
    pub tokens: usize,
    /// Output channels `N`.
    pub n: usize,
    /// Input channels `K`.
    pub k: usize,
    /// Type of `x` and `W`.
    pub input: Dtype,
    /// Type of `y`: `input`, or `F32`.
    pub output: Dtype,
    /// `[T, K]`.
    pub x: Address,
    /// `[N, K]`.
    pub weight: Address,
    /// `[N]` of the type of `y`.
    pub bias: Option<Address>,
    /// `[T, N]`.
    pub y: Address,
    /// Whether `y` is added to.
    pub accumulate: bool,
}
