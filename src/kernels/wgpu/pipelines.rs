//! Shaders and the pipelines compiled from them: each once a device, and once a machine where the driver can keep them.

use super::Error;
use super::gpu::{Gpu, scoped};
use ::wgpu::{
    AdapterInfo, BindGroup, BindGroupDescriptor, BindGroupEntry, BindGroupLayout, BindGroupLayoutDescriptor,
    BindGroupLayoutEntry, BindingType, BufferBinding, BufferBindingType, ComputePipeline, ComputePipelineDescriptor,
    Device, Features, PipelineCache, PipelineCacheDescriptor, PipelineCompilationOptions, PipelineLayoutDescriptor,
    ShaderModuleDescriptor, ShaderRuntimeChecks, ShaderSource, ShaderStages,
};
use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// How a shader uses a storage buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// `var<storage, read>`.
    Read,
    /// `var<storage, read_write>`.
    Write,
}

/// One compute entry point of a file in `shaders/`.
///
/// Its bindings are storage buffers in group 0, numbered from 0 in the order of `bindings`; its only other input is
/// `var<immediate>` of `immediates` bytes.
#[derive(Debug)]
pub struct Shader {
    /// Name of the kernel and of its entry point.
    pub name: &'static str,
    /// Files of `shaders/` that are joined to its source.
    pub sources: &'static [&'static str],
    /// What is bound, in order.
    pub bindings: &'static [Access],
    /// Bytes of immediate data.
    pub immediates: u32,
}

/// What distinguishes one compilation of a [`Shader`] from another.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Variant {
    /// WGSL that goes in front of the source: `enable f16;` and `alias`es of the operands' types.
    pub prelude: String,
    /// Values of `override` constants.
    pub constants: Vec<(&'static str, f64)>,
}

impl Shader {
    /// The whole WGSL source of a variant.
    #[must_use]
    pub fn source(&self, variant: &Variant) -> String {
        let mut source = variant.prelude.clone();
        for part in self.sources {
            source.push_str(part);
            source.push('\n');
        }
        source
    }
}

/// A compiled kernel.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) name: &'static str,
    pub(super) pipeline: ComputePipeline,
    layout: BindGroupLayout,
    immediates: u32,
}

/// An operand of a kernel and the bytes that it must have.
pub(super) struct Operand<'a> {
    pub(super) name: &'static str,
    pub(super) binding: BufferBinding<'a>,
    pub(super) bytes: u64,
}

/// A kernel with its operands, ready to be recorded.
#[derive(Debug, Clone)]
pub(super) struct Bound {
    pub(super) kernel: Arc<Kernel>,
    pub(super) group: BindGroup,
}

/// The shader by its address, since several share a name; the prelude; the constants' bits.
type Key = (usize, String, Vec<(&'static str, u64)>);

/// All kernels compiled so far.
pub(super) struct Pipelines {
    kernels: Mutex<HashMap<Key, Arc<Kernel>>>,
    cache: Option<(PipelineCache, PathBuf)>,
}

impl Pipelines {
    pub(super) fn new(device: &Device, info: &AdapterInfo, folder: Option<&Path>) -> Self {
        let file = folder.zip(::wgpu::util::pipeline_cache_key(info)).map(|(folder, key)| folder.join(key));
        let cache = file.filter(|_| device.features().contains(Features::PIPELINE_CACHE)).map(|file| {
            let data = std::fs::read(&file).ok();
            let descriptor = PipelineCacheDescriptor { label: None, data: data.as_deref(), fallback: true };
            // SAFETY: the data, if any, is what an earlier run got from `get_data` and renamed into place whole; the driver
            // checks its own header, and `fallback` starts anew when it does not like it.
            let cache = unsafe { device.create_pipeline_cache(&descriptor) };
            (cache, file)
        });
        Self { kernels: Mutex::default(), cache }
    }

    pub(super) fn save(&self) -> Result<(), Error> {
        let Some((cache, file)) = &self.cache else { return Ok(()) };
        let Some(data) = cache.get_data() else { return Ok(()) };
        let failed = |fault: std::io::Error| Error::Device {
            what: format!("writing the pipeline cache {}", file.display()),
            message: fault.to_string(),
        };
        let folder = file.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(failed)?;
        let partial = file.with_extension(format!("{}.part", std::process::id()));
        let written = std::fs::File::create(&partial)
            .and_then(|mut out| out.write_all(&data))
            .and_then(|()| std::fs::rename(&partial, file));
        if written.is_err() {
            // Nothing else to do about a file that could not be written.
            let _ = std::fs::remove_file(&partial);
        }
        written.map_err(failed)
    }
}

impl Gpu {
    /// The kernel of `shader` and `variant`, compiled on first use.
    pub(super) fn kernel(&self, shader: &'static Shader, variant: &Variant) -> Result<Arc<Kernel>, Error> {
        let bits = variant.constants.iter().map(|&(name, value)| (name, value.to_bits())).collect();
        let key = (std::ptr::from_ref(shader).addr(), variant.prelude.clone(), bits);
        let pipelines = self.pipelines();
        if let Some(kernel) = pipelines.kernels.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(Arc::clone(kernel));
        }
        let cache = pipelines.cache.as_ref().map(|(cache, _)| cache);
        let kernel = Arc::new(compile(self.device(), shader, variant, cache)?);
        pipelines.kernels.lock().unwrap_or_else(PoisonError::into_inner).insert(key, Arc::clone(&kernel));
        Ok(kernel)
    }

    /// Binds `operands`, in the order of the shader's bindings, after checking each against its shape.
    pub(super) fn bind(&self, kernel: &Arc<Kernel>, operands: &[Operand<'_>]) -> Result<Bound, Error> {
        let limits = self.limits();
        let alignment = limits.min_storage_buffer_offset_alignment;
        let mut entries = Vec::with_capacity(operands.len());
        for (index, Operand { name, binding, bytes }) in operands.iter().enumerate() {
            let rest = binding.buffer.size().saturating_sub(binding.offset);
            let got = binding.size.map_or(rest, |size| size.get().min(rest));
            let expected = (*bytes).max(4);
            if got < expected {
                return Err(Error::Binding { operand: name, expected, got });
            }
            if !binding.offset.is_multiple_of(u64::from(alignment)) {
                return Err(Error::Alignment { operand: name, alignment, got: binding.offset });
            }
            let limit = limits.max_storage_buffer_binding_size;
            if expected > limit {
                let limit_name = "max_storage_buffer_binding_size";
                return Err(Error::Limit { what: (*name).into(), limit_name, limit, got: expected });
            }
            // Exactly what the shape needs, so that a large buffer of the host's does not meet the limit.
            let size = std::num::NonZeroU64::new(expected.next_multiple_of(4).min(got));
            let binding = BufferBinding { buffer: binding.buffer, offset: binding.offset, size };
            let resource = ::wgpu::BindingResource::Buffer(binding);
            entries.push(BindGroupEntry { binding: index as u32, resource });
        }
        let descriptor = BindGroupDescriptor { label: Some(kernel.name), layout: &kernel.layout, entries: &entries };
        let group = self.scoped(kernel.name, 0, || self.device().create_bind_group(&descriptor))?;
        Ok(Bound { kernel: Arc::clone(kernel), group })
    }
}

impl Kernel {
    pub(super) fn immediates(&self) -> u32 {
        self.immediates
    }
}

fn compile(
    device: &Device,
    shader: &Shader,
    variant: &Variant,
    cache: Option<&PipelineCache>,
) -> Result<Kernel, Error> {
    let what = format!("compiling {}", shader.name);
    scoped(device, &what, 0, || {
        let source = ShaderSource::Wgsl(shader.source(variant).into());
        let descriptor = ShaderModuleDescriptor { label: Some(shader.name), source };
        // The host checks every operand against its shape before it binds it, so release builds go without the checks that
        // naga would put around each access; builds with debug assertions, the tests among them, keep them.
        let checks =
            if cfg!(debug_assertions) { ShaderRuntimeChecks::checked() } else { ShaderRuntimeChecks::unchecked() };
        // SAFETY: the sources are this crate's, and their indices stay within operands whose sizes `bind` checked.
        let module = unsafe { device.create_shader_module_trusted(descriptor, checks) };
        let entries: Vec<_> = shader
            .bindings
            .iter()
            .enumerate()
            .map(|(index, &access)| BindGroupLayoutEntry {
                binding: index as u32,
                visibility: ShaderStages::COMPUTE,
                ty: BindingType::Buffer {
                    ty: BufferBindingType::Storage { read_only: access == Access::Read },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let label = Some(shader.name);
        let layout = device.create_bind_group_layout(&BindGroupLayoutDescriptor { label, entries: &entries });
        let pipeline_layout = device.create_pipeline_layout(&PipelineLayoutDescriptor {
            label,
            bind_group_layouts: &[Some(&layout)],
            immediate_size: shader.immediates,
        });
        let pipeline = device.create_compute_pipeline(&ComputePipelineDescriptor {
            label,
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(shader.name),
            compilation_options: PipelineCompilationOptions {
                constants: &variant.constants,
                zero_initialize_workgroup_memory: false,
            },
            cache,
        });
        Kernel { name: shader.name, pipeline, layout, immediates: shader.immediates }
    })
}
