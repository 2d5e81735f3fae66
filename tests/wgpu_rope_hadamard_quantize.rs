//! `rope_hadamard_quantize` on a wgpu adapter against the oracle: codes equal next to no tie, sums exact, nothing else of the
//! cache touched.
#![cfg(feature = "wgpu")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails and reports this way")]

mod gpu;
mod heads;
mod oracle;

use duquant::kernels::wgpu::{
    Dtype, Error, KvBinding, KvLayout, Recorder, RopeHadamardQuantizeDesc, RopeHadamardQuantizeOperands,
    RopeHadamardQuantizePlan,
};
use duquant::kernels::{Affine, Error as KernelError};
use duquant_reference as reference;
use heads::{Layer, Row, Shape, codes};
use oracle::{Random, affine, widen};

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

/// Compares a row with what the oracle quantizes. A code may differ by one where the scaled value lies within `tie` of a
/// tie, and so may the zero point; `precision` bounds the scale's relative error. Returns codes that differ.
fn check_row(got: &Row, values: &[f64], settings: &Affine, tie: f64, precision: f64, what: &str) -> usize {
    let settings = affine(settings);
    let values: Vec<f32> = values.iter().map(|&x| x as f32).collect();
    let (_, params) = settings.quantize_row(&values);
    let scale = f64::from(params.scale);
    assert!((f64::from(got.scale) - scale).abs() <= precision * scale, "{what}: scale {} for {scale}", got.scale);
    let near = |x: f64| (x - x.floor() - 0.5).abs() <= tie;
    let (min, max) = values.iter().fold((0.0_f32, 0.0_f32), |(lo, hi), &x| (lo.min(x), hi.max(x)));
    let lowest = if settings.symmetric { (-min).max(max) } else { -min } * settings.clip;
    let off = i64::from(got.zero_point) - i64::from(params.zero_point);
    let zero_near_tie = near(f64::from(lowest) * f64::from(params.inverse_scale));
    assert!(off == 0 || (off.abs() == 1 && zero_near_tie), "{what}: zero point {got:?} for {params:?}");
    let mut differ = 0;
    for (d, (&got_code, &x)) in got.values.iter().zip(&values).enumerate() {
        let scaled = f64::from(x) * f64::from(params.inverse_scale);
        let code = (scaled.round_ties_even() + f64::from(got.zero_point)).clamp(0.0, f64::from(settings.max_code()));
        if got_code != code {
            assert!(
                (got_code - code).abs() == 1.0 && near(scaled),
                "{what}: channel {d}: {got_code}, not {code} ({scaled})"
            );
            differ += 1;
        }
    }
    assert_eq!(f64::from(got.sum), got.values.iter().sum::<f64>(), "{what}: the sum of the codes");
    differ
}

/// Numbers that are stored as they are: f32 after a rotation of pairs (three roundings and those of cosine and sine), and
/// f16's rounding (to either side) where the cache has it.
fn check_numbers(got: &Row, values: &[f64], exact: bool, float: Dtype, what: &str) {
    let largest = values.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
    for (&got, &x) in got.values.iter().zip(values) {
        let turned = if exact { 0.0 } else { 5.0 * 2_f64.powi(-24) * largest };
        let stored = if float == Dtype::F16 { 2_f64.powi(-10) * x.abs() + 2_f64.powi(-24) } else { 0.0 };
        assert!((got - x).abs() <= turned + stored, "{what}: {got} for {x}");
    }
}

/// One call against the oracle; returns codes compared and codes that differ.
fn check(gpu: &gpu::TestGpu, shape: Shape, tokens: usize, position: usize, random: &mut Random) -> (usize, usize) {
    let layer = Layer::new(gpu, shape, tokens).unwrap();
    let KvLayout { kv_heads, head_dim: d, capacity, key, value, float } = shape.cache;
    let heads = shape.heads;
    let x = layer.append(gpu, &rows(random, tokens, shape.width()), position);
    let part = |from: usize, count: usize| -> Vec<f64> {
        x.chunks_exact(shape.width()).flat_map(|row| widen(&row[from * d..(from + count) * d])).collect()
    };
    let settings = reference::HeadSettings {
        query: key.as_ref().map(affine),
        key: key.as_ref().map(affine),
        value: value.as_ref().map(affine),
        hadamard: key.is_some(),
    };
    let expected = reference::rope_hadamard_quantize(
        &part(0, heads),
        &part(heads, kv_heads),
        &part(heads + kv_heads, kv_heads),
        reference::AttentionShape { heads, kv_heads, head_dim: d },
        position,
        &shape.frequencies(),
        &settings,
    );
    let (mut compared, mut differ) = (0, 0);
    let mut compare = |row: &Row, values: &[f64], settings: Option<Affine>, turned: bool, float: Dtype, what: &str| {
        match settings {
            // After a rotation in f32 the scaled value is off by less than 1e-3, without one by the division's 2.5 ULP.
            Some(settings) => {
                let (tie, precision) = if turned { (1e-3, 1e-5) } else { (1e-4, 1e-7) };
                compared += values.len();
                differ += check_row(row, values, &settings, tie, precision, what);
            }
            None => check_numbers(row, values, !turned, float, what),
        }
    };
    for (i, (row, values)) in layer.query_rows(gpu, tokens).iter().zip(expected.query.values.chunks(d)).enumerate() {
        compare(row, values, key, true, Dtype::F32, &format!("{shape:?} T={tokens} query {i}"));
    }
    for (values, heads, affine) in [(false, &expected.key, key), (true, &expected.value, value)] {
        for (i, row) in layer.cache_rows(gpu, values).iter().enumerate() {
            let (head, slot) = (i / capacity, i % capacity);
            let what = format!("{shape:?} T={tokens} at {position}: head {head} slot {slot}, values {values}");
            if (position..position + tokens).contains(&slot) {
                let at = ((slot - position) * kv_heads + head) * d;
                compare(row, &heads.values[at..at + d], affine, !values, float, &what);
            } else if affine.is_some() {
                assert!(row.scale == f32::from_bits(0xa5a5_a5a5) && row.sum == 0xa5a5, "{what}: written");
                assert!(row.values.iter().all(|&code| code == 5.0 || code == 10.0 || code == 165.0), "{what}: written");
            }
        }
    }
    (compared, differ)
}

/// Settings that differ in bits, clip and symmetry, and mixed ones.
fn settings() -> Vec<(Option<Affine>, Option<Affine>)> {
    let symmetric = |bits, clip| Some(Affine { bits, clip, symmetric: true });
    vec![
        (codes(4, 0.9), codes(4, 1.0)),
        (codes(8, 1.0), codes(8, 0.95)),
        (codes(2, 0.7), codes(3, 1.0)),
        (symmetric(4, 0.9), symmetric(8, 1.0)),
        (codes(5, 0.9), codes(6, 0.9)),
        (codes(7, 1.0), None),
        (None, codes(4, 1.0)),
        (None, None),
    ]
}

#[test]
fn codes_are_the_oracles_but_for_ties() {
    let Some(gpu) = gpu::gpu("codes_are_the_oracles_but_for_ties") else { return };
    let mut random = Random::new(1);
    let (mut cases, mut compared, mut differ) = (0, 0, 0);
    for (i, (key, value)) in settings().into_iter().enumerate() {
        for (j, head_dim) in [64, 80, 96, 128].into_iter().enumerate() {
            let kv_heads = 1 + (i + j) % 3;
            let heads = kv_heads * (1 + (i + 2 * j) % 4);
            let mut shape = Shape::new(heads, kv_heads, head_dim, key, value);
            if (i + j) % 2 == 1 {
                shape = shape.f16();
            }
            for round in 0..16 {
                // Every count once in ten rounds, large ones with one head to be quick.
                let tokens = if round < 10 { TOKENS[round] } else { 1 + random.below(6) };
                let shape = if tokens < 60 {
                    shape
                } else {
                    Shape { heads: 1, cache: KvLayout { kv_heads: 1, ..shape.cache }, ..shape }
                };
                let position = if round % 3 == 0 { 0 } else { random.below(40) };
                let more = random.below(3);
                let (all, off) = check(&gpu, shape.capacity(position + tokens + more), tokens, position, &mut random);
                (cases, compared, differ) = (cases + 1, compared + all, differ + off);
            }
        }
    }
    for head_dim in [16, 256] {
        let shape = Shape::new(3, 1, head_dim, codes(4, 0.9), codes(4, 0.9));
        check(&gpu, shape.capacity(20), 9, 5, &mut random);
    }
    assert!(cases >= 500, "{cases} cases");
    assert!(differ * 1000 < compared, "{differ} of {compared} codes differ: too many for ties alone");
}

#[test]
fn tokens_one_by_one_are_the_tokens_at_once() {
    let Some(gpu) = gpu::gpu("tokens_one_by_one_are_the_tokens_at_once") else { return };
    let shape = Shape::new(6, 2, 64, codes(4, 0.9), codes(4, 1.0)).capacity(11);
    let (all, one) = (Layer::new(&gpu, shape, 11).unwrap(), Layer::new(&gpu, shape, 1).unwrap());
    let x = rows(&mut Random::new(2), 11, shape.width());
    all.append(&gpu, &x, 0);
    for (t, row) in x.chunks_exact(shape.width()).enumerate() {
        one.append(&gpu, row, t);
    }
    let read = |layer: &Layer| {
        let cache = &layer.cache;
        [cache.keys(), cache.values(), cache.params()].map(|buffer| heads::words(&gpu, buffer, buffer.size()))
    };
    assert_eq!(read(&all), read(&one));
}

#[test]
fn a_head_that_is_not_finite_gets_scale_nan_and_spares_the_others() {
    let Some(gpu) = gpu::gpu("a_head_that_is_not_finite_gets_scale_nan_and_spares_the_others") else { return };
    let shape = Shape::new(4, 2, 64, codes(4, 0.9), codes(4, 1.0)).capacity(3);
    let clean = Random::new(3).normals(3 * shape.width());
    let layer = Layer::new(&gpu, shape, 3).unwrap();
    for (bad, head) in [(f32::NAN, 1), (f32::INFINITY, 4), (f32::NEG_INFINITY, 7), (f32::NAN, 6)] {
        layer.append(&gpu, &clean, 0);
        let read = || [layer.query_rows(&gpu, 3), layer.cache_rows(&gpu, false), layer.cache_rows(&gpu, true)];
        let before = read();
        let mut x = clean.clone();
        x[shape.width() + head * 64 + 17] = bad;
        layer.append(&gpu, &x, 0);
        // Token 1 of the head, in queries [T, H], keys or values [Hkv, T].
        let place = match head {
            0..4 => (0, 4 + head),
            4..6 => (1, (head - 4) * 3 + 1),
            _ => (2, (head - 6) * 3 + 1),
        };
        for (part, (before, after)) in before.iter().zip(&read()).enumerate() {
            for (i, (before, after)) in before.iter().zip(after).enumerate() {
                if (part, i) == place {
                    assert!(after.scale.is_nan() && after.values.iter().all(|&code| code == 0.0), "{after:?}");
                    assert_eq!((after.zero_point, after.sum), (0, 0));
                } else {
                    assert_eq!((&before.values, before.scale), (&after.values, after.scale), "part {part} row {i}");
                }
            }
        }
    }
}

#[test]
fn misfits_are_errors() {
    let Some(gpu) = gpu::gpu("misfits_are_errors") else { return };
    let cache = KvLayout {
        kv_heads: 2,
        head_dim: 64,
        capacity: 8,
        key: codes(4, 0.9),
        value: codes(4, 0.9),
        float: Dtype::F32,
    };
    let desc = RopeHadamardQuantizeDesc { heads: 4, tokens_max: 4, input: Dtype::F32, cache };
    let plan = |desc: RopeHadamardQuantizeDesc| RopeHadamardQuantizePlan::plan(&gpu, &desc);
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
    unsupported(with(KvLayout { capacity: 0, ..cache }), "capacity");
    unsupported(plan(RopeHadamardQuantizeDesc { heads: 5, ..desc }), "heads");
    unsupported(plan(RopeHadamardQuantizeDesc { heads: 0, ..desc }), "heads");
    unsupported(plan(RopeHadamardQuantizeDesc { tokens_max: 9, ..desc }), "tokens_max");
    unsupported(with(KvLayout { capacity: usize::MAX, ..cache }), "capacity");
    let huge = with(KvLayout { capacity: 1 << 30, ..cache });
    assert!(matches!(huge, Err(Error::Limit { limit_name: "max_storage_buffer_binding_size", .. })), "{huge:?}");
    let limit = gpu.limits().max_compute_workgroups_per_dimension as usize;
    let small = KvLayout { capacity: limit + 1, kv_heads: 1, head_dim: 16, ..cache };
    let many = plan(RopeHadamardQuantizeDesc { heads: 1, tokens_max: limit + 1, cache: small, ..desc });
    let name = "max_compute_workgroups_per_dimension";
    assert!(matches!(&many, Err(Error::Limit { limit_name, .. }) if *limit_name == name), "{many:?}");

    let layer = Layer::new(&gpu, Shape { heads: 4, input: Dtype::F32, cache }, 4).unwrap();
    let (qkv, _) = layer.upload(&gpu, &[0.0; 512]);
    let small = gpu.buffer("small", 16).unwrap();
    let good = RopeHadamardQuantizeOperands {
        qkv: qkv.as_entire_buffer_binding(),
        rope: layer.rope.as_entire_buffer_binding(),
        queries: layer.queries.as_entire_buffer_binding(),
        cache: layer.cache.binding(),
    };
    let bound = layer.plan.bind(&gpu, &good).unwrap();
    let short = KvBinding { values: small.as_entire_buffer_binding(), ..good.cache.clone() };
    let result = layer.plan.bind(&gpu, &RopeHadamardQuantizeOperands { cache: short, ..good.clone() });
    let expected = Error::Binding { operand: "values", expected: 2 * 8 * 32, got: 16 };
    assert_eq!(result.map(|_| ()), Err(expected));
    let wide = gpu.buffer("wide", 1 << 16).unwrap();
    let shifted = wgpu::BufferBinding { buffer: &wide, offset: 4, size: None };
    let result = layer.plan.bind(&gpu, &RopeHadamardQuantizeOperands { qkv: shifted, ..good });
    assert!(matches!(result.map(|_| ()), Err(Error::Alignment { operand: "qkv", got: 4, .. })));

    let mut encoder = gpu.encoder();
    let mut recorder = Recorder::new(&mut encoder);
    assert!(bound.enqueue(&mut recorder, 5, 0).is_err());
    assert!(bound.enqueue(&mut recorder, 4, 5).is_err());
    assert!(bound.enqueue(&mut recorder, 1, usize::MAX).is_err());
    assert_eq!(bound.enqueue(&mut recorder, 0, 8), Ok(()));
    // Rows of several sequences.
    assert!(bound.enqueue_at(&mut recorder, 3, 2, 0).is_err());
    assert_eq!(bound.enqueue_at(&mut recorder, 2, 2, 0), Ok(()));
    unsupported(plan(desc).unwrap().with_rows(&gpu, 3), "rows");
    assert_eq!(plan(desc).unwrap().with_rows(&gpu, 20).unwrap().queries().tokens_max, 20);
    assert_eq!(layer.plan.kernel(1), "rope_hadamard_quantize");
}
