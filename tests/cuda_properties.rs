//! Properties of a W4A4 linear in CUDA, prologue and GEMM chained, on drawn shapes, settings and adversarial tokens: codes are the
//! oracle's of the kernel's own values, integers the oracle's, outputs the documented formula, all of them bit for bit; nothing is
//! written behind the last token, workspaces are left 0, and a second run gives the same bits.
//!
//! `PROPTEST_CASES` sets how many linears each chip gets, `PROPTEST_RNG_SEED` which; `DUQUANT_PROPERTIES=all` takes larger ones and
//! kernels of every kind.
#![cfg(feature = "cuda")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails and reports this way"
)]

mod cuda;
mod linear_case;
mod oracle;
mod transform_case;

use duquant::kernels::cuda::{Arch, Chip, Device, Dtype};
use linear_case::{Variant, check, linears};
use proptest::test_runner::{Config, RngSeed, TestRunner};
use std::sync::Arc;

/// Multiplications of a product at most.
const WORK: usize = 1_500_000;
/// Linears of each chip.
const CASES: u32 = 25;

const fn variant(
    input: Dtype,
    rotation: Option<(usize, usize, bool)>,
    tile: Option<&'static str>,
    (least_bits, most_bits): (u32, u32),
) -> Variant {
    Variant { input, rotation, tile, least_bits, most_bits }
}

/// `arch` with each of 1 to 9 multiprocessors, or the GPU.
fn chips(test: &str, arch: Arch) -> Vec<Arc<dyn Device>> {
    let devices = cuda::devices(test, &[arch]);
    if devices.is_empty() || std::env::var("DUQUANT_CUDA").as_deref() == Ok("gpu") {
        return devices.into_iter().map(|(_, device)| device).collect();
    }
    let chip = |multiprocessors| Chip { multiprocessors, ..Chip::typical(arch) };
    (1..=9).map(|i| Arc::new(cuda::host::HostDevice::new(chip(i))) as Arc<dyn Device>).collect()
}

/// Kernels of every kind, dealt out to the chips: what a chip's number changes is little beside what compiling takes.
fn all(arch: Arch) -> &'static [Variant] {
    let dense = |input, least, most| (input, Some((least, most, false)));
    let hadamard = |size: usize| (Dtype::F32, Some((size, size.max(16), true)));
    let (four, eight, any) = ((2, 4), (5, 8), (2, 8));
    let (rotations, tiles) = match arch {
        Arch::Sm90a => (
            vec![(Dtype::F32, None), dense(Dtype::F16, 65, 128), dense(Dtype::Bf16, 33, 64)],
            ["128x8", "128x16", "128x32", "128x64", "128x128", "256x128", "128x256", "stream:8", ""]
                .map(|tile| (tile, any))
                .to_vec(),
        ),
        Arch::Sm80 => (
            vec![
                (Dtype::Bf16, None),
                dense(Dtype::F32, 8, 32),
                dense(Dtype::F32, 33, 64),
                dense(Dtype::F32, 65, 128),
                dense(Dtype::F32, 129, 256),
            ],
            vec![("stream:8", four), ("128x256", four), ("", any)],
        ),
        _ => (
            [8, 32, 64, 128, 256].map(hadamard).into_iter().chain([dense(Dtype::F16, 65, 128)]).collect(),
            [
                ["stream:8", "stream:16", "stream:32", "stream:64"].map(|tile| (tile, four)),
                ["64x64", "64x128", "128x128", "128x256"].map(|tile| (tile, four)),
                ["stream:8", "stream:16", "stream:32", "64x64"].map(|tile| (tile, eight)),
                [("128x128", eight), ("", any), ("", four), ("", eight)],
            ]
            .concat(),
        ),
    };
    let of_tile = |(tile, bits): (&'static str, (u32, u32))| {
        let tile = (!tile.is_empty()).then_some(tile);
        rotations.iter().map(move |&(input, rotation)| variant(input, rotation, tile, bits))
    };
    Vec::leak(tiles.into_iter().flat_map(of_tile).collect())
}

fn properties(test: &str, arch: Arch, few: &'static [Variant]) {
    let devices = chips(test, arch);
    if devices.is_empty() {
        return;
    }
    let hunt = std::env::var("DUQUANT_PROPERTIES").as_deref() == Ok("all");
    let (variants, work) = if hunt { (all(arch), 4 * WORK) } else { (few, WORK) };
    // As the environment says, and without it the same cases every time.
    let own = Config::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { own.cases } else { CASES };
    let rng_seed = if own.rng_seed == RngSeed::Random { RngSeed::Fixed(1) } else { own.rng_seed };
    let config = Config { cases, rng_seed, failure_persistence: None, ..own };
    let outcome = TestRunner::new(config).run(&linears(devices.len(), variants, work), |linear| {
        // The last one is at fault where memory out of bounds ends the process.
        println!("{linear:?}");
        check(&devices[linear.device], &linear);
        Ok(())
    });
    if let Err(fault) = outcome {
        panic!("{}: {fault}", arch.name());
    }
}

#[test]
fn linears_on_ampere() {
    const FEW: &[Variant] = &[
        variant(Dtype::F32, Some((8, 32, false)), Some("stream:8"), (2, 4)),
        variant(Dtype::F32, None, Some("64x64"), (2, 4)),
    ];
    properties("linears_on_ampere", Arch::Sm80, FEW);
}

#[test]
fn linears_on_consumer_ampere() {
    const FEW: &[Variant] = &[
        variant(Dtype::F16, Some((65, 128, false)), Some("stream:16"), (2, 4)),
        variant(Dtype::F16, Some((65, 128, false)), Some("64x64"), (5, 8)),
    ];
    properties("linears_on_consumer_ampere", Arch::Sm86, FEW);
}

#[test]
fn linears_on_hopper() {
    const FEW: &[Variant] = &[
        variant(Dtype::Bf16, Some((64, 64, true)), Some("128x16"), (2, 8)),
        variant(Dtype::Bf16, None, Some("128x128"), (2, 8)),
    ];
    properties("linears_on_hopper", Arch::Sm90a, FEW);
}
