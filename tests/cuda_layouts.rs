//! Where the numbers of a matrix lie in the registers of a warp, for the matrix instructions that the kernels use, and in memory,
//! for the layouts that are made of them.
//!
//! The formulas are those of the PTX manual, "Matrix fragments for mma" and "ldmatrix", written down here on their own; with
//! them one-hot and random matrices are laid out, multiplied by `tests/cuda/layouts.cu`, and compared with the product by definition.
//! On the host that proves the shim, on a GPU this test.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails this way")]

mod cuda;
mod oracle;
#[path = "cuda/packed_weights.rs"]
mod packed_weights;

use bytemuck::{Pod, Zeroable};
use cuda::{STREAM, download, upload};
use duquant::kernels::cuda::{Address, Arch, Buffer, Device, Function, Kernel, Launch, Source, TokenForm};
use half::{bf16, f16};
use oracle::Random;
use std::sync::Arc;

static SOURCES: [Source; 1] = [Source { name: "layouts.cu", text: include_str!("cuda/layouts.cu") }];

const ROWS: usize = 16;
const COLUMNS: usize = 8;
const LANES: usize = 32;

fn function(device: &Arc<dyn Device>, entry: &'static str) -> Arc<Function> {
    device.load(&Kernel { file: "layouts.cu", entry, defines: Vec::new(), archs: &Arch::ALL, registers: 64 }).unwrap()
}

fn launch<A: Pod>(device: &Arc<dyn Device>, entry: &'static str, blocks: usize, shared: u32, arguments: &A) {
    let launch = Launch::new(&function(device, entry), [blocks as u32, 1, 1], LANES as u32, shared, arguments);
    // SAFETY: the callers' operands have what the kernels of layouts.cu say.
    unsafe { device.launch(STREAM, &launch) }.unwrap();
}

/// A form of `mma.m16n8kK`.
struct Form {
    entry: &'static str,
    k: usize,
    bits: u32,
    /// Row and column of number `i` of a lane's part of A, and of B.
    a: fn(usize, usize) -> (usize, usize),
    b: fn(usize, usize) -> (usize, usize),
    /// A number below 2^bits as the instruction takes it.
    value: fn(u32) -> f64,
    /// The bits of a small whole number.
    code: fn(i32) -> u32,
    floating: bool,
}

/// Rows and columns of the four numbers of a lane's part of C and D.
fn c_place(lane: usize, i: usize) -> (usize, usize) {
    let (group, in_group) = (lane >> 2, lane % 4);
    (if i < 2 { group } else { group + 8 }, in_group * 2 + (i & 1))
}

fn a_of_u4(lane: usize, i: usize) -> (usize, usize) {
    let (group, in_group) = (lane >> 2, lane % 4);
    let row = if i < 8 || (16..24).contains(&i) { group } else { group + 8 };
    (row, if i < 16 { in_group * 8 + (i & 7) } else { in_group * 8 + (i & 7) + 32 })
}

fn b_of_u4(lane: usize, i: usize) -> (usize, usize) {
    let (group, in_group) = (lane >> 2, lane % 4);
    (if i < 8 { in_group * 8 + (i & 7) } else { in_group * 8 + (i & 7) + 32 }, group)
}

fn a_of_u8(lane: usize, i: usize) -> (usize, usize) {
    let (group, in_group) = (lane >> 2, lane % 4);
    let row = if i < 4 || (8..12).contains(&i) { group } else { group + 8 };
    (row, if i < 8 { in_group * 4 + (i & 3) } else { in_group * 4 + (i & 3) + 16 })
}

fn b_of_u8(lane: usize, i: usize) -> (usize, usize) {
    let (group, in_group) = (lane >> 2, lane % 4);
    (if i < 4 { in_group * 4 + (i & 3) } else { in_group * 4 + (i & 3) + 16 }, group)
}

fn a_of_halves(lane: usize, i: usize) -> (usize, usize) {
    let (group, in_group) = (lane >> 2, lane % 4);
    let row = if i < 2 || (4..6).contains(&i) { group } else { group + 8 };
    (row, if i < 4 { in_group * 2 + (i & 1) } else { in_group * 2 + (i & 1) + 8 })
}

fn b_of_halves(lane: usize, i: usize) -> (usize, usize) {
    let (group, in_group) = (lane >> 2, lane % 4);
    (if i < 2 { in_group * 2 + (i & 1) } else { in_group * 2 + (i & 1) + 8 }, group)
}

const FORMS: [Form; 4] = [
    Form {
        entry: "multiply_u4",
        k: 64,
        bits: 4,
        a: a_of_u4,
        b: b_of_u4,
        value: f64::from,
        code: |x| x as u32,
        floating: false,
    },
    Form {
        entry: "multiply_u8",
        k: 32,
        bits: 8,
        a: a_of_u8,
        b: b_of_u8,
        value: f64::from,
        code: |x| x as u32,
        floating: false,
    },
    Form {
        entry: "multiply_f16",
        k: 16,
        bits: 16,
        a: a_of_halves,
        b: b_of_halves,
        value: |bits| f16::from_bits(bits as u16).to_f64(),
        code: |x| f16::from_f32(x as f32).to_bits().into(),
        floating: true,
    },
    Form {
        entry: "multiply_bf16",
        k: 16,
        bits: 16,
        a: a_of_halves,
        b: b_of_halves,
        value: |bits| bf16::from_bits(bits as u16).to_f64(),
        code: |x| bf16::from_f32(x as f32).to_bits().into(),
        floating: true,
    },
];

/// Lane by lane, `registers` words a lane, of a matrix whose number at a place is `number`.
fn fragments(
    bits: u32,
    registers: usize,
    place: fn(usize, usize) -> (usize, usize),
    number: impl Fn(usize, usize) -> u32,
) -> Vec<u32> {
    let each = 32 / bits as usize;
    let mut out = vec![0; LANES * registers];
    for (lane, i) in (0..LANES).flat_map(|lane| (0..registers * each).map(move |i| (lane, i))) {
        let (row, column) = place(lane, i);
        out[lane * registers + i / each] |= number(row, column) << (bits as usize * (i % each));
    }
    out
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct RegisterArgs {
    a: Address,
    b: Address,
    c: Address,
    d: Address,
}

/// `a` `[16, K]`, `b` `[K, 8]` as codes.
type Pairing = (Vec<u32>, Vec<u32>);

/// Each one-hot A and each one-hot B against a random partner, then random pairs. Sums are whole numbers that `f32` holds, so that the
/// order of summation is nobody's business.
fn pairings(form: &Form, random: &mut Random) -> Vec<Pairing> {
    let draw = |random: &mut Random, count: usize| -> Vec<u32> {
        let drawn = |random: &mut Random| match form.bits {
            16 => (form.code)(random.below(15) as i32 - 7),
            bits => random.below(1 << bits) as u32,
        };
        (0..count).map(|_| drawn(random)).collect()
    };
    let one_hot = |count: usize, at: usize| (0..count).map(|i| (form.code)(i32::from(i == at))).collect::<Vec<_>>();
    let (a, b) = (ROWS * form.k, form.k * COLUMNS);
    let mut out: Vec<Pairing> = Vec::new();
    out.extend((0..a).map(|at| (one_hot(a, at), draw(random, b))));
    out.extend((0..b).map(|at| (draw(random, a), one_hot(b, at))));
    out.extend((0..64).map(|_| (draw(random, a), draw(random, b))));
    out
}

#[test]
fn multiplications_are_those_of_the_manual() {
    let test = "multiplications_are_those_of_the_manual";
    for (name, device) in cuda::devices_with(test, &[Arch::Sm80], &SOURCES) {
        for form in &FORMS {
            let mut random = Random::new(form.k as u64);
            let pairings = pairings(form, &mut random);
            let k = form.k;
            let c: Vec<i32> =
                (0..pairings.len() * ROWS * COLUMNS).map(|_| random.below(1 << 16) as i32 - (1 << 15)).collect();
            let mut registers = [const { Vec::new() }; 3];
            for ((a, b), c) in pairings.iter().zip(c.chunks(ROWS * COLUMNS)) {
                let word = |x: i32| if form.floating { (x as f32).to_bits() } else { x as u32 };
                registers[0].extend(fragments(form.bits, 4, form.a, |row, column| a[row * k + column]));
                registers[1].extend(fragments(form.bits, 2, form.b, |row, column| b[row * COLUMNS + column]));
                registers[2].extend(fragments(32, 4, c_place, |row, column| word(c[row * COLUMNS + column])));
            }
            let [d_a, d_b, d_c] = registers.map(|words| upload(&device, &words));
            let d = Buffer::new(&device, "d", d_c.bytes()).unwrap();
            let arguments = RegisterArgs { a: d_a.address(), b: d_b.address(), c: d_c.address(), d: d.address() };
            launch(&device, form.entry, pairings.len(), 0, &arguments);
            let got: Vec<u32> = download(&d, pairings.len() * LANES * 4);
            for (case, ((a, b), c)) in pairings.iter().zip(c.chunks(ROWS * COLUMNS)).enumerate() {
                for (lane, i) in (0..LANES).flat_map(|lane| (0..4).map(move |i| (lane, i))) {
                    let (row, column) = c_place(lane, i);
                    let products = (0..k).map(|x| (form.value)(a[row * k + x]) * (form.value)(b[x * COLUMNS + column]));
                    let expected = f64::from(c[row * COLUMNS + column]) + products.sum::<f64>();
                    let word = got[(case * LANES + lane) * 4 + i];
                    let got = if form.floating { f64::from(f32::from_bits(word)) } else { f64::from(word as i32) };
                    assert_eq!(got, expected, "{name}, {}, case {case}, row {row}, column {column}", form.entry);
                }
            }
        }
    }
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct MatrixArgs {
    rows: Address,
    order: Address,
    d: Address,
    unused: [u32; 2],
}

/// Lane `l` names row `l % 8` of matrix `l / 8`, wherever it lies. Lane `l` gets of each matrix the numbers `2 (l % 4)` and the next
/// of row `l / 4`; transposed, of column `l / 4`.
#[test]
fn matrices_are_loaded_as_the_manual_says() {
    let test = "matrices_are_loaded_as_the_manual_says";
    for (name, device) in cuda::devices_with(test, &[Arch::Sm80], &SOURCES) {
        for seed in 0..4 {
            let mut random = Random::new(seed);
            let halves: Vec<u16> = (0..LANES * 8).map(|_| random.next() as u16).collect();
            let order = random.permutation(LANES);
            let (rows, d_order) = (upload(&device, &halves), upload(&device, &order));
            let d = Buffer::new(&device, "d", 4 * 4 * 4 * LANES as u64).unwrap();
            let arguments =
                MatrixArgs { rows: rows.address(), order: d_order.address(), d: d.address(), unused: [0; 2] };
            launch(&device, "load_matrices", 1, 16 * LANES as u32, &arguments);
            let got: Vec<u32> = download(&d, 4 * 4 * LANES);
            let number = |matrix: usize, row: usize, i: usize| halves[order[8 * matrix + row] as usize * 8 + i];
            for (form, matrices) in [4, 4, 2, 2].into_iter().enumerate() {
                for (lane, matrix) in (0..LANES).flat_map(|lane| (0..matrices).map(move |matrix| (lane, matrix))) {
                    let (one, two) = (lane / 4, 2 * (lane % 4));
                    let [low, high] = [two, two + 1]
                        .map(|i| if form % 2 == 0 { number(matrix, one, i) } else { number(matrix, i, one) });
                    let expected = u32::from(low) | u32::from(high) << 16;
                    let got = got[LANES * 4 * form + 4 * lane + matrix];
                    assert_eq!(got, expected, "{name}, form {form}, lane {lane}, matrix {matrix}");
                }
            }
        }
    }
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct AtomArgs {
    weight: Address,
    tokens: Address,
    d: Address,
}

/// An atom, filled by [`TokenForm::place`], multiplied with 16 rows of weights in the fragments of `mma.m16n8k64`, gives the product:
/// for each form in the instructions of the GEMM that reads it.
#[test]
fn atoms_are_what_the_matrix_instructions_read() {
    let test = "atoms_are_what_the_matrix_instructions_read";
    let forms = [
        (TokenForm::Fragments4, "multiply_fragments4", 16),
        (TokenForm::Fragments8, "multiply_fragments8", 256),
        (TokenForm::Tiles8, "multiply_tiles8", 256),
    ];
    for (name, device) in cuda::devices_with(test, &[Arch::Sm80], &SOURCES) {
        for (form, entry, codes) in forms {
            let mut random = Random::new(u64::from(form.define()));
            for case in 0..COLUMNS * 128 + 8 {
                let weight: Vec<u32> = (0..ROWS * 128).map(|_| random.below(16) as u32).collect();
                // One-hot tokens first, every place of the atom in turn.
                let token: Vec<u8> = (0..COLUMNS * 128)
                    .map(|at| if case < COLUMNS * 128 { u8::from(at == case) } else { random.below(codes) as u8 })
                    .collect();
                let mut atom = vec![0_u8; form.atom_bytes()];
                for (g, k) in (0..COLUMNS).flat_map(|g| (0..128).map(move |k| (g, k))) {
                    let (byte, bit) = form.place(g, k);
                    atom[byte] |= token[128 * g + k] << bit;
                }
                let halves =
                    [0, 64].map(|first| fragments(4, 4, a_of_u4, |row, column| weight[128 * row + first + column]));
                let words: Vec<u32> = (0..LANES)
                    .flat_map(|lane| halves.iter().flat_map(move |half| &half[4 * lane..4 * lane + 4]))
                    .copied()
                    .collect();
                let (d_weight, d_tokens) = (upload(&device, &words), upload(&device, &atom));
                let d = Buffer::new(&device, "d", 16 * LANES as u64).unwrap();
                let arguments = AtomArgs { weight: d_weight.address(), tokens: d_tokens.address(), d: d.address() };
                launch(&device, entry, 1, 0, &arguments);
                let got: Vec<i32> = download(&d, 4 * LANES);
                for (lane, i) in (0..LANES).flat_map(|lane| (0..4).map(move |i| (lane, i))) {
                    let (row, column) = c_place(lane, i);
                    let expected: u32 =
                        (0..128).map(|k| weight[128 * row + k] * u32::from(token[128 * column + k])).sum();
                    assert_eq!(
                        got[4 * lane + i],
                        expected as i32,
                        "{name}, {form:?}, case {case}, weight row {row}, token {column}"
                    );
                }
            }
        }
    }
}
