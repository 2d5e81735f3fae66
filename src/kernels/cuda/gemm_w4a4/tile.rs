use super::super::Error;
use super::super::checks::unsupported;
use std::fmt;
use std::str::FromStr;

/// What a block of threads computes at a time.
///
/// On Hopper every tile is a rectangle, down to 128 channels by 8 tokens, and several blocks may share one along `K`; streams of
/// 8 to 64 tokens are the narrow ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GemmTile {
    /// A rectangle of `y` over all of `K`, for prefill: both operands pass through shared memory.
    Tiled {
        /// Output channels.
        channels: u32,
        /// Tokens.
        tokens: u32,
    },
    /// A stripe of the weights, read once, for decode: up to `tokens` tokens of all of `y`.
    Streamed {
        /// Most tokens of a call.
        tokens: u32,
    },
}

impl fmt::Display for GemmTile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tiled { channels, tokens } => write!(f, "{channels}x{tokens}"),
            Self::Streamed { tokens } => write!(f, "stream:{tokens}"),
        }
    }
}

impl FromStr for GemmTile {
    type Err = Error;

    /// Reads `128x256` (channels, tokens) or `stream:8` (tokens).
    fn from_str(text: &str) -> Result<Self, Error> {
        let tile = if let Some(tokens) = text.strip_prefix("stream:") {
            tokens.parse().ok().map(|tokens| Self::Streamed { tokens })
        } else {
            text.split_once('x').and_then(|(channels, tokens)| {
                Some(Self::Tiled { channels: channels.parse().ok()?, tokens: tokens.parse().ok()? })
            })
        };
        tile.map_or_else(|| unsupported("tile", "as 128x256 or stream:8", text), Ok)
    }
}
