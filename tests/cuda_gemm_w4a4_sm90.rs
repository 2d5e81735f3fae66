//! `gemm_w4a4` on Hopper: integers are those of the oracle bit for bit in every tile and with every schedule. What does not depend
//! on the chip is in `cuda_gemm_w4a4.rs`.
#![cfg(feature = "cuda")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails and reports this way"
)]

mod cuda;
mod oracle;

use cuda::gemm::{
    Codes, DeviceTokens, KINDS, check_floats, check_integers, check_tiles, desc, draw_tokens, draw_weight,
};
use cuda::{STREAM, download, upload};
use duquant::kernels::cuda::{Arch, Buffer, Dtype, Error, GemmTile, GemmW4A4Desc, GemmW4A4Plan};
use duquant_reference as reference;
use oracle::Random;

const TILES: [&str; 7] = ["128x8", "128x16", "128x32", "128x64", "128x128", "256x128", "128x256"];

fn tile(text: &str) -> Option<GemmTile> {
    Some(text.parse().unwrap())
}

#[test]
fn integers_are_those_of_the_oracle_in_every_tile() {
    for (name, device) in cuda::devices("integers_are_those_of_the_oracle_in_every_tile", &[Arch::Sm90a]) {
        let cases = check_tiles(&device, &TILES.map(tile), &[4, 8, 3, 6], 1) + check_tiles(&device, &[None], &[4], 2);
        println!("{name}: {cases} cases");
        assert!(cases >= 160);
    }
}

#[test]
fn shared_tiles_and_several_waves_are_exact() {
    for (_, device) in cuda::devices("shared_tiles_and_several_waves_are_exact", &[Arch::Sm90a]) {
        // On 6 multiprocessors: fewer tiles than those, all split; a wave and a rest that is split; waves alone; a ring of stages
        // that comes around.
        for (i, (tokens, n, k, at)) in [
            (1, 130, 1664, "stream:8"),
            (16, 850, 640, "stream:16"),
            (33, 768, 300, "128x32"),
            (257, 33, 260, "128x32"),
            (64, 65, 1500, "stream:64"),
            (130, 700, 256, "128x128"),
            (70, 140, 900, "256x128"),
            (300, 129, 700, "128x256"),
        ]
        .into_iter()
        .enumerate()
        {
            check_integers(&device, &desc(tokens, n, k), tile(at), KINDS[i % 4], i as u64);
        }
    }
}

#[test]
fn long_rows_are_exact() {
    for (_, device) in cuda::devices("long_rows_are_exact", &[Arch::Sm90a]) {
        for (i, k) in [64, 576, 1536, 11_008, 13_824, 28_672, 28_671, 4097, 1].into_iter().enumerate() {
            let activation_bits = if i % 2 == 0 { 4 } else { 8 };
            let desc = GemmW4A4Desc { activation_bits, ..desc([1, 8, 2, 7, 3][i % 5], 3 + 2 * (i % 3), k) };
            check_integers(&device, &desc, None, KINDS[i % 4], i as u64);
        }
        // The most that fits: every sum is K times 15 x 255.
        let wide = GemmW4A4Desc { activation_bits: 8, ..desc(1, 2, 561_433) };
        check_integers(&device, &wide, None, Codes::Largest, 3);
        check_integers(&device, &desc(65, 130, 1536), tile("128x256"), Codes::Largest, 4);
    }
}

#[test]
fn outputs_in_every_type_with_every_epilogue() {
    for (_, device) in cuda::devices("outputs_in_every_type_with_every_epilogue", &[Arch::Sm90a]) {
        let mut seed = 7;
        for out in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            for (bias, accumulate) in [(false, false), (true, false), (false, true), (true, true)] {
                // Rows of y at multiples of 16 bytes, and not.
                for (tokens, n, at) in [(8, 136, "stream:8"), (11, 37, "128x8"), (140, 72, "256x128")] {
                    let desc = GemmW4A4Desc { out, bias, accumulate, ..desc(tokens, n, 130) };
                    check_floats(&device, &desc, tile(at), KINDS[seed as usize % 4], seed);
                    seed += 1;
                }
            }
        }
        check_floats(&device, &GemmW4A4Desc { out: Dtype::F16, ..desc(257, 136, 320) }, tile("128x256"), Codes::Any, 1);
    }
}

#[test]
fn one_plan_serves_fewer_tokens_and_leaves_the_others_alone() {
    for (name, device) in cuda::devices("one_plan_serves_fewer_tokens_and_leaves_the_others_alone", &[Arch::Sm90a]) {
        let (n, k) = (129, 700);
        let mut random = Random::new(5);
        let plan = GemmW4A4Plan::plan(device.as_ref(), &desc(300, n, k)).unwrap();
        let matrix = draw_weight(n, k, 4, Codes::Any, &mut random);
        let weights = plan.pack(&device, &matrix).unwrap();
        // One workspace for all calls, whatever their tiles.
        let workspace = Buffer::zeroed(&device, "workspace", plan.workspace_bytes().max(16)).unwrap();
        for (tokens, kernel) in [(5, "128x8"), (300, "x"), (16, "128x16"), (66, "x128"), (33, "128x64"), (1, "128x8")] {
            assert!(plan.kernel(tokens).contains(kernel), "{name}: {tokens}: {}", plan.kernel(tokens));
            let x = draw_tokens(tokens, k, 4, Codes::Any, &mut random);
            let d_x = DeviceTokens::new(&device, &plan.tokens(), &x);
            let y = upload(&device, &vec![-1.5_f32; 300 * n]);
            // SAFETY: the operands are as large as the plan says.
            unsafe {
                let (x, weights) = (d_x.operand(), weights.operand());
                plan.enqueue(device.as_ref(), STREAM, tokens, x, weights, y.address(), workspace.address())
            }
            .unwrap();
            let want = reference::gemm_w4a4(&oracle::rows(&x), &oracle::matrix(&matrix), None);
            for (i, got) in download::<f32>(&y, 300 * n).into_iter().enumerate() {
                let want = want.y.get(i).map_or(-1.5, |&y| y);
                assert!((f64::from(got) - want).abs() <= 1e-6 * want.abs(), "{name}: {i}: {got} for {want}");
            }
        }
        // A token that is not finite spoils its own row alone.
        let mut x = draw_tokens(3, k, 4, Codes::Any, &mut random);
        x.scale[1] = f32::NAN;
        let y = cuda::gemm::run(&device, &plan, &weights, &x, &vec![0xff; 4 * 3 * n]);
        for (i, y) in y.chunks(4).map(bytemuck::pod_read_unaligned::<f32>).enumerate() {
            assert_eq!(y.is_nan(), i / n == 1, "{name}: {i}");
        }
    }
}

#[test]
fn tiles_that_do_not_exist_are_refused() {
    for (_, device) in cuda::devices("tiles_that_do_not_exist_are_refused", &[Arch::Sm90a]) {
        for at in ["64x8", "128x512", "stream:128", "stream:8"] {
            let error = GemmW4A4Plan::plan_with(device.as_ref(), &desc(9, 64, 128), tile(at).unwrap()).unwrap_err();
            assert!(matches!(error, Error::Kernel(_)) && error.to_string().contains("128x256"), "{error}");
        }
        let plan = GemmW4A4Plan::plan_with(device.as_ref(), &desc(9, 64, 128), tile("stream:16").unwrap()).unwrap();
        assert!(plan.kernel(9).contains("128x16"), "{}", plan.kernel(9));
    }
}
