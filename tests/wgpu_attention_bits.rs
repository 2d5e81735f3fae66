//! `rope_hadamard_quantize` and `attention` on a wgpu adapter that computes as the CPU backend does: the same bits.
#![cfg(feature = "wgpu")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails and reports this way")]

mod gpu;
mod heads;
mod oracle;

use duquant::kernels::cpu::{self, Isa, KvCacheDesc, QueryHeads, QueryHeadsDesc, RopeTable};
use duquant::kernels::wgpu::{Arithmetic, Dtype};
use duquant::kernels::{Affine, cpu::KvCache};
use heads::{Attention, Layer, Row, Shape, codes};
use oracle::Random;

/// Tokens of a chunk of the prompt.
const CHUNK: usize = 65;

/// The rows that a model has, and those that it should not have.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// Noise, a channel that stands out, zeros, one sign, one massive value, tiny, constant.
    Mixed,
    /// The same, larger: fewer keys take all the weight, and the weights of others are far below it.
    Sharp(f32),
    /// NaN, infinity and ranges that overflow here and there.
    Broken,
}

fn rows(random: &mut Random, kind: Kind, tokens: usize, width: usize) -> Vec<f32> {
    let mut x = random.normals(tokens * width);
    for (t, x) in x.chunks_exact_mut(width).enumerate() {
        let at = random.below(width);
        x[width / 3] += 12.0;
        match (t + random.below(3)) % 11 {
            2 => x.fill(0.0),
            3 => x.iter_mut().for_each(|x| *x = x.abs()),
            4 => x.iter_mut().for_each(|x| *x = -x.abs()),
            5 => x[at] = 7e3,
            6 => x.iter_mut().for_each(|x| *x *= 1e-7),
            7 => x.fill(-1.25),
            // Halves of a quantizer's step, where its scale is exact: ties.
            8 => x.iter_mut().for_each(|x| *x = (*x * 4.0).round() * 0.5),
            _ => {}
        }
        match kind {
            Kind::Mixed => {}
            Kind::Sharp(factor) => x.iter_mut().for_each(|x| *x *= factor),
            Kind::Broken => match t % 17 {
                3 => x[at] = f32::NAN,
                8 => x[at] = f32::INFINITY,
                12 => x[at] = -3e38,
                16 => x.iter_mut().for_each(|x| *x *= 1e37),
                _ => {}
            },
        }
    }
    x
}

fn same(got: f32, expected: f32) -> bool {
    got.to_bits() == expected.to_bits() || (got.is_nan() && expected.is_nan())
}

/// The layer on both backends.
struct Twin<'a> {
    gpu: &'a gpu::TestGpu,
    layer: Layer,
    queries: QueryHeads,
    cache: KvCache,
    rope: RopeTable,
    x: Vec<f32>,
    /// Numbers compared.
    compared: usize,
}

impl<'a> Twin<'a> {
    fn new(gpu: &'a gpu::TestGpu, shape: Shape, x: Vec<f32>) -> Self {
        let layer = Layer::new(gpu, shape, CHUNK).unwrap();
        let capacity = shape.cache.capacity;
        let duquant::kernels::wgpu::KvLayout { kv_heads, head_dim, key, value, .. } = shape.cache;
        let desc = QueryHeadsDesc { heads: shape.heads, kv_heads, head_dim, tokens_max: CHUNK, key };
        let queries = QueryHeads::new(&desc, Isa::best()).unwrap();
        let cache = KvCache::new(&KvCacheDesc { kv_heads, head_dim, capacity, key, value }).unwrap();
        let rope = RopeTable::new(head_dim, &shape.frequencies(), capacity).unwrap();
        Self { gpu, layer, queries, cache, rope, x, compared: 0 }
    }

    /// Appends `tokens` tokens at `position` on both sides, forgetting those that were there.
    fn append(&mut self, tokens: usize, position: usize) {
        let width = self.layer.shape.width();
        let x = &self.x[position * width..(position + tokens) * width];
        let x = self.layer.append(self.gpu, x, position);
        self.cache.truncate(position);
        cpu::rope_hadamard_quantize(&x, &self.rope, position, &mut self.queries, &mut self.cache).unwrap();
    }

    fn compare_row(&mut self, got: &Row, expected: &[f32], what: &str) {
        for (channel, (&got_value, &expected)) in got.values.iter().zip(expected).enumerate() {
            let value = got.scale * (got_value as f32 - got.zero_point as f32);
            assert!(same(value, expected), "{what}: channel {channel} of {got:?}: {value} for {expected}");
        }
        self.compared += expected.len();
    }

    fn compare_queries(&mut self) {
        let rows = self.layer.query_rows(self.gpu, self.queries.tokens());
        for (i, row) in rows.iter().enumerate() {
            let (token, head) = (i / self.layer.shape.heads, i % self.layer.shape.heads);
            let expected = self.queries.query(head, token).unwrap();
            self.compare_row(row, &expected, &format!("{:?} query {token} {head}", self.layer.shape));
        }
    }

    fn compare_cache(&mut self) {
        let capacity = self.layer.shape.cache.capacity;
        for values in [false, true] {
            for (i, row) in self.layer.cache_rows(self.gpu, values).iter().enumerate() {
                let (head, token) = (i / capacity, i % capacity);
                let row_of = if values { KvCache::value } else { KvCache::key };
                let expected = row_of(&self.cache, head, token).unwrap();
                let what = format!("{:?} {} {token} {head}", self.layer.shape, if values { "value" } else { "key" });
                self.compare_row(row, &expected, &what);
            }
        }
    }

    /// `tokens` queries at `position`; returns how many numbers differ.
    fn compare_attention(&mut self, attention: &Attention, tokens: usize, position: usize) -> usize {
        while self.cache.len() < position {
            self.append(CHUNK.min(position - self.cache.len()), self.cache.len());
        }
        self.append(tokens, position);
        self.compare_queries();
        let window = attention.plan.desc().window;
        let got = attention.run(self.gpu, &self.layer, tokens, position);
        let mut expected = vec![0.0; got.len()];
        let mut workspace = vec![0.0; self.queries.workspace_len()];
        cpu::attention(&self.queries, &self.cache, window, &mut expected, &mut workspace).unwrap();
        self.compared += expected.len();
        got.iter().zip(&expected).filter(|&(&got, &expected)| !same(got as f32, expected)).count()
    }

    /// Fills the cache, compares it, and runs prompts and single tokens at the edges of tiles; returns how many numbers of
    /// the output differ.
    fn run(&mut self, windows: &[Option<usize>]) -> usize {
        let capacity = self.layer.shape.cache.capacity;
        for position in (0..capacity).step_by(CHUNK) {
            self.append(CHUNK.min(capacity - position), position);
            self.compare_queries();
        }
        self.compare_cache();
        let mut differ = 0;
        for &window in windows {
            let attention = Attention::new(self.gpu, &self.layer, window, Dtype::F32).unwrap();
            assert_eq!((attention.plan.kernel(1), attention.plan.workspace_bytes()), ("attention_reproducible", 0));
            let calls =
                [(1, 0), (2, 0), (65, 0), (33, 100), (65, 200), (3, 126), (1, 127), (1, 128), (1, 255), (5, 250)];
            for (tokens, position) in calls.into_iter().chain([(1, capacity - 1)]) {
                if position + tokens <= capacity {
                    differ += self.compare_attention(&attention, tokens, position);
                }
            }
        }
        differ
    }
}

/// What models have, every container and mix, and head dimensions with padding on the CPU.
fn shapes() -> Vec<(Shape, usize)> {
    let symmetric = Some(Affine { bits: 4, clip: 0.9, symmetric: true });
    let half = |mut shape: Shape| {
        shape.input = Dtype::F16;
        shape
    };
    vec![
        (Shape::new(9, 3, 64, codes(4, 0.9), codes(4, 0.9)), 700),
        (Shape::new(32, 8, 128, codes(4, 0.9), codes(4, 0.9)), 270),
        (Shape::new(9, 3, 64, None, None), 400),
        (Shape::new(4, 2, 128, None, None), 270),
        (Shape::new(4, 1, 64, codes(8, 1.0), codes(8, 1.0)), 270),
        (Shape::new(2, 2, 80, codes(4, 0.9), codes(4, 1.0)), 270),
        (half(Shape::new(8, 1, 96, codes(4, 0.9), codes(4, 0.9))), 270),
        (Shape::new(7, 1, 128, symmetric, codes(5, 0.9)), 270),
        (Shape::new(2, 1, 96, codes(2, 0.7), codes(3, 0.9)), 270),
        (Shape::new(5, 1, 80, codes(6, 1.0), symmetric), 270),
        (half(Shape::new(1, 1, 96, None, codes(4, 0.9))), 270),
        (Shape::new(2, 2, 128, codes(8, 0.9), None), 270),
        (Shape::new(5, 1, 256, codes(8, 1.0), codes(4, 0.9)), 270),
    ]
}

#[test]
fn bits_are_the_cpus() {
    let Some(gpu) = gpu::gpu_with("bits_are_the_cpus", Arithmetic::Reproducible) else { return };
    let mut random = Random::new(21);
    let (mut compared, mut differ) = (0, 0);
    for (shape, capacity) in shapes() {
        let shape = shape.capacity(capacity);
        let x = rows(&mut random, Kind::Mixed, capacity, shape.width());
        let mut twin = Twin::new(&gpu, shape, x);
        let more = twin.run(&[None, Some(1), Some(1 + random.below(90)), Some(100 + random.below(90))]);
        println!("{shape:?}: {more} of {} differ", twin.compared);
        differ += more;
        compared += twin.compared;
    }
    println!("{differ} of {compared} numbers differ");
    assert_eq!(differ, 0);
}

#[test]
fn bits_of_sharp_and_broken_rows_are_the_cpus() {
    let Some(gpu) = gpu::gpu_with("bits_of_sharp_and_broken_rows_are_the_cpus", Arithmetic::Reproducible) else {
        return;
    };
    let mut random = Random::new(22);
    for kind in [Kind::Sharp(2.0), Kind::Sharp(5.0), Kind::Sharp(100.0), Kind::Broken] {
        for (key, value) in [(codes(4, 0.9), codes(4, 0.9)), (codes(8, 1.0), codes(8, 1.0)), (None, None)] {
            // In a float cache NaN and infinity may reach neighbours on either side.
            if kind == Kind::Broken && key.is_none() {
                continue;
            }
            let shape = Shape::new(6, 2, 64, key, value).capacity(270);
            let x = rows(&mut random, kind, 270, shape.width());
            let mut twin = Twin::new(&gpu, shape, x);
            let differ = twin.run(&[None, Some(60)]);
            println!("{kind:?} {shape:?}: {differ} of {} differ", twin.compared);
            assert_eq!(differ, 0, "{kind:?} {shape:?}");
        }
    }
}
