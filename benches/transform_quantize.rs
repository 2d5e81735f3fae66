//! The prologue of the linears, at the shapes of SmolLM2-135M and LLaMA-2 7B: none, dense (reproducible and as fast as the
//! machine can) and Hadamard rotations, prefill and decode. `cargo bench --bench transform_quantize`.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use duquant::kernels::cpu::{Isa, QuantizedTokens, Source, TransformQuantize};
use duquant::kernels::{Affine, Arithmetic, Transform};
use std::hint::black_box;

/// Two rotations and one permutation. What the matrices hold does not change the time; these are Hadamards, planned as
/// dense or not.
fn transform(channels: usize, block: usize, hadamard: bool) -> Transform {
    let entry = 1.0 / (block as f32).sqrt();
    let size = block * block;
    let rotations = (0..2 * size)
        .map(|i| if ((i % size / block) & (i % block)).count_ones().is_multiple_of(2) { entry } else { -entry })
        .collect();
    let permutations = (0..channels).map(|i| ((i * 7919 + 13) % channels) as u32).collect();
    Transform { channels, block, rotations, permutations, inverse_smooth: None, hadamard }
}

fn bench(c: &mut Criterion) {
    let affine = Affine { bits: 4, clip: 0.9, symmetric: false };
    let mut group = c.benchmark_group("transform_quantize");
    for (channels, block) in [(576, 64), (1536, 128), (4096, 128), (11008, 128)] {
        for kind in ["identity", "dense", "fast", "hadamard"] {
            let (transform, arithmetic) = match kind {
                "identity" => (Transform::identity(channels), Arithmetic::Reproducible),
                "fast" => (transform(channels, block, false), Arithmetic::Fast),
                _ => (transform(channels, block, kind == "hadamard"), Arithmetic::Reproducible),
            };
            for tokens in [1, 4, 16, 64, 512] {
                let plan = TransformQuantize::plan_with(&transform, Some(affine), tokens, Isa::best(), arithmetic);
                let Ok(plan) = plan else { continue };
                let gate_up: Vec<f32> = (0..2 * tokens * channels).map(|i| (i % 1009) as f32 * 0.01 - 5.0).collect();
                let weight = vec![1.0; channels];
                let mut out = QuantizedTokens::new(tokens, channels);
                let mut workspace = vec![0.0; plan.workspace_len()];
                group.throughput(Throughput::Elements((tokens * channels) as u64));
                let x = &gate_up[..tokens * channels];
                let sources = [
                    ("tokens", Source::Tokens(x)),
                    ("rms_norm", Source::RmsNorm { x, weight: &weight, epsilon: 1e-5 }),
                    ("silu_mul", Source::SiluMul { gate_up: &gate_up }),
                ];
                for (name, source) in sources {
                    let id = BenchmarkId::new(format!("{name}/{kind}{block}"), format!("T{tokens}xK{channels}"));
                    group.bench_function(id, |b| {
                        b.iter(|| plan.run(black_box(source), tokens, &mut out, &mut workspace).is_ok());
                    });
                }
            }
        }
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
