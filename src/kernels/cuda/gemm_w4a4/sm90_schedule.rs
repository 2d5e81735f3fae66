//! Which tile Hopper takes for so many tokens, and how a persistent grid shares the tiles: pure arithmetic.

/// A tile of `y`: what a block multiplies at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    /// Output channels: 64 for each of two warpgroups, or 128.
    pub(super) channels: u32,
    /// Tokens: the N of `wgmma`.
    pub(super) tokens: u32,
    /// Chunks of 128 input channels that shared memory holds.
    pub(super) stages: u32,
}

const fn tile(channels: u32, tokens: u32, stages: u32) -> Tile {
    Tile { channels, tokens, stages }
}

/// Every tile there is a kernel for, by rising tokens. Decode takes the smallest that holds its tokens; from 65 tokens on
/// the three large ones compete.
pub(super) const TILES: [Tile; 7] = [
    tile(128, 8, 12),
    tile(128, 16, 12),
    tile(128, 32, 12),
    tile(128, 64, 10),
    tile(128, 128, 6),
    tile(256, 128, 5),
    tile(128, 256, 4),
];
const FIRST_LARGE: usize = 4;

impl Tile {
    /// Bytes of one chunk: a byte a token and input channel, half a byte a weight.
    pub(super) fn stage_bytes(self) -> u32 {
        128 * self.tokens + 64 * self.channels
    }

    /// Numbers of `y` in it.
    fn area(self) -> u64 {
        u64::from(self.channels) * u64::from(self.tokens)
    }
}

/// Shape of a product in tiles' units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// Blocks of 64 output channels.
    pub(super) blocks: u32,
    /// Chunks of 128 input channels.
    pub(super) chunks: u32,
    /// Multiprocessors of the device.
    pub(super) multiprocessors: u32,
}

/// How a grid shares the tiles: `whole` tiles in turn, then equal runs of the chunks of the other `split` ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Schedule {
    pub(super) tile: Tile,
    /// Blocks of threads.
    pub(super) grid: u32,
    pub(super) whole: u32,
    pub(super) split: u32,
    /// Chunks of split tiles that each block takes, and how many blocks take one more.
    pub(super) share: u32,
    pub(super) longer: u32,
    /// Channel tiles that are taken together before the next ones.
    pub(super) band: u32,
}

/// Fewest chunks of a run worth its start and its sums.
const LEAST_RUN: u32 = 4;

// A model of an H100 in clocks, for choices only, derived from its data sheet. Multiply-adds of a multiprocessor and clock
// in INT8, bytes that one takes from the second-level cache, bytes that all take from memory, and what a chunk takes at
// least because its steps wait for each other (a cautious guess, so that decode spreads over many multiprocessors).
const MULTIPLY_ADDS: u64 = 4096;
const L2_BYTES: u64 = 40;
const MEMORY_BYTES: u64 = 1900;
const LEAST_CHUNK: u64 = 400;
// Writing a tile, and meeting in the workspace: a part in proportion to the tile, a part for fences and counters.
const WRITE_DIVISOR: u64 = 10;
const MEET_DIVISOR: u64 = 4;
const MEET: u64 = 2000;

impl Shape {
    /// The schedule for `tokens` tokens, of all tiles or of one.
    pub(super) fn schedule(&self, tokens: u32, only: Option<Tile>) -> Schedule {
        let candidates = match only {
            Some(ref tile) => std::slice::from_ref(tile),
            None => candidates(tokens),
        };
        // There is at least one candidate; the fallback is never taken.
        let best = candidates
            .iter()
            .flat_map(|&tile| self.schedules(tile, tokens))
            .min_by_key(|schedule| self.clocks(schedule, tokens));
        best.unwrap_or_else(|| self.shared(TILES[0], tokens, self.tiles(TILES[0], tokens), 1))
    }

    fn tiles(&self, tile: Tile, tokens: u32) -> u32 {
        self.blocks.div_ceil(tile.channels / 64) * tokens.div_ceil(tile.tokens)
    }

    /// Whole tiles only; the last wave's tiles split over all multiprocessors, or each into the same number of runs.
    fn schedules(&self, tile: Tile, tokens: u32) -> impl Iterator<Item = Schedule> {
        let (tiles, processors) = (self.tiles(tile, tokens), self.multiprocessors.max(1));
        let rest = tiles % processors;
        let whole = self.shared(tile, tokens, tiles, tiles.min(processors));
        let runs = (u64::from(rest) * u64::from(self.chunks) / u64::from(LEAST_RUN)).clamp(1, u64::from(processors));
        let grid = if tiles > rest { processors } else { runs as u32 };
        let split = splits(tile, rest, processors).then(|| self.shared(tile, tokens, tiles - rest, grid));
        let even = (rest > 0 && tiles == rest && grid > rest).then(|| {
            let grid = grid / rest * rest;
            self.shared(tile, tokens, 0, grid)
        });
        [Some(whole), split, even.filter(|_| splits(tile, rest, processors))].into_iter().flatten()
    }

    fn shared(&self, tile: Tile, tokens: u32, whole: u32, grid: u32) -> Schedule {
        let split = self.tiles(tile, tokens) - whole;
        let units = u64::from(split) * u64::from(self.chunks);
        let (share, longer) = ((units / u64::from(grid)) as u32, (units % u64::from(grid)) as u32);
        // Bytes of activations and of weights that a wave reads are equal when it is as many channel tiles wide.
        let square = u64::from(grid) * u64::from(2 * tile.tokens) / u64::from(tile.channels);
        Schedule { tile, grid, whole, split, share, longer, band: (square.isqrt() as u32).max(1) }
    }

    /// What the model says.
    fn clocks(&self, schedule: &Schedule, tokens: u32) -> u64 {
        let Schedule { tile, grid, whole, split, share, longer, .. } = *schedule;
        let weights = 64 * u64::from(tile.channels);
        // Weights come from memory once; in prefill most reads of them hit the cache.
        let memory = if tokens <= tile.tokens { weights * u64::from(grid) / MEMORY_BYTES } else { 0 };
        let multiply = 128 * tile.area() / MULTIPLY_ADDS;
        let chunk = multiply.max(u64::from(tile.stage_bytes()) / L2_BYTES).max(memory).max(LEAST_CHUNK);
        let write = tile.area() / WRITE_DIVISOR;
        let waves = u64::from(whole.div_ceil(grid)) * (u64::from(self.chunks) * chunk + write);
        if split == 0 {
            return waves;
        }
        // A run that starts within a tile brings sums to two.
        let aligned = longer == 0 && self.chunks.is_multiple_of(share.max(1));
        let meetings = if aligned { 1 } else { 2 };
        let run = u64::from(share + u32::from(longer > 0)) * chunk;
        waves + run + meetings * (tile.area() / MEET_DIVISOR + MEET) + write
    }

    /// Most tiles that any number of tokens up to `m_max` splits, of those `only` leaves: their sums are the workspace.
    pub(super) fn most_sums(&self, m_max: u32, only: Option<Tile>) -> u64 {
        let processors = self.multiprocessors.max(1);
        let of_tile = |tile: Tile| {
            let most = self.tiles(tile, m_max).min(processors - 1);
            let most = if tile.tokens > 64 { most.min(processors / 2) } else { most };
            u64::from(most) * tile.area()
        };
        let tiles = only.as_ref().map_or_else(|| loadable(m_max), std::slice::from_ref);
        tiles.iter().map(|&tile| of_tile(tile)).max().unwrap_or(0)
    }
}

/// Whether the rest of the tiles may be split. Sums of large tiles are dear, and half a wave is little to win.
fn splits(tile: Tile, rest: u32, processors: u32) -> bool {
    rest > 0 && (tile.tokens <= 64 || 2 * rest <= processors)
}

/// The tiles that may be best for `tokens` tokens.
fn candidates(tokens: u32) -> &'static [Tile] {
    TILES[..FIRST_LARGE]
        .iter()
        .position(|tile| tokens <= tile.tokens)
        .map_or(&TILES[FIRST_LARGE..], |at| std::slice::from_ref(&TILES[at]))
}

/// The tiles that any number of tokens up to `m_max` may take.
pub(super) fn loadable(m_max: u32) -> &'static [Tile] {
    let small = TILES[..FIRST_LARGE].iter().position(|tile| m_max <= tile.tokens);
    &TILES[..small.map_or(TILES.len(), |at| at + 1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPES: [(u32, u32); 8] = [(1, 1), (9, 5), (64, 32), (172, 32), (64, 86), (448, 64), (2004, 32), (3, 600)];

    fn shapes() -> impl Iterator<Item = Shape> {
        SHAPES.into_iter().flat_map(|(blocks, chunks)| {
            [1, 6, 114, 132].map(|multiprocessors| Shape { blocks, chunks, multiprocessors })
        })
    }

    #[test]
    fn every_chunk_of_every_tile_is_taken_once() {
        for shape in shapes() {
            for tokens in [1, 8, 9, 63, 64, 65, 128, 129, 257, 300, 1000, 2048, 16_384] {
                for only in TILES.iter().map(|&tile| Some(tile)).chain([None]) {
                    let schedule = shape.schedule(tokens, only);
                    let Schedule { tile, grid, whole, split, share, longer, band } = schedule;
                    assert!(only.is_none_or(|only| only == tile) && band > 0);
                    assert_eq!(whole + split, shape.tiles(tile, tokens), "{shape:?} {tokens}");
                    assert!(grid >= 1 && grid <= shape.multiprocessors, "{shape:?} {tokens} {schedule:?}");
                    assert_eq!(
                        u64::from(grid) * u64::from(share) + u64::from(longer),
                        u64::from(split) * u64::from(shape.chunks)
                    );
                    assert!(longer < grid);
                    assert!(u64::from(split) * tile.area() <= shape.most_sums(tokens, only), "{shape:?} {schedule:?}");
                    assert!(loadable(tokens).contains(&tile) || only.is_some());
                }
            }
        }
    }

    #[test]
    fn workspaces_of_more_tokens_hold_those_of_fewer() {
        for shape in shapes() {
            let mut least = 0;
            for tokens in 1..1200 {
                let schedule = shape.schedule(tokens, None);
                assert!(u64::from(schedule.split) * schedule.tile.area() <= shape.most_sums(1200, None));
                assert!(shape.most_sums(tokens, None) >= least);
                least = shape.most_sums(tokens, None);
            }
        }
    }

    #[test]
    fn choices_on_an_h100_are_those_that_the_model_explains() {
        let shape = |n: u32, k: u32| Shape { blocks: n / 64, chunks: k / 128, multiprocessors: 132 };
        // Decode: the smallest tile, and 32 tiles split so that every multiprocessor reads.
        let decode = shape(4096, 4096).schedule(1, None);
        assert_eq!((decode.tile, decode.whole, decode.split, decode.grid), (TILES[0], 0, 32, 128));
        assert_eq!((decode.share, decode.longer), (8, 0));
        for (tokens, tile) in [(8, 0), (9, 1), (16, 1), (17, 2), (33, 3), (64, 3)] {
            assert_eq!(shape(4096, 4096).schedule(tokens, None).tile, TILES[tile]);
        }
        // Prefill: large tiles, nearly two full waves are left whole.
        let prefill = shape(4096, 4096).schedule(2048, None);
        assert!(prefill.tile.area() == 32_768 && prefill.split == 0, "{prefill:?}");
        // A small matrix never gets runs of less than four chunks.
        let small = shape(576, 576).schedule(1, None);
        assert!(small.split == 0 || small.share >= LEAST_RUN, "{small:?}");
    }
}
