//! What reproducible kernels need in front of their source.

use super::{Arithmetic, Gpu};
use ::wgpu::{DeviceType, Features};

/// WGSL's `fused(a, b, c)` and, on four numbers, `fused4`: `a b + c`, rounded once. `fused4_sticky` is the same where
/// `c` may be far below the product: products of few bits are often ties, which the smallest `c` decides.
const NATIVE: &str = "\
fn fused(a: f32, b: f32, c: f32) -> f32 { return fma(a, b, c); }
fn fused4(a: vec4<f32>, b: vec4<f32>, c: vec4<f32>) -> vec4<f32> { return fma(a, b, c); }
fn fused4_sticky(a: vec4<f32>, b: vec4<f32>, c: vec4<f32>) -> vec4<f32> { return fma(a, b, c); }
";
/// The product of two `f32` is exact in `f64`; a sum with a far smaller number loses that number, which matters to a tie alone.
/// `fused4_sticky` puts one of the same sign in its place that is not lost and yet below the last of the product's 48 bits.
const EMULATED: &str = "\
fn fused(a: f32, b: f32, c: f32) -> f32 { return f32(f64(a) * f64(b) + f64(c)); }
fn fused4(a: vec4<f32>, b: vec4<f32>, c: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(vec4<f64>(a) * vec4<f64>(b) + vec4<f64>(c));
}
fn fused4_sticky(a: vec4<f32>, b: vec4<f32>, c: vec4<f32>) -> vec4<f32> {
    let least = abs(a) * (abs(b) * 0x1p-50);
    let small = (abs(c) < least) & (c != vec4(0.0));
    return fused4(a, b, select(c, select(least, -least, c < vec4(0.0)), small));
}
";

/// The preludes of reproducible kernels on any device: for those who compile without one.
pub(super) const PRELUDES: [&str; 2] = [NATIVE, EMULATED];

impl Gpu {
    /// What the prelude of a reproducible kernel needs; `None` where kernels are to be fast.
    pub(super) fn reproducible(&self) -> Option<&'static str> {
        (self.arithmetic() == Arithmetic::Reproducible).then(|| self.fused())
    }

    /// The functions `fused` and `fused4` for a shader's prelude.
    pub(super) fn fused(&self) -> &'static str {
        let software = self.info().device_type == DeviceType::Cpu;
        if software && self.device().features().contains(Features::SHADER_F64) { EMULATED } else { NATIVE }
    }
}
