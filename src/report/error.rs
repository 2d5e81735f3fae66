//! What can be wrong with a file of results.

use std::path::PathBuf;

/// Why a file is no record of `duquant bench`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("{}: cannot read: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is larger than any record.
    #[error("{}: expected a result of at most {limit} bytes, got {bytes}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The most that is read.
        limit: u64,
    },
    /// It is no JSON, or cut off.
    #[error("{}: expected JSON as `duquant bench --json` writes it, got: {what} at line {line} column {column}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
        /// Where, from 1.
        line: usize,
        /// Where in the line, from 1.
        column: usize,
    },
    /// There is nothing in it.
    #[error("{}: expected a result of `duquant bench`, got an empty file", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// It was written by something else.
    #[error("{}: expected format \"{expected}\", got {got} at line {line}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The format that is read.
        expected: &'static str,
        /// What came.
        got: String,
        /// Where it begins, from 1.
        line: usize,
    },
    /// It was written by another version.
    #[error("{}: expected version {expected} of the result format, got {got}; use the duquant that wrote it", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The version that is read.
        expected: u32,
        /// What came.
        got: String,
    },
    /// A field is missing or of another type.
    #[error("{}: expected a result of `duquant bench`, got: {what}{place} (line {line} column {column})", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// What serde says.
        what: String,
        /// The point that it is about, where that is known.
        place: String,
        /// Where serde noticed, from 1.
        line: usize,
        /// Where in the line, from 1.
        column: usize,
    },
    /// A record without a single point.
    #[error("{}: expected at least one point, got none and no failure that says why", path.display())]
    NoPoints {
        /// The file.
        path: PathBuf,
    },
    /// A picture whose rows are not whole.
    #[error("{}: point {point}, {step}: expected whole rows of {columns} columns, got {cells} cells", path.display())]
    Grid {
        /// The file.
        path: PathBuf,
        /// The point, from 1.
        point: usize,
        /// The step.
        step: String,
        /// Columns that it claims.
        columns: usize,
        /// Cells that there are.
        cells: usize,
    },
}
