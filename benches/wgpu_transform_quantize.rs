//! Device time of the prologue on the first wgpu adapter (`WGPU_ADAPTER_NAME` picks another): one JSON line a shape, medians
//! of 9 runs. `cargo bench --no-default-features --features wgpu --bench wgpu_transform_quantize`
#![allow(clippy::print_stdout, reason = "prints its results")]

use duquant::kernels::wgpu::{
    Dtype, Error, Gpu, GpuOptions, QuantizedTokens, Recorder, SourceBinding, Timer, TokenSource, TransformOutput,
    TransformQuantizeDesc, TransformQuantizePlan, TransformShape, TransformTarget,
};
use duquant::kernels::{Affine, Transform};

const RUNS: usize = 9;

fn transform(channels: usize, block: usize, hadamard: bool) -> Transform {
    // Its speed does not depend on the numbers: Hadamard matrices in both, and a permutation with a large stride.
    let entry = 1.0 / (block as f32).sqrt();
    let sign = |i: usize| if ((i / block) & (i % block)).count_ones().is_multiple_of(2) { entry } else { -entry };
    let rotation: Vec<f32> = (0..block * block).map(sign).collect();
    let permutations = (0..channels).map(|j| ((j * 1013) % channels) as u32).collect();
    Transform { channels, block, rotations: rotation.repeat(2), permutations, inverse_smooth: None, hadamard }
}

fn main() -> Result<(), Error> {
    let gpu = Gpu::open(&GpuOptions { adapter: std::env::var("WGPU_ADAPTER_NAME").ok(), ..GpuOptions::default() })?;
    for (channels, tokens, hadamard) in [
        (4096, 512, false),
        (4096, 512, true),
        (11_008, 512, false),
        (4096, 1, false),
        (4096, 1, true),
        (11_008, 1, false),
    ] {
        let transform = transform(channels, 128, hadamard);
        let desc = TransformQuantizeDesc {
            m_max: tokens,
            shape: TransformShape::of(&transform),
            affine: Some(Affine::new(4, 0.9)?),
            source: TokenSource::Tokens,
            input: Dtype::F32,
            target: TransformTarget::Codes,
        };
        let plan = TransformQuantizePlan::plan(&gpu, &desc)?;
        let tables = plan.pack(&gpu, &transform)?;
        let x: Vec<f32> = (0..tokens * channels).map(|i| ((i * 7919 % 1009) as f32 - 500.0) * 0.01).collect();
        let x = gpu.upload("x", bytemuck::cast_slice(&x))?;
        let out = QuantizedTokens::new(&gpu, desc.layout())?;
        let workspace = gpu.buffer("workspace", plan.workspace_bytes())?;
        let source = SourceBinding::Tokens(x.as_entire_buffer_binding());
        let target = TransformOutput::Codes(out.binding());
        let bound = plan.bind(&gpu, source, &tables, target, Some(workspace.as_entire_buffer_binding()))?;
        let mut timer = Timer::new(&gpu, 1)?;
        let mut seconds = Vec::with_capacity(RUNS);
        for run in 0..=RUNS {
            let mut encoder = gpu.encoder();
            bound.enqueue(&mut Recorder::timed(&mut encoder, &mut timer), tokens)?;
            gpu.submit(encoder)?;
            let times = timer.finish(&gpu)?;
            // The first run warms up.
            if run > 0 {
                seconds.extend(times.iter().map(|(_, seconds)| *seconds));
            }
        }
        seconds.sort_by(f64::total_cmp);
        println!(
            "{{\"adapter\": \"{}\", \"kernel\": \"{}\", \"tokens\": {tokens}, \"channels\": {channels}, \
             \"median_ms\": {:.3}}}",
            gpu.info().name,
            plan.kernel(tokens),
            seconds[RUNS / 2] * 1e3
        );
    }
    Ok(())
}
