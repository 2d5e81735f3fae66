use super::super::Error as KernelError;

/// What can go wrong on a wgpu device. Every variant says what was expected and what came.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// A shape, a length or an option that no backend takes.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// No adapter to run on.
    #[error(
        "no wgpu adapter{wanted}; install a Vulkan, Metal or DirectX 12 driver (on Debian, mesa-vulkan-drivers brings one \
         that runs on the CPU). Adapters here: {found}"
    )]
    NoAdapter {
        /// Which one was asked for, as `" named .."`, or nothing.
        wanted: String,
        /// Names of the adapters there are.
        found: String,
    },
    /// The adapter or the host's device lacks a feature that the kernels need.
    #[error("{device}: expected the feature {feature}, which it lacks; ask for required_features(adapter)")]
    MissingFeature {
        /// Name of the adapter.
        device: String,
        /// The feature as wgpu names it.
        feature: String,
    },
    /// A shape needs more than the device's limits allow.
    #[error("{what}: expected at most {limit} on this device ({limit_name}), got {got}")]
    Limit {
        /// What is too large.
        what: String,
        /// The limit as wgpu names it.
        limit_name: &'static str,
        /// What the device allows.
        limit: u64,
        /// What the shape needs.
        got: u64,
    },
    /// A buffer that the caller binds is too small.
    #[error("{operand}: expected a binding of at least {expected} bytes, got {got}")]
    Binding {
        /// The operand as the function's documentation names it.
        operand: &'static str,
        /// Bytes that the shape asks for.
        expected: u64,
        /// Bytes that the binding has.
        got: u64,
    },
    /// A binding starts at an offset that the device cannot bind.
    #[error("{operand}: expected an offset that is a multiple of {alignment} bytes, got {got}")]
    Alignment {
        /// The operand as the function's documentation names it.
        operand: &'static str,
        /// What the device wants.
        alignment: u32,
        /// The offset that came.
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
    /// The device is gone: reset, unplugged or destroyed. Nothing on it can be used any more.
    #[error("the device was lost: {reason}; open it again and load what was on it anew")]
    DeviceLost {
        /// What the driver says.
        reason: String,
    },
    /// The driver or wgpu refused something that this crate thought valid.
    #[error("{what}: {message}")]
    Device {
        /// What was being done.
        what: String,
        /// What the driver says.
        message: String,
    },
}
