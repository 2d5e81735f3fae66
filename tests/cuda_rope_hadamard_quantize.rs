//! `rope_hadamard_quantize` in CUDA: codes, scales, zero points and sums are the CPU backend's bit for bit, numbers are the oracle's,
//! and nothing else of the paged cache is touched.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails this way")]

mod cuda;
mod layer;
mod oracle;

use cuda::STREAM;
use duquant::kernels::cpu::{self, Isa, QueryHeads, QueryHeadsDesc, RopeTable};
use duquant::kernels::cuda::{
    Arch, Dtype, Error, KvLayout, KvOperand, QueryOperand, RopeHadamardQuantizeDesc, RopeHadamardQuantizeOperands,
    RopeHadamardQuantizePlan, Sequence,
};
use duquant::kernels::{Affine, Error as KernelError};
use duquant_reference as reference;
use half::{bf16, f16};
use layer::{Layer, Row, Shape, codes};
use oracle::{Random, affine, widen};
use std::collections::HashMap;

const TOKENS: [usize; 10] = [1, 2, 3, 7, 8, 9, 63, 64, 65, 257];

/// Rows of noise with a channel that stands out, of zeros, of one sign, tiny, constant, and with one massive value.
fn rows(random: &mut Random, tokens: usize, width: usize) -> Vec<f32> {
    let mut x = random.normals(tokens * width);
    for (t, x) in x.chunks_exact_mut(width).enumerate() {
        let at = random.below(width);
        x[width / 3] += 12.0;
        match (t + random.below(3)) % 9 {
            2 => x.fill(0.0),
            3 => x.iter_mut().for_each(|x| *x = x.abs()),
            4 => x.iter_mut().for_each(|x| *x = -x.abs()),
            5 => x[at] = 7e3,
            6 => x.iter_mut().for_each(|x| *x *= 1e-7),
            7 => x.fill(-1.25),
            _ => {}
        }
    }
    x
}

/// What the CPU backend stores for one sequence's rows from `position` on: queries `[T, H]`, keys and values `[T, Hkv]`.
fn on_cpu(shape: &Shape, x: &[f32], position: usize) -> [Vec<Vec<f32>>; 3] {
    let Shape { heads, kv_heads, head_dim, key, value, .. } = *shape;
    let tokens = x.len() / shape.width();
    let isa = Isa::Portable;
    let desc = QueryHeadsDesc { heads, kv_heads, head_dim, tokens_max: tokens, key };
    let mut queries = QueryHeads::new(&desc, isa).unwrap();
    let desc = cpu::KvCacheDesc { kv_heads, head_dim, capacity: tokens, key, value };
    let mut cache = cpu::KvCache::new(&desc).unwrap();
    let table = RopeTable::new(head_dim, &shape.frequencies(), position + tokens).unwrap();
    cpu::rope_hadamard_quantize(x, &table, position, &mut queries, &mut cache).unwrap();
    let each = |heads: usize, row: &dyn Fn(usize, usize) -> Vec<f32>| -> Vec<Vec<f32>> {
        (0..tokens).flat_map(|t| (0..heads).map(move |head| (head, t))).map(|(head, t)| row(head, t)).collect()
    };
    [
        each(heads, &|head, t| queries.query(head, t).unwrap()),
        each(kv_heads, &|head, t| cache.key(head, t).unwrap()),
        each(kv_heads, &|head, t| cache.value(head, t).unwrap()),
    ]
}

/// Equal bits; where nothing is quantized, after the rounding to the cache's type.
fn check_row(got: &Row, expected: &[f32], float: Dtype, what: &str) {
    let expected: Vec<f32> = match (got.params, float) {
        (Some((_, _, sum)), _) => {
            assert_eq!(sum as f32, got.values.iter().sum::<f32>(), "{what}: the sum of the codes");
            expected.to_vec()
        }
        (None, Dtype::Bf16) => expected.iter().map(|&x| bf16::from_f32(x).to_f32()).collect(),
        (None, _) => expected.iter().map(|&x| f16::from_f32(x).to_f32()).collect(),
    };
    assert_eq!(got.real(), expected, "{what}");
}

/// One call of several sequences against the CPU backend.
fn check(layer: &Layer, parts: &[(usize, usize)], random: &mut Random) {
    let shape = layer.shape;
    let sequences = layer.sequences(parts);
    let tokens: usize = parts.iter().map(|part| part.1).sum();
    let before = layer.stored();
    let x = layer.append(&rows(random, tokens, shape.width()), &sequences);
    let (after, queries) = (layer.stored(), layer.query_rows(tokens));
    // By their number: rows that the call writes.
    let mut written = HashMap::new();
    for sequence in &sequences {
        let (first, count, position) = (sequence.first as usize, sequence.tokens as usize, sequence.position as usize);
        let [q, k, v] = on_cpu(&shape, &x[first * shape.width()..(first + count) * shape.width()], position);
        for (i, expected) in q.iter().enumerate() {
            check_row(
                &queries[first * shape.heads + i],
                expected,
                shape.float,
                &format!("{shape:?} {sequence:?} query {i}"),
            );
        }
        for (i, (k, v)) in k.iter().zip(&v).enumerate() {
            let place = layer.place(sequence, i % shape.kv_heads, position + i / shape.kv_heads);
            written.insert(place, [k.clone(), v.clone()]);
        }
    }
    let pages = layer.plan.desc().cache.pages;
    for place in 0..pages * shape.kv_heads * 64 {
        let what = format!("{shape:?} {parts:?} row {place}");
        if let Some([key, value]) = written.get(&place) {
            check_row(&after.row(false, place), key, shape.float, &format!("{what}: key"));
            check_row(&after.row(true, place), value, shape.float, &format!("{what}: value"));
        } else {
            let bits =
                |row: Row| (row.values.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), row.params.map(|p| (p.1, p.2)));
            for values in [false, true] {
                assert_eq!(bits(after.row(values, place)), bits(before.row(values, place)), "{what}: written");
            }
        }
    }
}

/// Settings that differ in bits, clip and symmetry, and mixed ones.
fn settings() -> Vec<(Option<Affine>, Option<Affine>)> {
    let symmetric = |bits, clip| Some(Affine { bits, clip, symmetric: true });
    vec![
        (codes(4, 0.9), codes(4, 1.0)),
        (codes(8, 1.0), codes(8, 0.95)),
        (codes(2, 0.7), codes(3, 1.0)),
        (symmetric(4, 0.9), symmetric(8, 1.0)),
        (codes(7, 1.0), None),
        (None, codes(4, 1.0)),
        (None, None),
    ]
}

const HEAD_DIMS: [usize; 5] = [64, 80, 96, 128, 256];

#[test]
fn codes_are_the_cpus_bit_for_bit() {
    for (_, device) in cuda::devices("codes_are_the_cpus_bit_for_bit", &[Arch::Sm80]) {
        let mut random = Random::new(1);
        for (j, head_dim) in HEAD_DIMS.into_iter().enumerate() {
            for (i, (key, value)) in settings().into_iter().enumerate() {
                let kv_heads = 1 + (i + j) % 3;
                let heads = kv_heads * (1 + (i + 2 * j) % 4);
                let float = [Dtype::F16, Dtype::Bf16][(i + j) % 2];
                let shape = Shape { heads, kv_heads, head_dim, key, value, input: Dtype::F32, float };
                let layer = Layer::new(&device, shape, 3, 90, 24);
                for round in 0..3 {
                    let tokens = TOKENS[(i + 2 * round) % 6];
                    check(
                        &layer,
                        &[(random.below(40), tokens), (0, 0), (random.below(60), 1 + random.below(9))],
                        &mut random,
                    );
                }
            }
        }
    }
}

#[test]
fn every_count_of_tokens() {
    for (_, device) in cuda::devices("every_count_of_tokens", &[Arch::Sm90a]) {
        let shape = Shape {
            heads: 1,
            kv_heads: 1,
            head_dim: 64,
            key: codes(4, 0.9),
            value: codes(4, 1.0),
            input: Dtype::F32,
            float: Dtype::F16,
        };
        let layer = Layer::new(&device, shape, 1, 300, 257);
        for tokens in TOKENS {
            check(&layer, &[(37, tokens)], &mut Random::new(tokens as u64));
        }
    }
}

#[test]
fn half_precision_input_is_the_cpus_on_the_same_numbers() {
    for (_, device) in cuda::devices("half_precision_input_is_the_cpus_on_the_same_numbers", &[Arch::Sm86]) {
        for (input, head_dim) in [(Dtype::F16, 128), (Dtype::Bf16, 80)] {
            let (key, value) = (codes(4, 0.9), codes(4, 1.0));
            let shape = Shape { heads: 6, kv_heads: 2, head_dim, key, value, input, float: Dtype::F16 };
            let layer = Layer::new(&device, shape, 2, 90, 24);
            check(&layer, &[(61, 9), (5, 2)], &mut Random::new(5));
        }
    }
}

#[test]
fn many_sequences_in_any_order_with_gaps() {
    for (_, device) in cuda::devices("many_sequences_in_any_order_with_gaps", &[Arch::Sm80]) {
        let (key, value) = (codes(4, 0.9), codes(4, 1.0));
        let shape = Shape { heads: 2, kv_heads: 1, head_dim: 64, key, value, input: Dtype::F32, float: Dtype::F16 };
        let layer = Layer::new(&device, shape, 70, 20, 100);
        let mut random = Random::new(9);
        // Rows 0 to 3 and every row between two sequences belong to none.
        let mut sequences: Vec<Sequence> = layer.sequences(&[(7, 1); 70]);
        sequences.iter_mut().enumerate().for_each(|(i, s)| s.first = 4 + i as u32 + i as u32 / 7);
        let order = random.permutation(70);
        let shuffled: Vec<Sequence> = order.iter().map(|&i| sequences[i as usize]).collect();
        let x = rows(&mut random, 100, shape.width());
        device.fill(STREAM, layer.query_params.address(), 0xab, layer.query_params.bytes()).unwrap();
        layer.append(&x, &shuffled);
        let (queries, stored) = (layer.query_rows(100), layer.stored());
        for sequence in &sequences {
            let t = sequence.first as usize;
            let [q, k, v] = on_cpu(&shape, &x[t * shape.width()..(t + 1) * shape.width()], 7);
            (0..2).for_each(|h| check_row(&queries[2 * t + h], &q[h], Dtype::F16, "query"));
            let place = layer.place(sequence, 0, 7);
            check_row(&stored.row(false, place), &k[0], Dtype::F16, "key");
            check_row(&stored.row(true, place), &v[0], Dtype::F16, "value");
        }
        let taken: Vec<usize> = sequences.iter().map(|s| s.first as usize).collect();
        for t in (0..100).filter(|t| !taken.contains(t)) {
            assert_eq!(queries[2 * t].params.unwrap().1, 0xabab_abab, "token {t} belongs to no sequence");
        }
    }
}

/// Against `f64`: a code may differ by one only where the scaled value lies next to a tie.
#[test]
fn numbers_are_the_oracles() {
    for (_, device) in cuda::devices("numbers_are_the_oracles", &[Arch::Sm80]) {
        let mut random = Random::new(4);
        let (mut compared, mut differ) = (0, 0);
        for head_dim in [80, 128] {
            let (key, value) = (codes(4, 0.9), codes(4, 1.0));
            let shape = Shape { heads: 4, kv_heads: 2, head_dim, key, value, input: Dtype::F32, float: Dtype::F16 };
            let layer = Layer::new(&device, shape, 1, 90, 24);
            let (position, tokens, d) = (50, 20, head_dim);
            let call = layer.sequences(&[(position, tokens)]);
            let x = layer.append(&rows(&mut random, tokens, shape.width()), &call);
            let part = |from: usize, count: usize| -> Vec<f64> {
                x.chunks_exact(shape.width()).flat_map(|row| widen(&row[from * d..(from + count) * d])).collect()
            };
            let settings = reference::HeadSettings {
                query: key.as_ref().map(affine),
                key: key.as_ref().map(affine),
                value: value.as_ref().map(affine),
                hadamard: true,
            };
            let expected = reference::rope_hadamard_quantize(
                &part(0, 4),
                &part(4, 2),
                &part(6, 2),
                reference::AttentionShape { heads: 4, kv_heads: 2, head_dim },
                position,
                &shape.frequencies(),
                &settings,
            );
            let stored = layer.stored();
            let cached = |values: bool| -> Vec<Row> {
                let place = |i: usize| layer.place(&call[0], i % 2, position + i / 2);
                (0..2 * tokens).map(|i| stored.row(values, place(i))).collect()
            };
            let all = [
                (layer.query_rows(tokens), &expected.query),
                (cached(false), &expected.key),
                (cached(true), &expected.value),
            ];
            for (got, expected) in all {
                let rows = expected.quantized.as_ref().unwrap();
                for (i, got) in got.iter().enumerate() {
                    let (scale, _, _) = got.params.unwrap();
                    let wanted = f64::from(rows.scale[i]);
                    assert!((f64::from(scale) - wanted).abs() <= 1e-5 * wanted, "scale {scale} for {wanted}");
                    for c in 0..d {
                        let (code, oracle) = (got.values[c], f32::from(rows.codes[i * d + c]));
                        compared += 1;
                        if code != oracle {
                            let scaled = expected.values[i * d + c] / wanted;
                            let tie = (scaled - scaled.floor() - 0.5).abs() < 1e-3;
                            assert!(tie && (code - oracle).abs() == 1.0, "{code} for {oracle} ({scaled})");
                            differ += 1;
                        }
                    }
                }
            }
        }
        assert!(differ * 1000 < compared, "{differ} of {compared} codes differ: too many for ties alone");
    }
}

#[test]
fn a_head_that_is_not_finite_gets_scale_nan_and_spares_the_others() {
    let test = "a_head_that_is_not_finite_gets_scale_nan_and_spares_the_others";
    for (_, device) in cuda::devices(test, &[Arch::Sm80]) {
        let (key, value) = (codes(4, 0.9), codes(4, 1.0));
        let shape = Shape { heads: 4, kv_heads: 2, head_dim: 64, key, value, input: Dtype::F32, float: Dtype::F16 };
        let clean = Random::new(3).normals(3 * shape.width());
        let layer = Layer::new(&device, shape, 1, 3, 3);
        let call = layer.sequences(&[(0, 3)]);
        let read = || {
            let stored = layer.stored();
            let cached = |values| {
                (0..2)
                    .flat_map(|h| (0..3).map(move |t| (h, t)))
                    .map(|(h, t)| stored.row(values, layer.place(&call[0], h, t)))
                    .collect::<Vec<_>>()
            };
            [layer.query_rows(3), cached(false), cached(true)]
        };
        layer.append(&clean, &call);
        let before = read();
        // The last is finite, but its range is not.
        for (bad, head) in
            [(f32::NAN, 1), (f32::INFINITY, 4), (f32::NEG_INFINITY, 7), (f32::NAN, 6), (f32::MAX, 7), (f32::MAX, 5)]
        {
            let mut x = clean.clone();
            x[shape.width() + head * 64 + 17] = bad;
            if bad == f32::MAX {
                x[shape.width() + head * 64 + 18] = -bad;
            }
            layer.append(&x, &call);
            // Token 1 of the head, in queries [T, H], keys or values [Hkv, T].
            let place = match head {
                0..4 => (0, 4 + head),
                4..6 => (1, (head - 4) * 3 + 1),
                _ => (2, (head - 6) * 3 + 1),
            };
            for (part, (before, after)) in before.iter().zip(&read()).enumerate() {
                for (i, (before, after)) in before.iter().zip(after).enumerate() {
                    if (part, i) == place {
                        let (scale, zero_point, sum) = after.params.unwrap();
                        assert!(scale.is_nan() && after.values.iter().all(|&code| code == 0.0), "{bad} {after:?}");
                        assert_eq!((zero_point, sum), (0, 0));
                    } else {
                        assert_eq!(before, after, "part {part} row {i}");
                    }
                }
            }
        }
    }
}

#[test]
fn misfits_are_errors() {
    for (_, device) in cuda::devices("misfits_are_errors", &[Arch::Sm80]) {
        let (key, value) = (codes(4, 0.9), codes(4, 0.9));
        let cache = KvLayout { kv_heads: 2, head_dim: 64, pages: 8, key, value, float: Dtype::F16 };
        let desc = RopeHadamardQuantizeDesc {
            heads: 4,
            tokens_max: 4,
            sequences_max: 2,
            positions: 100,
            input: Dtype::F32,
            cache,
        };
        let plan = |desc: RopeHadamardQuantizeDesc| RopeHadamardQuantizePlan::plan(device.as_ref(), &desc);
        let with = |cache| plan(RopeHadamardQuantizeDesc { cache, ..desc });
        let unsupported = |result: Result<RopeHadamardQuantizePlan, Error>, field: &str| match result {
            Err(Error::Kernel(KernelError::Unsupported { what, .. })) => assert_eq!(what, field),
            other => panic!("{field}: {other:?}"),
        };
        for head_dim in [0, 8, 72, 272] {
            unsupported(with(KvLayout { head_dim, ..cache }), "head_dim");
        }
        unsupported(with(KvLayout { key: codes(9, 0.9), ..cache }), "bits");
        unsupported(with(KvLayout { value: codes(4, f32::NAN), ..cache }), "clip");
        unsupported(with(KvLayout { kv_heads: 0, ..cache }), "kv_heads");
        unsupported(with(KvLayout { pages: 0, ..cache }), "pages");
        unsupported(with(KvLayout { float: Dtype::F32, ..cache }), "float");
        unsupported(plan(RopeHadamardQuantizeDesc { heads: 5, ..desc }), "heads");
        unsupported(plan(RopeHadamardQuantizeDesc { heads: 0, ..desc }), "heads");
        unsupported(plan(RopeHadamardQuantizeDesc { tokens_max: 0, ..desc }), "tokens_max");
        unsupported(plan(RopeHadamardQuantizeDesc { sequences_max: 0, ..desc }), "sequences_max");
        unsupported(plan(RopeHadamardQuantizeDesc { positions: 0, ..desc }), "positions");

        let plan = plan(desc).unwrap();
        let good = RopeHadamardQuantizeOperands {
            qkv: 16,
            rope: 16,
            sequences: 16,
            page_table: 16,
            queries: QueryOperand { codes: 16, params: 16 },
            cache: KvOperand { keys: 16, values: 16, params: 16 },
        };
        // SAFETY: nothing is launched: the shape or an address is refused, or there is no token.
        let enqueue = |tokens: usize, sequences: usize, operands: &RopeHadamardQuantizeOperands| unsafe {
            plan.enqueue(device.as_ref(), STREAM, tokens, sequences, operands)
        };
        assert!(enqueue(5, 1, &good).is_err());
        assert!(enqueue(4, 3, &good).is_err());
        assert_eq!(enqueue(0, 2, &good), Ok(()));
        assert_eq!(enqueue(4, 0, &good), Ok(()));
        let odd = RopeHadamardQuantizeOperands { qkv: 8, ..good };
        assert_eq!(enqueue(1, 1, &odd), Err(Error::Alignment { operand: "qkv", alignment: 16, got: 8 }));
        let null = RopeHadamardQuantizeOperands { cache: KvOperand { params: 0, ..good.cache }, ..good };
        assert_eq!(enqueue(1, 1, &null), Err(Error::Alignment { operand: "cache parameters", alignment: 16, got: 0 }));
    }
}
