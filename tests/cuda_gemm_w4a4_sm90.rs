//! `gemm_w4a4` on Hopper: integers are those of the oracle bit for bit in every tile and with every schedule.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails this way")]

mod cuda;
mod oracle;

use cuda::{STREAM, download, upload};
use duquant::kernels::QuantizedMatrix;
use duquant::kernels::cuda::{
    Arch, Buffer, Device, Dtype, GemmTile, GemmW4A4Desc, GemmW4A4Plan, TokensOperand,
};
use duquant_reference as reference;
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
        plan.enqueue(
            device.as_ref(),
            STREAM,
            case.x.rows,
            x,
            weights.operand(),
            y.address(),
            workspace.address(),
        )
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
