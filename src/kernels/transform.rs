use super::Error;
use super::error::check_length;

/// The transform of a linear's input channels as the kernels apply it: `x -> x S^-1 R_0 P_0 R_1 P_1 .. R_P` (eq. 5).
///
/// Each rotation `R_i` is one `B x B` orthogonal matrix that every block of `B` consecutive channels shares
/// (`x_block -> x_block R_i`, row vectors). Each permutation is a gather: `y[j] = x[permutation[j]]`. With no rotations
/// and no smoothing the transform is the identity (round-to-nearest, SmoothQuant folded into its predecessor).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Transform {
    /// Input channels `K`.
    pub channels: usize,
    /// Rotation block `B`, which divides `channels`. 0 when there is no rotation.
    pub block: usize,
    /// `P + 1` rotations, each row-major `[B, B]`, one after the other; empty for none.
    pub rotations: Vec<f32>,
    /// `P` permutations, each `[K]`, one after the other.
    pub permutations: Vec<u32>,
    /// Per-channel factor applied before everything else, `1 / s_j`, where smoothing could not be folded into the
    /// predecessor: `[K]`.
    pub inverse_smooth: Option<Vec<f32>>,
    /// Whether each rotation is a normalised Sylvester Hadamard, so that kernels may use butterflies.
    pub hadamard: bool,
}

impl Transform {
    /// The transform that changes nothing.
    #[must_use]
    pub fn identity(channels: usize) -> Self {
        Self { channels, ..Self::default() }
    }

    /// Number of rotations, `P + 1` or 0.
    #[must_use]
    pub fn rotation_count(&self) -> usize {
        self.rotations.len().checked_div(self.block.saturating_mul(self.block)).unwrap_or(0)
    }

    /// Number of permutations `P`.
    #[must_use]
    pub fn permutation_count(&self) -> usize {
        self.permutations.len().checked_div(self.channels).unwrap_or(0)
    }

    /// Rotation `i`, row-major `[B, B]`.
    #[must_use]
    pub fn rotation(&self, i: usize) -> &[f32] {
        let size = self.block * self.block;
        &self.rotations[i * size..(i + 1) * size]
    }

    /// Permutation `i`, `[K]`.
    #[must_use]
    pub fn permutation(&self, i: usize) -> &[u32] {
        &self.permutations[i * self.channels..(i + 1) * self.channels]
    }

    /// Checks shapes, that each permutation is a bijection, that all numbers are finite, and that a transform said to be
    /// a Hadamard is one.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::Unsupported`] or [`Error::NotFinite`] naming the field.
    pub fn validate(&self) -> Result<(), Error> {
        let unsupported = |what, expected: String, got: String| Err(Error::Unsupported { what, expected, got });
        let k = self.channels;
        if self.rotations.is_empty() {
            check_length("permutations", 0, self.permutations.len())?;
        } else {
            if self.block == 0 || !k.is_multiple_of(self.block) {
                return unsupported("block", format!("a divisor of {k} channels"), self.block.to_string());
            }
            let size = self.block.saturating_mul(self.block);
            if !self.rotations.len().is_multiple_of(size) {
                return unsupported("rotations", format!("a multiple of {size}"), self.rotations.len().to_string());
            }
            check_length("permutations", (self.rotation_count() - 1).saturating_mul(k), self.permutations.len())?;
        }
        if let Some(row) = self.rotations.iter().position(|x| !x.is_finite()) {
            return Err(Error::NotFinite { operand: "rotations", row: row / self.block });
        }
        if let Some(smooth) = &self.inverse_smooth {
            check_length("inverse_smooth", k, smooth.len())?;
            if let Some(row) = smooth.iter().position(|x| !x.is_finite()) {
                return Err(Error::NotFinite { operand: "inverse_smooth", row });
            }
        }
        for i in 0..self.permutation_count() {
            let mut seen = vec![false; k];
            for &from in self.permutation(i) {
                match seen.get_mut(from as usize) {
                    Some(seen) if !*seen => *seen = true,
                    _ => {
                        return unsupported(
                            "permutation",
                            "each channel once".into(),
                            format!("{from} again or outside"),
                        );
                    }
                }
            }
        }
        if self.hadamard {
            self.validate_hadamard()?;
        }
        Ok(())
    }

    fn validate_hadamard(&self) -> Result<(), Error> {
        let b = self.block;
        let unsupported = |got: &str| {
            Err(Error::Unsupported {
                what: "hadamard",
                expected: "normalised Sylvester matrices of a power of two".into(),
                got: got.into(),
            })
        };
        if !b.is_power_of_two() {
            return unsupported("another block size");
        }
        let entry = 1.0 / (b as f32).sqrt();
        for (i, &value) in self.rotations.iter().enumerate() {
            let (row, column) = ((i / b) % b, i % b);
            let sign = if (row & column).count_ones() % 2 == 0 { entry } else { -entry };
            if (value - sign).abs() > 1e-6 {
                return unsupported("another matrix");
            }
        }
        Ok(())
    }
}
