//! What a model runs on, as flags.

use super::console::Console;
use crate::kernels::Arithmetic;
use crate::kernels::cpu::Isa;
#[cfg(feature = "cuda")]
use crate::kernels::cuda::{self, Device, Driver};
#[cfg(feature = "wgpu")]
use crate::kernels::wgpu::{self, Gpu, GpuOptions};
use crate::model::Backend;
use crate::model::cpu::Settings;
use anyhow::Result;
use clap::ValueEnum;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
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
    /// How transforms, and with --backend wgpu all kernels, compute: fast, or the same operations in the same order on every
    /// instruction set and device, which gives the same bits
    /// [default: fast in benchmarks and on GPUs, reproducible otherwise]
    #[arg(long, value_enum)]
    arithmetic: Option<ArithmeticName>,
    /// CUDA device to take, counted from 0 as nvidia-smi does
    #[cfg(feature = "cuda")]
    #[arg(long, value_name = "N", default_value_t = 0)]
    device: usize,
    /// Type of weights, keys and values that are not quantized, with --backend cuda also of what flows between kernels
    /// [default: f32 with wgpu, f16 with cuda]
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    #[arg(long, value_enum)]
    float: Option<FloatName>,
    /// Most tokens that go through all layers at a time, with --backend cuda: more keep a large device busy
    #[cfg(feature = "cuda")]
    #[arg(long, value_name = "TOKENS", default_value_t = crate::model::CUDA_CHUNK)]
    chunk: usize,
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FloatName {
    F32,
    F16,
    /// With --backend cuda
    #[cfg(feature = "cuda")]
    Bf16,
}

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
    /// An NVIDIA device, through its driver and NVRTC
    #[cfg(feature = "cuda")]
    Cuda,
}

impl BackendArgs {
    /// The backend for results: reproducible where that is cheap enough.
    pub(super) fn open(&self) -> Result<Backend> {
        self.open_by(false)
    }

    /// The backend for measuring speed: fast everywhere.
    pub(super) fn open_fast(&self) -> Result<Backend> {
        self.open_by(true)
    }

    #[cfg_attr(
        not(any(feature = "wgpu", feature = "cuda")),
        expect(clippy::unnecessary_wraps, reason = "a device may be missing")
    )]
    fn open_by(&self, fast: bool) -> Result<Backend> {
        let arithmetic = |reproducible: bool| match self.arithmetic {
            Some(ArithmeticName::Fast) => Arithmetic::Fast,
            Some(ArithmeticName::Reproducible) => Arithmetic::Reproducible,
            None if reproducible && !fast => Arithmetic::Reproducible,
            None => Arithmetic::Fast,
        };
        match self.backend {
            Name::Cpu => Ok(Backend::Cpu(Settings { arithmetic: arithmetic(true), ..Settings::from(Isa::best()) })),
            #[cfg(feature = "wgpu")]
            Name::Wgpu => {
                let options = GpuOptions {
                    adapter: self.adapter.clone(),
                    cache: super::cache::folder().ok().map(|folder| folder.join("pipelines")),
                    ..Default::default()
                };
                let gpu = Gpu::open(&options)?;
                let software = gpu.info().device_type == ::wgpu::DeviceType::Cpu;
                let float = match self.float {
                    Some(FloatName::F16) => wgpu::Dtype::F16,
                    None | Some(FloatName::F32) => wgpu::Dtype::F32,
                    #[cfg(feature = "cuda")]
                    Some(FloatName::Bf16) => {
                        anyhow::bail!("--float: expected f32 or f16 with --backend wgpu, got bf16")
                    }
                };
                Ok(Backend::Wgpu { gpu: Arc::new(gpu.with_arithmetic(arithmetic(software))?), float })
            }
            #[cfg(feature = "cuda")]
            Name::Cuda => {
                let device: Arc<dyn Device> = Arc::new(Driver::open(self.device)?);
                let float = match self.float {
                    Some(FloatName::F32) => cuda::Dtype::F32,
                    None | Some(FloatName::F16) => cuda::Dtype::F16,
                    Some(FloatName::Bf16) => cuda::Dtype::Bf16,
                };
                Ok(Backend::Cuda { device, float, chunk: self.chunk })
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
        // They are on disk as soon as they are compiled.
        #[cfg(feature = "cuda")]
        Backend::Cuda { .. } => Ok(()),
    };
    if let Err(fault) = kept {
        console.note(fault);
    }
}

/// The backend and the device behind it, as reports name them.
pub(super) fn names(backend: &Backend) -> (&'static str, String) {
    match backend {
        Backend::Cpu(settings) => ("cpu", settings.isa.name().to_owned()),
        #[cfg(feature = "wgpu")]
        Backend::Wgpu { gpu, .. } => {
            ("wgpu", format!("{}, {} {}", gpu.info().name, gpu.info().driver, gpu.info().driver_info))
        }
        #[cfg(feature = "cuda")]
        Backend::Cuda { device, .. } => ("cuda", device.name()),
    }
}
