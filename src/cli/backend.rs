//! What a model runs on, as flags.

use super::console::Console;
use crate::kernels::cpu::Isa;
use crate::model::Backend;
use anyhow::Result;
use clap::ValueEnum;

#[derive(clap::Args)]
pub(super) struct BackendArgs {
    /// What to run on
    #[arg(long, value_enum, default_value_t = Name::Cpu)]
    backend: Name,
    /// Part of the name of the wgpu adapter to take, in any case [default: the most powerful]
    #[cfg(feature = "wgpu")]
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// This machine's processor
    Cpu,
    /// The device that wgpu finds: Vulkan, Metal or DirectX 12
    #[cfg(feature = "wgpu")]
    Wgpu,
}

impl BackendArgs {
    /// The processor at its best.
    #[cfg_attr(not(feature = "wgpu"), expect(clippy::unnecessary_wraps, reason = "a device may be missing"))]
    pub(super) fn open(&self) -> Result<Backend> {
        match self.backend {
            Name::Cpu => Ok(Backend::Cpu(Isa::best())),
            #[cfg(feature = "wgpu")]
            Name::Wgpu => {
                let options = crate::kernels::wgpu::GpuOptions {
                    adapter: self.adapter.clone(),
                    cache: super::cache::folder().ok().map(|folder| folder.join("pipelines")),
                    ..Default::default()
                };
                Ok(Backend::Wgpu(std::sync::Arc::new(crate::kernels::wgpu::Gpu::open(&options)?)))
            }
        }
    }
}

/// Keeps the kernels that were compiled for a faster next start. A cache that cannot be written costs a word, no more.
pub(super) fn keep_kernels(backend: &Backend, console: &Console) {
    let kept: Result<(), String> = match backend {
        Backend::Cpu(_) => Ok(()),
        #[cfg(feature = "wgpu")]
        Backend::Wgpu(gpu) => gpu.save_pipelines().map_err(|fault| fault.to_string()),
    };
    if let Err(fault) = kept {
        console.note(fault);
    }
}

/// The backend and the device behind it, as reports name them.
pub(super) fn names(backend: &Backend) -> (&'static str, String) {
    match backend {
        Backend::Cpu(isa) => ("cpu", isa.name().to_owned()),
        #[cfg(feature = "wgpu")]
        Backend::Wgpu(gpu) => {
            ("wgpu", format!("{}, {} {}", gpu.info().name, gpu.info().driver, gpu.info().driver_info))
        }
    }
}
