use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::super::matmul::{Right, multiply};
use super::RotationKind;
use super::matrices::{base_matrix, random_orthogonal};
use crate::kernels::Error;

/// Most elements that a pool may hold: 2 GiB of `f64`.
const LARGEST_POOL: usize = 1 << 28;

/// The random draws of the greedy search for one block size: `Rot_k = base diag(1, Q'_k)`, or `diag(1, Q'_k) base` for
/// [`RotationKind::Left`], with Haar-random `Q'_k` of size `B - 1`.
///
/// Algorithm 1 draws a fresh `Q'` at every step. Drawing costs far more than a step, and nothing in the algorithm asks the
/// draws of two searches to be independent, so step `k` of every search (all layers, groups, and rotations of a chain)
/// takes draw `k` of one pool. Official mode takes one draw for all steps of a rotation: draw `i` for the `i`-th rotation.
/// Draw `k` comes from stream `k` of ChaCha8, so neither threads nor the number of draws change it.
#[derive(Debug, Clone, PartialEq)]
pub struct RotationPool {
    block: usize,
    matrices: Vec<f64>,
}

impl RotationPool {
    /// Draws `draws` rotations of `block` channels, in parallel, for `kind`'s order of the two factors.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when `kind` is not searched, `block < 2`, or the pool would exceed 2 GiB.
    pub fn new(kind: RotationKind, block: usize, draws: usize, seed: u64) -> Result<Self, Error> {
        let unsupported =
            |what, expected: &str, got: String| Err(Error::Unsupported { what, expected: expected.into(), got });
        check_greedy(kind)?;
        if block < 2 {
            return unsupported("block", "at least 2", block.to_string());
        }
        let Some(elements) = block.checked_mul(block).and_then(|b| b.checked_mul(draws)).filter(|&e| e <= LARGEST_POOL)
        else {
            return unsupported("steps * block^2", "at most 2^28", format!("{draws} * {block}^2"));
        };
        let base = base_matrix(block);
        let mut matrices = vec![0.0; elements];
        matrices.par_chunks_mut(block * block).enumerate().for_each(|(k, out)| {
            let q = random_orthogonal(block - 1, &mut draw(seed, k as u64));
            let mut padded = vec![0.0; block * block];
            padded[0] = 1.0;
            for (row, from) in padded.chunks_exact_mut(block).skip(1).zip(q.chunks_exact(block - 1)) {
                row[1..].copy_from_slice(from);
            }
            let shape = (block, block, block);
            match kind {
                RotationKind::Left => multiply(&padded, &base, Right::Plain, shape, 1.0, out),
                _ => multiply(&base, &padded, Right::Plain, shape, 1.0, out),
            }
        });
        Ok(Self { block, matrices })
    }

    /// Block size `B`.
    #[must_use]
    pub fn block(&self) -> usize {
        self.block
    }

    /// Number of draws.
    #[must_use]
    pub fn draws(&self) -> usize {
        self.matrices.len() / (self.block * self.block)
    }

    /// `Rot_k`, row-major `[B, B]`. Draws repeat after [`Self::draws`].
    #[must_use]
    pub fn matrix(&self, k: usize) -> &[f64] {
        let size = self.block * self.block;
        let k = k % self.draws().max(1);
        &self.matrices[k * size..(k + 1) * size]
    }
}

/// `Ok` for a kind that is searched.
pub(super) fn check_greedy(kind: RotationKind) -> Result<(), Error> {
    if kind.is_greedy() {
        return Ok(());
    }
    let expected = "paper, official or left, which are searched".into();
    Err(Error::Unsupported { what: "rotation kind", expected, got: format!("{kind:?}") })
}

/// Generator of draw `k`.
pub(crate) fn draw(seed: u64, k: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(k);
    rng
}

/// Which draws a pool holds: order of the factors, block, draws, seed.
type PoolKey = (bool, usize, usize, u64);

/// The pools of a quantizer's run, drawn when first asked for and shared by all layers and threads.
#[derive(Debug, Default)]
pub struct RotationPools {
    pools: Mutex<HashMap<PoolKey, Arc<RotationPool>>>,
}

impl RotationPools {
    /// No pools yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The pool for a search of `steps` steps.
    ///
    /// # Errors
    /// Those of [`RotationPool::new`].
    pub fn get(&self, kind: RotationKind, block: usize, steps: usize, seed: u64) -> Result<Arc<RotationPool>, Error> {
        check_greedy(kind)?;
        // Official mode takes one draw a rotation, and a chain has at most three rotations.
        let draws = if kind == RotationKind::Official { 3 } else { steps };
        let key = (kind == RotationKind::Left, block, draws, seed);
        let lock = || self.pools.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(pool) = lock().get(&key) {
            return Ok(pool.clone());
        }
        // Drawn outside the lock: a thread that waited for it could be one that rayon needs for the draw.
        let pool = Arc::new(RotationPool::new(kind, block, draws, seed)?);
        Ok(lock().entry(key).or_insert(pool).clone())
    }
}

#[cfg(test)]
mod tests {
    use super::super::matrices::orthogonality_error;
    use super::*;

    #[test]
    fn draws_are_orthogonal_and_keep_what_their_order_promises() {
        let (b, uniform) = (8, 1.0 / 8f64.sqrt());
        let paper = RotationPool::new(RotationKind::Paper, b, 5, 7).unwrap();
        let left = RotationPool::new(RotationKind::Left, b, 5, 7).unwrap();
        let base = base_matrix(b);
        assert_eq!((paper.draws(), paper.block()), (5, b));
        for k in 0..5 {
            assert!(orthogonality_error(paper.matrix(k), b) < 1e-12);
            assert!(orthogonality_error(left.matrix(k), b) < 1e-12);
            assert!(left.matrix(k)[..b].iter().all(|v| (v - uniform).abs() < 1e-12), "left keeps the first row");
            let column = |m: &[f64]| m.iter().step_by(b).copied().collect::<Vec<_>>();
            let (got, want) = (column(paper.matrix(k)), column(&base));
            assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-12), "right keeps the first column");
        }
    }

    #[test]
    fn a_draw_depends_on_seed_and_index_alone() {
        let draw = |threads: usize, draws, seed| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| RotationPool::new(RotationKind::Paper, 16, draws, seed).unwrap())
        };
        let one = draw(1, 9, 1);
        assert_eq!(one, draw(3, 9, 1));
        assert_eq!(one.matrix(4), draw(2, 5, 1).matrix(4));
        assert_ne!(one.matrix(0), one.matrix(1));
        assert_ne!(one.matrix(0), draw(1, 9, 2).matrix(0));
        assert_eq!(one.matrix(9), one.matrix(0), "draws repeat");
    }

    #[test]
    fn pools_are_drawn_once_and_refuse_what_cannot_be() {
        let pools = RotationPools::new();
        let first = pools.get(RotationKind::Paper, 8, 4, 0).unwrap();
        assert!(Arc::ptr_eq(&first, &pools.get(RotationKind::Paper, 8, 4, 0).unwrap()));
        assert!(!Arc::ptr_eq(&first, &pools.get(RotationKind::Left, 8, 4, 0).unwrap()));
        assert_eq!(pools.get(RotationKind::Official, 8, 400, 0).unwrap().draws(), 3);
        assert!(pools.get(RotationKind::Hadamard, 8, 4, 0).is_err());
        assert!(pools.get(RotationKind::Paper, 1, 4, 0).is_err());
        assert!(pools.get(RotationKind::Paper, 1 << 20, 4, 0).is_err());
        assert!(pools.get(RotationKind::Paper, usize::MAX, 4, 0).is_err());
    }
}
