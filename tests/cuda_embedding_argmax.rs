//! Embedding rows and greedy tokens in CUDA are those of a loop on the host, bit for bit.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails and reports this way")]

mod cuda;
mod oracle;

use cuda::{STREAM, download, upload};
use duquant::kernels::cuda::{
    Arch, ArgmaxDesc, ArgmaxPlan, Buffer, Device, Dtype, EmbeddingDesc, EmbeddingPlan, Error, NextStep, Sequence,
};
use half::{bf16, f16};
use oracle::Random;
use proptest::prelude::*;
use std::sync::Arc;

const TOKENS: [usize; 10] = [1, 2, 3, 7, 8, 9, 63, 64, 65, 257];
const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

fn encode(dtype: Dtype, x: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F32 => bytemuck::cast_slice(x).to_vec(),
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

fn check_embedding(
    device: &Arc<dyn Device>,
    [tokens, vocabulary, k]: [usize; 3],
    table: Dtype,
    output: Dtype,
    seed: u64,
) {
    let mut random = Random::new(seed);
    let mut values = random.normals(vocabulary * k);
    // Subnormal halves, zeros and a number near the largest half.
    for (i, special) in [0.0, -0.0, 6e-8, -5e-6, 65_280.0, -3e-5].into_iter().enumerate() {
        if let Some(value) = values.get_mut(i * 7) {
            *value = special;
        }
    }
    // Every fifth id is outside, near and far.
    let ids: Vec<u32> = (0..tokens)
        .map(|t| match (t % 5, random.below(2)) {
            (4, 0) => vocabulary as u32,
            (4, _) => u32::MAX - random.below(3) as u32,
            _ => random.below(vocabulary) as u32,
        })
        .collect();
    let plan =
        EmbeddingPlan::plan(device.as_ref(), &EmbeddingDesc { m_max: tokens, vocabulary, channels: k, table, output })
            .unwrap();
    let (d_table, d_ids) = (upload(device, &encode(table, &values)), upload(device, &ids));
    // Memory that is not written holds NaN.
    let out = Buffer::new(device, "out", (tokens * k) as u64 * output.bytes()).unwrap();
    // SAFETY: the buffers are as large as the shape says.
    unsafe {
        plan.enqueue(device.as_ref(), STREAM, tokens, d_ids.address(), d_table.address(), out.address()).unwrap();
    }
    let got: Vec<u8> = download(&out, tokens * k * output.bytes() as usize);
    let held = decode(table, &encode(table, &values));
    let rows = ids.iter().flat_map(|&id| match held.get(id as usize * k..(id as usize + 1) * k) {
        Some(row) => row.to_vec(),
        None => vec![0.0; k],
    });
    let want = encode(output, &rows.collect::<Vec<f32>>());
    assert!(got == want, "[{tokens}, {k}] of {vocabulary}, {table:?} to {output:?}");
}

#[test]
fn embedding_gathers_rows() {
    for (_, device) in cuda::devices("embedding_gathers_rows", &[Arch::Sm86, Arch::Sm90a]) {
        let mut cases = 0;
        for (vocabulary, k) in [(1, 1), (5, 3), (7, 64), (300, 100), (129, 129), (33, 1024), (9, 1032), (3, 2049)] {
            for tokens in TOKENS.into_iter().filter(|tokens| tokens * k < 40_000) {
                let (table, output) = (DTYPES[cases % 3], DTYPES[cases / 3 % 3]);
                check_embedding(&device, [tokens, vocabulary, k], table, output, cases as u64);
                cases += 1;
            }
        }
        assert!(cases >= 60, "{cases}");
    }
}

/// Logits with ties, NaN, infinities and both zeros, as `input` holds them, and the token of each row.
fn logits(tokens: usize, columns: usize, input: Dtype, seed: u64) -> (Vec<u8>, Vec<u32>) {
    let mut random = Random::new(seed);
    let mut logits = random.normals(tokens * columns);
    for (t, row) in logits.chunks_mut(columns).enumerate() {
        let (a, b) = (random.below(columns), random.below(columns));
        match (t + seed as usize) % 9 {
            0 => row.fill(-0.0),
            1 => row.fill(f32::NAN),
            2 => (row[a], row[b]) = (50.0, 50.0),
            3 => (row[a], row[b]) = (f32::NAN, f32::INFINITY),
            4 => row.fill(f32::NEG_INFINITY),
            5 => row.iter_mut().for_each(|x| *x = -x.abs() - 1.0),
            // Few numbers, many ties, both zeros.
            6 => row.iter_mut().for_each(|x| *x = x.round().min(0.0)),
            7 => {
                row.fill(f32::NAN);
                row[a] = f32::NEG_INFINITY;
            }
            _ => {}
        }
    }
    let bytes = encode(input, &logits);
    let best = |row: &[f32]| {
        let mut best: Option<usize> = None;
        for (i, &x) in row.iter().enumerate() {
            if !x.is_nan() && best.is_none_or(|best| x > row[best]) {
                best = Some(i);
            }
        }
        best.unwrap_or(0) as u32
    };
    let want = decode(input, &bytes).chunks(columns).map(best).collect();
    (bytes, want)
}

/// Ids of `[tokens, columns]` logits, twice on one workspace.
fn check_argmax(device: &Arc<dyn Device>, [tokens, columns]: [usize; 2], input: Dtype, seed: u64) {
    let (bytes, want) = logits(tokens, columns, input, seed);
    let plan = ArgmaxPlan::plan(device.as_ref(), &ArgmaxDesc { m_max: tokens, columns, input }).unwrap();
    let (logits, ids) = (upload(device, &bytes), upload(device, &vec![u32::MAX; tokens]));
    let workspace = Buffer::zeroed(device, "workspace", plan.workspace_bytes()).unwrap();
    // Twice on the same workspace.
    for _ in 0..2 {
        let [logits, ids, workspace] = [&logits, &ids, &workspace].map(Buffer::address);
        // SAFETY: the buffers are as large as the shape says, and the workspace is zero.
        unsafe { plan.enqueue(device.as_ref(), STREAM, tokens, logits, ids, None, workspace) }.unwrap();
    }
    let got: Vec<u32> = download(&ids, tokens);
    assert_eq!(got, want, "[{tokens}, {columns}], {input:?}");
    let left: Vec<u8> = download(&workspace, plan.workspace_bytes() as usize);
    assert!(left.iter().all(|&byte| byte == 0), "[{tokens}, {columns}]: the workspace is not left zero");
}

#[test]
fn argmax_is_the_first_of_the_largest() {
    for (_, device) in cuda::devices("argmax_is_the_first_of_the_largest", &[Arch::Sm80, Arch::Sm90a]) {
        let mut cases = 0;
        for columns in [1, 2, 7, 8, 63, 64, 65, 1000, 2049, 4095, 4096, 4097, 4104, 20_000] {
            for tokens in TOKENS.into_iter().filter(|tokens| tokens * columns < 50_000) {
                check_argmax(&device, [tokens, columns], DTYPES[cases % 3], cases as u64);
                cases += 1;
            }
        }
        assert!(cases >= 90, "{cases}");
    }
}

/// What the next decode step reads: the tokens again, and sequences one call further.
#[test]
fn argmax_prepares_the_next_step() {
    for (_, device) in cuda::devices("argmax_prepares_the_next_step", &[Arch::Sm80]) {
        for (tokens, columns) in [(1, 5000), (3, 100)] {
            let (bytes, want) = logits(tokens, columns, Dtype::F32, 5);
            let desc = ArgmaxDesc { m_max: tokens, columns, input: Dtype::F32 };
            let plan = ArgmaxPlan::plan(device.as_ref(), &desc).unwrap();
            let sequence =
                |t: usize| Sequence { first: 7 * t as u32, tokens: t as u32, position: 60 + t as u32, table: 9 };
            let before: Vec<Sequence> = (0..tokens).map(sequence).collect();
            let (logits, sequences) = (upload(&device, &bytes), upload(&device, &before));
            let [ids, next] = ["ids", "next"].map(|what| Buffer::new(&device, what, 4 * tokens as u64).unwrap());
            let workspace = Buffer::zeroed(&device, "workspace", plan.workspace_bytes()).unwrap();
            let step = Some(NextStep { ids: next.address(), sequences: sequences.address() });
            let [logits, to, scratch] = [&logits, &ids, &workspace].map(Buffer::address);
            // SAFETY: the buffers are as large as the shape says, and the workspace is zero.
            unsafe { plan.enqueue(device.as_ref(), STREAM, tokens, logits, to, step, scratch) }.unwrap();
            assert_eq!(download::<u32>(&ids, tokens), want);
            assert_eq!(download::<u32>(&next, tokens), want);
            let after = (0..tokens).map(|t| Sequence {
                first: t as u32,
                tokens: [0, 1, 1][t],
                position: 60 + 2 * t as u32,
                table: 9,
            });
            assert_eq!(download::<Sequence>(&sequences, tokens), after.collect::<Vec<_>>());
        }
    }
}

#[test]
fn bad_operands_are_errors() {
    for (_, device) in cuda::devices("bad_operands_are_errors", &[Arch::Sm80]) {
        let desc = EmbeddingDesc { m_max: 4, vocabulary: 10, channels: 64, table: Dtype::F16, output: Dtype::F16 };
        let plan = |desc| EmbeddingPlan::plan(device.as_ref(), &desc);
        assert!(matches!(plan(EmbeddingDesc { m_max: 0, ..desc }), Err(Error::Kernel(_))));
        assert!(matches!(plan(EmbeddingDesc { vocabulary: 0, ..desc }), Err(Error::Kernel(_))));
        assert!(matches!(plan(EmbeddingDesc { channels: 0, ..desc }), Err(Error::Kernel(_))));
        let plan = plan(desc).unwrap();
        let buffer = Buffer::zeroed(&device, "operand", 4096).unwrap();
        let at = buffer.address();
        let enqueue = |tokens, ids, out| {
            // SAFETY: nothing is enqueued, or nothing is written.
            unsafe { plan.enqueue(device.as_ref(), STREAM, tokens, ids, at, out) }
        };
        assert!(matches!(enqueue(5, at, at), Err(Error::Kernel(_))));
        assert!(matches!(enqueue(1, at + 4, at), Err(Error::Alignment { operand: "ids", .. })));
        assert!(matches!(enqueue(1, at, 0), Err(Error::Alignment { operand: "out", .. })));
        enqueue(0, at, at).unwrap();

        let argmax =
            |m_max, columns| ArgmaxPlan::plan(device.as_ref(), &ArgmaxDesc { m_max, columns, input: Dtype::F32 });
        assert!(matches!(argmax(0, 5), Err(Error::Kernel(_))));
        assert!(matches!(argmax(1, 0), Err(Error::Kernel(_))));
        assert!(matches!(argmax(1, usize::MAX), Err(Error::Kernel(_))));
        let plan = argmax(2, 64).unwrap();
        let enqueue = |tokens, next, workspace| {
            // SAFETY: nothing is enqueued, or nothing is written.
            unsafe { plan.enqueue(device.as_ref(), STREAM, tokens, at, at, next, workspace) }
        };
        assert!(matches!(enqueue(3, None, at), Err(Error::Kernel(_))));
        assert!(matches!(enqueue(1, None, at + 8), Err(Error::Alignment { operand: "workspace", .. })));
        let crooked = Some(NextStep { ids: at, sequences: at + 4 });
        assert!(matches!(enqueue(1, crooked, at), Err(Error::Alignment { operand: "sequences", .. })));
        enqueue(0, None, at).unwrap();
    }
}

/// `PROPTEST_CASES` of them, or a few.
fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(40);
    ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 100, ..ProptestConfig::default() }
}

/// So many tokens of so many columns, with not too many numbers together.
fn shape() -> impl Strategy<Value = [usize; 2]> {
    let columns = prop_oneof![1_usize..70, 1_usize..5000, (1_usize..2500).prop_map(|eights| 8 * eights)];
    columns.prop_flat_map(|columns| (1..=(30_000 / columns).min(300)).prop_map(move |tokens| [tokens, columns]))
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn random_logits(shape in shape(), input in prop::sample::select(DTYPES.to_vec()), seed in 0..=u64::from(u32::MAX)) {
        for (_, device) in cuda::devices("random_logits", &[Arch::Sm80]) {
            check_argmax(&device, shape, input, seed);
        }
    }

    #[test]
    fn random_rows([tokens, k] in shape(), vocabulary in 1_usize..40, which in 0_usize..9, seed in 0..=u64::from(u32::MAX)) {
        for (_, device) in cuda::devices("random_rows", &[Arch::Sm86]) {
            check_embedding(&device, [tokens, vocabulary, k], DTYPES[which % 3], DTYPES[which / 3], seed);
        }
    }
}
