//! `gemm_w4a4` in CUDA: integers are those of the oracle bit for bit in every tile, outputs follow the documented formula, and
//! what cannot be is refused.
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
use duquant::kernels::cuda::{
    Arch, Buffer, Dtype, Error, GemmTile, GemmW4A4Desc, GemmW4A4Plan, HostWeights, WeightsOperand,
};
use duquant::kernels::{Error as KernelError, QuantizedMatrix};
use duquant_reference as reference;
use oracle::Random;

fn tile(text: &str) -> Option<GemmTile> {
    Some(text.parse().unwrap())
}

#[test]
fn integers_are_those_of_the_oracle_in_every_tile() {
    let four = ["stream:8", "stream:16", "stream:32", "stream:64", "64x64", "64x128", "128x128", "128x256"].map(tile);
    let eight = ["stream:8", "stream:16", "stream:32", "64x64", "128x128"].map(tile);
    for (name, device) in cuda::devices("integers_are_those_of_the_oracle_in_every_tile", &[Arch::Sm86]) {
        let cases = check_tiles(&device, &four, &[4, 4, 3, 2], 1) + check_tiles(&device, &eight, &[8, 6], 2);
        println!("{name}: {cases} cases");
        assert!(cases > 200);
    }
    for (_, device) in cuda::devices("integers_are_those_of_the_oracle_in_every_tile", &[Arch::Sm80]) {
        check_tiles(&device, &["stream:8", "128x256"].map(tile), &[4], 3);
    }
}

#[test]
fn rows_that_blocks_share_are_whole_and_the_workspace_is_left_zero() {
    let test = "rows_that_blocks_share_are_whole_and_the_workspace_is_left_zero";
    for (name, device) in cuda::devices(test, &[Arch::Sm86]) {
        let mut random = Random::new(11);
        for (activation_bits, most) in [(4, 8), (4, 16), (4, 32), (4, 64), (8, 8), (8, 16), (8, 32)] {
            let tile = GemmTile::Streamed { tokens: most as u32 };
            // 3 rows of 17 units for 6 or 7 blocks; 9 rows of 3 units, more than one for each block; 1 row for all.
            for (i, (n, k)) in [(130, 2100), (530, 300), (8, 8000)].into_iter().enumerate() {
                let desc = GemmW4A4Desc { activation_bits, ..desc(most - i, n, k) };
                let plan = GemmW4A4Plan::plan_with(device.as_ref(), &desc, tile).unwrap();
                assert!(plan.workspace_bytes() > 0, "{name}: {desc:?} shares nothing");
                check_integers(&device, &desc, Some(tile), KINDS[i], random.next());
            }
            let desc = GemmW4A4Desc { activation_bits, bias: true, accumulate: true, ..desc(most, 72, 2100) };
            check_floats(&device, &GemmW4A4Desc { out: Dtype::F16, ..desc }, Some(tile), Codes::Any, random.next());
        }
    }
}

#[test]
fn long_rows_are_exact() {
    for (_, device) in cuda::devices("long_rows_are_exact", &[Arch::Sm86]) {
        let mut random = Random::new(2);
        for (i, k) in [64, 576, 1536, 11_008, 13_824, 28_672, 28_671, 4097, 1].into_iter().enumerate() {
            let tokens = [1, 8, 2, 7, 3][i % 5];
            check_integers(&device, &desc(tokens, 3 + 2 * (i % 3), k), tile("stream:8"), KINDS[i % 4], random.next());
            let wide = GemmW4A4Desc { activation_bits: 8, ..desc(tokens, 1 + i % 3, k) };
            check_integers(&device, &wide, tile("64x64"), KINDS[1 + i % 3], random.next());
        }
        // The most that fits: every sum is K times 15 x 255.
        let wide = GemmW4A4Desc { activation_bits: 8, ..desc(1, 2, 561_433) };
        check_integers(&device, &wide, tile("stream:8"), Codes::Largest, 3);
        check_integers(&device, &desc(65, 130, 1536), tile("128x256"), Codes::Largest, 4);
    }
}

#[test]
fn outputs_in_every_type_with_every_epilogue() {
    for (_, device) in cuda::devices("outputs_in_every_type_with_every_epilogue", &[Arch::Sm86]) {
        let mut seed = 7;
        for out in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            for (bias, accumulate) in [(false, false), (true, false), (false, true), (true, true)] {
                // Rows of y at multiples of 16 bytes, and not.
                for (tokens, n, at) in
                    [(9, 37, "stream:16"), (8, 136, "stream:8"), (65, 72, "64x64"), (11, 129, "64x64")]
                {
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
fn the_plan_runs_what_it_says_and_fewer_tokens_than_planned() {
    for (name, device) in cuda::devices("the_plan_runs_what_it_says_and_fewer_tokens_than_planned", &[Arch::Sm86]) {
        let (n, k) = (129, 200);
        let mut random = Random::new(5);
        let plan = GemmW4A4Plan::plan(device.as_ref(), &desc(300, n, k)).unwrap();
        let matrix = draw_weight(n, k, 4, Codes::Any, &mut random);
        let weights = plan.pack(&device, &matrix).unwrap();
        let workspace = Buffer::zeroed(&device, "workspace", plan.workspace_bytes().max(16)).unwrap();
        for (tokens, kernel) in [(5, "stream:8"), (300, "64x64"), (16, "stream:16"), (66, "64x64"), (1, "stream:8")] {
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
        // Nothing to do is nothing done.
        let nothing = DeviceTokens::new(&device, &plan.tokens(), &draw_tokens(1, k, 4, Codes::Any, &mut random));
        // SAFETY: nothing is read or written.
        unsafe { plan.enqueue(device.as_ref(), STREAM, 0, nothing.operand(), weights.operand(), 16, 16) }.unwrap();
    }
}

#[test]
fn a_token_that_is_not_finite_spoils_its_own_row_alone() {
    for (name, device) in cuda::devices("a_token_that_is_not_finite_spoils_its_own_row_alone", &[Arch::Sm86]) {
        let mut random = Random::new(6);
        let plan = GemmW4A4Plan::plan_with(device.as_ref(), &desc(3, 65, 64), tile("stream:8").unwrap()).unwrap();
        let mut x = draw_tokens(3, 64, 4, Codes::Any, &mut random);
        x.scale[1] = f32::NAN;
        let weights = plan.pack(&device, &draw_weight(65, 64, 4, Codes::Any, &mut random)).unwrap();
        let y = cuda::gemm::run(&device, &plan, &weights, &x, &vec![0xff; 4 * 3 * 65]);
        let y: Vec<f32> = y.chunks(4).map(bytemuck::pod_read_unaligned).collect();
        for (i, y) in y.iter().enumerate() {
            assert_eq!(y.is_nan(), i / 65 == 1, "{name}: {i}");
        }
    }
}

#[test]
fn stacked_weights_are_one_matrix() {
    for (_, device) in cuda::devices("stacked_weights_are_one_matrix", &[Arch::Sm86]) {
        let mut random = Random::new(5);
        let (a, b) =
            (draw_weight(33, 100, 4, Codes::Any, &mut random), draw_weight(40, 100, 4, Codes::Any, &mut random));
        let mut both = QuantizedMatrix { n: 73, ..a.clone() };
        both.packed.extend(&b.packed);
        both.scale.extend(&b.scale);
        both.zero_point.extend(&b.zero_point);
        let desc = GemmW4A4Desc { bias: true, ..desc(8, 73, 100) };
        let plan = GemmW4A4Plan::plan(device.as_ref(), &desc).unwrap();
        let bias = random.normals(73);
        let stacked: HostWeights = plan.pack_host(&[&a, &b], Some(&bias)).unwrap();
        assert_eq!(stacked, plan.pack_host(&[&both], Some(&bias)).unwrap());
        let lengths = (stacked.weights.len() as u64, stacked.channels.len() as u64);
        assert_eq!(lengths, (desc.weight_bytes(), desc.channel_bytes()));
        assert_eq!(plan.pack_stacked(&device, &[&a, &b], Some(&bias)).unwrap().bytes(), lengths.0 + lengths.1);
    }
}

#[test]
fn what_cannot_be_is_refused() {
    for (_, device) in cuda::devices("what_cannot_be_is_refused", &[Arch::Sm86]) {
        let good = desc(4, 64, 128);
        let unsupported = |what: &str, error: Error| match error {
            Error::Kernel(KernelError::Unsupported { what: got, .. }) => assert!(got.contains(what), "{got}"),
            other => panic!("{other}"),
        };
        for (what, bad) in [
            ("weight_bits", GemmW4A4Desc { weight_bits: 5, ..good }),
            ("weight_bits", GemmW4A4Desc { weight_bits: 1, ..good }),
            ("bits", GemmW4A4Desc { activation_bits: 9, ..good }),
            ("bits", GemmW4A4Desc { activation_bits: 1, ..good }),
            ("k", GemmW4A4Desc { k: 0, ..good }),
            ("k", GemmW4A4Desc { k: 9_544_372, ..good }),
            ("k", GemmW4A4Desc { k: 561_434, activation_bits: 8, ..good }),
            ("n", GemmW4A4Desc { n: 0, ..good }),
            ("n", GemmW4A4Desc { n: usize::MAX, ..good }),
            ("m_max", GemmW4A4Desc { m_max: 0, ..good }),
            ("m_max", GemmW4A4Desc { m_max: usize::MAX, ..good }),
            ("m_max * n", GemmW4A4Desc { m_max: 1 << 24, n: 1 << 24, ..good }),
            ("weights", GemmW4A4Desc { n: 1 << 24, k: 1 << 20, ..good }),
        ] {
            unsupported(what, GemmW4A4Plan::plan(device.as_ref(), &bad).expect_err("an error"));
        }
        for bad in ["32x32", "stream:24", "stream:0", "0x0"] {
            let tile = tile(bad).unwrap();
            unsupported("tile", GemmW4A4Plan::plan_with(device.as_ref(), &good, tile).expect_err("an error"));
        }
        let many = GemmW4A4Desc { m_max: 9, ..good };
        let narrow = tile("stream:8").unwrap();
        unsupported("tile", GemmW4A4Plan::plan_with(device.as_ref(), &many, narrow).expect_err("an error"));
        unsupported("tile", "stream".parse::<GemmTile>().expect_err("an error"));

        let plan = GemmW4A4Plan::plan(device.as_ref(), &good).unwrap();
        let mut random = Random::new(9);
        let matrix = draw_weight(64, 128, 4, Codes::Any, &mut random);
        assert!(plan.pack(&device, &draw_weight(63, 128, 4, Codes::Any, &mut random)).is_err());
        assert!(plan.pack(&device, &draw_weight(64, 127, 4, Codes::Any, &mut random)).is_err());
        assert!(plan.pack(&device, &draw_weight(64, 128, 3, Codes::Any, &mut random)).is_err());
        assert!(plan.pack_stacked(&device, &[&matrix], Some(&[0.0; 64])).is_err());
        let mut broken = matrix.clone();
        broken.packed.pop();
        assert!(plan.pack(&device, &broken).is_err());

        let weights = plan.pack(&device, &matrix).unwrap();
        let x = DeviceTokens::new(&device, &plan.tokens(), &draw_tokens(4, 128, 4, Codes::Any, &mut random));
        let enqueue = |tokens, weights: WeightsOperand, y| {
            // SAFETY: it is refused before anything runs.
            unsafe { plan.enqueue(device.as_ref(), STREAM, tokens, x.operand(), weights, y, 16) }.expect_err("an error")
        };
        unsupported("tokens", enqueue(5, weights.operand(), 16));
        let odd = Error::Alignment { operand: "y", alignment: 16, got: 8 };
        assert_eq!(enqueue(4, weights.operand(), 8), odd);
        let nowhere = WeightsOperand { channels: 0, ..weights.operand() };
        assert!(matches!(enqueue(4, nowhere, 16), Error::Alignment { operand: "weights.channels", .. }));
    }
}
