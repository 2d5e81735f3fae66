//! The kernel whose output has the CPU backend's bits.

use super::super::arithmetic::PRELUDES;
use super::super::kv_cache::check_workgroups;
use super::super::pipelines::Kernel;
use super::super::{Access, Error, Gpu, Shader, Variant};
use super::{AttentionDesc, CACHE, cache_constants, check_workgroup_memory};
use std::sync::Arc;

static SHADER: Shader = Shader {
    name: "attention_reproducible",
    sources: &[
        CACHE,
        include_str!("../../../../shaders/reproducible.wgsl"),
        include_str!("../../../../shaders/attention_reproducible.wgsl"),
    ],
    bindings: &[Access::Read, Access::Read, Access::Read, Access::Read, Access::Write],
    immediates: 32,
};

/// Rows (queries x heads of a group) of a workgroup.
pub(super) const ROWS: usize = 4;
/// Keys of a tile.
const KEYS: usize = 128;

/// Compiles the kernel for a description that has been checked but for its workgroups; `fused` are the functions of that
/// name.
pub(super) fn kernel(gpu: &Gpu, desc: &AttentionDesc, fused: &str) -> Result<Arc<Kernel>, Error> {
    let rows = desc.tokens_max as u64 * desc.group() as u64;
    check_workgroups(gpu, "tokens_max", rows.div_ceil(ROWS as u64))?;
    check_workgroup_memory(gpu, (4 * ROWS * (desc.query_words() + KEYS + 3 * 16 + 1)) as u64)?;
    gpu.kernel(&SHADER, &variant(desc, fused))
}

fn variant(desc: &AttentionDesc, fused: &str) -> Variant {
    let (head_dim, words) = (desc.cache.head_dim, desc.query_words());
    // The CPU rounds the root.
    let scale = 1.0 / (head_dim as f32).sqrt();
    let mut constants = cache_constants(desc);
    constants.retain(|&(name, _)| name != "SCALE");
    constants.extend([("SCALE", f64::from(scale)), ("OUT_BITS", 8.0 * desc.out.bytes() as f64)]);
    Variant { prelude: format!("{fused}const HEAD_DIM: u32 = {head_dim}u;\nconst WORDS: u32 = {words}u;\n"), constants }
}

pub(super) fn variants(desc: &AttentionDesc) -> [(&'static Shader, Variant); 2] {
    PRELUDES.map(|fused| (&SHADER, variant(desc, fused)))
}
