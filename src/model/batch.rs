//! Several sequences in lockstep: which rows of a pass belong to whom.

/// What a [`State`](super::State) is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateDesc {
    /// Sequences that run in lockstep: each call takes as many tokens of every one.
    pub sequences: usize,
    /// Tokens that the cache of each sequence has room for.
    pub capacity: usize,
    /// Most rows (tokens of any sequence) that go through all layers at a time; `None` for the backend's choice. A state that
    /// only decodes needs no more rows than sequences.
    pub rows: Option<usize>,
}

/// The rows of one sequence in a pass through the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) sequence: usize,
    /// Its first row in the pass.
    pub(super) first: usize,
    pub(super) tokens: usize,
    /// Tokens of it in the passes before.
    pub(super) offset: usize,
}

/// Cuts a run of `tokens` tokens of each of `sequences` sequences, laid one sequence behind the other, into passes of at most
/// `rows` rows. A sequence may begin in one pass and end in another; its tokens stay in order.
pub(super) fn passes(sequences: usize, tokens: usize, rows: usize) -> Vec<Vec<Segment>> {
    let (all, rows) = (sequences * tokens, rows.max(1));
    let pass = |start: usize| {
        let end = (start + rows).min(all);
        let segment = |sequence: usize| {
            let (from, to) = ((sequence * tokens).max(start), ((sequence + 1) * tokens).min(end));
            Segment { sequence, first: from - start, tokens: to - from, offset: from - sequence * tokens }
        };
        (start / tokens..end.div_ceil(tokens)).map(segment).collect()
    };
    (0..all).step_by(rows).map(pass).collect()
}

/// Rows of a pass.
pub(super) fn rows(segments: &[Segment]) -> usize {
    segments.last().map_or(0, |last| last.first + last.tokens)
}

/// How `tokens` tokens of a context are cut into pieces of at most `rows` rows, with the row of a table of `period` rows, repeated over
/// and over, that each begins with: with the first one, where a piece can hold whole tables.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub(super) fn pieces(tokens: usize, period: usize, rows: usize) -> Vec<(std::ops::Range<usize>, usize)> {
    let (period, rows) = (period.max(1), rows.max(1));
    let whole = if period <= rows { rows / period * period } else { rows };
    (0..tokens).step_by(whole).map(|start| (start..(start + whole).min(tokens), start % period)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    #[test]
    fn pieces_go_through_the_table_again_and_again() {
        for (tokens, period, rows) in [(30, 10, 16), (30, 10, 100), (5, 7, 3), (9, 1, 4), (0, 3, 3), (6, 6, 6)] {
            let mut next = 0;
            for (piece, first) in pieces(tokens, period, rows) {
                assert_eq!((piece.start, first), (next, next % period));
                assert!(piece.len() <= rows && (first == 0 || period > rows));
                next = piece.end;
            }
            assert_eq!(next, tokens);
        }
    }

    #[test]
    fn passes_cover_every_token_once_and_in_order() {
        for (sequences, tokens, limit) in
            [(1, 1, 512), (1, 1030, 512), (64, 1, 512), (64, 1, 7), (3, 300, 512), (2, 0, 5), (5, 3, 4), (1, 1, 0)]
        {
            let passes = passes(sequences, tokens, limit);
            let mut seen = vec![0; sequences];
            for segments in &passes {
                assert!(rows(segments) <= limit.max(1));
                let mut row = 0;
                for segment in segments {
                    assert_eq!(segment.first, row);
                    assert!(segment.tokens > 0);
                    assert_eq!(segment.offset, seen[segment.sequence]);
                    row += segment.tokens;
                    seen[segment.sequence] += segment.tokens;
                }
            }
            assert!(seen.iter().all(|&seen| seen == tokens), "{sequences} x {tokens} by {limit}: {passes:?}");
            assert!(passes.len() == (sequences * tokens).div_ceil(limit.max(1)));
        }
    }
}
