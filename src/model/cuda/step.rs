//! A run of tokens through the layers, and what is asked of it then.

use super::super::batch::{Segment, passes, rows};
use super::super::error::{At, Error};
use super::super::operation::Operation;
use super::STREAM;
use super::layer::Call;
use super::state::State;
use crate::kernels::cuda::{Address, Device, Error as DeviceError, NextStep, Replay, Sequence, Stream};
use std::ops::Range;

/// How the step of one token is enqueued.
pub(super) enum Step {
    /// It has not run yet: its first run loads what is loaded lazily, which a capture could not.
    New,
    /// Launch by launch, and to be captured the next time.
    Warm,
    /// Launch by launch: the device captures nothing.
    Plain,
    /// As one graph.
    Captured(Box<dyn Replay>),
}

impl Step {
    /// Whether it runs as all later ones will.
    pub(super) fn is_settled(&self) -> bool {
        matches!(self, Self::Plain | Self::Captured(_))
    }

    /// Enqueues what `enqueue` enqueues, as a graph from the second time on.
    ///
    /// # Safety
    /// What a captured step refers to must be where it was captured, or the step made anew.
    unsafe fn run(
        &mut self,
        device: &dyn Device,
        enqueue: impl Fn(Stream) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        if matches!(self, Self::Warm) {
            *self = device.capture(&mut |stream| enqueue(stream))?.map_or(Self::Plain, Self::Captured);
        }
        match self {
            // SAFETY: the caller's. The stream runs one step behind the other.
            Self::Captured(graph) => unsafe { graph.replay(STREAM) },
            Self::Plain => enqueue(STREAM),
            Self::New | Self::Warm => {
                enqueue(STREAM)?;
                *self = Self::Warm;
                Ok(())
            }
        }
    }
}

/// The rows of a run that go through all layers together.
pub(super) struct Pass {
    segments: Vec<Segment>,
    /// Its first row in the run.
    first: usize,
    /// Its first entry among the places.
    place: usize,
}

impl Pass {
    pub(super) fn rows(&self) -> usize {
        rows(&self.segments)
    }
}

impl State {
    /// How `tokens` tokens of each sequence are cut.
    pub(super) fn passes(&self, tokens: usize) -> Vec<Pass> {
        let mut passes: Vec<Pass> = passes(self.sequences, tokens, self.chunk)
            .into_iter()
            .enumerate()
            .map(|(index, segments)| Pass { segments, first: index * self.chunk, place: 0 })
            .collect();
        let mut place = 0;
        for pass in passes.iter_mut().rev() {
            pass.place = place;
            place += pass.segments.len();
        }
        passes
    }

    /// Pass by pass; the hidden states of all tokens stay on the device.
    pub(super) fn forward(&mut self, tokens: &[u32]) -> Result<(), Error> {
        let at = || "forward".to_owned();
        let each = tokens.len() / self.sequences;
        let passes = self.passes(each);
        // A token that the device chose for a single sequence is where it is needed, with its position.
        if !(tokens.len() == 1 && self.ready == Some((tokens[0], self.length))) {
            self.ready = None;
            self.keep(tokens.len()).at(at)?;
            self.core.device.write(self.ids.address(), bytemuck::cast_slice(tokens)).at(at)?;
            self.write_places(&passes).at(at)?;
        }
        (self.ready, self.chosen) = (None, None);
        if each == 1 {
            let mut step = std::mem::replace(&mut self.step, Step::New);
            let enqueue = |stream| passes.iter().try_for_each(|pass| self.enqueue(stream, pass));
            // SAFETY: this state and its model keep everything that the step refers to, and `keep` forgets the step before it moves
            // any of it. A step of one token is cut the same way each time.
            let enqueued = unsafe { step.run(self.core.device.as_ref(), enqueue) };
            self.step = step;
            enqueued.at(at)?;
        } else {
            passes.iter().try_for_each(|pass| self.enqueue(STREAM, pass)).at(at)?;
        }
        self.length += each;
        self.end = self.length;
        Ok(())
    }

    /// Sends which rows of each pass are whose, and where those stand: on the host's word for every run, but that a single sequence's
    /// next step finds what the device left ([`State::greedy`]).
    pub(super) fn write_places(&self, passes: &[Pass]) -> Result<(), DeviceError> {
        let place = |segment: &Segment| Sequence {
            first: segment.first as u32,
            tokens: segment.tokens as u32,
            position: (self.length + segment.offset) as u32,
            table: (segment.sequence * self.pages) as u32,
        };
        let places: Vec<Sequence> = passes.iter().rev().flat_map(|pass| &pass.segments).map(place).collect();
        self.core.device.write(self.places.address(), bytemuck::cast_slice(&places))
    }

    /// Enqueues a pass; everything about its tokens that changes from run to run is in device memory.
    fn enqueue(&self, stream: Stream, pass: &Pass) -> Result<(), DeviceError> {
        let core = self.core.as_ref();
        let (device, tokens) = (core.device.as_ref(), pass.rows());
        let ids = self.ids.address() + 4 * pass.first as u64;
        let hidden = self.hidden_at(pass.first);
        let residual = self.scratch.residual;
        // SAFETY: `keep` made room for all tokens of the run and `new` for those of a pass.
        unsafe {
            core.tables.embed(device, stream, tokens, ids, residual)?;
            self.enqueue_layers(stream, pass, &mut |_| Ok(()))?;
            core.norm.enqueue(device, stream, tokens, residual, core.final_norm.address(), hidden)
        }
    }

    /// Enqueues the layers of a pass alone: the residual stream is in the scratch memory. `after` is called behind each operation.
    pub(super) fn enqueue_layers(
        &self,
        stream: Stream,
        pass: &Pass,
        after: &mut dyn FnMut(Operation) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let core = self.core.as_ref();
        let call = Call {
            device: core.device.as_ref(),
            stream,
            tokens: pass.rows(),
            places: self.places.address() + (pass.place * size_of::<Sequence>()) as u64,
            sequences: pass.segments.len(),
            longest: pass.segments.iter().map(|segment| segment.tokens).max().unwrap_or(0),
            scratch: &self.scratch,
            attention: &self.attention,
        };
        for (layer, cache) in core.layers.iter().zip(&self.caches) {
            // SAFETY: `new` made room for the rows of a pass, and `keep_places` for its segments; `super::super::Model` checked that
            // the caches have room for the tokens.
            unsafe { layer.enqueue(&call, cache, after)? };
        }
        Ok(())
    }

    /// Enqueues the layers of pass `index` of a step of one token, as such a step runs.
    pub(super) fn step_layers(&mut self, index: usize, pass: &Pass) -> Result<(), DeviceError> {
        while self.layer_steps.len() <= index {
            self.layer_steps.push(Step::New);
        }
        let mut step = std::mem::replace(&mut self.layer_steps[index], Step::New);
        let enqueue = |stream| self.enqueue_layers(stream, pass, &mut |_| Ok(()));
        // SAFETY: as for a step of `forward`.
        let enqueued = unsafe { step.run(self.core.device.as_ref(), enqueue) };
        self.layer_steps[index] = step;
        enqueued
    }

    /// Where a row of hidden states is.
    fn hidden_at(&self, row: usize) -> Address {
        self.hidden.address() + row as u64 * self.core.tables.hidden_bytes()
    }

    /// Logits of rows that are within the tokens of the last run.
    pub(super) fn logits(&self, rows: Range<usize>, logits: &mut [f32]) -> Result<(), Error> {
        let at = || "output head".to_owned();
        let (device, tables) = (self.core.device.as_ref(), &self.core.tables);
        for (first, out) in rows.step_by(self.rows).zip(logits.chunks_mut(self.rows * tables.vocabulary())) {
            let count = out.len() / tables.vocabulary();
            // SAFETY: the rows were run, and the scratch memory has room for as many logits.
            unsafe { tables.logits(device, count, self.hidden_at(first), self.scratch.logits) }.at(at)?;
            device.read(self.scratch.logits, bytemuck::cast_slice_mut(out)).at(at)?;
        }
        Ok(())
    }

    /// The likeliest token behind each of `rows`, the last ones of each sequence in the last run; four bytes a row leave the device.
    ///
    /// A single sequence's choice the device keeps, with its position, as the next step's. Choices of several sequences come back to
    /// the host, which sends them again with the next step: two small copies, where there are many rows to work on.
    pub(super) fn greedy(&mut self, rows: &[usize]) -> Result<Vec<u32>, Error> {
        if let Some(tokens) = &self.chosen {
            return Ok(tokens.clone());
        }
        let at = || "output head".to_owned();
        let (device, tables) = (self.core.device.as_ref(), &self.core.tables);
        let alone = self.sequences == 1;
        let next = alone.then(|| NextStep { ids: self.ids.address(), sequences: self.places.address() });
        let mut tokens = vec![0_u32; rows.len()];
        for (rows, tokens) in rows.chunks(self.rows).zip(tokens.chunks_mut(self.rows)) {
            let x = self.together(rows).at(at)?;
            let (logits, chosen, choice) = (self.scratch.logits, self.tokens.address(), self.scratch.choice);
            // SAFETY: the rows were run, and there is room for the logits of so many; ids and places have a first entry, which the run
            // is done with when the choice is made.
            unsafe {
                tables.logits(device, rows.len(), x, logits).at(at)?;
                tables.greedy(device, rows.len(), logits, chosen, next, choice).at(at)?;
            }
            self.tokens.read(tokens).at(at)?;
        }
        self.ready = tokens.first().filter(|_| alone).map(|&token| (token, self.end));
        self.chosen = Some(tokens.clone());
        Ok(tokens)
    }

    /// Where hidden states of `rows` stand one behind the other: where they are, or copied into the residual stream, which is free
    /// between two runs and no narrower ([`super::Tables::head_type`] takes no more bytes than what flows between kernels).
    fn together(&self, rows: &[usize]) -> Result<Address, DeviceError> {
        let first = rows.first().copied().unwrap_or(0);
        if rows.iter().enumerate().all(|(index, &row)| row == first + index) {
            return Ok(self.hidden_at(first));
        }
        let (bytes, to) = (self.core.tables.hidden_bytes(), self.scratch.residual);
        for (&row, index) in rows.iter().zip(0..) {
            self.core.device.copy(STREAM, self.hidden_at(row), to + index * bytes, bytes)?;
        }
        Ok(to)
    }
}
