//! The rotary embedding that a configuration asks for.

use crate::checkpoint::{Config, RopeScaling};
use crate::kernels::Error;
use crate::kernels::cpu::{RopeStretch, RopeTable, rope_inverse_frequencies};

/// Sines and cosines for `positions` positions.
pub(super) fn rope_table(config: &Config, positions: usize) -> Result<RopeTable, Error> {
    let stretch = match &config.rope_scaling {
        RopeScaling::None => RopeStretch::None,
        RopeScaling::Linear { factor } => RopeStretch::Linear { factor: *factor },
        RopeScaling::Llama3 { factor, low_frequency_factor, high_frequency_factor, original_positions } => {
            RopeStretch::Llama3 {
                factor: *factor,
                low_frequency_factor: *low_frequency_factor,
                high_frequency_factor: *high_frequency_factor,
                original_positions: *original_positions,
            }
        }
        RopeScaling::Factors { factors } => RopeStretch::Factors(factors),
    };
    let frequencies = rope_inverse_frequencies(config.head_dim, config.rope_theta, &stretch)?;
    RopeTable::new(config.head_dim, &frequencies, positions)
}
