//! Made-up records of every kind, near what a real run gives, for the tests of reports.
#![allow(dead_code, reason = "each test file takes what it needs")]

use duquant::bench::{
    AblationPoint, Ceilings, FORMAT, Failure, KernelPoint, KernelTime, Machine, Magnitudes, Memory, ModelShape,
    OutlierPoint, Phase, Points, QuantizePoint, Record, SpeedPoint, Stage, Times, VERSION,
};
use duquant::report::Source;
use std::collections::BTreeMap;

/// A record around points.
pub(crate) fn record(points: Points) -> Record {
    Record {
        format: FORMAT.into(),
        version: VERSION,
        duquant: "0.1.0".into(),
        commit: Some("9d985a1+".into()),
        unix_seconds: 1_764_455_573,
        command: ["bench", "layer", "--model", "llama2-7b", "--json"].map(String::from).to_vec(),
        machine: Machine {
            cpu: "Intel(R) Xeon(R) Processor @ 2.10GHz".into(),
            cores: 2,
            threads: 2,
            memory_bytes: Some(16_000_000_000),
            os: "linux x86_64".into(),
            backend: "cpu".into(),
            device: "amx-int8".into(),
            driver: None,
            arithmetic: "reproducible".into(),
        },
        model: Some(ModelShape {
            name: "LLaMA2-7B".into(),
            hidden: 4096,
            intermediate: 11008,
            layers: 32,
            heads: 32,
            kv_heads: 32,
            head_dim: 128,
            vocabulary: 32000,
        }),
        settings: BTreeMap::from([
            ("prefill".into(), 2048.into()),
            ("samples".into(), 11.into()),
            ("seed".into(), 0.into()),
        ]),
        ceilings: Some(Ceilings {
            bytes_per_second: 21e9,
            f32_per_second: 0.21e12,
            bf16_per_second: None,
            integer_per_second: 5.4e12,
        }),
        points,
        failures: vec![Failure {
            what: "decode, batch 64, fp32".into(),
            error: "not enough memory: 34.4 GB asked for".into(),
        }],
    }
}

pub(crate) fn source(points: Points) -> Source {
    Source { name: "made-up.json".into(), record: record(points) }
}

fn times(median: f64, noisy: bool) -> Times {
    Times {
        median_ms: median,
        p10_ms: median * 0.98,
        p90_ms: median * 1.03,
        samples_ms: vec![median; 11],
        noise: if noisy { vec!["the 90th percentile is 12% above the median".into()] } else { Vec::new() },
    }
}

/// A layer: both phases, four batches, six methods.
pub(crate) fn speed_points() -> Vec<SpeedPoint> {
    let methods =
        [("fp32", 1.0), ("rtn", 3.2), ("quarot", 2.7), ("duquant0", 2.9), ("duquant", 2.6), ("duquant2", 2.3)];
    let mut points = Vec::new();
    for phase in [Phase::Prefill, Phase::Decode] {
        for batch in [1usize, 4, 16, 64] {
            let tokens = if phase == Phase::Prefill { batch * 2048 } else { batch };
            let base = if phase == Phase::Prefill { 9.1 * batch as f64 * 1000.0 } else { 16.0 + 1.4 * batch as f64 };
            for (i, (method, gain)) in methods.into_iter().enumerate() {
                let float = method == "fp32";
                let speedup = if float { 1.0 } else { gain * (1.0 - 0.25 / batch as f64) };
                let median = base / speedup;
                let noisy = batch == 16 && i == 3;
                let weights = if float { 809_000_000 } else { 102_000_000 + i as u64 * 400_000 };
                let memory = Memory {
                    weights,
                    activations: 33_000 * tokens as u64,
                    kv_cache: batch as u64 * if float { 67_000_000 } else { 9_400_000 },
                    workspace: 12_000_000 + 900 * tokens as u64,
                };
                points.push(SpeedPoint {
                    phase,
                    batch,
                    tokens,
                    length: 2048,
                    method: method.into(),
                    bits: if float { "FP32" } else { "W4A4" }.into(),
                    backend: "cpu".into(),
                    device: "amx-int8".into(),
                    time: times(median, noisy),
                    tokens_per_second: tokens as f64 / median * 1e3,
                    speedup: (!float).then_some(speedup),
                    transform_share: (!float).then_some(0.11 + 0.03 * i as f64),
                    transform_overhead: (!float && method != "rtn").then_some(3.2 / gain - 1.0),
                    peak_bytes: memory.total(),
                    memory,
                    device_bytes: Some(memory.total() + 9_000_000),
                    kernels: kernels(float, tokens, median),
                });
            }
        }
    }
    points
}

fn kernels(float: bool, tokens: usize, median: f64) -> Vec<KernelTime> {
    let kernel = |name: &str, variant: &str, share: f64, bytes: f64, ops: f64| KernelTime {
        name: name.into(),
        variant: variant.into(),
        ms: median * share,
        bytes,
        ops,
    };
    let tokens = tokens as f64;
    let product = 2.0 * tokens * 4096.0 * 4096.0;
    if float {
        return vec![
            kernel("gemm_float", "qkv, avx512", 0.28, 201e6 + tokens * 65e3, product * 3.0),
            kernel("gemm_float", "gate_up, avx512", 0.40, 361e6 + tokens * 90e3, product * 5.4),
            kernel("attention", "float", 0.20, tokens * 260e3, tokens * 4096.0 * 4096.0),
            kernel("rms_norm", "avx512", 0.12, tokens * 33e3, 0.0),
        ];
    }
    vec![
        kernel("gemm_w4a4", "qkv, amx", 0.22, 25e6 + tokens * 51e3, product * 3.0),
        kernel("gemm_w4a4", "gate_up, amx", 0.33, 45e6 + tokens * 92e3, product * 5.4),
        kernel("transform_quantize", "qkv, vnni", 0.12, tokens * 19e3, tokens * 4096.0 * 512.0),
        kernel("rope_hadamard_quantize", "vnni", 0.08, tokens * 30e3, tokens * 4096.0 * 14.0),
        kernel("attention", "int4, vnni", 0.20, tokens * 140e3, tokens * 4096.0 * 4096.0),
        kernel("rms_norm", "avx512", 0.05, tokens * 33e3, 0.0),
    ]
}

pub(crate) fn kernel_points() -> Vec<KernelPoint> {
    let mut points = Vec::new();
    for (i, tokens) in [1usize, 8, 64, 512, 2048].into_iter().enumerate() {
        for (name, arithmetic, ops_each, ms) in [
            ("gemm_w4a4", "integer", 2.0 * 4096.0 * 4096.0, 0.131),
            ("transform_quantize", "f32", 4096.0 * 512.0, 0.01),
            ("gemm_float", "f32", 2.0 * 4096.0 * 4096.0, 1.22),
        ] {
            let median = ms * (1.0 + tokens as f64 / 12.0);
            let ops = ops_each * tokens as f64;
            let bytes =
                if name == "transform_quantize" { tokens as f64 * 18.5e3 } else { 8.4e6 + tokens as f64 * 20e3 };
            points.push(KernelPoint {
                name: name.into(),
                variant: "amx".into(),
                shape: BTreeMap::from([("tokens".into(), tokens), ("n".into(), 4096), ("k".into(), 4096)]),
                bits: "W4A4".into(),
                backend: "cpu".into(),
                device: "amx-int8".into(),
                time: times(median, i == 2),
                bytes,
                ops,
                arithmetic: arithmetic.into(),
                bytes_per_second: bytes / median * 1e3,
                ops_per_second: ops / median * 1e3,
                of_ceiling: Some(0.1 + 0.15 * i as f64),
                bound: Some(if tokens < 64 { "memory" } else { "compute" }.into()),
            });
        }
    }
    points
}

pub(crate) fn quantize_points() -> Vec<QuantizePoint> {
    let point = |method: &str, mode: &str, search: f64| QuantizePoint {
        model: "SmolLM2-135M".into(),
        method: method.into(),
        mode: mode.into(),
        bits: "W4A4".into(),
        tokens: 4096,
        layers: 30,
        seconds: 37.0 + search,
        stages: [
            ("load", 1.2),
            ("calibrate", 18.0),
            ("smooth", 0.9),
            ("search", search),
            ("round", 14.5),
            ("write", 2.4),
        ]
        .map(|(name, seconds)| Stage { name: name.into(), seconds })
        .to_vec(),
        peak_bytes: Some(496_000_000),
        noise: if method == "rtn" { vec!["another process used 0.8 of a core".into()] } else { Vec::new() },
    };
    vec![
        point("duquant", "best", 46.0),
        point("duquant", "paper", 31.0),
        point("quarot", "none", 2.1),
        point("rtn", "none", 0.0),
    ]
}

pub(crate) fn ablation_points() -> Vec<AblationPoint> {
    let point = |table: &str, paper: &str, row: &str, perplexity: Option<f64>, theirs: Option<f64>| AblationPoint {
        table: table.into(),
        paper: paper.into(),
        row: row.into(),
        settings: BTreeMap::from([("smooth".into(), row.contains("smooth").into()), ("block".into(), 64.into())]),
        perplexity,
        baseline: 24.517,
        seconds: 61.0,
        variance: (table == "permutation").then_some(0.0123),
        paper_perplexity: theirs,
    };
    vec![
        point("modules", "table 6", "none", None, Some(f64::INFINITY).filter(|v| v.is_finite())),
        point("modules", "table 6", "smooth", Some(502.0), Some(1930.48)),
        point("modules", "table 6", "rotation 1", Some(61.3), Some(6.79)),
        point("modules", "table 6", "smooth, rotation 1, permutation, rotation 2", Some(44.9), Some(6.38)),
        point("permutation", "table 12", "no permutation", Some(49.2), Some(7.92)),
        point("permutation", "table 12", "random", Some(46.1), Some(6.62)),
        point("permutation", "table 12", "zigzag", Some(44.9), Some(6.38)),
    ]
}

/// A picture with both kinds of outliers: channels that stand out at all tokens, and one token that does at one channel.
pub(crate) fn outlier_point(layer: usize, massive: bool) -> OutlierPoint {
    let (columns, rows) = (192usize, 96usize);
    let mut seed = 12_345u64 + layer as u64;
    let mut next = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 40) as f32 / (1u64 << 24) as f32
    };
    let steps = ["before smoothing", "after smoothing", "after rotation 1", "after permutation", "after rotation 2"];
    let steps = steps.iter().enumerate().map(|(i, step)| {
        let mut grid: Vec<f32> = (0..columns * rows).map(|_| 0.15 + 0.5 * next() * next()).collect();
        let spread = [1.0f32, 0.5, 0.11, 0.09, 0.035][i];
        for row in 0..rows {
            for channel in [17, 60, 61, 140] {
                grid[row * columns + channel] += 12.0 * spread * (0.6 + 0.4 * next());
            }
        }
        if massive {
            let width = [1usize, 1, 12, 40, 120][i];
            for channel in 100..(100 + width).min(columns) {
                grid[7 * columns + channel] += 1400.0 * spread / (width as f32).sqrt();
            }
        }
        let max = grid.iter().copied().fold(0.0, f32::max);
        let mut sorted = grid.clone();
        sorted.sort_by(f32::total_cmp);
        Magnitudes { step: (*step).into(), max, median: sorted[sorted.len() / 2] * 0.5, columns, grid }
    });
    let group = if massive { "down" } else { "qkv" };
    OutlierPoint { layer, group: group.into(), channels: 1536, tokens: 384, steps: steps.collect() }
}

/// Every kind of record.
pub(crate) fn all() -> Vec<(&'static str, Points)> {
    vec![
        ("layer", Points::Layer(speed_points())),
        ("model", Points::Model(speed_points())),
        ("kernel", Points::Kernel(kernel_points())),
        ("quantize", Points::Quantize(quantize_points())),
        ("ablate", Points::Ablate(ablation_points())),
        ("outliers", Points::Outliers(vec![outlier_point(1, false), outlier_point(11, true)])),
    ]
}
