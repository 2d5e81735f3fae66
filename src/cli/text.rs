//! Text that comes in, and the text that comes with the program.

use crate::checkpoint::Tokenizer;
use anyhow::{Context, Result, bail};
use std::path::Path;

/// Chapters 1 to 5 of Jane Austen's Persuasion; see `assets/README.md`.
pub(super) const CALIBRATION: &str = include_str!("../../assets/calibration.txt");
/// Chapters 13 to 18 of the same novel.
pub(super) const EVALUATION: &str = include_str!("../../assets/evaluation.txt");
/// What stands for the bundled text on the command line.
pub(super) const BUNDLED: &str = "bundled";

/// Reads a text file. Line ends of any system are read as a line feed, as Python's text mode does: the WikiText-2 file
/// that everyone measures on has CR LF, and the perplexities in the literature are of it without.
pub(super) fn read(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let Ok(text) = String::from_utf8(bytes) else { bail!("{}: expected UTF-8 text, got other bytes", path.display()) };
    Ok(line_feeds(text))
}

fn line_feeds(text: String) -> String {
    if text.contains('\r') { text.replace("\r\n", "\n").replace('\r', "\n") } else { text }
}

/// Tokenizes a whole text without a begin token.
pub(super) fn tokenize(tokenizer: &Tokenizer, text: &str, name: &str) -> Result<Vec<u32>> {
    if text.trim().is_empty() {
        bail!("{name}: expected some text, got an empty file");
    }
    tokenizer.encode(text).with_context(|| format!("cannot tokenize {name}"))
}

/// `bytes` for people.
pub(super) fn bytes(bytes: u64) -> String {
    if bytes < 100_000 { format!("{bytes} bytes") } else { format!("{:.1} MB", bytes as f64 / 1e6) }
}

#[cfg(test)]
mod tests {
    use super::{CALIBRATION, EVALUATION, line_feeds};

    #[test]
    fn line_ends_become_line_feeds() {
        assert_eq!(line_feeds("a\r\n\r\nb\rc\n".into()), "a\n\nb\nc\n");
    }

    #[test]
    fn calibration_and_evaluation_share_no_paragraph() {
        for paragraph in CALIBRATION.split("\n\n").filter(|paragraph| paragraph.len() > 60) {
            assert!(!EVALUATION.contains(paragraph), "{paragraph}");
        }
        assert!(CALIBRATION.is_ascii() && EVALUATION.is_ascii());
    }
}
