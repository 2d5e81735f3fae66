use super::Arch;
use std::fmt;

/// A file of `cuda/`, embedded in this crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// Its name in `cuda/`, as `#include` spells it.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

macro_rules! sources {
    ($($name:literal),* $(,)?) => {
        /// Every file that kernels are made of; headers among them.
        pub static SOURCES: &[Source] =
            &[$(Source { name: $name, text: include_str!(concat!("../../../cuda/", $name)) }),*];
    };
}

sources![
    "affine.cuh",
    "argmax.cu",
    "attention.cuh",
    "attention_decode.cu",
    "attention_decode.cuh",
    "attention_prefill.cu",
    "attention_prefill.cuh",
    "attention_prefill_out.cuh",
    "attention_prefill_weights.cuh",
    "ceiling.cu",
    "ceiling_sm90.cu",
    "embedding.cu",
    "gemm_w4a4.cuh",
    "gemm_w4a4_mma.cuh",
    "gemm_w4a4_schedule.cuh",
    "gemm_w4a4_sm90.cu",
    "gemm_w4a4_sm90_epilogue.cuh",
    "gemm_w4a4_stream.cu",
    "gemm_w4a4_tiled.cu",
    "kernel.cuh",
    "kv_cache.cuh",
    "ptx.cuh",
    "ptx_sm90.cuh",
    "quantize_tokens.cu",
    "rms_norm.cu",
    "rope_hadamard_quantize.cu",
    "rotation.cuh",
    "rows.cuh",
    "token_sink.cuh",
    "token_source.cuh",
    "transform_quantize.cu",
    "types.cuh",
];

/// A macro that a kernel is compiled with, `-Dname=value`.
pub type Define = (&'static str, u32);

/// One compiled variant of a kernel, by name: a file, the function in it, and the macros that choose tile and types.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// The file of `cuda/`, one of [`SOURCES`].
    pub file: &'static str,
    /// The `KERNEL(..)` in it.
    pub entry: &'static str,
    /// What it is compiled with, besides `ARCH`.
    pub defines: Vec<Define>,
    /// Architectures that it is written for.
    pub archs: &'static [Arch],
    /// Most registers of a thread that it may take on any of them, for its occupancy: asserted from the machine code.
    pub registers: u32,
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.entry)?;
        for (i, (name, value)) in self.defines.iter().enumerate() {
            write!(f, "{}{name}={value}", if i == 0 { "<" } else { "," })?;
        }
        f.write_str(if self.defines.is_empty() { "" } else { ">" })
    }
}
