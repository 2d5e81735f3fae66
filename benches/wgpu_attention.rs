//! Device time of `rope_hadamard_quantize` and attention on the first wgpu adapter (or the one that `WGPU_ADAPTER_NAME`
//! names): prefill and decode over caches of 4 bits, f16 and f32, at the shapes of SmolLM2-135M and LLaMA-3 8B. One line of
//! JSON a case, with medians over the runs. `cargo bench --bench wgpu_attention`; with `-- reproducible` the kernels that give
//! the CPU's bits, with `-- smollm2` or `-- llama` one model's.
#![allow(clippy::print_stdout, reason = "a bench reports this way")]

use duquant::kernels::Affine;
use duquant::kernels::cpu::{RopeStretch, RopeTable, rope_inverse_frequencies};
use duquant::kernels::wgpu::{
    Arithmetic, AttentionDesc, AttentionOperands, AttentionPlan, Dtype, Error, Gpu, GpuOptions, KvCache, KvLayout,
    Recorder, RopeHadamardQuantizeDesc, RopeHadamardQuantizeOperands, RopeHadamardQuantizePlan, Timer, rope_buffer,
};
use std::collections::BTreeMap;

const RUNS: usize = 9;

struct Case {
    model: &'static str,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    cache: &'static str,
    tokens: usize,
    position: usize,
}

fn run(gpu: &Gpu, case: &Case) -> Result<(), Error> {
    let &Case { model, heads, kv_heads, head_dim, cache, tokens, position } = case;
    let capacity = tokens + position;
    let affine = (cache == "u4").then_some(Affine { bits: 4, clip: 0.9, symmetric: false });
    let float = if cache == "f16" { Dtype::F16 } else { Dtype::F32 };
    let layout = KvLayout { kv_heads, head_dim, capacity, key: affine, value: affine, float };
    let chunk = capacity.min(512);
    let desc = RopeHadamardQuantizeDesc { heads, tokens_max: chunk, input: Dtype::F32, cache: layout };
    let prologue = RopeHadamardQuantizePlan::plan(gpu, &desc)?;
    let desc = AttentionDesc { heads, tokens_max: chunk, window: None, out: Dtype::F32, cache: layout };
    let plan = AttentionPlan::plan(gpu, &desc)?;
    let cache = KvCache::new(gpu, layout)?;
    let width = (heads + 2 * kv_heads) * head_dim;
    let x: Vec<u8> =
        (0..chunk * width).flat_map(|i| (((i * 7919) % 2003) as f32 * 0.002 - 2.0).to_le_bytes()).collect();
    let qkv = gpu.upload("qkv", &x)?;
    let table = RopeTable::new(head_dim, &rope_inverse_frequencies(head_dim, 10000.0, &RopeStretch::None)?, capacity)?;
    let (rope, queries) = (rope_buffer(gpu, &table)?, gpu.buffer("queries", prologue.queries().bytes())?);
    let (out, workspace) = (gpu.buffer("out", plan.out_bytes())?, gpu.buffer("workspace", plan.workspace_bytes())?);
    let prologue = prologue.bind(
        gpu,
        &RopeHadamardQuantizeOperands {
            qkv: qkv.as_entire_buffer_binding(),
            rope: rope.as_entire_buffer_binding(),
            queries: queries.as_entire_buffer_binding(),
            cache: cache.binding(),
        },
    )?;
    let attention = plan.bind(
        gpu,
        &AttentionOperands {
            queries: queries.as_entire_buffer_binding(),
            cache: cache.binding(),
            out: out.as_entire_buffer_binding(),
            workspace: workspace.as_entire_buffer_binding(),
        },
    )?;
    let mut encoder = gpu.encoder();
    for start in (0..position).step_by(chunk) {
        prologue.enqueue(&mut Recorder::new(&mut encoder), chunk.min(position - start), start)?;
    }
    gpu.submit(encoder)?;
    let mut timer = Timer::new(gpu, 8)?;
    let mut times: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    // The first run warms up.
    for run in 0..=RUNS {
        let mut encoder = gpu.encoder();
        let mut recorder = Recorder::timed(&mut encoder, &mut timer);
        prologue.enqueue(&mut recorder, tokens, position)?;
        attention.enqueue(&mut recorder, tokens, position)?;
        drop(recorder);
        gpu.submit(encoder)?;
        for (name, seconds) in timer.finish(gpu)? {
            if run > 0 {
                times.entry(name).or_default().push(seconds);
            }
        }
    }
    let medians: Vec<String> = times
        .iter_mut()
        .map(|(name, seconds)| {
            seconds.sort_by(f64::total_cmp);
            format!("\"{name}\":{:.1}", 1e6 * seconds[seconds.len() / 2])
        })
        .collect();
    println!(
        "{{\"adapter\":{:?},\"arithmetic\":\"{:?}\",\"model\":\"{model}\",\"heads\":{heads},\"kv_heads\":{kv_heads},\"head_dim\":{head_dim},\
         \"cache\":\"{}\",\"tokens\":{tokens},\"context\":{capacity},\"runs\":{RUNS},\"median_us\":{{{}}}}}",
        gpu.info().name,
        gpu.arithmetic(),
        case.cache,
        medians.join(",")
    );
    Ok(())
}

fn main() -> Result<(), Error> {
    let words: Vec<String> = std::env::args().map(|word| word.to_lowercase()).collect();
    let has = |word: &str| words.iter().any(|w| w == word);
    let options = GpuOptions { adapter: std::env::var("WGPU_ADAPTER_NAME").ok(), ..GpuOptions::default() };
    let arithmetic = if has("reproducible") { Arithmetic::Reproducible } else { Arithmetic::Fast };
    let gpu = Gpu::open(&options)?.with_arithmetic(arithmetic)?;
    for (model, heads, kv_heads, head_dim) in [("SmolLM2-135M", 9, 3, 64), ("LLaMA-3 8B", 32, 8, 128)] {
        let other = if heads == 9 { "llama" } else { "smollm2" };
        if has(other) {
            continue;
        }
        for cache in ["u4", "f16", "f32"] {
            for (tokens, position) in [(512, 0), (1, 511), (1, 2047)] {
                run(&gpu, &Case { model, heads, kv_heads, head_dim, cache, tokens, position })?;
            }
        }
    }
    Ok(())
}
