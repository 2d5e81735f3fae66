//! Recording kernels into an encoder, with the time of each on request.

use super::pipelines::Bound;
use super::{Error, Gpu};
use ::wgpu::{
    Buffer, BufferDescriptor, BufferUsages, CommandEncoder, ComputePass, ComputePassDescriptor,
    ComputePassTimestampWrites, QuerySet, QuerySetDescriptor, QueryType,
};

/// Records kernels into the caller's encoder, one after the other: each sees what those before it wrote.
///
/// Nothing is submitted. The encoder is free for other use as soon as the recorder is dropped.
pub struct Recorder<'a> {
    /// Dropped before the encoder is used again: it locks it.
    pass: Option<ComputePass<'static>>,
    encoder: &'a mut CommandEncoder,
    timer: Option<&'a mut Timer>,
    /// Whether a pass between two time stamps takes more than one kernel.
    whole: bool,
}

impl<'a> Recorder<'a> {
    /// Records into `encoder`.
    pub fn new(encoder: &'a mut CommandEncoder) -> Self {
        Self { pass: None, encoder, timer: None, whole: false }
    }

    /// Records into `encoder`, each kernel in a pass of its own between two time stamps.
    pub fn timed(encoder: &'a mut CommandEncoder, timer: &'a mut Timer) -> Self {
        Self { pass: None, encoder, timer: Some(timer), whole: false }
    }

    /// Records into `encoder` with one pass, and one pair of time stamps, for all kernels that no copy stands between: they run as
    /// fast as those that nobody times.
    pub fn timed_as_one(encoder: &'a mut CommandEncoder, timer: &'a mut Timer) -> Self {
        Self { pass: None, encoder, timer: Some(timer), whole: true }
    }

    /// Pairs of time stamps that the timer holds so far.
    #[must_use]
    pub fn stamped(&self) -> usize {
        self.timer.as_ref().map_or(0, |timer| timer.names.len())
    }

    /// Records one dispatch. Does nothing when a dimension of `workgroups` is 0.
    pub(super) fn dispatch(&mut self, bound: &Bound, immediates: &[u8], workgroups: [u32; 3]) {
        if workgroups.contains(&0) {
            return;
        }
        let kernel = &bound.kernel;
        debug_assert_eq!(immediates.len(), kernel.immediates() as usize, "{}", kernel.name);
        let encoder = &mut *self.encoder;
        if self.timer.is_some() && !self.whole {
            self.pass = None;
        }
        let timer = &mut self.timer;
        let pass = self.pass.get_or_insert_with(|| {
            let stamps = timer.as_mut().and_then(|timer| timer.next(kernel.name));
            let timestamp_writes = stamps.as_ref().map(|(set, index)| ComputePassTimestampWrites {
                query_set: set,
                beginning_of_pass_write_index: Some(*index),
                end_of_pass_write_index: Some(index + 1),
            });
            let descriptor = ComputePassDescriptor { label: Some("duquant"), timestamp_writes };
            encoder.begin_compute_pass(&descriptor).forget_lifetime()
        });
        record(pass, bound, immediates, workgroups);
    }

    /// Copies between buffers, behind what was recorded before. Offsets and sizes are multiples of 4.
    pub fn copy(&mut self, from: &Buffer, from_offset: u64, to: &Buffer, to_offset: u64, bytes: u64) {
        self.pass = None;
        self.encoder.copy_buffer_to_buffer(from, from_offset, to, to_offset, bytes);
    }
}

fn record(pass: &mut ComputePass<'_>, bound: &Bound, immediates: &[u8], workgroups: [u32; 3]) {
    pass.set_pipeline(&bound.kernel.pipeline);
    pass.set_bind_group(0, &bound.group, &[]);
    if !immediates.is_empty() {
        pass.set_immediates(0, immediates);
    }
    let [x, y, z] = workgroups;
    pass.dispatch_workgroups(x, y, z);
}

/// Device time of each kernel of a recording.
pub struct Timer {
    set: QuerySet,
    capacity: u32,
    resolved: Buffer,
    names: Vec<&'static str>,
    nanoseconds_per_tick: f64,
}

impl Timer {
    /// A timer for up to `kernels` kernels (at most 2048); those after them are recorded without time.
    ///
    /// # Errors
    /// [`Error::MissingFeature`] when the device has no time stamps, [`Error::OutOfMemory`].
    pub fn new(gpu: &Gpu, kernels: u32) -> Result<Self, Error> {
        if !gpu.has_timestamps() {
            return Err(Error::MissingFeature { device: gpu.info().name.clone(), feature: "TIMESTAMP_QUERY".into() });
        }
        let capacity = kernels.clamp(1, 2048);
        let bytes = 16 * u64::from(capacity);
        let (set, resolved) = gpu.scoped("timer", bytes, || {
            let descriptor = QuerySetDescriptor { label: Some("timer"), ty: QueryType::Timestamp, count: 2 * capacity };
            let usage = BufferUsages::QUERY_RESOLVE | BufferUsages::COPY_SRC;
            let buffer = BufferDescriptor { label: Some("timer"), size: bytes, usage, mapped_at_creation: false };
            (gpu.device().create_query_set(&descriptor), gpu.device().create_buffer(&buffer))
        })?;
        let nanoseconds_per_tick = f64::from(gpu.queue().get_timestamp_period());
        Ok(Self { set, capacity, resolved, names: Vec::new(), nanoseconds_per_tick })
    }

    fn next(&mut self, name: &'static str) -> Option<(QuerySet, u32)> {
        let index = self.names.len() as u32;
        if index == self.capacity {
            return None;
        }
        self.names.push(name);
        Some((self.set.clone(), 2 * index))
    }

    /// Waits for what was recorded with it (and submitted since), returns each kernel's name and seconds in order, and
    /// starts over.
    ///
    /// # Errors
    /// As [`Gpu::read`].
    pub fn finish(&mut self, gpu: &Gpu) -> Result<Vec<(&'static str, f64)>, Error> {
        let count = self.names.len() as u32;
        if count == 0 {
            return Ok(Vec::new());
        }
        let mut encoder = gpu.encoder();
        encoder.resolve_query_set(&self.set, 0..2 * count, &self.resolved, 0);
        gpu.submit(encoder)?;
        let bytes = gpu.read(&self.resolved, 0, 16 * u64::from(count))?;
        let ticks: Vec<u64> = bytes
            .chunks_exact(8)
            .map(|tick| tick.iter().rev().fold(0, |sum, &byte| (sum << 8) | u64::from(byte)))
            .collect();
        let names = std::mem::take(&mut self.names);
        let seconds = |pair: &[u64]| pair[1].saturating_sub(pair[0]) as f64 * self.nanoseconds_per_tick * 1e-9;
        Ok(names.into_iter().zip(ticks.chunks_exact(2).map(seconds)).collect())
    }
}
