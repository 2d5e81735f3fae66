//! Attention of many tokens a sequence in CUDA against the oracle, on caches that the test writes.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails and reports this way")]

mod cache;
mod cuda;
mod oracle;

use cache::{Case, Memory, Rows, Span};
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
        (Arch::Sm80, Case { heads: 2, kv_heads: 1, head_dim: 256, key: 8, value: 8, ..case }),
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
            let spans = Span::new(&lengths);
            let memory = Memory::new(&case, &spans, &mut Random::new(i as u64));
            let worst = check(&name, &case, &spans, &memory, &memory.run(&device, &case));
            println!("{name} {case:?} {lengths:?}: {worst:.3} of the bound");
        }
    }
}

/// Variants that the first test has compiled already.
fn few() -> [(Arch, Case); 3] {
    let codes = Case { heads: 4, kv_heads: 1, head_dim: 128, ..Case::default() };
    let floats = Case { heads: 2, kv_heads: 2, key: 16, value: 16, ..Case::default() };
    [(Arch::Sm80, codes), (Arch::Sm90a, Case { heads: 2, ..codes }), (Arch::Sm80, floats)]
}

#[test]
fn outliers_constant_rows_and_late_maxima() {
    for (i, (arch, case)) in few().into_iter().enumerate() {
        for (name, device) in devices("outliers_constant_rows_and_late_maxima", &[arch]) {
            let spans = Span::new(&[(66, 150)]);
            let mut random = Random::new(20 + i as u64);
            for round in 0..4 {
                let mut memory = Memory::new(&case, &spans, &mut random);
                for (token, head) in (0..216).flat_map(|t| (0..case.kv_heads).map(move |h| (t, h))) {
                    spoil(round, &mut memory.sequences[0], token, head);
                }
                let worst = check(&name, &case, &spans, &memory, &memory.run(&device, &case));
                println!("{name} {case:?} round {round}: {worst:.3} of the bound");
            }
        }
    }
}

/// Makes a key and a value hard, in one of four ways.
fn spoil(round: usize, rows: &mut Rows, token: usize, head: usize) {
    let odd = token % 17 == 3;
    match round {
        // Keys grow, so that the largest score of a row is among its last: every page rescales.
        0 => Memory::scale(&mut rows.keys, token, head, 0.1 + token as f32 / 30.0),
        // Values that dwarf the others, and values that others dwarf.
        1 => Memory::scale(&mut rows.values, token, head, if odd { 3500.0 } else { 1.0 }),
        2 => Memory::scale(&mut rows.values, token, head, if odd { 1.0 } else { 1e-3 }),
        // All numbers of a row the same: of one sign, of the other, or zero.
        _ => {
            for row in [&mut rows.keys[token][head], &mut rows.values[token][head]] {
                let (code, zero) = [(15, 0), (0, 15), (0, 0)][token % 3];
                row.codes.fill(code);
                row.numbers.fill([1.0, -1.0, 0.0][token % 3]);
                row.zero_point = zero;
                row.scale = if token % 3 == 2 { 1e-8 } else { row.scale };
            }
        }
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn a_chunk_has_the_bits_of_the_whole() {
    for (arch, case) in few() {
        for (name, device) in devices("a_chunk_has_the_bits_of_the_whole", &[arch]) {
            let mut memory = Memory::new(&case, &Span::new(&[(130, 0)]), &mut Random::new(30));
            let whole = memory.run(&device, &case);
            memory.spans = Span::new(&[(70, 60)]);
            memory.sequences[0].queries.drain(..60);
            let part = memory.run(&device, &case);
            assert!(bits(&whole[60 * case.heads * case.head_dim..]) == bits(&part), "{name} {case:?}");
        }
    }
}

#[test]
fn what_a_query_does_not_see_changes_nothing() {
    for (arch, case) in few().into_iter().filter(|(_, case)| case.key == 4) {
        for (name, device) in devices("what_a_query_does_not_see_changes_nothing", &[arch]) {
            for window in [None, Some(40)] {
                let case = Case { window, ..case };
                let mut memory = Memory::new(&case, &Span::new(&[(120, 10)]), &mut Random::new(40));
                let before = memory.run(&device, &case);
                // Position 75 is token 65, in the middle of a page.
                for (factor, of_value) in [(f32::NAN, true), (f32::NAN, false), (1e6, true), (f32::INFINITY, true)] {
                    let rows = &mut memory.sequences[0];
                    let rows = if of_value { &mut rows.values } else { &mut rows.keys };
                    let scale = rows[75][0].scale;
                    Memory::scale(rows, 75, 0, factor);
                    let after = memory.run(&device, &case);
                    let rows = &mut memory.sequences[0];
                    (if of_value { &mut rows.values } else { &mut rows.keys })[75][0].scale = scale;
                    let width = case.heads * case.head_dim;
                    for (t, (before, after)) in before.chunks(width).zip(after.chunks(width)).enumerate() {
                        let sees = t >= 65 && window.is_none_or(|window| t < 65 + window);
                        let what = format!("{name} window {window:?} x {factor}: token {t}");
                        if factor.is_nan() && sees {
                            assert!(after.iter().all(|x| x.is_nan()), "{what}");
                        } else {
                            assert_eq!(bits(before) != bits(after), sees, "{what}");
                        }
                    }
                }
            }
        }
    }
}
