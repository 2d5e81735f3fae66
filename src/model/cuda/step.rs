//! A run of tokens through the layers, and what is asked of it then.

use super::super::error::{At, Error};
use super::STREAM;
use super::layer::Call;
use super::state::{State, Step};
use crate::kernels::cuda::{Address, Error as DeviceError, NextStep, Sequence, Stream};
use std::ops::Range;

impl State {
    /// Chunk by chunk; the hidden states of all tokens stay on the device.
    pub(super) fn forward(&mut self, tokens: &[u32]) -> Result<(), Error> {
        let at = || "forward".to_owned();
        // A token that the device chose is where it is needed, with its position.
        if !(tokens.len() == 1 && self.ready == Some((tokens[0], self.length))) {
            self.ready = None;
            self.keep(tokens.len()).at(at)?;
            self.write(tokens).at(at)?;
        }
        (self.ready, self.chosen) = (None, None);
        let chunks = tokens.len().div_ceil(self.chunk);
        for (index, chunk) in tokens.chunks(self.chunk).enumerate() {
            if tokens.len() == 1 {
                self.decode().at(at)?;
            } else {
                self.enqueue(STREAM, index * self.chunk, chunk.len(), chunks - 1 - index).at(at)?;
            }
            self.length += chunk.len();
        }
        self.end = self.length;
        Ok(())
    }

    /// Sends the tokens, and which rows are whose.
    fn write(&self, tokens: &[u32]) -> Result<(), DeviceError> {
        let mut sequences: Vec<Sequence> = Vec::new();
        for (index, chunk) in tokens.chunks(self.chunk).enumerate() {
            let position = (self.length + index * self.chunk) as u32;
            sequences.push(Sequence { first: 0, tokens: chunk.len() as u32, position, table: 0 });
        }
        sequences.reverse();
        let device = self.core.device.as_ref();
        device.write(self.ids.address(), bytemuck::cast_slice(tokens))?;
        device.write(self.sequences.address(), bytemuck::cast_slice(&sequences))
    }

    /// Enqueues the step of one token.
    fn decode(&mut self) -> Result<(), DeviceError> {
        if matches!(self.step, Step::Warm) {
            let step = self.core.device.capture(&mut |stream| self.enqueue(stream, 0, 1, 0))?;
            self.step = step.map_or(Step::Plain, Step::Captured);
        }
        match &self.step {
            // SAFETY: this sequence and its model keep everything that the step refers to, and `keep` forgets the step before it
            // moves any of it. The stream runs one step behind the other.
            Step::Captured(graph) => unsafe { graph.replay(STREAM) },
            step => {
                let warm = matches!(step, Step::New | Step::Warm);
                self.enqueue(STREAM, 0, 1, 0)?;
                if warm {
                    self.step = Step::Warm;
                }
                Ok(())
            }
        }
    }

    /// Enqueues `tokens` tokens from `first` on, those of entry `sequence`; everything else about them is in device memory.
    fn enqueue(&self, stream: Stream, first: usize, tokens: usize, sequence: usize) -> Result<(), DeviceError> {
        let core = self.core.as_ref();
        let device = core.device.as_ref();
        let ids = self.ids.address() + 4 * first as u64;
        let sequence = self.sequences.address() + (sequence * size_of::<Sequence>()) as u64;
        let hidden = self.hidden_at(first);
        let (scratch, attention) = (&self.scratch, &self.attention);
        let call = Call { device, stream, tokens, sequence, scratch, attention };
        // SAFETY: `keep` made room for all tokens of the run and `new` for those of a chunk; `Model::forward` checked that the cache
        // has room for them.
        unsafe {
            core.tables.embed(device, stream, tokens, ids, scratch.residual)?;
            for (layer, cache) in core.layers.iter().zip(&self.caches) {
                layer.enqueue(&call, cache)?;
            }
            core.norm.enqueue(device, stream, tokens, scratch.residual, core.final_norm.address(), hidden)
        }
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

    /// The likeliest token behind row `row`, the last of the last run. The device keeps it, with its position, as the next
    /// step's; four bytes leave the device.
    pub(super) fn greedy(&mut self, row: usize) -> Result<u32, Error> {
        if let Some(token) = self.chosen {
            return Ok(token);
        }
        let at = || "output head".to_owned();
        let (device, tables) = (self.core.device.as_ref(), &self.core.tables);
        let next = NextStep { ids: self.ids.address(), sequences: self.sequences.address() };
        // SAFETY: the row was run; ids and sequences have a first entry, which the run is done with when the choice is made.
        unsafe {
            tables.logits(device, 1, self.hidden_at(row), self.scratch.logits).at(at)?;
            tables.greedy(device, self.scratch.logits, self.token.address(), next, self.scratch.choice).at(at)?;
        }
        let mut token = [0_u32];
        self.token.read(&mut token).at(at)?;
        self.chosen = Some(token[0]);
        self.ready = Some((token[0], self.end));
        Ok(token[0])
    }
}
