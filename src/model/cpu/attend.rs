//! RoPE and attention of every sequence of a pass.

use super::super::batch::{Segment, rows};
use crate::kernels::cpu::{Isa, KvCache, QueryHeads, QueryHeadsDesc, RopeTable, attention, rope_hadamard_quantize};
use crate::kernels::{Arithmetic, Error};
use rayon::prelude::*;
use std::time::Instant;

/// What one sequence at a time needs between its queries and its output. Sequences of a pass are dealt out over the lanes, so
/// that short ones, which keep one thread busy at most, run beside each other.
pub(crate) struct Lane {
    queries: QueryHeads,
    workspace: Vec<f32>,
}

impl Lane {
    pub(crate) fn new(desc: &QueryHeadsDesc, isa: Isa, arithmetic: Arithmetic) -> Result<Self, Error> {
        let queries = QueryHeads::new_with(desc, isa, arithmetic)?;
        let workspace = vec![0.0; queries.workspace_len()];
        Ok(Self { queries, workspace })
    }

    /// Bytes of queries, and of workspace.
    pub(crate) fn bytes(&self) -> (usize, usize) {
        (self.queries.bytes(), size_of_val(self.workspace.as_slice()))
    }
}

/// One segment with its operands.
struct Job<'a> {
    qkv: &'a [f32],
    attended: &'a mut [f32],
    cache: &'a mut KvCache,
}

/// Appends keys and values of every segment to its sequence's cache and attends to them. `qkv` is `[rows, (H + 2 Hkv) D]`,
/// `attended` `[rows, H D]`. Gives the seconds of RoPE and of attention, summed over the lanes.
pub(crate) fn attend(
    segments: &[Segment],
    rope: &RopeTable,
    window: Option<usize>,
    mut qkv: &[f32],
    mut attended: &mut [f32],
    caches: &mut [KvCache],
    lanes: &mut [Lane],
) -> Result<[f64; 2], Error> {
    let rows = rows(segments).max(1);
    let (width, out_width) = (qkv.len() / rows, attended.len() / rows);
    let first = segments.first().map_or(0, |segment| segment.sequence);
    // The segments of a pass belong to sequences in a row.
    let mut jobs = Vec::with_capacity(segments.len());
    for (segment, cache) in segments.iter().zip(caches.iter_mut().skip(first)) {
        let (part, rest) = qkv.split_at(segment.tokens * width);
        let (out, out_rest) = attended.split_at_mut(segment.tokens * out_width);
        (qkv, attended) = (rest, out_rest);
        jobs.push(Job { qkv: part, attended: out, cache });
    }
    let share = jobs.len().div_ceil(lanes.len().max(1)).max(1);
    let work = |(jobs, lane): (&mut [Job<'_>], &mut Lane)| -> Result<[f64; 2], Error> {
        let mut seconds = [0.0; 2];
        for Job { qkv, attended, cache } in jobs {
            let start = Instant::now();
            let position = cache.len();
            rope_hadamard_quantize(qkv, rope, position, &mut lane.queries, cache)?;
            let middle = Instant::now();
            attention(&lane.queries, cache, window, attended, &mut lane.workspace)?;
            seconds[0] += middle.duration_since(start).as_secs_f64();
            seconds[1] += middle.elapsed().as_secs_f64();
        }
        Ok(seconds)
    };
    let sum = |a: [f64; 2], b: [f64; 2]| Ok([a[0] + b[0], a[1] + b[1]]);
    if jobs.len() <= share {
        return jobs.chunks_mut(share).zip(lanes).map(work).try_fold([0.0; 2], |a, b| sum(a, b?));
    }
    jobs.par_chunks_mut(share).zip(lanes).map(work).try_reduce(|| [0.0; 2], sum)
}
