//! RoPE with quantization and attention over the cache, at the shapes of SmolLM2-135M and LLaMA-2 7B: 4-bit and `f32`
//! caches, both arithmetics, prefill and decode. `cargo bench --bench attention`.

use criterion::{Criterion, criterion_group, criterion_main};
use duquant::kernels::cpu::{
    Isa, KvCache, KvCacheDesc, QueryHeads, QueryHeadsDesc, RopeStretch, RopeTable, attention, rope_hadamard_quantize,
    rope_inverse_frequencies,
};
use duquant::kernels::{Affine, Arithmetic, Error};
use std::hint::black_box;

struct Case {
    name: &'static str,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    affine: Option<Affine>,
    arithmetic: Arithmetic,
    before: usize,
    tokens: usize,
}

fn run(c: &mut Criterion, case: &Case) -> Result<(), Error> {
    let &Case { name, heads, kv_heads, head_dim, affine, arithmetic, before, tokens } = case;
    let width = (heads + 2 * kv_heads) * head_dim;
    let qkv: Vec<f32> = (0..before.max(tokens) * width).map(|i| ((i * 7919) % 2003) as f32 * 0.002 - 2.0).collect();
    let rope =
        RopeTable::new(head_dim, &rope_inverse_frequencies(head_dim, 10000.0, &RopeStretch::None)?, before + tokens)?;
    let capacity = before + tokens;
    let mut cache = KvCache::new(&KvCacheDesc { kv_heads, head_dim, capacity, key: affine, value: affine })?;
    let tokens_max = before.max(tokens);
    let desc = QueryHeadsDesc { heads, kv_heads, head_dim, tokens_max, key: affine };
    let mut queries = QueryHeads::new_with(&desc, Isa::best(), arithmetic)?;
    rope_hadamard_quantize(&qkv[..before * width], &rope, 0, &mut queries, &mut cache)?;
    let kind = format!("{}-{}", if affine.is_some() { "int4" } else { "f32" }, arithmetic.name());
    let shape = format!("T{tokens}+{before}");
    c.bench_function(&format!("rope_hadamard_quantize/{name}/{kind}/{shape}"), |b| {
        b.iter(|| {
            cache.truncate(before);
            rope_hadamard_quantize(black_box(&qkv[..tokens * width]), &rope, before, &mut queries, &mut cache).is_ok()
        });
    });
    let mut out = vec![0.0; tokens * heads * head_dim];
    let mut workspace = vec![0.0; queries.workspace_len()];
    c.bench_function(&format!("attention/{name}/{kind}/{shape}"), |b| {
        b.iter(|| attention(&queries, &cache, None, black_box(&mut out), &mut workspace).is_ok());
    });
    Ok(())
}

fn bench(c: &mut Criterion) {
    let int4 = Some(Affine { bits: 4, clip: 0.9, symmetric: false });
    for (name, heads, kv_heads, head_dim) in [("smollm2", 9, 3, 64), ("llama7b", 32, 32, 128)] {
        let kinds = [(int4, Arithmetic::Fast), (int4, Arithmetic::Reproducible), (None, Arithmetic::Reproducible)];
        for (affine, arithmetic) in kinds {
            for (before, tokens) in [(0, 512), (0, 2048), (512, 1), (4096, 1)] {
                let case = Case { name, heads, kv_heads, head_dim, affine, arithmetic, before, tokens };
                assert_eq!(run(c, &case), Ok(()), "{name} {before} {tokens}");
            }
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
