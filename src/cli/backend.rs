//! What a model runs on, as flags.

use super::console::Console;
use crate::kernels::cpu::Isa;
#[cfg(feature = "wgpu")]
use crate::kernels::wgpu::{Arithmetic, Dtype, Gpu, GpuOptions};
use crate::model::Backend;
use anyhow::Result;
use clap::ValueEnum;
#[cfg(feature = "wgpu")]
use std::sync::Arc;

#[derive(clap::Args)]
pub(super) struct BackendArgs {
    /// What to run on
    #[arg(long, value_enum, default_value_t = Name::Cpu)]
    backend: Name,
    /// Part of the name of the wgpu adapter to take, in any case [default: the most powerful]
    #[cfg(feature = "wgpu")]
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    /// How wgpu kernels compute: fast, or the processor's operations in its order, which gives its bits
    /// [default: reproducible on software adapters, fast otherwise]
    #[cfg(feature = "wgpu")]
    #[arg(long, value_enum)]
    arithmetic: Option<ArithmeticName>,
    /// Type of weights, keys and values that are not quantized, with --backend wgpu
    #[cfg(feature = "wgpu")]
    #[arg(long, value_enum, default_value_t = FloatName::F32)]
    float: FloatName,
}

#[cfg(feature = "wgpu")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FloatName {
    F32,
    F16,
}

#[cfg(feature = "wgpu")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ArithmeticName {
    Fast,
    Reproducible,
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
                let options = GpuOptions {
                    adapter: self.adapter.clone(),
                    cache: super::cache::folder().ok().map(|folder| folder.join("pipelines")),
                    ..Default::default()
                };
                let gpu = Gpu::open(&options)?;
                let software = gpu.info().device_type == ::wgpu::DeviceType::Cpu;
                let arithmetic = match self.arithmetic {
                    Some(ArithmeticName::Fast) => Arithmetic::Fast,
                    Some(ArithmeticName::Reproducible) => Arithmetic::Reproducible,
                    None if software => Arithmetic::Reproducible,
                    None => Arithmetic::Fast,
                };
                let float = if self.float == FloatName::F16 { Dtype::F16 } else { Dtype::F32 };
                Ok(Backend::Wgpu { gpu: Arc::new(gpu.with_arithmetic(arithmetic)?), float })
            }
        }
    }
}

/// Keeps the kernels that were compiled for a faster next start. A cache that cannot be written costs a word, no more.
pub(super) fn keep_kernels(backend: &Backend, console: &Console) {
    let kept: Result<(), String> = match backend {
        Backend::Cpu(_) => Ok(()),
        #[cfg(feature = "wgpu")]
        Backend::Wgpu { gpu, .. } => gpu.save_pipelines().map_err(|fault| fault.to_string()),
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
        Backend::Wgpu { gpu, .. } => {
            ("wgpu", format!("{}, {} {}", gpu.info().name, gpu.info().driver, gpu.info().driver_info))
        }
    }
}
