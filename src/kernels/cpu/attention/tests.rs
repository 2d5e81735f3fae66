use super::*;
use crate::kernels::cpu::{
    Isa, KvCacheDesc, QueryHeadsDesc, RopeStretch, RopeTable, rope_hadamard_quantize, rope_inverse_frequencies,
};
use crate::kernels::{Affine, Arithmetic};

const INT4: Option<Affine> = Some(Affine { bits: 4, clip: 0.9, symmetric: false });
const INT8: Option<Affine> = Some(Affine { bits: 8, clip: 1.0, symmetric: false });

#[derive(Clone, Copy, Debug)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    d: usize,
    key: Option<Affine>,
    value: Option<Affine>,
}

impl Shape {
    fn new(heads: usize, kv_heads: usize, d: usize, key: Option<Affine>, value: Option<Affine>) -> Self {
        Self { heads, kv_heads, d, key, value }
    }

    fn cache(&self, capacity: usize) -> KvCache {
        let Self { kv_heads, d, key, value, .. } = *self;
        KvCache::new(&KvCacheDesc { kv_heads, head_dim: d, capacity, key, value }).unwrap()
    }

    fn queries(&self, tokens_max: usize, isa: Isa) -> QueryHeads {
        self.queries_with(tokens_max, isa, Arithmetic::Reproducible)
    }

    fn queries_with(&self, tokens_max: usize, isa: Isa, arithmetic: Arithmetic) -> QueryHeads {
        let Self { heads, kv_heads, d, key, .. } = *self;
        let desc = QueryHeadsDesc { heads, kv_heads, head_dim: d, tokens_max, key };
        QueryHeads::new_with(&desc, isa, arithmetic).unwrap()
    }

    fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.d
    }

    fn rope(&self, positions: usize) -> RopeTable {
        let frequencies = rope_inverse_frequencies(self.d, 10000.0, &RopeStretch::None).unwrap();
        RopeTable::new(self.d, &frequencies, positions).unwrap()
    }
}

/// Rows of stacked queries, keys and values with a channel that stands out, zeros and rows of one sign.
fn rows(tokens: usize, width: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let mut x: Vec<f32> = (0..tokens * width).map(|_| 3.0 * (next() + next() + next())).collect();
    for (t, x) in x.chunks_exact_mut(width).enumerate() {
        x[width / 3] += 12.0;
        match t % 11 {
            5 => x.fill(0.0),
            7 => x.iter_mut().for_each(|x| *x = x.abs()),
            9 => x.iter_mut().for_each(|x| *x = -x.abs()),
            _ => {}
        }
    }
    x
}

/// RoPE and Hadamard of one head in `f64`.
fn turned(shape: Shape, x: &[f32], position: usize) -> Vec<f64> {
    let d = shape.d;
    let mut y = vec![0.0; d];
    for i in 0..d / 2 {
        let angle = position as f64 * 10000_f64.powf(-((2 * i) as f64) / d as f64);
        let (a, b) = (f64::from(x[i]), f64::from(x[i + d / 2]));
        y[i] = a * angle.cos() - b * angle.sin();
        y[i + d / 2] = b * angle.cos() + a * angle.sin();
    }
    if shape.key.is_none() {
        return y;
    }
    let block = 1 << d.trailing_zeros();
    let mut z = vec![0.0; d];
    for (y, z) in y.chunks_exact(block).zip(z.chunks_exact_mut(block)) {
        for j in 0..block {
            let sign = |i: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
            z[j] = (0..block).map(|i| sign(i) * y[i]).sum::<f64>() / (block as f64).sqrt();
        }
    }
    z
}

/// That dequantized `got` is what the quantizer makes of `want`: within half a step (and of clipping), and on the grid.
fn check_row(want: &[f64], got: &[f32], affine: Option<Affine>, what: &str) {
    let Some(affine) = affine else {
        for (want, got) in want.iter().zip(got) {
            assert!((want - f64::from(*got)).abs() < 1e-4, "{what}: {want} {got}");
        }
        return;
    };
    let (min, max) = want.iter().fold((0.0_f64, 0.0_f64), |(a, b), &x| (a.min(x), b.max(x)));
    let params = affine.params(min as f32, max as f32);
    let scale = f64::from(params.scale);
    let fits = |zero: f64| {
        want.iter().zip(got).all(|(&want, &got)| {
            let scaled = want / scale;
            let code = (scaled.round_ties_even() + zero).clamp(0.0, f64::from(affine.max_code()));
            let off = (f64::from(got) / scale + zero - code).abs();
            let to_tie = (scaled - scaled.floor() - 0.5).abs();
            off < 0.01 || (to_tie < 1e-3 && off < 1.01)
        })
    };
    // The zero point of a symmetric row, L / 2, lies on a tie itself: the last bit of the scale decides.
    let zero = f64::from(params.zero_point);
    let ok = fits(zero) || (affine.symmetric && (fits(zero - 1.0) || fits(zero + 1.0)));
    assert!(ok, "{what}: {want:?} gave {got:?}");
}

/// Attention in `f64` over what the queries and the cache stand for, and by how much rounding weights to integers may put each
/// output off: half a step of a tile's largest weight for every key.
fn oracle(queries: &QueryHeads, cache: &KvCache, window: Option<usize>) -> (Vec<f64>, Vec<f64>) {
    let QueryHeadsDesc { heads, kv_heads, head_dim: d, .. } = *queries.desc();
    let tokens = queries.tokens();
    let mut out = vec![0.0; tokens * heads * d];
    let mut rounding = out.clone();
    for h in 0..heads {
        let kv = h / (heads / kv_heads);
        let keys: Vec<_> = (0..cache.len()).map(|t| cache.key(kv, t).unwrap()).collect();
        let values: Vec<_> = (0..cache.len()).map(|t| cache.value(kv, t).unwrap()).collect();
        for t in 0..tokens {
            let q = queries.query(h, t).unwrap();
            let end = cache.len() - tokens + t + 1;
            let start = window.map_or(0, |w| end.saturating_sub(w));
            let scores: Vec<f64> = (start..end)
                .map(|s| {
                    let dot: f64 = q.iter().zip(&keys[s]).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                    dot / (d as f64).sqrt()
                })
                .collect();
            let largest = scores.iter().fold(f64::MIN, |a, &b| a.max(b));
            let total: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
            for (i, s) in scores.iter().enumerate() {
                let p = (s - largest).exp() / total;
                for c in 0..d {
                    out[(t * heads + h) * d + c] += p * f64::from(values[start + i][c]);
                }
            }
            let ValueStore::Codes { scale, .. } = &cache.value else { continue };
            let scale = |key: usize| f64::from(scale.as_slice()[kv * cache.slots() + key]);
            for tile in (start / KEYS * KEYS..end).step_by(KEYS) {
                let keys = start.max(tile)..end.min(tile + KEYS);
                let weight = |key: usize| (scores[key - start] - largest).exp() / total * scale(key);
                let step = keys.clone().map(weight).fold(0.0, f64::max) / 65_024.0;
                for c in 0..d {
                    let codes: f64 = keys.clone().map(|key| f64::from(values[key][c].abs()) / scale(key)).sum();
                    rounding[(t * heads + h) * d + c] += step * codes;
                }
            }
        }
    }
    (out, rounding)
}

fn run(queries: &QueryHeads, cache: &KvCache, window: Option<usize>) -> Vec<f32> {
    let mut out = vec![f32::NAN; queries.tokens() * queries.desc().heads * queries.desc().head_dim];
    let mut workspace = vec![f32::NAN; queries.workspace_len()];
    attention(queries, cache, window, &mut out, &mut workspace).unwrap();
    out
}

fn close(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
    let size = want.iter().fold(0.0, |a: f64, x| a.max(x.abs()));
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(got) - want).abs() <= tolerance * size, "{what}: at {i} {got} for {want}");
    }
}

fn shapes() -> Vec<Shape> {
    let mut shapes = vec![
        Shape::new(9, 3, 64, INT4, INT4),
        Shape::new(4, 4, 128, INT4, INT4),
        Shape::new(8, 1, 80, INT4, INT4),
        Shape::new(2, 2, 96, INT8, INT4),
        Shape::new(4, 2, 256, INT8, INT8),
        Shape::new(2, 1, 100, INT4, INT8),
        Shape::new(2, 1, 2, INT4, INT4),
        Shape::new(9, 3, 64, None, None),
        Shape::new(4, 2, 80, None, INT4),
        Shape::new(4, 2, 80, INT4, None),
    ];
    for bits in [2, 3, 5, 6, 7] {
        let affine = Some(Affine { bits, clip: 0.9, symmetric: bits % 2 == 0 });
        shapes.push(Shape::new(2, 1, 64, affine, affine));
    }
    shapes
}

#[test]
fn rows_and_attention_match_f64_on_every_isa() {
    for shape in shapes() {
        for (before, tokens) in [(0, 1), (0, 33), (37, 1), (130, 5), (0, 150)] {
            let x = rows(before + tokens, shape.width(), 3);
            let rope = shape.rope(before + tokens);
            let mut first: Option<[Vec<f32>; 2]> = None;
            for &isa in Isa::available() {
                if isa == Isa::Portable && before + tokens > 100 {
                    continue;
                }
                let what = format!("{shape:?} {isa:?} {before} {tokens}");
                let mut cache = shape.cache(before + tokens);
                let mut queries = shape.queries(before.max(tokens), isa);
                let (head, tail) = x.split_at(before * shape.width());
                rope_hadamard_quantize(head, &rope, 0, &mut queries, &mut cache).unwrap();
                rope_hadamard_quantize(tail, &rope, before, &mut queries, &mut cache).unwrap();
                assert_eq!((cache.len(), queries.tokens()), (before + tokens, tokens));
                for (t, row) in x.chunks_exact(shape.width()).enumerate() {
                    for (h, x) in row.chunks_exact(shape.d).enumerate() {
                        let key = h.wrapping_sub(shape.heads);
                        let value = key.wrapping_sub(shape.kv_heads);
                        if h < shape.heads {
                            if t >= before {
                                let got = queries.query(h, t - before).unwrap();
                                check_row(&turned(shape, x, t), &got, shape.key, &what);
                            }
                        } else if key < shape.kv_heads {
                            check_row(&turned(shape, x, t), &cache.key(key, t).unwrap(), shape.key, &what);
                        } else {
                            let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
                            check_row(&x, &cache.value(value, t).unwrap(), shape.value, &what);
                        }
                    }
                }
                // The same queries for the other arithmetic.
                let mut fast = queries.clone();
                fast.arithmetic = Arithmetic::Fast;
                for window in [None, Some(1), Some(20), Some(1000)] {
                    let got = run(&queries, &cache, window);
                    let (want, rounding) = oracle(&queries, &cache, window);
                    close(&got, &want, 2e-5, &format!("{what} window {window:?}"));
                    let got_fast = run(&fast, &cache, window);
                    let size = want.iter().fold(0.0, |a: f64, x| a.max(x.abs()));
                    for ((&got, &want), rounding) in got_fast.iter().zip(&want).zip(&rounding) {
                        let off = (f64::from(got) - want).abs();
                        assert!(off <= 2e-5 * size + rounding, "{what} window {window:?}, fast: {got} for {want}");
                    }
                    if window.is_none() {
                        let got = [got, got_fast];
                        let first = first.get_or_insert_with(|| got.clone());
                        assert!(*first == got, "{what}: bits differ from another instruction set");
                    }
                }
            }
        }
    }
}

/// Weights that are no normal numbers once took 40 times as long, in every layer but the first of a model with random weights.
#[test]
fn scores_far_apart_take_no_longer() {
    let (shape, tokens) = (Shape::new(4, 4, 128, INT4, INT4), 256);
    let rope = shape.rope(tokens);
    let seconds = |factor: f32| {
        // Values stay small, so that their scales are.
        let values = (shape.heads + shape.kv_heads) * shape.d;
        let mut x = rows(tokens, shape.width(), 5);
        for x in x.chunks_exact_mut(shape.width()) {
            let (scores, values) = x.split_at_mut(values);
            scores.iter_mut().for_each(|x| *x *= factor);
            values.iter_mut().for_each(|x| *x *= 0.1);
        }
        let (mut cache, mut queries) = (shape.cache(tokens), shape.queries(tokens, Isa::best()));
        rope_hadamard_quantize(&x, &rope, 0, &mut queries, &mut cache).unwrap();
        let time = || {
            let clock = std::time::Instant::now();
            let out = run(&queries, &cache, None);
            assert!(out.iter().all(|x| x.is_finite()));
            clock.elapsed().as_secs_f64()
        };
        (0..7).map(|_| time()).fold(f64::INFINITY, f64::min)
    };
    let (near, far) = (seconds(0.1), seconds(20.0));
    assert!(far < 6.0 * near, "{far} s for scores far apart, {near} s for others");
}

#[test]
fn decode_equals_prefill() {
    for shape in [Shape::new(9, 3, 64, INT4, INT4), Shape::new(4, 2, 80, None, None), Shape::new(4, 2, 128, INT8, INT8)]
    {
        let tokens = 300;
        let x = rows(tokens, shape.width(), 9);
        let rope = shape.rope(tokens);
        for window in [None, Some(70)] {
            let (mut prefill, mut queries) = (shape.cache(tokens), shape.queries(tokens, Isa::best()));
            rope_hadamard_quantize(&x, &rope, 0, &mut queries, &mut prefill).unwrap();
            let want: Vec<f64> = run(&queries, &prefill, window).iter().map(|&x| f64::from(x)).collect();
            let (mut cache, mut step) = (shape.cache(tokens), shape.queries(1, Isa::best()));
            for (t, x) in x.chunks_exact(shape.width()).enumerate() {
                rope_hadamard_quantize(x, &rope, t, &mut step, &mut cache).unwrap();
                for h in 0..shape.heads {
                    assert_eq!(step.query(h, 0).unwrap(), queries.query(h, t).unwrap());
                }
                for h in 0..shape.kv_heads {
                    assert_eq!(cache.key(h, t).unwrap(), prefill.key(h, t).unwrap());
                    assert_eq!(cache.value(h, t).unwrap(), prefill.value(h, t).unwrap());
                }
                let width = shape.heads * shape.d;
                close(&run(&step, &cache, window), &want[t * width..(t + 1) * width], 1e-5, &format!("{shape:?} {t}"));
            }
        }
    }
}

#[test]
fn threads_change_nothing() {
    let shape = Shape::new(9, 3, 64, INT4, INT4);
    let x = rows(400, shape.width(), 4);
    let rope = shape.rope(400);
    for arithmetic in [Arithmetic::Reproducible, Arithmetic::Fast] {
        let mut results = Vec::new();
        for threads in [1, 2, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            results.push(pool.install(|| {
                let mut cache = shape.cache(400);
                let mut queries = shape.queries_with(400, Isa::best(), arithmetic);
                rope_hadamard_quantize(&x, &rope, 0, &mut queries, &mut cache).unwrap();
                run(&queries, &cache, None)
            }));
        }
        assert!(results.iter().all(|r| *r == results[0]), "{arithmetic:?}");
    }
}

/// A token by itself and among others runs other code, with the same bits.
#[test]
fn one_by_one_and_together_give_the_same_bits() {
    let int8 = Some(Affine { bits: 8, clip: 1.0, symmetric: true });
    for shape in [
        Shape::new(2, 2, 128, INT4, INT4),
        Shape::new(2, 1, 64, INT8, INT8),
        Shape::new(1, 1, 96, INT4, int8),
        Shape::new(3, 1, 256, INT4, INT4),
        Shape::new(9, 1, 80, INT4, INT4),
        Shape::new(5, 1, 64, None, INT4),
    ] {
        let tokens = 201;
        let mut x = rows(tokens, shape.width(), 6);
        // Scores far apart and near each other, so that weights are of every size.
        for (t, x) in x.chunks_exact_mut(shape.width()).enumerate() {
            x.iter_mut().for_each(|x| *x *= [0.1, 1.0, 4.0, 1e-3][t / 3 % 4]);
        }
        let rope = shape.rope(tokens);
        for arithmetic in [Arithmetic::Reproducible, Arithmetic::Fast] {
            let mut together = shape.cache(tokens);
            let mut queries = shape.queries_with(tokens, Isa::best(), arithmetic);
            rope_hadamard_quantize(&x, &rope, 0, &mut queries, &mut together).unwrap();
            let (mut cache, mut step) = (shape.cache(tokens), shape.queries_with(1, Isa::best(), arithmetic));
            let width = shape.heads * shape.d;
            let windows = [None, Some(45), Some(130)];
            let want = windows.map(|window| run(&queries, &together, window));
            for (t, x) in x.chunks_exact(shape.width()).enumerate() {
                rope_hadamard_quantize(x, &rope, t, &mut step, &mut cache).unwrap();
                for (window, want) in windows.into_iter().zip(&want) {
                    assert!(
                        run(&step, &cache, window) == want[t * width..(t + 1) * width],
                        "{shape:?} {arithmetic:?} token {t} window {window:?}"
                    );
                }
            }
        }
    }
}

/// Queries of one call share tiles and nothing else, wherever a window makes their keys begin.
#[test]
fn queries_beside_it_change_nothing_in_a_query() {
    for (shape, tokens) in [(Shape::new(4, 4, 128, INT4, INT4), 230), (Shape::new(8, 2, 64, INT8, INT4), 150)] {
        let rope = shape.rope(tokens);
        let x = rows(tokens, shape.width(), 8);
        // Every third token asks something else; keys and values stay.
        let mut other = x.clone();
        for (t, x) in other.chunks_exact_mut(shape.width()).enumerate() {
            if t % 3 == 1 {
                x[..shape.heads * shape.d].iter_mut().for_each(|x| *x = 7.0 - 30.0 * *x);
            }
        }
        for arithmetic in [Arithmetic::Reproducible, Arithmetic::Fast] {
            for window in [None, Some(45), Some(100)] {
                let [a, b] = [&x, &other].map(|x| {
                    let mut cache = shape.cache(tokens);
                    let mut queries = shape.queries_with(tokens, Isa::best(), arithmetic);
                    rope_hadamard_quantize(x, &rope, 0, &mut queries, &mut cache).unwrap();
                    run(&queries, &cache, window)
                });
                let width = shape.heads * shape.d;
                for (t, (a, b)) in a.chunks_exact(width).zip(b.chunks_exact(width)).enumerate() {
                    assert_eq!(
                        a == b,
                        t % 3 != 1 || t == 0 || window == Some(1),
                        "{shape:?} {arithmetic:?} {window:?} {t}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_token_that_is_not_finite_reaches_only_what_sees_it() {
    let shape = Shape::new(2, 1, 64, INT4, INT4);
    let tokens = 40;
    let rope = shape.rope(tokens);
    let clean = rows(tokens, shape.width(), 4);
    let result = |x: &[f32], arithmetic: Arithmetic| {
        let (mut cache, mut queries) = (shape.cache(tokens), shape.queries_with(tokens, Isa::best(), arithmetic));
        rope_hadamard_quantize(x, &rope, 0, &mut queries, &mut cache).unwrap();
        run(&queries, &cache, Some(10))
    };
    let bad = [(3, f32::NAN), (2 * 64 + 3, f32::INFINITY), (3 * 64 + 3, f32::NAN)];
    let both = [Arithmetic::Reproducible, Arithmetic::Fast];
    for (arithmetic, (channel, bad)) in both.into_iter().flat_map(|arithmetic| bad.map(|bad| (arithmetic, bad))) {
        let want = result(&clean, arithmetic);
        let mut x = clean.clone();
        x[20 * shape.width() + channel] = bad;
        let got = result(&x, arithmetic);
        for t in 0..tokens {
            for h in 0..2 {
                let at = (t * 2 + h) * 64..(t * 2 + h + 1) * 64;
                let sees = if channel < 64 { t == 20 && h == 0 } else { (20..30).contains(&t) };
                if sees {
                    assert!(got[at].iter().all(|x| x.is_nan()), "{channel} {t} {h}");
                } else {
                    assert_eq!(got[at.clone()], want[at], "{channel} {t} {h}");
                }
            }
        }
    }
}

#[test]
fn a_truncated_cache_forgets() {
    let shape = Shape::new(4, 2, 64, INT4, None);
    let rope = shape.rope(64);
    let (a, b) = (rows(30, shape.width(), 1), rows(34, shape.width(), 2));
    let run_tail = |stale: bool| {
        let (mut cache, mut queries) = (shape.cache(64), shape.queries(34, Isa::best()));
        if stale {
            let mut bad = a.clone();
            bad[20 * shape.width()..].fill(f32::NAN);
            rope_hadamard_quantize(&bad, &rope, 0, &mut queries, &mut cache).unwrap();
        } else {
            rope_hadamard_quantize(&a, &rope, 0, &mut queries, &mut cache).unwrap();
        }
        cache.truncate(50);
        cache.truncate(17);
        assert_eq!(cache.len(), 17);
        rope_hadamard_quantize(&b[..shape.width()], &rope, 17, &mut queries, &mut cache).unwrap();
        run(&queries, &cache, None)
    };
    assert_eq!(run_tail(true), run_tail(false));
    let mut cache = shape.cache(3);
    cache.clear();
    assert!(cache.is_empty());
}

#[test]
fn a_quantized_cache_is_small() {
    let float = Shape::new(9, 3, 64, None, None).cache(2048).bytes();
    let packed = Shape::new(9, 3, 64, INT4, INT4).cache(2048).bytes();
    assert_eq!(float, 2048 * 3 * 64 * 4 * 2);
    assert_eq!(packed, 2048 * 3 * (32 + 32 + 4 + 4 + 1 + 1 + 2));
}

#[test]
fn wrong_operands_are_errors_and_write_nothing() {
    let shape = Shape::new(4, 2, 64, INT4, INT4);
    let rope = shape.rope(8);
    let (mut cache, mut queries) = (shape.cache(4), shape.queries(3, Isa::best()));
    let x = rows(8, shape.width(), 1);
    let width = shape.width();
    let mut call = |rows: &[f32], position, queries: &mut QueryHeads| {
        rope_hadamard_quantize(rows, &rope, position, queries, &mut cache)
    };
    assert!(call(&x[..width - 1], 0, &mut queries).is_err());
    assert!(call(&x[..4 * width], 0, &mut queries).is_err(), "more than tokens_max");
    assert!(call(&x[..2 * width], 7, &mut queries).is_err(), "beyond the table");
    assert!(call(&x[..width], usize::MAX, &mut queries).is_err());
    assert!(call(&x[..width], 0, &mut Shape::new(4, 1, 64, INT4, INT4).queries(3, Isa::best())).is_err());
    assert!(call(&x[..width], 0, &mut Shape::new(4, 2, 64, None, INT4).queries(3, Isa::best())).is_err());
    assert!(call(&x[..3 * width], 0, &mut queries).is_ok());
    let full = call(&x[..2 * width], 3, &mut queries);
    assert!(full.unwrap_err().to_string().contains("3 of 4 in use"));
    assert_eq!(cache.len(), 3);
    let mut workspace = vec![0.0; queries.workspace_len()];
    let mut out = vec![0.0; 3 * 4 * 64];
    assert!(attention(&queries, &cache, None, &mut out, &mut workspace).is_ok());
    assert!(attention(&queries, &cache, Some(0), &mut out, &mut workspace).is_err());
    assert!(attention(&queries, &cache, None, &mut out[1..], &mut workspace).is_err());
    assert!(attention(&queries, &cache, None, &mut out, &mut workspace[..100]).is_err());
    cache.truncate(2);
    assert!(attention(&queries, &cache, None, &mut out, &mut workspace).is_err(), "queries without their keys");
    let desc = |heads, kv_heads, head_dim| QueryHeadsDesc { heads, kv_heads, head_dim, tokens_max: 1, key: INT4 };
    assert!(QueryHeads::new(&desc(4, 3, 64), Isa::best()).is_err());
    assert!(QueryHeads::new(&desc(4, 0, 64), Isa::best()).is_err());
    assert!(QueryHeads::new(&desc(4, 2, 63), Isa::best()).is_err());
    assert!(QueryHeads::new(&desc(4, 2, 258), Isa::best()).is_err());
    let huge = KvCacheDesc { kv_heads: 2, head_dim: 64, capacity: usize::MAX, key: INT4, value: None };
    assert!(KvCache::new(&huge).is_err());
    assert!(KvCache::new(&KvCacheDesc { capacity: 1 << 60, ..huge }).is_err());
    assert!(KvCache::new(&KvCacheDesc { kv_heads: 0, capacity: 1, ..huge }).is_err());
}
