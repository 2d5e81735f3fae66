//! Embedding rows and greedy tokens on wgpu are those of a loop on the host, bit for bit.
#![cfg(feature = "wgpu")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails and reports this way")]

mod gpu;
mod oracle;

use duquant::kernels::wgpu::{
    ArgmaxDesc, ArgmaxPlan, Dtype, EmbeddingDesc, EmbeddingPlan, Error, Gpu, Recorder, TableDtype,
};
use gpu::gpu;
use half::{bf16, f16};
use oracle::Random;

const TOKENS: [usize; 10] = [1, 2, 3, 7, 8, 9, 63, 64, 65, 257];

/// One table in one buffer, in parts of at most `part_bytes`.
fn check_embedding(
    gpu: &Gpu,
    [tokens, vocabulary, k]: [usize; 3],
    table: TableDtype,
    output: Dtype,
    part_bytes: u64,
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
    let (bytes, held): (Vec<u8>, Vec<f32>) = match table {
        TableDtype::F32 => (bytemuck::cast_slice(&values).to_vec(), values),
        TableDtype::F16 => {
            let halves: Vec<f16> = values.iter().map(|&x| f16::from_f32(x)).collect();
            (bytemuck::cast_slice(&halves).to_vec(), halves.iter().map(|x| x.to_f32()).collect())
        }
        TableDtype::Bf16 => {
            let halves: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
            (bytemuck::cast_slice(&halves).to_vec(), halves.iter().map(|x| x.to_f32()).collect())
        }
    };
    // Every fifth id is outside, near and far.
    let ids: Vec<u32> = (0..tokens)
        .map(|t| match (t % 5, random.below(2)) {
            (4, 0) => vocabulary as u32,
            (4, _) => u32::MAX - random.below(3) as u32,
            _ => random.below(vocabulary) as u32,
        })
        .collect();
    let desc = EmbeddingDesc { m_max: tokens, vocabulary, channels: k, table, output };
    let plan = EmbeddingPlan::plan_in_parts(gpu, &desc, part_bytes).unwrap();
    let table_buffer = gpu.upload("table", &bytes).unwrap();
    let ids_buffer = gpu.upload("ids", bytemuck::cast_slice(&ids)).unwrap();
    // What it does not write shows.
    let out = gpu.upload("out", &vec![0x7b; (tokens * k) * output.bytes() as usize]).unwrap();
    let row = k as u64 * table.bytes();
    let parts: Vec<_> = plan
        .parts()
        .iter()
        .map(|rows| ::wgpu::BufferBinding { buffer: &table_buffer, offset: rows.start as u64 * row, size: None })
        .collect();
    let bound = plan.bind(gpu, ids_buffer.as_entire_buffer_binding(), &parts, out.as_entire_buffer_binding()).unwrap();
    let mut encoder = gpu.encoder();
    bound.enqueue(&mut Recorder::new(&mut encoder), tokens).unwrap();
    gpu.submit(encoder).unwrap();
    let bytes = gpu.read(&out, 0, out.size()).unwrap();
    let place = format!("[{tokens}, {k}] of {vocabulary}, {table:?} to {output:?}, {} parts", parts.len());
    for t in 0..tokens {
        for i in 0..k {
            let want = if (ids[t] as usize) < vocabulary { held[ids[t] as usize * k + i] } else { 0.0 };
            let at = t * k + i;
            match output {
                Dtype::F32 => {
                    let got = f32::from_le_bytes(bytes[4 * at..4 * at + 4].try_into().unwrap());
                    assert_eq!(got.to_bits(), want.to_bits(), "{place}, {t} {i}: {got} against {want}");
                }
                Dtype::F16 => {
                    let got = f16::from_le_bytes(bytes[2 * at..2 * at + 2].try_into().unwrap()).to_f32();
                    // The device may round a single to a half by one ULP, or flush what is subnormal there.
                    let close = (got - want).abs() <= want.abs() / 1024.0 + 6.2e-5;
                    assert!(close, "{place}, {t} {i}: {got} against {want}");
                }
            }
        }
    }
}

#[test]
fn embedding_gathers_rows() {
    let Some(gpu) = gpu("embedding_gathers_rows") else { return };
    let mut cases = 0;
    for (i, (vocabulary, k)) in
        [(1, 1), (5, 3), (7, 64), (65, 31), (300, 100), (129, 129), (1000, 64), (33, 576)].into_iter().enumerate()
    {
        for table in [TableDtype::F32, TableDtype::F16, TableDtype::Bf16] {
            for tokens in TOKENS {
                for part_bytes in [u64::MAX, 1 << 16, 20 * 1024] {
                    // Parts hold whole rows that together are a multiple of the alignment.
                    if part_bytes < 256 * k as u64 * 4 && part_bytes < (vocabulary * k) as u64 * table.bytes() {
                        continue;
                    }
                    let output = if cases % 3 == 0 && gpu.has_f16() { Dtype::F16 } else { Dtype::F32 };
                    check_embedding(
                        &gpu,
                        [tokens, vocabulary, k],
                        table,
                        output,
                        part_bytes,
                        (i * 1000 + cases) as u64,
                    );
                    cases += 1;
                }
            }
        }
    }
    assert!(cases >= 500, "{cases}");
}

fn check_argmax(gpu: &Gpu, tokens: usize, columns: &[usize], input: Dtype, seed: u64) {
    let mut random = Random::new(seed);
    let vocabulary: usize = columns.iter().sum();
    let mut logits = random.normals(tokens * vocabulary);
    for (t, row) in logits.chunks_mut(vocabulary).enumerate() {
        let (a, b) = (random.below(vocabulary), random.below(vocabulary));
        match t % 9 {
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
    let held: Vec<f32> = match input {
        Dtype::F32 => logits,
        Dtype::F16 => logits.iter().map(|&x| f16::from_f32(x).to_f32()).collect(),
    };
    let want: Vec<u32> = held
        .chunks(vocabulary)
        .map(|row| {
            let mut best: Option<usize> = None;
            for (i, &x) in row.iter().enumerate() {
                if !x.is_nan() && best.is_none_or(|best| x > row[best]) {
                    best = Some(i);
                }
            }
            best.unwrap_or(0) as u32
        })
        .collect();
    let mut buffers = Vec::new();
    let mut first = 0;
    for &width in columns {
        let part: Vec<f32> = held.chunks(vocabulary).flat_map(|row| row[first..first + width].to_vec()).collect();
        let bytes = match input {
            Dtype::F32 => bytemuck::cast_slice(&part).to_vec(),
            Dtype::F16 => part.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect::<Vec<u8>>(),
        };
        buffers.push(gpu.upload("logits", &bytes).unwrap());
        first += width;
    }
    let plan = ArgmaxPlan::plan(gpu, &ArgmaxDesc { m_max: tokens, columns: columns.to_vec(), input }).unwrap();
    let ids = gpu.upload("ids", &vec![0xff; 4 * tokens]).unwrap();
    let workspace = gpu.upload("workspace", &vec![0xff; plan.workspace_bytes() as usize]).unwrap();
    let parts: Vec<_> = buffers.iter().map(|buffer| buffer.as_entire_buffer_binding()).collect();
    let bound = plan.bind(gpu, &parts, ids.as_entire_buffer_binding(), workspace.as_entire_buffer_binding()).unwrap();
    let mut encoder = gpu.encoder();
    bound.enqueue(&mut Recorder::new(&mut encoder), tokens).unwrap();
    gpu.submit(encoder).unwrap();
    let got: Vec<u32> = bytemuck::pod_collect_to_vec(&gpu.read(&ids, 0, 4 * tokens as u64).unwrap());
    assert_eq!(got, want, "[{tokens}, {columns:?}], {input:?}");
}

#[test]
fn argmax_is_the_first_of_the_largest() {
    let Some(gpu) = gpu("argmax_is_the_first_of_the_largest") else { return };
    let vocabularies: [&[usize]; 13] = [
        &[1],
        &[2],
        &[63],
        &[64],
        &[65],
        &[1000],
        &[3, 1, 5],
        &[100, 28],
        &[2047],
        &[2049],
        &[300, 4097],
        &[511, 511, 3],
        &[5000],
    ];
    let mut cases = 0;
    for columns in vocabularies {
        for tokens in TOKENS {
            for round in 0..5 {
                // Large T with large V is the same again.
                if tokens > 9 && columns.iter().sum::<usize>() > 1500 && round > 0 {
                    continue;
                }
                let input = if round % 2 == 1 && gpu.has_f16() { Dtype::F16 } else { Dtype::F32 };
                check_argmax(&gpu, tokens, columns, input, cases);
                cases += 1;
            }
        }
    }
    for (tokens, columns) in [(1, &[49_152][..]), (3, &[128_256]), (9, &[32_000]), (2, &[65_536, 62_720])] {
        for input in [Dtype::F32, Dtype::F16] {
            if input == Dtype::F32 || gpu.has_f16() {
                check_argmax(&gpu, tokens, columns, input, cases);
                cases += 1;
            }
        }
    }
    assert!(cases >= 500, "{cases}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(gpu) = gpu("what_does_not_fit_is_refused") else { return };
    let desc = EmbeddingDesc { m_max: 4, vocabulary: 1000, channels: 64, table: TableDtype::F16, output: Dtype::F32 };
    let plan = |desc| EmbeddingPlan::plan(&gpu, &desc);
    assert!(matches!(plan(EmbeddingDesc { vocabulary: 0, ..desc }), Err(Error::Kernel(_))));
    assert!(matches!(plan(EmbeddingDesc { m_max: 1 << 24, channels: 1 << 20, ..desc }), Err(Error::Limit { .. })));
    assert!(matches!(EmbeddingPlan::plan_in_parts(&gpu, &desc, 100), Err(Error::Limit { .. })));
    let whole = plan(desc).unwrap();
    assert_eq!(whole.parts(), std::slice::from_ref(&(0..1000)));
    let parts = EmbeddingPlan::plan_in_parts(&gpu, &desc, 64 * 1024).unwrap();
    assert_eq!(parts.parts(), [0..512, 512..1000]);
    let [ids, table, out] = [16, 2 * 64 * 1000, 4 * 4 * 64].map(|bytes| gpu.buffer("operand", bytes).unwrap());
    let short = ::wgpu::BufferBinding { buffer: &table, offset: 0, size: std::num::NonZeroU64::new(2 * 64 * 1000 - 4) };
    let bind = |table: &[::wgpu::BufferBinding<'_>]| {
        whole.bind(&gpu, ids.as_entire_buffer_binding(), table, out.as_entire_buffer_binding())
    };
    assert!(matches!(bind(&[]), Err(Error::Kernel(_))));
    assert!(matches!(bind(&[short]), Err(Error::Binding { operand: "table", .. })));
    let bound = bind(&[table.as_entire_buffer_binding()]).unwrap();
    let mut encoder = gpu.encoder();
    assert!(matches!(bound.enqueue(&mut Recorder::new(&mut encoder), 5), Err(Error::Kernel(_))));

    let argmax = |m_max, columns: &[usize]| {
        ArgmaxPlan::plan(&gpu, &ArgmaxDesc { m_max, columns: columns.to_vec(), input: Dtype::F32 })
    };
    assert!(matches!(argmax(0, &[5]), Err(Error::Kernel(_))));
    assert!(matches!(argmax(1, &[]), Err(Error::Kernel(_))));
    assert!(matches!(argmax(1, &[5, 0]), Err(Error::Kernel(_))));
    assert!(matches!(argmax(1 << 14, &[1 << 20]), Err(Error::Limit { .. })));
    let plan = argmax(2, &[64]).unwrap();
    let logits = gpu.buffer("logits", 2 * 64 * 4).unwrap();
    let [ids, workspace, little] = [8, plan.workspace_bytes(), 4].map(|bytes| gpu.buffer("operand", bytes).unwrap());
    let bind = |parts: &[::wgpu::BufferBinding<'_>], workspace: &::wgpu::Buffer| {
        plan.bind(&gpu, parts, ids.as_entire_buffer_binding(), workspace.as_entire_buffer_binding())
    };
    assert!(matches!(bind(&[], &workspace), Err(Error::Kernel(_))));
    let part = || logits.as_entire_buffer_binding();
    assert!(matches!(bind(&[part()], &little), Err(Error::Binding { operand: "workspace", .. })));
    let crooked = ::wgpu::BufferBinding { buffer: &logits, offset: 4, size: None };
    assert!(matches!(bind(&[crooked], &workspace), Err(Error::Binding { .. } | Error::Alignment { .. })));
    let bound = bind(&[part()], &workspace).unwrap();
    assert!(matches!(bound.enqueue(&mut Recorder::new(&mut encoder), 3), Err(Error::Kernel(_))));
    bound.enqueue(&mut Recorder::new(&mut encoder), 0).unwrap();
}
