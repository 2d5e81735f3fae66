//! Attention of many tokens a sequence in CUDA against the oracle, on caches that the test writes.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails and reports this way")]

mod cache;
mod cuda;
mod oracle;

use cache::{Case, Memory, Span};
use cuda::devices;
use duquant::kernels::cuda::{Arch, Dtype};
use oracle::Random;

const SMALL: f64 = 1.0 / (1 << 24) as f64;

/// Checks each number of `got`, `[T, H D]`, against the oracle; returns the largest error over its bound.
///
/// With `u = 2^-24` and weights that sum to one:
/// - weights are rounded to half precision: a part of `r = 2^-11` (bfloat16 `2^-8`) of each term, so `r sum w |v|`; those below
///   the smallest normal half of the row's largest term lose `2^-25` of it each: `2^-25 n` over the largest term, which is at
///   most a whole value range;
/// - scores of codes are integers under five roundings, and the value's scale enters as a logarithm that is right to `2^-22` of
///   itself; of floating point `D` products are added: an error `e` of every score moves the output by `2 e` of a value;
/// - 2^x, the sums (codes and zero points apart, each at most the value range) and the rescaling: `n` additions, `8 n u`;
/// - the output is rounded.
fn check(what: &str, case: &Case, spans: &[Span], memory: &Memory, got: &[f32]) -> f64 {
    let mut worst = 0.0_f64;
    for (span, sequence) in spans.iter().zip(&memory.sequences) {
        let expected = memory.attention(case, span, sequence, |v| v);
        let sizes = memory.attention(case, span, sequence, f64::abs);
        let n = (span.position + span.tokens) as f64;
        let (score, range) = memory.largest(case, sequence);
        let rounded = if case.value == 16 && case.float == Dtype::Bf16 { 2_f64.powi(-8) } else { 2_f64.powi(-11) };
        let of_score = if case.key == 16 { case.head_dim as f64 + 6.0 } else { 6.0 };
        let of_scale = 2.0 * 2_f64.powi(-22) * (64.0 + 2.0 * score);
        let rest = range * (2.0 * of_score * SMALL * score + of_scale + (8.0 * n + 64.0) * SMALL + n * 2_f64.powi(-25));
        let width = case.heads * case.head_dim;
        let got = &got[span.first * width..(span.first + span.tokens) * width];
        for (i, (&got, (&expected, &size))) in got.iter().zip(expected.iter().zip(&sizes)).enumerate() {
            let bound = 1.05 * rounded * size + rest + case.out_error() * size + 1e-30;
            let part = (f64::from(got) - expected).abs() / bound;
            let (t, c) = (i / width, i % width);
            assert!(
                part <= 1.0,
                "{what} {case:?} {span:?}: token {t} channel {c}: {got} for {expected}, bound {bound}"
            );
            worst = worst.max(part);
        }
    }
    worst
}

fn run(
    name: &str,
    device: &std::sync::Arc<dyn duquant::kernels::cuda::Device>,
    case: &Case,
    spans: &[Span],
    seed: u64,
) {
    let mut random = Random::new(seed);
    let memory = Memory::new(case, spans, &mut random);
    let got = memory.run(device, case);
    let worst = check(name, case, spans, &memory, &got);
    println!("{name} {case:?}: {:?}: {worst:.3} of the bound", Span::lengths(spans));
}

fn cases() -> Vec<(Arch, Case)> {
    let case = Case { heads: 4, kv_heads: 2, head_dim: 128, ..Case::default() };
    vec![
        (Arch::Sm80, Case { heads: 4, kv_heads: 1, ..case }),
        (Arch::Sm80, Case { heads: 3, kv_heads: 1, head_dim: 80, window: Some(70), out: Dtype::F16, ..case }),
        (Arch::Sm86, Case { heads: 8, kv_heads: 1, head_dim: 64, key: 8, value: 4, out: Dtype::Bf16, ..case }),
        (Arch::Sm89, Case { heads: 2, head_dim: 96, key: 8, value: 8, window: Some(100), out: Dtype::F16, ..case }),
        (Arch::Sm80, Case { heads: 2, head_dim: 64, key: 16, value: 16, ..case }),
        (Arch::Sm86, Case { head_dim: 80, key: 16, value: 16, float: Dtype::Bf16, out: Dtype::Bf16, ..case }),
        (Arch::Sm80, Case { heads: 2, kv_heads: 1, head_dim: 256, out: Dtype::F16, ..case }),
        (Arch::Sm86, Case { heads: 1, kv_heads: 1, head_dim: 256, key: 16, value: 16, window: Some(33), ..case }),
        (Arch::Sm90a, Case { heads: 3, kv_heads: 1, out: Dtype::F16, ..case }),
        (Arch::Sm90a, Case { heads: 1, kv_heads: 1, head_dim: 96, window: Some(1), ..case }),
    ]
}

#[test]
fn prefill_is_the_oracles() {
    let test = "prefill_is_the_oracles";
    for (i, (arch, case)) in cases().into_iter().enumerate() {
        for (name, device) in devices(test, &[arch]) {
            // One long sequence makes it prefill for all; sequences of no token and chunks of longer ones among them.
            let long = [257, 130, 65, 64][i % 4];
            let lengths = [(long, 0), (1, 40), (7, 0), (0, 0), (64, 77), (65, 128 - 65)];
            run(&name, &device, &case, &Span::new(&lengths), i as u64);
        }
    }
}
