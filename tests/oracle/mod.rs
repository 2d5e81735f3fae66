//! What tests against the oracle share: draws, and the library's plain data as the oracle's.
#![allow(dead_code, reason = "each test file takes what it needs")]

use duquant::kernels::cpu::QuantizedTokens;
use duquant::kernels::{Affine, QuantizedMatrix, Transform};
use duquant_reference as oracle;

/// Reproducible draws (SplitMix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Uniform in `[0, 1)`.
    pub(crate) fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(crate) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    pub(crate) fn normals(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.normal() as f32).collect()
    }

    pub(crate) fn permutation(&mut self, count: usize) -> Vec<u32> {
        let mut out: Vec<u32> = (0..count as u32).collect();
        for i in (1..count).rev() {
            out.swap(i, self.below(i + 1));
        }
        out
    }

    /// An orthogonal matrix `[n, n]`: Gram-Schmidt, twice, on normal rows.
    pub(crate) fn orthogonal(&mut self, n: usize) -> Vec<f64> {
        let mut rows: Vec<Vec<f64>> = (0..n).map(|_| (0..n).map(|_| self.normal()).collect()).collect();
        for i in 0..n {
            let (done, rest) = rows.split_at_mut(i);
            let row = &mut rest[0];
            for _ in 0..2 {
                for other in done.iter() {
                    let dot: f64 = row.iter().zip(other).map(|(a, b)| a * b).sum();
                    row.iter_mut().zip(other).for_each(|(a, b)| *a -= dot * b);
                }
            }
            let norm = row.iter().map(|a| a * a).sum::<f64>().sqrt();
            row.iter_mut().for_each(|a| *a /= norm);
        }
        rows.concat()
    }

    /// `P + 1` random rotations with `P` random permutations between them, and a smoothing of two decades.
    pub(crate) fn transform(&mut self, channels: usize, block: usize, permutations: usize, smooth: bool) -> Transform {
        Transform {
            channels,
            block,
            rotations: (0..=permutations).flat_map(|_| self.orthogonal(block)).map(|x| x as f32).collect(),
            permutations: (0..permutations).flat_map(|_| self.permutation(channels)).collect(),
            inverse_smooth: smooth.then(|| (0..channels).map(|_| (0.1 + 9.9 * self.uniform()) as f32).collect()),
            hadamard: false,
        }
    }

    /// Tokens as LLMs have them: noise, a few channels that are large at every token, and one massive value.
    pub(crate) fn activations(&mut self, tokens: usize, channels: usize) -> Vec<f32> {
        let mut x = self.normals(tokens * channels);
        for _ in 0..channels.div_ceil(64) {
            let channel = self.below(channels);
            for t in 0..tokens {
                x[t * channels + channel] = x[t * channels + channel] * 4.0 + 12.0;
            }
        }
        if !x.is_empty() {
            let at = self.below(x.len());
            x[at] = -900.0;
        }
        x
    }
}

pub(crate) fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

pub(crate) fn affine(settings: &Affine) -> oracle::Affine {
    oracle::Affine { bits: settings.bits, clip: settings.clip, symmetric: settings.symmetric }
}

pub(crate) fn transform(transform: &Transform) -> oracle::Transform {
    let Transform { channels, block, rotations, permutations, inverse_smooth, .. } = transform;
    oracle::Transform::from_flat(*channels, *block, rotations, permutations, inverse_smooth.as_deref())
}

pub(crate) fn matrix(matrix: &QuantizedMatrix) -> oracle::QuantizedMatrix {
    let mut codes = vec![0; matrix.n * matrix.k];
    for (n, row) in codes.chunks_mut(matrix.k.max(1)).enumerate() {
        matrix.unpack_row(n, row);
    }
    let QuantizedMatrix { n, k, bits, scale, zero_point, .. } = matrix.clone();
    oracle::QuantizedMatrix { n, k, bits, codes, scale, zero_point }
}

pub(crate) fn rows(tokens: &QuantizedTokens) -> oracle::QuantizedRows {
    let rows = tokens.tokens();
    oracle::QuantizedRows {
        rows,
        width: tokens.k(),
        codes: (0..rows).flat_map(|t| tokens.row(t).iter().copied()).collect(),
        scale: tokens.scale[..rows].to_vec(),
        zero_point: tokens.zero_point[..rows].iter().map(|&z| z as u8).collect(),
        row_sum: tokens.row_sum[..rows].iter().map(|&sum| i64::from(sum)).collect(),
    }
}

/// Largest difference over the largest magnitude.
pub(crate) fn relative_error(got: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let scale = expected.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
    let worst = got.iter().zip(expected).fold(0.0_f64, |max, (a, b)| max.max((a - b).abs()));
    assert!(got.iter().all(|x| x.is_finite()), "a value is not finite");
    worst / scale.max(f64::MIN_POSITIVE)
}
