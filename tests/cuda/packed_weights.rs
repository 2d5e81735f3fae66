//! Where the codes of packed weights lie: a part of `cuda_layouts.rs`, by its formulas of the PTX manual.

use super::{COLUMNS, LANES, a_of_u4, a_of_u8, b_of_u8, c_place, cuda, oracle::Random};
use duquant::kernels::cuda::{Arch, GemmTile, GemmW4A4Plan, HostWeights, TokenForm};
use duquant::kernels::{QuantizedMatrix, RowParams};

/// Words of a fragment of packed weights: 32 lanes of four.
const FRAGMENT: usize = 4 * LANES;

/// Packs codes `[n, k]`.
fn pack(n: usize, k: usize, codes: &[u8]) -> Option<HostWeights> {
    let (_, device) =
        cuda::devices_with("weights_are_what_the_matrix_instructions_read", &[Arch::Sm80], &[]).into_iter().next()?;
    let matrix = QuantizedMatrix::from_rows(n, k, 4, |row, out| {
        out.copy_from_slice(&codes[row * k..(row + 1) * k]);
        Ok(RowParams { scale: 1.0, inverse_scale: 1.0, zero_point: 0 })
    })
    .unwrap();
    let tile = match device.chip().arch {
        Arch::Sm90a => None,
        _ => Some(GemmTile::Streamed { tokens: 8 }),
    };
    let plan = GemmW4A4Plan::plan_integers(device.as_ref(), &cuda::gemm::desc(1, n, k), tile).unwrap();
    Some(plan.pack_host(&[&matrix], None).unwrap())
}

/// Output channel, in its block of 64, of a row of fragment `f`: the rows of a lane's sums, `g` and `g + 8` of all four fragments,
/// are eight neighbours.
fn channel_of(f: usize, row: usize) -> usize {
    8 * (row % 8) + 2 * f + row / 8
}

/// The input channel, in its chunk of 128, that the k32 instruction `step` of a form takes at its place `at`, from the bytes of the
/// tokens' atoms: for every token the same.
fn inputs(form: TokenForm) -> [[usize; 32]; 4] {
    let mut out = [[usize::MAX; 32]; 4];
    for (g, k) in (0..COLUMNS).flat_map(|g| (0..128).map(move |k| (g, k))) {
        let (byte, bit) = form.place(g, k);
        assert_eq!(bit, 0);
        let (step, at, token) = if form == TokenForm::Fragments8 {
            // Half, lane, nibble of the weights, register and byte of the B fragment of m16n8k32.
            let (half, lane, nibble, i) = (byte / 512, byte % 512 / 16, byte % 16 / 8, byte % 8);
            let (at, token) = b_of_u8(lane, i);
            (2 * half + nibble, at, token)
        } else {
            // A row of 128 bytes a token, whose 16-byte pieces are exchanged by address bits 7 to 9; 32 bytes an instruction.
            let linear = byte ^ (byte >> 7 & 7) << 4;
            (linear % 128 / 32, linear % 32, linear / 128)
        };
        assert_eq!(token, g, "{form:?}, channel {k}");
        let held = &mut out[step][at];
        assert!(*held == usize::MAX || *held == k, "{form:?}: channels {held} and {k} at place {at} of step {step}");
        *held = k;
    }
    assert!(out.as_flattened().iter().all(|&k| k < 128), "{form:?}");
    out
}

/// What [`GemmW4A4Plan::pack_host`] gives, read by the figures of the A fragments of `mma.m16n8k64` with 4 bits, and by nibbles of
/// `mma.m16n8k32` with 8 bits and of `wgmma.m64nNk32`, is the matrix, with 0 behind it.
#[test]
fn weights_are_what_the_matrix_instructions_read() {
    for (n, k) in [(1, 1), (64, 128), (65, 129), (129, 200), (63, 1), (8, 383), (200, 64)] {
        let mut random = Random::new((n * 1000 + k) as u64);
        let codes: Vec<u8> = (0..n * k).map(|_| random.below(16) as u8).collect();
        let Some(packed) = pack(n, k, &codes) else { return };
        let (blocks, chunks) = (n.div_ceil(64), k.div_ceil(128));
        assert_eq!(packed.weights.len(), blocks * chunks * 4096);
        let words: Vec<u32> = packed.weights.chunks(4).map(bytemuck::pod_read_unaligned).collect();
        let code = |channel: usize, input: usize| {
            if channel < n && input < k { u32::from(codes[channel * k + input]) } else { 0 }
        };
        let forms = [TokenForm::Fragments8, TokenForm::Tiles8].map(|form| (form, inputs(form)));
        let mut read = vec![u8::MAX; 64 * blocks * 128 * chunks];
        for (at, fragment) in words.chunks(FRAGMENT).enumerate() {
            // [blocks, chunks, 2 halves, 4 fragments]
            let (f, half, chunk, block) = (at % 4, at / 4 % 2, at / 8 % chunks, at / 8 / chunks);
            for (lane, i) in (0..LANES).flat_map(|lane| (0..32).map(move |i| (lane, i))) {
                let (row, column) = a_of_u4(lane, i);
                let (channel, input) = (64 * block + channel_of(f, row), 128 * chunk + 64 * half + column);
                let got = fragment[4 * lane + i / 8] >> (4 * (i % 8)) & 15;
                assert_eq!(got, code(channel, input), "{n} x {k}: m16n8k64, channel {channel}, input {input}");
                let held = &mut read[channel * 128 * chunks + input];
                assert_eq!(*held, u8::MAX, "{n} x {k}: channel {channel}, input {input} lies there twice");
                *held = got as u8;
            }
            for ((form, inputs), nibble) in forms.iter().flat_map(|form| [0, 1].map(|nibble| (form, nibble))) {
                for (lane, i) in (0..LANES).flat_map(|lane| (0..16).map(move |i| (lane, i))) {
                    // Warp f of a warpgroup holds rows 16 f to 16 f + 15 of wgmma's A, each as m16n8k32 does.
                    let (row, column) = a_of_u8(lane, i);
                    let channel = 64 * block + channel_of(f, row);
                    let input = 128 * chunk + inputs[2 * half + nibble][column];
                    let byte = fragment[4 * lane + i / 4] >> (8 * (i % 4) + 4 * nibble) & 15;
                    assert_eq!(byte, code(channel, input), "{n} x {k}: {form:?}, channel {channel}, input {input}");
                }
            }
        }
        // The way back: what was read, packed again, is the same.
        let again: Vec<u8> = (0..n).flat_map(|channel| read[channel * 128 * chunks..][..k].iter()).copied().collect();
        assert_eq!(again, codes, "{n} x {k}");
        assert!(read.iter().all(|&code| code < 16), "{n} x {k}: a place was not read");
        assert_eq!(pack(n, k, &again), Some(packed));
    }
}

/// A lane's sums of the four fragments are eight neighbouring output channels of each of its tokens, in order.
#[test]
fn sums_of_a_lane_are_neighbours() {
    for lane in 0..LANES {
        let mut channels = [const { Vec::new() }; 2];
        for (f, i) in (0..4).flat_map(|f| [0, 2, 1, 3].map(|i| (f, i))) {
            let (row, column) = c_place(lane, i);
            channels[column % 2].push(channel_of(f, row));
        }
        for channels in channels {
            assert_eq!(channels, (lane / 4 * 8..lane / 4 * 8 + 8).collect::<Vec<_>>(), "lane {lane}");
        }
    }
}
