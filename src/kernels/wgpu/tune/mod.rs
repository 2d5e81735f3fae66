//! Which tiles the GEMMs take: a table for each class of adapters, and a way to measure a better one.

mod measure;

pub use measure::{TuneShape, tune};

use super::super::Error;
use super::Tile;
use ::wgpu::{AdapterInfo, DeviceType};
use std::fmt::Write;

/// How `gemm_w4a4` multiplies codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Product {
    /// `dot4U8Packed`: four products an instruction where the device has it.
    Dot,
    /// Two products a 32-bit multiplication: where `dot4U8Packed` is emulated.
    Pairs,
}

/// Tiles by the number of tokens: each up to, and with, a number; the last one for all above.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Steps(Vec<(usize, Tile)>);

impl Steps {
    /// Steps in the order of their numbers of tokens.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when there is none, when the numbers do not increase or when the last is not `usize::MAX`.
    pub fn new(steps: Vec<(usize, Tile)>) -> Result<Self, Error> {
        let increasing = steps.windows(2).all(|pair| pair[0].0 < pair[1].0);
        if increasing && steps.last().is_some_and(|&(up_to, _)| up_to == usize::MAX) {
            return Ok(Self(steps));
        }
        let expected = "increasing numbers of tokens that end without a bound".into();
        let got = format!("{:?}", steps.iter().map(|step| step.0).collect::<Vec<_>>());
        Err(Error::Unsupported { what: "tile table", expected, got })
    }

    /// The steps in order.
    #[must_use]
    pub fn as_slice(&self) -> &[(usize, Tile)] {
        &self.0
    }

    /// The tile for so many tokens.
    #[must_use]
    pub fn select(&self, tokens: usize) -> Option<Tile> {
        self.0.iter().find(|&&(up_to, _)| tokens <= up_to).map(|&(_, tile)| tile)
    }
}

/// The tiles of both GEMMs on one adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// How codes are multiplied; weights are packed for it.
    pub product: Product,
    /// Tiles of `gemm_w4a4`.
    pub w4a4: Steps,
    /// Tiles of `gemm_float`.
    pub float: Steps,
}

/// A built-in table holds these tiles up to so many tokens.
type Rows = &'static [(usize, Tile)];

const fn stream(tokens: u32, panels: u32, slices: u32) -> Tile {
    Tile::Stream { tokens, panels, slices }
}

const fn tiled(tokens: u32, channels: u32, thread_tokens: u32, thread_channels: u32) -> Tile {
    Tile::Tiled { tokens, channels, thread_tokens, thread_channels }
}

const REST: usize = usize::MAX;

/// Measured on lavapipe (Mesa 22.3, LLVM 15, two cores, `benches/wgpu.rs`): workgroup memory and barriers only cost, and a
/// load costs as much as several products, so that large tiles in registers win until they spill. 1x8x1 and 4x8x1 are some
/// 10% to 20% faster on wide layers and leave a core idle on narrow ones.
const CPU: Rows = &[(1, stream(1, 4, 1)), (2, stream(2, 4, 1)), (4, stream(4, 4, 1)), (REST, stream(8, 4, 1))];

/// Not measured: the shapes that others publish as best. Few channels need slices to fill a device.
const GPU: Rows = &[
    (1, stream(1, 1, 8)),
    (2, stream(2, 1, 8)),
    (4, stream(4, 1, 8)),
    (8, stream(8, 1, 8)),
    (32, tiled(32, 32, 2, 2)),
    (REST, tiled(64, 64, 4, 4)),
];
/// Discrete devices have the registers and the memory for 8 by 8 sums an invocation.
const DISCRETE: Rows = &[
    (1, stream(1, 1, 8)),
    (2, stream(2, 1, 8)),
    (4, stream(4, 1, 8)),
    (8, stream(8, 1, 8)),
    (32, tiled(32, 32, 2, 2)),
    (256, tiled(64, 64, 4, 4)),
    (REST, tiled(128, 128, 8, 8)),
];

/// All built-in tables.
const CLASSES: [(Product, Rows, Rows); 3] =
    [(Product::Pairs, CPU, CPU), (Product::Dot, GPU, GPU), (Product::Dot, DISCRETE, DISCRETE)];

fn class(index: usize) -> Table {
    let (product, w4a4, float) = CLASSES[index];
    Table { product, w4a4: Steps(w4a4.to_vec()), float: Steps(float.to_vec()) }
}

/// First line of the text form.
const HEADER: &str = "duquant tiles 1";

impl Table {
    /// The table for adapters like `info`: measured for those that run on the CPU, plausible for the others.
    #[must_use]
    pub fn builtin(info: &AdapterInfo) -> Self {
        match info.device_type {
            DeviceType::Cpu => class(0),
            DeviceType::DiscreteGpu => class(2),
            DeviceType::IntegratedGpu | DeviceType::VirtualGpu | DeviceType::Other => class(1),
        }
    }

    /// All built-in tables.
    pub(super) fn builtins() -> impl Iterator<Item = Self> {
        (0..CLASSES.len()).map(class)
    }

    /// A text of one line an entry: `product dot`, then `w4a4 8 stream:8x1x1` (up to 8 tokens) and `float * tiled:..`.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut out = format!("{HEADER}\n");
        let product = if self.product == Product::Dot { "dot" } else { "pairs" };
        // Writing to a string does not fail.
        let _ = writeln!(out, "product {product}");
        for (name, steps) in [("w4a4", &self.w4a4), ("float", &self.float)] {
            for (up_to, tile) in steps.as_slice() {
                let up_to = if *up_to == REST { "*".into() } else { up_to.to_string() };
                let _ = writeln!(out, "{name} {up_to} {tile}");
            }
        }
        out
    }

    /// Reads what [`Table::to_text`] wrote.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the line that is wrong or missing.
    pub fn from_text(text: &str) -> Result<Self, Error> {
        let fail = |expected: &str, got: &str| Error::Unsupported {
            what: "tile table",
            expected: expected.into(),
            got: got.chars().take(80).collect(),
        };
        let mut lines = text.lines().filter(|line| !line.trim().is_empty());
        if lines.next() != Some(HEADER) {
            return Err(fail(HEADER, text.lines().next().unwrap_or("nothing")));
        }
        let mut product = None;
        let (mut w4a4, mut float) = (Vec::new(), Vec::new());
        for line in lines {
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["product", "dot"] => product = Some(Product::Dot),
                ["product", "pairs"] => product = Some(Product::Pairs),
                [name @ ("w4a4" | "float"), up_to, tile] => {
                    let number = || up_to.parse().map_err(|_| fail("a number of tokens or *", line));
                    let up_to = if up_to == "*" { REST } else { number()? };
                    let steps = if name == "w4a4" { &mut w4a4 } else { &mut float };
                    steps.push((up_to, tile.parse()?));
                }
                _ => return Err(fail("product, w4a4 or float and their values", line)),
            }
        }
        let product = product.ok_or_else(|| fail("a line `product dot` or `product pairs`", "none"))?;
        Ok(Self { product, w4a4: Steps::new(w4a4)?, float: Steps::new(float)? })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails and reports this way")]
    use super::*;

    #[test]
    fn built_in_tables_survive_their_text() {
        for table in Table::builtins() {
            assert_eq!(Table::from_text(&table.to_text()).unwrap(), table);
            for steps in [&table.w4a4, &table.float] {
                assert_eq!(Steps::new(steps.as_slice().to_vec()).unwrap(), *steps);
                assert_eq!(steps.select(0), steps.select(1));
                assert!(steps.select(usize::MAX).is_some());
            }
        }
    }

    #[test]
    fn bad_text_is_refused() {
        let good = class(1).to_text();
        for (from, to) in [
            ("duquant tiles 1", "duquant tiles 2"),
            ("product dot", "product dots"),
            ("product dot\n", ""),
            ("w4a4 8 ", "w4a4 eight "),
            ("w4a4 8 ", "w4a4 1 "),
            ("w4a4 * ", "w4a4 300 "),
            ("stream:1x1x8", "stream:0x1x8"),
            ("stream:1x1x8", "stream:1x1"),
            ("stream:1x1x8", "stream"),
            ("stream:1x1x8", "stream:1x1x4294967296"),
            ("tiled:64x64/4x4", "tiled:64x64/0x4"),
            ("tiled:64x64/4x4", "tiled:64x64/3x4"),
            ("tiled:64x64/4x4", "tiles:64x64/4x4"),
        ] {
            let bad = good.replace(from, to);
            assert_ne!(bad, good, "{from}");
            assert!(Table::from_text(&bad).is_err(), "{to}");
        }
        assert!(Table::from_text("").is_err());
    }
}
