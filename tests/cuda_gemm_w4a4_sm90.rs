//! `gemm_w4a4` on Hopper: integers are those of the oracle bit for bit in every tile and with every schedule.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails this way")]

mod cuda;
mod oracle;

use cuda::{STREAM, download, upload};
use duquant::kernels::QuantizedMatrix;
use duquant::kernels::cuda::{Arch, Buffer, Device, Dtype, Error, GemmTile, GemmW4A4Desc, GemmW4A4Plan, TokensOperand};
use duquant_reference as reference;
use half::{bf16, f16};
use oracle::Random;
use std::sync::Arc;

fn desc(m_max: usize, n: usize, k: usize) -> GemmW4A4Desc {
    GemmW4A4Desc { m_max, n, k, weight_bits: 4, activation_bits: 4, out: Dtype::F32, bias: false, accumulate: false }
}

fn codes(count: usize, bits: u32, random: &mut Random, extreme: bool) -> Vec<u8> {
    let largest = (1_usize << bits) - 1;
    (0..count).map(|_| if extreme { largest * random.below(2) } else { random.below(largest + 1) } as u8).collect()
}

struct Case {
    weight: QuantizedMatrix,
    x: reference::QuantizedRows,
}

fn case(desc: &GemmW4A4Desc, tokens: usize, extreme: bool, random: &mut Random) -> Case {
    let (n, k) = (desc.n, desc.k);
    let rows = codes(n * k, desc.weight_bits, random, extreme);
    let packed = rows
        .chunks(k)
        .flat_map(|row| reference::pack_row(row, desc.weight_bits))
        .flat_map(|word| word.to_le_bytes())
        .collect();
    let scales = |count: usize, random: &mut Random| (0..count).map(|_| (0.001 + random.uniform()) as f32).collect();
    let scale = scales(n, random);
    let zero_point = codes(n, desc.weight_bits, random, extreme);
    let weight = QuantizedMatrix { n, k, bits: desc.weight_bits, packed, scale, zero_point };
    let rows = codes(tokens * k, desc.activation_bits, random, extreme);
    let row_sum = rows.chunks(k).map(|row| row.iter().map(|&code| i64::from(code)).sum()).collect();
    let (scale, zero_point) = (scales(tokens, random), codes(tokens, desc.activation_bits, random, extreme));
    Case { weight, x: reference::QuantizedRows { rows: tokens, width: k, codes: rows, scale, zero_point, row_sum } }
}

/// The tokens on the device as the plan wants them.
fn tokens(device: &Arc<dyn Device>, plan: &GemmW4A4Plan, x: &reference::QuantizedRows) -> (Buffer, Buffer) {
    let layout = plan.tokens();
    let mut codes = vec![0_u8; layout.code_bytes() as usize];
    for (i, &code) in x.codes.iter().enumerate() {
        let (byte, bit) = layout.place(x.rows, i / x.width, i % x.width);
        codes[byte] |= code << bit;
    }
    // What lies behind this call's tokens is the poison of an earlier one.
    codes[x.rows.div_ceil(8) * 8 * x.width.next_multiple_of(128)..].fill(0xee);
    let words: Vec<u32> = (0..x.rows)
        .flat_map(|t| [x.scale[t].to_bits(), u32::from(x.zero_point[t]), x.row_sum[t] as u32, 0xdead_beef])
        .collect();
    (upload(device, &codes), upload(device, &words))
}

fn enqueue(
    device: &Arc<dyn Device>,
    plan: &GemmW4A4Plan,
    case: &Case,
    bias: Option<&[f32]>,
    y: &Buffer,
    workspace: &Buffer,
) {
    let weights = plan.pack_stacked(device, &[&case.weight], bias).unwrap();
    let (codes, params) = tokens(device, plan, &case.x);
    let x = TokensOperand { codes: codes.address(), params: params.address() };
    // SAFETY: the buffers are as large as the plan says.
    unsafe {
        plan.enqueue(device.as_ref(), STREAM, case.x.rows, x, weights.operand(), y.address(), workspace.address())
    }
    .unwrap();
}

/// The integers of one case, twice with one workspace, which is left zero.
fn check(device: &Arc<dyn Device>, desc: &GemmW4A4Desc, tokens: usize, tile: Option<GemmTile>, seed: u64) {
    let mut random = Random::new(seed);
    let case = case(desc, tokens, seed.is_multiple_of(3), &mut random);
    let want = reference::gemm_w4a4(&case.x, &oracle::matrix(&case.weight), None).integers;
    let plan = GemmW4A4Plan::plan_integers(device.as_ref(), desc, tile).unwrap();
    let place = format!("{} {desc:?} {tokens} tokens, seed {seed}", plan.kernel(tokens));
    let workspace = Buffer::zeroed(device, "workspace", plan.workspace_bytes()).unwrap();
    for run in 0..2 {
        let y = upload(device, &vec![i32::MIN; tokens * desc.n]);
        enqueue(device, &plan, &case, None, &y, &workspace);
        let got = download::<i32>(&y, tokens * desc.n);
        let wrong = got.iter().zip(&want).position(|(&got, &want)| i64::from(got) != want);
        if let Some(at) = wrong {
            panic!("{place}, run {run}: token {} channel {}: {} for {}", at / desc.n, at % desc.n, got[at], want[at]);
        }
        let left = download::<u8>(&workspace, plan.workspace_bytes() as usize);
        assert!(left.iter().all(|&byte| byte == 0), "{place}: the workspace is not left zero");
    }
}

#[test]
fn integers_are_those_of_the_oracle_in_every_tile() {
    for (_, device) in cuda::devices("integers_are_those_of_the_oracle_in_every_tile", &[Arch::Sm90a]) {
        let tiles = ["128x8", "128x16", "128x32", "128x64", "128x128", "256x128", "128x256"];
        for (i, tile) in tiles.iter().enumerate() {
            let tile: GemmTile = tile.parse().unwrap();
            // One tile, ragged ones, whole tiles in more than one wave of the 6 multiprocessors with a split rest.
            for (j, (tokens, n, k)) in
                [(1, 64, 128), (3, 130, 70), (9, 72, 1500), (65, 257, 300), (257, 33, 260), (8, 850, 640)]
                    .into_iter()
                    .enumerate()
            {
                let seed = (10 * i + j) as u64;
                let activation_bits = [4, 8, 5][(i + j) % 3];
                check(&device, &GemmW4A4Desc { activation_bits, ..desc(tokens, n, k) }, tokens, Some(tile), seed);
            }
        }
    }
}

#[test]
fn plans_choose_for_themselves_at_every_number_of_tokens() {
    for (_, device) in cuda::devices("plans_choose_for_themselves_at_every_number_of_tokens", &[Arch::Sm90a]) {
        for (i, tokens) in [1, 2, 3, 7, 8, 9, 63, 64, 65, 257].into_iter().enumerate() {
            let (n, k) = [(65, 640), (200, 130), (9, 1100)][i % 3];
            check(&device, &desc(tokens + i % 2, n, k), tokens, None, 100 + i as u64);
        }
        // Long rows of the largest codes, and sums whose corrections leave 32 bits on the way.
        check(&device, &desc(3, 5, 11_008), 3, None, 120);
        check(&device, &GemmW4A4Desc { activation_bits: 8, ..desc(2, 3, 28_671) }, 2, None, 123);
    }
}

#[test]
fn outputs_of_every_type_with_every_epilogue() {
    for (_, device) in cuda::devices("outputs_of_every_type_with_every_epilogue", &[Arch::Sm90a]) {
        let mut random = Random::new(7);
        for out in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            for (bias, accumulate) in [(false, false), (true, false), (false, true), (true, true)] {
                for (tile, tokens, n) in [("128x8", 11, 37), ("256x128", 140, 72)] {
                    let desc = GemmW4A4Desc { out, bias, accumulate, ..desc(tokens, n, 130) };
                    floats(&device, &desc, tile.parse().unwrap(), &mut random);
                }
            }
        }
    }
}

fn encode(dtype: Dtype, x: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F32 => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Dtype::F16 => x.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        Dtype::Bf16 => x.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
    }
}

fn decode(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::F32 => bytes.chunks(4).map(bytemuck::pod_read_unaligned).collect(),
        Dtype::F16 => bytes.chunks(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Dtype::Bf16 => bytes.chunks(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
    }
}

/// The outputs of one case: those of the documented formula, rounded once, bit for bit.
fn floats(device: &Arc<dyn Device>, desc: &GemmW4A4Desc, tile: GemmTile, random: &mut Random) {
    let case = case(desc, desc.m_max, false, random);
    let want = reference::gemm_w4a4(&case.x, &oracle::matrix(&case.weight), None).integers;
    let plan = GemmW4A4Plan::plan_with(device.as_ref(), desc, tile).unwrap();
    let workspace = Buffer::zeroed(device, "workspace", plan.workspace_bytes()).unwrap();
    let bias = desc.bias.then(|| random.normals(desc.n));
    let held = if desc.accumulate { random.normals(want.len()) } else { vec![f32::NAN; want.len()] };
    let y = upload(device, &encode(desc.out, &held));
    let held = decode(desc.out, &encode(desc.out, &held));
    enqueue(device, &plan, &case, bias.as_deref(), &y, &workspace);
    let got = download::<u8>(&y, want.len() * desc.out.bytes() as usize);
    let expected: Vec<f32> = (0..want.len())
        .map(|i| {
            let (t, n) = (i / desc.n, i % desc.n);
            let value = (case.x.scale[t] * case.weight.scale[n]) * want[i] as f32 + bias.as_ref().map_or(0.0, |b| b[n]);
            if desc.accumulate { value + held[i] } else { value }
        })
        .collect();
    let wrong = decode(desc.out, &got).into_iter().zip(decode(desc.out, &encode(desc.out, &expected)));
    if let Some(at) = wrong.clone().position(|(got, want)| got.to_bits() != want.to_bits()) {
        panic!("{desc:?} {tile} at {at}: {:?}", wrong.clone().nth(at));
    }
}

#[test]
fn what_cannot_be_is_refused() {
    for (_, device) in cuda::devices("what_cannot_be_is_refused", &[Arch::Sm90a]) {
        for tile in ["64x8", "128x512", "stream:128", "stream:8"] {
            let error = GemmW4A4Plan::plan_with(device.as_ref(), &desc(9, 64, 128), tile.parse().unwrap()).unwrap_err();
            assert!(matches!(error, Error::Kernel(_)) && error.to_string().contains("128x256"), "{error}");
        }
        let plan = GemmW4A4Plan::plan_with(device.as_ref(), &desc(9, 64, 128), "stream:16".parse().unwrap()).unwrap();
        assert!(plan.kernel(9).contains("128x16"), "{}", plan.kernel(9));
    }
}
