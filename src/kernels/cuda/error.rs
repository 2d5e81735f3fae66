use super::super::Error as KernelError;

/// What can go wrong on a CUDA device. Every variant says what was expected and what came.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// A shape, a length or an option that no backend takes.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A library of NVIDIA's that is not installed.
    #[error("cannot open {library}; {remedy}. Tried: {tried}")]
    Library {
        /// Which one: `libcuda`, `libnvrtc`, `libcublasLt`.
        library: &'static str,
        /// What to install or to set.
        remedy: &'static str,
        /// File names and what the loader said of them.
        tried: String,
    },
    /// No such device.
    #[error("expected a CUDA device {ordinal}, got {count} devices; see nvidia-smi, and CUDA_VISIBLE_DEVICES")]
    NoDevice {
        /// The one that was asked for, from 0.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// A device that no kernel is written for.
    #[error(
        "expected compute capability 8.0, 8.6, 8.7, 8.9 or 9.0, got {major}.{minor}; the wgpu backend may run there"
    )]
    Chip {
        /// Major compute capability.
        major: u32,
        /// Minor compute capability.
        minor: u32,
    },
    /// NVRTC refused a source: the library is too old for the device, or this crate is wrong.
    #[error("{kernel} does not compile for {arch} with NVRTC {version}: {log}")]
    Compile {
        /// The kernel with its defines.
        kernel: String,
        /// What it was compiled for.
        arch: String,
        /// NVRTC's version.
        version: String,
        /// What the compiler said.
        log: String,
    },
    /// A shape needs more than the device has.
    #[error("{what}: expected at most {limit} on this device, got {got}")]
    Limit {
        /// What is too large.
        what: String,
        /// What the device allows.
        limit: u64,
        /// What the shape needs.
        got: u64,
    },
    /// The caller's memory for an operand is too small.
    #[error("{operand}: expected at least {expected} bytes, got {got}")]
    Operand {
        /// The operand as the function's documentation names it.
        operand: &'static str,
        /// Bytes that the shape asks for.
        expected: u64,
        /// Bytes that there are.
        got: u64,
    },
    /// An address that the kernels' wide loads cannot take.
    #[error("{operand}: expected an address that is a multiple of {alignment}, got {got:#x}")]
    Alignment {
        /// The operand as the function's documentation names it.
        operand: &'static str,
        /// What the kernels want.
        alignment: u64,
        /// The address that came.
        got: u64,
    },
    /// The device could not allocate.
    #[error("{what}: the device is out of memory ({bytes} bytes were asked for)")]
    OutOfMemory {
        /// What the memory was for.
        what: String,
        /// Bytes that were asked for.
        bytes: u64,
    },
    /// The driver refused something that this crate thought valid, or an earlier kernel failed.
    #[error("{what}: {message}")]
    Driver {
        /// What was being done.
        what: String,
        /// What the driver says.
        message: String,
    },
}
