//! The device: opened here or lent by the host, and its memory.

use super::Error;
use super::pipelines::Pipelines;
use super::tune::Table;
use crate::kernels::Arithmetic;
use ::wgpu::{
    Adapter, AdapterInfo, Backends, Buffer, BufferDescriptor, BufferUsages, CommandEncoder, Device, DeviceDescriptor,
    DeviceType, ErrorFilter, Features, Instance, InstanceDescriptor, InstanceFlags, Limits, MapMode, PollType, Queue,
};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// What the kernels need of `adapter` and what they use where it is there: a host that opens its own device asks for it.
///
/// `IMMEDIATES` is needed. `SHADER_F16` gives half-precision operands, `TIMESTAMP_QUERY` the time of every kernel,
/// `PIPELINE_CACHE` a faster second start, and on software adapters `SHADER_F64` what [`Arithmetic::Reproducible`] needs.
#[must_use]
pub fn required_features(adapter: &Adapter) -> Features {
    let mut welcome = Features::SHADER_F16 | Features::TIMESTAMP_QUERY | Features::PIPELINE_CACHE;
    if adapter.get_info().device_type == DeviceType::Cpu {
        welcome |= Features::SHADER_F64;
    }
    Features::IMMEDIATES | (adapter.features() & welcome)
}

/// The limits that the kernels want of `adapter`: its own for buffers, bindings and workgroups, the defaults for the rest.
#[must_use]
pub fn required_limits(adapter: &Adapter) -> Limits {
    let has = adapter.limits();
    Limits {
        max_buffer_size: has.max_buffer_size,
        max_storage_buffer_binding_size: has.max_storage_buffer_binding_size,
        max_storage_buffers_per_shader_stage: has.max_storage_buffers_per_shader_stage.min(16),
        max_compute_workgroup_storage_size: has.max_compute_workgroup_storage_size,
        max_compute_invocations_per_workgroup: has.max_compute_invocations_per_workgroup,
        max_compute_workgroup_size_x: has.max_compute_workgroup_size_x,
        max_compute_workgroup_size_y: has.max_compute_workgroup_size_y,
        max_compute_workgroup_size_z: has.max_compute_workgroup_size_z,
        max_compute_workgroups_per_dimension: has.max_compute_workgroups_per_dimension,
        min_storage_buffer_offset_alignment: has.min_storage_buffer_offset_alignment,
        max_immediate_size: has.max_immediate_size.min(128),
        ..Limits::default()
    }
}

/// How [`Gpu::open`] finds and opens a device.
#[derive(Debug, Clone, Default)]
pub struct GpuOptions {
    /// Part of the wanted adapter's name, in any case; the most powerful adapter without it.
    pub adapter: Option<String>,
    /// Whether the API's validation layers watch, where they are installed.
    pub validation: bool,
    /// Folder of the on-disk pipeline cache; none without it.
    pub cache: Option<PathBuf>,
    /// File of tiles ([`Table::to_text`]) that plans take in the place of the built-in ones.
    pub tiles: Option<PathBuf>,
}

/// A wgpu device with the pipelines compiled for it. Cheap to share by reference; all methods take `&self`.
pub struct Gpu {
    device: Device,
    queue: Queue,
    info: AdapterInfo,
    pipelines: Pipelines,
    tiles: Table,
    arithmetic: Arithmetic,
    lost: Arc<Mutex<Option<String>>>,
}

impl Gpu {
    /// Opens a device of its own.
    ///
    /// # Errors
    /// [`Error::NoAdapter`], [`Error::MissingFeature`], [`Error::Kernel`] when the file of tiles holds none, or
    /// [`Error::Device`] when the driver refuses or the file cannot be read.
    pub fn open(options: &GpuOptions) -> Result<Self, Error> {
        let tiles = options.tiles.as_deref().map(read_tiles).transpose()?;
        let mut descriptor = InstanceDescriptor::new_without_display_handle();
        descriptor.backends = Backends::PRIMARY;
        descriptor.flags = if options.validation { InstanceFlags::VALIDATION } else { InstanceFlags::empty() };
        let instance = Instance::new(descriptor);
        let mut adapters = pollster::block_on(instance.enumerate_adapters(Backends::PRIMARY));
        adapters.sort_by_key(|adapter| rank(&adapter.get_info()));
        let names: Vec<_> = adapters.iter().map(|adapter| adapter.get_info().name).collect();
        let fits = |name: &String| {
            options.adapter.as_ref().is_none_or(|wanted| name.to_lowercase().contains(&wanted.to_lowercase()))
        };
        let Some(index) = names.iter().position(fits) else {
            let wanted = options.adapter.as_ref().map_or_else(String::new, |name| format!(" named {name}"));
            let found = if names.is_empty() { "none".into() } else { names.join(", ") };
            return Err(Error::NoAdapter { wanted, found });
        };
        let adapter = adapters.swap_remove(index);
        check_features(&adapter.get_info(), adapter.features())?;
        let request = adapter.request_device(&DeviceDescriptor {
            label: Some("duquant"),
            required_features: required_features(&adapter),
            required_limits: required_limits(&adapter),
            ..DeviceDescriptor::default()
        });
        let (device, queue) = pollster::block_on(request)
            .map_err(|fault| Error::Device { what: "opening the device".into(), message: fault.to_string() })?;
        let lost = Arc::new(Mutex::new(None));
        let note = Arc::clone(&lost);
        device.set_device_lost_callback(move |reason, message| {
            let text = if message.is_empty() { format!("{reason:?}") } else { message };
            *note.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
        });
        let pipelines = Pipelines::new(&device, &adapter.get_info(), options.cache.as_deref());
        let info = adapter.get_info();
        let tiles = tiles.unwrap_or_else(|| Table::builtin(&info));
        Ok(Self { tiles, arithmetic: Arithmetic::default(), info, pipelines, device, queue, lost })
    }

    /// Takes the host's device. Its queue stays the host's: enqueueing records into the host's encoder and never submits.
    ///
    /// # Errors
    /// [`Error::MissingFeature`] when the device was opened without [`required_features`].
    pub fn from_host(device: Device, queue: Queue) -> Result<Self, Error> {
        let info = device.adapter_info();
        check_features(&info, device.features())?;
        let pipelines = Pipelines::new(&device, &info, None);
        let (tiles, arithmetic) = (Table::builtin(&info), Arithmetic::default());
        Ok(Self { tiles, arithmetic, info, pipelines, device, queue, lost: Arc::default() })
    }

    /// The same device with kernels that compute as `arithmetic` says. Plans made before keep theirs.
    ///
    /// # Errors
    /// [`Error::MissingFeature`] when the device does not fuse multiply-adds and has no `SHADER_F64` to make up for it.
    pub fn with_arithmetic(self, arithmetic: Arithmetic) -> Result<Self, Error> {
        let software = self.info.device_type == DeviceType::Cpu;
        let features = self.device.features();
        if arithmetic == Arithmetic::Reproducible && software && !features.contains(Features::SHADER_F64) {
            return Err(Error::MissingFeature { device: self.info.name.clone(), feature: "SHADER_F64".into() });
        }
        Ok(Self { arithmetic, ..self })
    }

    /// How kernels that are planned on this device compute.
    #[must_use]
    pub fn arithmetic(&self) -> Arithmetic {
        self.arithmetic
    }

    /// The wgpu device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The wgpu queue.
    #[must_use]
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Name, kind and driver of the adapter.
    #[must_use]
    pub fn info(&self) -> &AdapterInfo {
        &self.info
    }

    /// Whether kernels can read and write half precision.
    #[must_use]
    pub fn has_f16(&self) -> bool {
        self.device.features().contains(Features::SHADER_F16)
    }

    /// Whether kernels can be timed on the device.
    #[must_use]
    pub fn has_timestamps(&self) -> bool {
        self.device.features().contains(Features::TIMESTAMP_QUERY)
    }

    /// What the device allows.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.device.limits()
    }

    /// The tiles that plans take: the built-in ones for this class of adapters, or what [`Gpu::with_tiles`] set.
    #[must_use]
    pub fn tiles(&self) -> &Table {
        &self.tiles
    }

    /// This device with other tiles, as [`tune`](super::tune) measured them or [`Table::from_text`] read them.
    #[must_use]
    pub fn with_tiles(self, tiles: Table) -> Self {
        Self { tiles, ..self }
    }

    pub(super) fn pipelines(&self) -> &Pipelines {
        &self.pipelines
    }

    /// Writes the pipelines compiled so far to the on-disk cache, where there is one, for a faster next start.
    ///
    /// # Errors
    /// [`Error::Device`] when the file cannot be written.
    pub fn save_pipelines(&self) -> Result<(), Error> {
        self.pipelines.save()
    }

    /// A storage buffer of `bytes` bytes (at least 4, a multiple of 4), filled with zeros, that can be copied to and from.
    ///
    /// # Errors
    /// [`Error::Limit`] when the device allows no such buffer or binding, [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub fn buffer(&self, label: &str, bytes: u64) -> Result<Buffer, Error> {
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        let size = bytes.max(4).next_multiple_of(4);
        let limits = self.device.limits();
        let limit = |limit_name, limit: u64| {
            if size <= limit { Ok(()) } else { Err(Error::Limit { what: label.into(), limit_name, limit, got: size }) }
        };
        limit("max_buffer_size", limits.max_buffer_size)?;
        limit("max_storage_buffer_binding_size", limits.max_storage_buffer_binding_size)?;
        self.scoped(label, size, || {
            self.device.create_buffer(&BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false })
        })
    }

    /// A storage buffer with `data`, padded with zeros to a multiple of 4 bytes.
    ///
    /// # Errors
    /// As [`Gpu::buffer`].
    pub fn upload(&self, label: &str, data: &[u8]) -> Result<Buffer, Error> {
        let buffer = self.buffer(label, data.len() as u64)?;
        let whole = data.len() / 4 * 4;
        self.queue.write_buffer(&buffer, 0, &data[..whole]);
        if whole < data.len() {
            let mut last = [0; 4];
            last[..data.len() - whole].copy_from_slice(&data[whole..]);
            self.queue.write_buffer(&buffer, whole as u64, &last);
        }
        Ok(buffer)
    }

    /// Waits for everything submitted and reads `bytes` bytes of `buffer` from `offset` on (both multiples of 4).
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`] or [`Error::Device`].
    pub fn read(&self, buffer: &Buffer, offset: u64, bytes: u64) -> Result<Vec<u8>, Error> {
        if bytes == 0 {
            return Ok(Vec::new());
        }
        let what = "reading a buffer";
        let staging = self.scoped(what, bytes, || {
            let staging = self.device.create_buffer(&BufferDescriptor {
                label: Some("staging"),
                size: bytes,
                usage: BufferUsages::COPY_DST | BufferUsages::MAP_READ,
                mapped_at_creation: false,
            });
            let mut encoder = self.device.create_command_encoder(&::wgpu::CommandEncoderDescriptor::default());
            encoder.copy_buffer_to_buffer(buffer, offset, &staging, 0, bytes);
            self.queue.submit([encoder.finish()]);
            staging
        })?;
        let (sender, receiver) = std::sync::mpsc::channel();
        staging.slice(..).map_async(MapMode::Read, move |result| {
            // The receiver outlives the callback: it waits below.
            let _ = sender.send(result);
        });
        self.wait()?;
        let failed = |message: String| Error::Device { what: what.into(), message };
        receiver.recv().map_err(|fault| failed(fault.to_string()))?.map_err(|fault| failed(fault.to_string()))?;
        let mapped = staging.slice(..).get_mapped_range().map_err(|fault| failed(fault.to_string()))?;
        Ok(mapped.to_vec())
    }

    /// An encoder of the device, for callers that have none.
    #[must_use]
    pub fn encoder(&self) -> CommandEncoder {
        self.device.create_command_encoder(&::wgpu::CommandEncoderDescriptor::default())
    }

    /// Bytes of the device's memory that everything made on it takes, as wgpu's allocator counts them, with its alignment and what
    /// copies go through; `None` where the API has memory of its own.
    #[must_use]
    pub fn allocated_bytes(&self) -> Option<u64> {
        self.device.generate_allocator_report().map(|report| report.total_allocated_bytes)
    }

    /// Submits an encoder. A host with its own queue submits itself; the runner, the tests and the benches use this.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`] or [`Error::Device`].
    pub fn submit(&self, encoder: CommandEncoder) -> Result<(), Error> {
        self.scoped("submitting", 0, || {
            self.queue.submit([encoder.finish()]);
        })
    }

    /// Waits for everything submitted.
    ///
    /// # Errors
    /// [`Error::DeviceLost`] or [`Error::Device`].
    pub fn wait(&self) -> Result<(), Error> {
        let polled = self.device.poll(PollType::wait_indefinitely());
        self.check_lost()?;
        polled.map(|_| ()).map_err(|fault| Error::Device { what: "waiting".into(), message: fault.to_string() })
    }

    fn check_lost(&self) -> Result<(), Error> {
        match self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            Some(reason) => Err(Error::DeviceLost { reason }),
            None => Ok(()),
        }
    }

    /// Runs `action` and turns what wgpu reports asynchronously into an error.
    pub(super) fn scoped<T>(&self, what: &str, bytes: u64, action: impl FnOnce() -> T) -> Result<T, Error> {
        self.check_lost()?;
        scoped(&self.device, what, bytes, action)
    }
}

pub(super) fn scoped<T>(device: &Device, what: &str, bytes: u64, action: impl FnOnce() -> T) -> Result<T, Error> {
    let internal = device.push_error_scope(ErrorFilter::Internal);
    let memory = device.push_error_scope(ErrorFilter::OutOfMemory);
    let validation = device.push_error_scope(ErrorFilter::Validation);
    let result = action();
    let validation = pollster::block_on(validation.pop());
    let memory = pollster::block_on(memory.pop());
    let internal = pollster::block_on(internal.pop());
    if memory.is_some() {
        return Err(Error::OutOfMemory { what: what.into(), bytes });
    }
    match validation.or(internal) {
        Some(fault) => Err(Error::Device { what: what.into(), message: fault.to_string() }),
        None => Ok(result),
    }
}

fn read_tiles(path: &Path) -> Result<Table, Error> {
    let failed = |fault: std::io::Error| Error::Device {
        what: format!("reading the tiles {}", path.display()),
        message: fault.to_string(),
    };
    Ok(Table::from_text(&std::fs::read_to_string(path).map_err(failed)?)?)
}

/// Discrete before integrated before virtual before software.
fn rank(info: &AdapterInfo) -> u8 {
    match info.device_type {
        ::wgpu::DeviceType::DiscreteGpu => 0,
        ::wgpu::DeviceType::IntegratedGpu => 1,
        ::wgpu::DeviceType::VirtualGpu => 2,
        ::wgpu::DeviceType::Other => 3,
        ::wgpu::DeviceType::Cpu => 4,
    }
}

fn check_features(info: &AdapterInfo, features: Features) -> Result<(), Error> {
    if features.contains(Features::IMMEDIATES) {
        return Ok(());
    }
    Err(Error::MissingFeature { device: info.name.clone(), feature: "IMMEDIATES".into() })
}
