//! What plans check against the device before they compile anything.

use super::{Dtype, Error, Gpu};
use crate::kernels::Error as KernelError;

/// Refuses an option outside what a kernel supports.
pub(super) fn unsupported<T>(what: &'static str, expected: impl Into<String>, got: impl ToString) -> Result<T, Error> {
    Err(KernelError::Unsupported { what, expected: expected.into(), got: got.to_string() }.into())
}

/// Refuses a shape outside `least..=most`.
pub(super) fn check_range(what: &'static str, value: usize, least: usize, most: usize) -> Result<(), Error> {
    if (least..=most).contains(&value) { Ok(()) } else { unsupported(what, format!("{least} to {most}"), value) }
}

/// Refuses half precision on a device without it.
pub(super) fn check_dtype(gpu: &Gpu, dtype: Dtype) -> Result<(), Error> {
    if dtype == Dtype::F16 && !gpu.has_f16() {
        return Err(Error::MissingFeature { device: gpu.info().name.clone(), feature: "SHADER_F16".into() });
    }
    Ok(())
}

/// Refuses operands too large to bind; each is its name and its bytes.
pub(super) fn check_bindings(gpu: &Gpu, operands: &[(&str, u64)]) -> Result<(), Error> {
    let limit = gpu.limits().max_storage_buffer_binding_size;
    for &(what, bytes) in operands {
        if bytes > limit {
            let limit_name = "max_storage_buffer_binding_size";
            return Err(Error::Limit { what: what.into(), limit_name, limit, got: bytes });
        }
    }
    Ok(())
}

/// Refuses more tokens than a plan has room for.
pub(super) fn check_tokens(tokens: usize, m_max: usize) -> Result<(), Error> {
    if tokens <= m_max { Ok(()) } else { unsupported("tokens", format!("at most {m_max}"), tokens) }
}

/// The declaration of operand types in front of a shader: `(alias, type)` pairs, and `enable f16;` where one needs it.
pub(super) fn prelude(types: &[(&str, Dtype)]) -> String {
    let mut out = String::new();
    if types.iter().any(|&(_, dtype)| dtype == Dtype::F16) {
        out.push_str("enable f16;\n");
    }
    for (name, dtype) in types {
        let dtype = if *dtype == Dtype::F16 { "f16" } else { "f32" };
        out.push_str(&format!("alias {name} = {dtype};\n"));
    }
    out
}

/// Invocations of a workgroup that goes through a row: 256 where the device allows it, a power of two in any case. A driver
/// on the CPU runs them in turn and gets few.
pub(super) fn row_workgroup(gpu: &Gpu) -> u32 {
    let limits = gpu.limits();
    let most = limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x);
    let wanted = if gpu.info().device_type == ::wgpu::DeviceType::Cpu { 64 } else { 256 };
    if wanted <= most { wanted } else { 1 << most.max(1).ilog2() }
}

/// Workgroups for `rows` rows; the kernels loop where the device allows fewer.
pub(super) fn row_grid(gpu: &Gpu, rows: usize) -> u32 {
    rows.min(gpu.limits().max_compute_workgroups_per_dimension as usize) as u32
}
