//! CubeCL's matrix product, with its autotuner, through burn-wgpu: `x [T, K]` by a weight `[N, K]`, as in `benches/wgpu.rs`.
//! Prints one JSON object. Time is wall time from a synchronised device to the next synchronisation, submission included: ours
//! is device time, so the comparison is in the peer's disfavour by the cost of one submission (below 0.1 ms on lavapipe).
//!
//! The weight is given both as a transposed view of `[N, K]` and as `[K, N]`; the faster one is the peer's figure.

use burn_tensor::backend::Backend;
use burn_tensor::{Distribution, Tensor};
use burn_wgpu::{Wgpu, WgpuDevice};
use std::time::Instant;

type Peer = Wgpu<f32, i32, u32>;
type Matrix = Tensor<Peer, 2>;

fn median(x: &Matrix, weight: &Matrix, device: &WgpuDevice, samples: usize) -> (f64, Vec<f64>) {
    let mut all = Vec::new();
    // The first rounds compile and tune.
    for round in 0..samples + 2 {
        Peer::sync(device);
        let start = Instant::now();
        let y = x.clone().matmul(weight.clone());
        Peer::sync(device);
        let seconds = start.elapsed().as_secs_f64();
        drop(y);
        if round >= 2 {
            all.push(seconds * 1e6);
        }
    }
    let mut sorted = all.clone();
    sorted.sort_by(f64::total_cmp);
    (sorted[samples / 2], all)
}

fn main() {
    let samples: usize = std::env::args().nth(2).and_then(|text| text.parse().ok()).unwrap_or(5).max(1);
    let tokens: Vec<usize> = std::env::args()
        .nth(1)
        .unwrap_or("1,4,8,64,512".into())
        .split(',')
        .map(|text| text.parse().expect("tokens are numbers with commas between them"))
        .collect();
    let (n, k) = (4096, 4096);
    // As `Gpu::open` of duquant on a machine with one adapter.
    let device = WgpuDevice::default();
    let rows = Matrix::random([n, k], Distribution::Default, &device);
    let columns = Matrix::random([k, n], Distribution::Default, &device);
    let mut lines = Vec::new();
    for tokens in tokens {
        let x = Matrix::random([tokens, k], Distribution::Default, &device);
        let views = [("[N, K] transposed", rows.clone().transpose()), ("[K, N]", columns.clone())];
        for (name, weight) in views {
            let (median, all) = median(&x, &weight, &device, samples);
            let all: Vec<String> = all.iter().map(|us| format!("{us:.1}")).collect();
            lines.push(format!(
                "{{\"operation\": \"cubecl matmul f32\", \"weight\": \"{name}\", \"tokens\": {tokens}, \
                 \"median_us\": {median:.1}, \"samples_us\": [{}]}}",
                all.join(", ")
            ));
        }
    }
    println!(
        "{{\n  \"library\": \"burn-wgpu 0.19 (cubecl)\", \"device\": \"{device:?}\", \"n\": {n}, \"k\": {k},\n  \
         \"results\": [\n    {}\n  ]\n}}",
        lines.join(",\n    ")
    );
}
