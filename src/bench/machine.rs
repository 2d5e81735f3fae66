//! What is known of the machine, the program and the checkout.

use super::record::{Machine, ModelShape};
use crate::checkpoint::Config;
use crate::model::Backend;

impl Machine {
    /// This machine, with what `backend` runs on.
    #[must_use]
    pub fn of(backend: &Backend) -> Self {
        let (name, device, driver, arithmetic) = describe(backend);
        Self {
            cpu: cpu_name(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            threads: rayon::current_num_threads(),
            memory_bytes: memory_bytes(),
            os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            backend: name.into(),
            device,
            driver,
            arithmetic: arithmetic.into(),
        }
    }
}

/// Backend, device, driver and arithmetic.
fn describe(backend: &Backend) -> (&'static str, String, Option<String>, &'static str) {
    match backend {
        Backend::Cpu(settings) => ("cpu", settings.isa.name().to_owned(), None, settings.arithmetic.name()),
        #[cfg(feature = "wgpu")]
        Backend::Wgpu { gpu, .. } => {
            let info = gpu.info();
            ("wgpu", info.name.clone(), Some(format!("{} {}", info.driver, info.driver_info)), gpu.arithmetic().name())
        }
        #[cfg(feature = "cuda")]
        Backend::Cuda { device, .. } => ("cuda", device.name(), device.driver(), "fast"),
    }
}

impl ModelShape {
    /// The shape of `config` under a name.
    #[must_use]
    pub fn of(name: &str, config: &Config) -> Self {
        Self {
            name: name.into(),
            hidden: config.hidden,
            intermediate: config.intermediate,
            layers: config.layers,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            vocabulary: config.vocabulary,
        }
    }
}

/// Commit of the checkout around the working directory, with `+` behind it where tracked files differ from it.
pub(super) fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output =
            std::process::Command::new("git").args(arguments).stderr(std::process::Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let head = git(&["rev-parse", "HEAD"])?;
    let dirty = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|changed| !changed.is_empty());
    Some(if dirty { head + "+" } else { head })
}

fn cpu_name() -> String {
    let read = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let named = read.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(':').nth(1));
    named.map_or_else(|| std::env::consts::ARCH.into(), |name| name.trim().into())
}

/// Bytes of main memory.
fn memory_bytes() -> Option<u64> {
    kibibytes(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")
}

/// Bytes that a new allocation may take without swapping, where the system says.
pub(super) fn available_bytes() -> Option<u64> {
    kibibytes(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

/// Bytes that are taken now as somebody else than our buffers counts them: the system what is resident of this process, wgpu's
/// allocator what its device holds, the CUDA driver what of its device is not free.
pub(super) fn taken_bytes(backend: &Backend) -> Option<u64> {
    match backend {
        Backend::Cpu(_) => resident_bytes(),
        #[cfg(feature = "wgpu")]
        Backend::Wgpu { gpu, .. } => {
            // What copies went through is given back when they are done.
            gpu.submit(gpu.encoder()).and_then(|()| gpu.wait()).ok()?;
            gpu.allocated_bytes()
        }
        #[cfg(feature = "cuda")]
        Backend::Cuda { device, .. } => device.taken_bytes(),
    }
}

/// Bytes of this process that are resident, less what the allocator keeps of memory that was freed.
fn resident_bytes() -> Option<u64> {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it gives back pages that hold no allocation.
    unsafe {
        libc::malloc_trim(0);
    }
    kibibytes(&std::fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// Most bytes of this process that were resident at once, since [`forget_peak`].
pub(super) fn peak_resident_bytes() -> Option<u64> {
    kibibytes(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// Starts the count of [`peak_resident_bytes`] anew, where the system can.
pub(super) fn forget_peak() {
    // A system that refuses counts on from the start of the process: the peak is then an upper bound.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

fn kibibytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cpu::Isa;

    #[test]
    fn the_machine_is_described() {
        let machine = Machine::of(&Backend::default());
        assert!(machine.cores >= 1 && machine.threads >= 1 && !machine.cpu.is_empty(), "{machine:?}");
        assert_eq!(machine.device, Isa::best().name());
    }

    #[test]
    fn kibibytes_are_read() {
        assert_eq!(kibibytes("VmRSS:\t  12 kB\nVmHWM:\t 34 kB\n", "VmHWM:"), Some(34 << 10));
        assert_eq!(kibibytes("VmRSS:\t  12\n", "VmRSS:"), None);
        assert_eq!(kibibytes("", "VmRSS:"), None);
    }
}
