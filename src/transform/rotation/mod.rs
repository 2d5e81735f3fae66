//! Rotations of a block of channels: the fixed ones, the pool of random draws, and the greedy search.

mod matrices;
mod pool;
mod reach;
mod rows;
mod screen;
mod search;

pub use matrices::{base_matrix, hadamard, random_orthogonal};
pub(super) use pool::draw;
pub use pool::{RotationPool, RotationPools};
pub use search::{Search, SearchOptions, search};

/// Where the rotation of a block comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum RotationKind {
    /// Algorithm 1 as printed: the step takes the column of the largest `|x|`, a fresh `Q'`, `Rot = base diag(1, Q')`;
    /// the criterion is `max |x|`.
    #[default]
    Paper,
    /// What the released code does: the step takes the row (modulo `B`) of the larger extreme, one `Q'` for all steps of
    /// a rotation; the criterion is `max x - min x`, and it is not measured behind the last step.
    Official,
    /// As [`RotationKind::Paper`] with `Rot = diag(1, Q') base`, which keeps the uniform first row that Section 3.2 asks
    /// for.
    Left,
    /// The normalised Sylvester Hadamard; no search.
    Hadamard,
    /// A Haar-random orthogonal matrix; no search.
    Random,
    /// No rotation, and so no permutation either.
    None,
}

impl RotationKind {
    /// The name that reports use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Paper => "paper",
            Self::Official => "official",
            Self::Left => "left",
            Self::Hadamard => "hadamard",
            Self::Random => "random",
            Self::None => "none",
        }
    }

    /// Whether the rotation is found by the greedy search.
    #[must_use]
    pub fn is_greedy(self) -> bool {
        matches!(self, Self::Paper | Self::Official | Self::Left)
    }
}
