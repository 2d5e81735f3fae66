//! Runs of the layers alone, with their time, and contexts that no prompt was run for: what benchmarks ask for.

use super::super::batch::{Segment, passes, pieces, rows};
use super::super::error::{At, Error};
use super::super::operation::Operation;
use super::layer::BoundLayer;
use super::{Model, State};
use crate::kernels::wgpu::{Error as DeviceError, Recorder, Timer};
use ::wgpu::Buffer;
use std::time::Instant;

impl Model {
    /// Seconds of `tokens` tokens of each sequence in the layers alone, by time stamps around each pass; by this machine's clock,
    /// with submission and waiting in it, on a device without them.
    pub(in crate::model) fn run_layers(&self, state: &mut State, x: &[f32], tokens: usize) -> Result<f64, Error> {
        let at = || "layers".to_owned();
        let gpu = self.gpu.as_ref();
        let source = gpu.upload("residual stream", bytemuck::cast_slice(x)).at(at)?;
        let mut timer = if gpu.has_timestamps() { Some(Timer::new(gpu, 1).at(at)?) } else { None };
        let mut seconds = 0.0;
        for segments in passes(state.sequences, tokens, state.scratch.rows) {
            self.load_residual(state, &source, rows(&segments)).at(at)?;
            let mut encoder = gpu.encoder();
            let start = match &mut timer {
                Some(timer) => {
                    state.record_layers(&mut Recorder::timed_as_one(&mut encoder, timer), &segments).at(at)?;
                    None
                }
                None => {
                    gpu.wait().at(at)?;
                    let start = Instant::now();
                    state.record_layers(&mut Recorder::new(&mut encoder), &segments).at(at)?;
                    Some(start)
                }
            };
            gpu.submit(encoder).at(at)?;
            seconds += match (&mut timer, start) {
                (Some(timer), _) => timer.finish(gpu).at(at)?.iter().map(|(_, seconds)| seconds).sum(),
                (None, start) => {
                    gpu.wait().at(at)?;
                    start.map_or(0.0, |start| start.elapsed().as_secs_f64())
                }
            };
        }
        state.length += tokens;
        Ok(seconds)
    }

    /// The same by operation, each kernel between two time stamps of its own; by this machine's clock, each operation submitted and
    /// waited for, on a device without them.
    pub(in crate::model) fn time_operations(
        &self,
        state: &mut State,
        x: &[f32],
        tokens: usize,
    ) -> Result<Vec<f64>, Error> {
        let at = || "layers".to_owned();
        let gpu = self.gpu.as_ref();
        let source = gpu.upload("residual stream", bytemuck::cast_slice(x)).at(at)?;
        // A query set's most: a layer of a pass has fewer kernels.
        let mut timer = if gpu.has_timestamps() { Some(Timer::new(gpu, 2048).at(at)?) } else { None };
        let mut seconds = vec![0.0; Operation::ALL.len()];
        for segments in passes(state.sequences, tokens, state.scratch.rows) {
            self.load_residual(state, &source, rows(&segments)).at(at)?;
            for layer in &state.layers {
                match &mut timer {
                    Some(timer) => self.time_layer(state, layer, &segments, timer, &mut seconds),
                    None => self.clock_layer(state, layer, &segments, &mut seconds),
                }
                .at(at)?;
            }
        }
        state.length += tokens;
        Ok(seconds)
    }

    fn time_layer(
        &self,
        state: &State,
        layer: &BoundLayer,
        segments: &[Segment],
        timer: &mut Timer,
        seconds: &mut [f64],
    ) -> Result<(), DeviceError> {
        let mut encoder = self.gpu.encoder();
        let mut recorder = Recorder::timed(&mut encoder, timer);
        let mut ends = Vec::with_capacity(seconds.len());
        for operation in Operation::ALL {
            state.record_operation(&mut recorder, layer, operation, segments)?;
            ends.push(recorder.stamped());
        }
        drop(recorder);
        self.gpu.submit(encoder)?;
        let times = timer.finish(&self.gpu)?;
        let mut start = 0;
        for (sum, end) in seconds.iter_mut().zip(ends) {
            *sum += times[start..end].iter().map(|(_, seconds)| seconds).sum::<f64>();
            start = end;
        }
        Ok(())
    }

    fn clock_layer(
        &self,
        state: &State,
        layer: &BoundLayer,
        segments: &[Segment],
        seconds: &mut [f64],
    ) -> Result<(), DeviceError> {
        self.gpu.wait()?;
        for (operation, sum) in Operation::ALL.into_iter().zip(seconds) {
            let start = Instant::now();
            let mut encoder = self.gpu.encoder();
            state.record_operation(&mut Recorder::new(&mut encoder), layer, operation, segments)?;
            self.gpu.submit(encoder)?;
            self.gpu.wait()?;
            *sum += start.elapsed().as_secs_f64();
        }
        Ok(())
    }

    /// Fills the first `rows` rows of the residual stream with those of `source`, over and over.
    fn load_residual(&self, state: &State, source: &Buffer, rows: usize) -> Result<(), DeviceError> {
        let mut encoder = self.gpu.encoder();
        let mut recorder = Recorder::new(&mut encoder);
        let bytes = 4 * (rows * self.config.hidden) as u64;
        let mut to = 0;
        while to < bytes {
            let count = source.size().min(bytes - to);
            recorder.copy(source, 0, &state.scratch.residual, to, count);
            to += count;
        }
        drop(recorder);
        self.gpu.submit(encoder)
    }

    /// Appends keys and values of `qkv`, its rows over and over, to the first sequence and layer, and copies what those hold to all
    /// others.
    pub(in crate::model) fn fill(&self, state: &mut State, qkv: &[f32], tokens: usize) -> Result<(), Error> {
        let at = || "context".to_owned();
        let Some(layer) = state.layers.first() else { return Ok(()) };
        let width = (self.config.heads + 2 * self.config.kv_heads) * self.config.head_dim;
        let mut held = None;
        for (piece, first) in pieces(tokens, qkv.len() / width, state.scratch.rows) {
            // The first piece is the longest.
            if held != Some(first) {
                let numbers = qkv.iter().copied().cycle().skip(first * width).take(piece.len() * width);
                let numbers: Vec<f32> = numbers.collect();
                self.gpu.queue().write_buffer(&state.scratch.qkv, 0, bytemuck::cast_slice(&numbers));
                held = Some(first);
            }
            let mut encoder = self.gpu.encoder();
            layer.append(&mut Recorder::new(&mut encoder), piece.len(), state.length + piece.start).at(at)?;
            self.gpu.submit(encoder).at(at)?;
        }
        let mut encoder = self.gpu.encoder();
        let mut recorder = Recorder::new(&mut encoder);
        state.record_spread(&mut recorder);
        drop(recorder);
        self.gpu.submit(encoder).at(at)?;
        state.length += tokens;
        Ok(())
    }
}
