//! What goes wrong with a device comes back as an error that says what was wanted and what there is.
#![cfg(feature = "wgpu")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails and reports this way"
)]

mod gpu;

use duquant::kernels::wgpu::{Arithmetic, Error, Gpu, GpuOptions, Timer, required_features, required_limits};
use wgpu::{Backends, DeviceDescriptor, Features, Instance, InstanceDescriptor, InstanceFlags};

/// A device as a host opens it, with `features` of those that the kernels ask for.
fn host(features: impl Fn(Features) -> Features) -> Option<(wgpu::Device, wgpu::Queue)> {
    let mut descriptor = InstanceDescriptor::new_without_display_handle();
    descriptor.flags = InstanceFlags::empty();
    let instance = Instance::new(descriptor);
    let adapter = pollster::block_on(instance.enumerate_adapters(Backends::PRIMARY)).into_iter().next()?;
    let request = adapter.request_device(&DeviceDescriptor {
        required_features: features(required_features(&adapter)),
        required_limits: required_limits(&adapter),
        ..DeviceDescriptor::default()
    });
    Some(pollster::block_on(request).unwrap())
}

#[test]
fn an_adapter_that_is_not_there_is_named_with_those_that_are() {
    let options = GpuOptions { adapter: Some("no such adapter".into()), ..GpuOptions::default() };
    let Err(error) = Gpu::open(&options) else { panic!("there is such an adapter") };
    assert!(matches!(&error, Error::NoAdapter { wanted, .. } if wanted.contains("no such adapter")), "{error}");
    assert!(error.to_string().contains("Adapters here"), "{error}");
}

#[test]
fn a_hosts_device_without_what_the_kernels_need_is_refused() {
    let Some(_watched) = gpu::gpu("a_hosts_device_without_what_the_kernels_need_is_refused") else { return };
    let (device, queue) = host(|features| features - Features::IMMEDIATES).unwrap();
    let Err(error) = Gpu::from_host(device, queue) else { panic!("taken without IMMEDIATES") };
    assert!(matches!(&error, Error::MissingFeature { feature, .. } if feature == "IMMEDIATES"), "{error}");

    let (device, queue) = host(|features| features - Features::TIMESTAMP_QUERY - Features::SHADER_F64).unwrap();
    let gpu = Gpu::from_host(device, queue).unwrap();
    let Err(error) = Timer::new(&gpu, 4) else { panic!("timed without time stamps") };
    assert!(matches!(&error, Error::MissingFeature { feature, .. } if feature == "TIMESTAMP_QUERY"), "{error}");
    if gpu.info().device_type == wgpu::DeviceType::Cpu {
        let Err(error) = gpu.with_arithmetic(Arithmetic::Reproducible) else { panic!("fused without f64") };
        assert!(matches!(&error, Error::MissingFeature { feature, .. } if feature == "SHADER_F64"), "{error}");
    }
}

#[test]
fn too_large_a_buffer_is_refused() {
    let Some(gpu) = gpu::gpu("too_large_a_buffer_is_refused") else { return };
    let limit = gpu.limits().max_storage_buffer_binding_size;
    let error = gpu.buffer("weights", limit + 4).unwrap_err();
    assert!(matches!(&error, Error::Limit { got, .. } if *got == limit + 4), "{error}");
    assert!(gpu.buffer("weights", u64::MAX - 8).is_err());
}

#[test]
fn a_lost_device_says_so() {
    let Some(_watched) = gpu::gpu("a_lost_device_says_so") else { return };
    let gpu = Gpu::open(&GpuOptions::default()).unwrap();
    let buffer = gpu.upload("numbers", &[1, 2, 3, 4, 5]).unwrap();
    assert_eq!(gpu.read(&buffer, 0, 8).unwrap(), [1, 2, 3, 4, 5, 0, 0, 0]);
    gpu.device().destroy();
    let errors = [gpu.wait().unwrap_err(), gpu.buffer("more", 64).unwrap_err(), gpu.submit(gpu.encoder()).unwrap_err()];
    for error in errors {
        assert!(matches!(error, Error::DeviceLost { .. }), "{error}");
    }
    assert!(gpu.read(&buffer, 0, 8).is_err());
}
