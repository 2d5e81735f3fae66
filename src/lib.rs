//! W4A4 kernels and a quantizer for LLaMA models, after DuQuant (arXiv 2406.01721). See the README for what it does and
//! ARCHITECTURE.md for the map of the modules.

pub mod kernels;

#[cfg(feature = "runner")]
pub mod bench;
#[cfg(feature = "runner")]
pub mod calibrate;
#[cfg(feature = "runner")]
pub mod checkpoint;
#[cfg(feature = "runner")]
pub mod eval;
#[cfg(feature = "runner")]
pub mod model;
#[cfg(feature = "runner")]
pub mod quantize;
#[cfg(feature = "runner")]
pub mod report;
#[cfg(feature = "runner")]
pub mod transform;

#[cfg(feature = "cli")]
pub mod cli;

/// The README's example, compiled and run as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
