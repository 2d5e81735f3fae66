//! Text to tokens to activations at every linear's input, one layer at a time.
//!
//! The activations of one layer are all that is held beside the residual streams, so memory is bounded by a layer and
//! not by the model.

use crate::checkpoint::{Checkpoint, Config, Group, Table};
use crate::kernels::Arithmetic;
use crate::kernels::cpu::Isa;
use crate::model::cpu::{Layer, Observer, State, gather_row};
use crate::model::{self, KvQuantizer, StateDesc};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Token sequences of equal length to calibrate with.
#[derive(Debug, Clone, PartialEq)]
pub struct Samples {
    tokens: Vec<u32>,
    length: usize,
}

/// Why there are no samples.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum SampleError {
    /// The text has too few tokens.
    #[error(
        "the calibration text has {got} tokens and {samples} samples of {length} need {needed}; give a longer text or ask for fewer or shorter samples"
    )]
    TooShort {
        /// Samples that were asked for.
        samples: usize,
        /// Tokens of a sample.
        length: usize,
        /// Tokens in all.
        needed: usize,
        /// Tokens of the text.
        got: usize,
    },
    /// No sample, or samples of no token, or more tokens than memory could address.
    #[error(
        "{samples} samples of {length} tokens cannot calibrate; expected at least one of each and fewer than 2^31 tokens in all"
    )]
    Empty {
        /// Samples that were asked for.
        samples: usize,
        /// Tokens of a sample.
        length: usize,
    },
}

impl Samples {
    /// The first `samples` disjoint windows of `length` tokens of a tokenized text.
    ///
    /// # Errors
    /// [`SampleError`] when the text is too short or nothing is asked for.
    pub fn from_tokens(mut tokens: Vec<u32>, samples: usize, length: usize) -> Result<Self, SampleError> {
        let needed = Self::total(samples, length)?;
        if tokens.len() < needed {
            return Err(SampleError::TooShort { samples, length, needed, got: tokens.len() });
        }
        tokens.truncate(needed);
        Ok(Self { tokens, length })
    }

    /// Tokens drawn evenly from the vocabulary: the paper's calibration-free mode (table E18).
    ///
    /// # Errors
    /// [`SampleError::Empty`] when nothing is asked for.
    pub fn random(vocabulary: usize, samples: usize, length: usize, seed: u64) -> Result<Self, SampleError> {
        let needed = Self::total(samples, length)?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let tokens = (0..needed).map(|_| rng.random_range(0..vocabulary.max(1)) as u32).collect();
        Ok(Self { tokens, length })
    }

    fn total(samples: usize, length: usize) -> Result<usize, SampleError> {
        samples
            .checked_mul(length)
            .filter(|&total| total > 0 && total < 1 << 31)
            .ok_or(SampleError::Empty { samples, length })
    }

    /// Tokens in all.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Tokens of one sample.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }
}

/// The inputs of a layer's groups over all samples, in the order of [`Group::ALL`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LayerActivations {
    /// Tokens over all samples.
    pub tokens: usize,
    /// Input of each group, `[tokens, K]`.
    pub inputs: [Vec<f32>; 4],
}

impl Observer for LayerActivations {
    fn input(&mut self, group: Group, x: &[f32], tokens: usize) {
        self.inputs[group as usize].extend_from_slice(x);
        if group == Group::Qkv {
            self.tokens += tokens;
        }
    }
}

/// The residual streams of all samples in front of one layer.
pub struct Calibrator {
    config: Config,
    length: usize,
    residual: Vec<f32>,
}

impl Calibrator {
    /// Starts in front of layer 0: the embeddings of the samples.
    ///
    /// # Errors
    /// [`model::Error::Checkpoint`] when the embedding cannot be read, [`model::Error::Token`] when a token is outside it.
    pub fn new(checkpoint: &Checkpoint, samples: &Samples) -> Result<Self, model::Error> {
        let config = checkpoint.config().clone();
        let table: Table = checkpoint.embedding()?;
        let mut residual = vec![0.0; samples.tokens.len() * config.hidden];
        for (&token, row) in samples.tokens.iter().zip(residual.chunks_exact_mut(config.hidden)) {
            if token as usize >= table.rows {
                return Err(model::Error::Token { token, vocabulary: table.rows });
            }
            gather_row(&table, token as usize, row);
        }
        Ok(Self { config, length: samples.length, residual })
    }

    /// The inputs of `layer`'s groups. The residual streams stay where they are unless `advance` is set.
    ///
    /// # Errors
    /// [`model::Error::Kernel`] when the layer does not run.
    pub fn observe(&mut self, layer: &Layer, kv: KvQuantizer, advance: bool) -> Result<LayerActivations, model::Error> {
        let mut activations = LayerActivations::default();
        self.run(layer, kv, Some(&mut activations), advance)?;
        Ok(activations)
    }

    /// Moves the residual streams behind `layer`.
    ///
    /// # Errors
    /// [`model::Error::Kernel`] when the layer does not run.
    pub fn advance(&mut self, layer: &Layer, kv: KvQuantizer) -> Result<(), model::Error> {
        self.run(layer, kv, None, true)
    }

    fn run(
        &mut self,
        layer: &Layer,
        kv: KvQuantizer,
        mut observer: Option<&mut dyn Observer>,
        advance: bool,
    ) -> Result<(), model::Error> {
        let layers = std::slice::from_ref(layer);
        let width = self.config.hidden;
        let desc = StateDesc { sequences: 1, capacity: self.length, rows: None };
        let mut state = State::new(&self.config, kv, layers, &desc, Isa::best(), Arithmetic::Reproducible)?;
        let mut sample = Vec::new();
        for stream in self.residual.chunks_exact_mut(self.length * width) {
            let observer = observer.as_mut().map(|observer| &mut **observer as &mut dyn Observer);
            if advance {
                state.run_layer(layer, stream, width, observer)?;
            } else {
                sample.clear();
                sample.extend_from_slice(stream);
                state.run_layer(layer, &mut sample, width, observer)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_need_enough_tokens() {
        let error = Samples::from_tokens(vec![1; 99], 2, 50).unwrap_err();
        assert_eq!(error, SampleError::TooShort { samples: 2, length: 50, needed: 100, got: 99 });
        assert_eq!(Samples::from_tokens((0..101).collect(), 2, 50).unwrap().tokens, (0..100).collect::<Vec<_>>());
        for (samples, length) in [(0, 5), (5, 0), (usize::MAX, 2)] {
            assert_eq!(
                Samples::random(10, samples, length, 0).unwrap_err(),
                SampleError::Empty { samples, length },
                "{samples} x {length}"
            );
        }
    }

    #[test]
    fn random_samples_depend_on_the_seed_alone() {
        let draw = |seed| Samples::random(1000, 2, 64, seed).unwrap();
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert!(draw(7).tokens.iter().all(|&token| token < 1000));
    }
}
