//! Calibration tokens, as the subcommands that quantize take them.

use crate::bench::Source;
use crate::checkpoint::Tokenizer;
use crate::cli::{parse, text};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// What stands for random tokens on the command line.
const RANDOM: &str = "random";

#[derive(clap::Args)]
pub(super) struct CalibrationArgs {
    /// Text file to calibrate with, random for random tokens, or bundled for the text that comes with the program
    #[arg(long, value_name = "FILE|random|bundled", default_value = "bundled")]
    calibration: PathBuf,
    /// Calibration samples
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = parse::positive)]
    pub(super) samples: usize,
    /// Tokens of a sample
    #[arg(long, value_name = "TOKENS", default_value = "2048", value_parser = parse::tokens)]
    pub(super) length: usize,
}

impl CalibrationArgs {
    /// The tokens, enough of them for the samples.
    pub(super) fn source(&self, tokenizer: &Tokenizer) -> Result<Source> {
        if self.calibration.as_os_str() == RANDOM {
            return Ok(Source::random());
        }
        self.enough(read(tokenizer, &self.calibration, text::CALIBRATION)?)
    }

    /// The bundled text, where the calibration is another.
    pub(super) fn other(&self, tokenizer: &Tokenizer) -> Result<Option<Source>> {
        if self.calibration.as_os_str() == text::BUNDLED {
            return Ok(None);
        }
        self.enough(read(tokenizer, Path::new(text::BUNDLED), text::CALIBRATION)?).map(Some)
    }

    fn enough(&self, source: Source) -> Result<Source> {
        source
            .samples(0, self.samples, self.length, 0)
            .with_context(|| format!("cannot calibrate with {}", source.name))?;
        Ok(source)
    }
}

/// Tokens of a text file, or of `bundled` where that is asked for.
pub(super) fn read(tokenizer: &Tokenizer, path: &Path, bundled: &str) -> Result<Source> {
    let name = path.display().to_string();
    let read;
    let text = if name == text::BUNDLED {
        bundled
    } else {
        read = text::read(path)?;
        &read
    };
    let tokens = text::tokenize(tokenizer, text, &name)?;
    Ok(Source { name, tokens: Some(tokens.into()) })
}
