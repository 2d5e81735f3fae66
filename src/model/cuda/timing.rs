//! Runs of the layers alone, with their time, and contexts that no prompt was run for: what benchmarks ask for.

use super::super::batch::pieces;
use super::super::operation::Operation;
use super::STREAM;
use super::group::rounded;
use super::state::State;
use super::step::Step;
use crate::kernels::cuda::{
    Buffer, Device, Error as DeviceError, KvCache, PAGE, RopeHadamardQuantizeOperands, Sequence,
};

impl State {
    /// Seconds of `tokens` tokens of each sequence in the layers alone. A step of one token is what decoding makes of it, a captured
    /// graph where the device captures; until it is, it runs without being timed.
    pub(super) fn run_layers(&mut self, x: &[f32], tokens: usize) -> Result<f64, DeviceError> {
        let source = self.begin(x, tokens)?;
        let mut marks = Vec::new();
        for (index, pass) in self.passes(tokens).iter().enumerate() {
            while tokens == 1 && !self.layer_steps.get(index).is_some_and(Step::is_settled) {
                // The same keys and values go to the same places once more.
                self.load_residual(&source, pass.rows())?;
                self.step_layers(index, pass)?;
            }
            self.load_residual(&source, pass.rows())?;
            let start = self.core.device.mark(STREAM)?;
            if tokens == 1 {
                self.step_layers(index, pass)?;
            } else {
                self.enqueue_layers(STREAM, pass, &mut |_| Ok(()))?;
            }
            marks.push((start, self.core.device.mark(STREAM)?));
        }
        self.advance(tokens);
        marks.iter().map(|(start, end)| end.seconds_since(start.as_ref())).sum()
    }

    /// The same by operation, launch by launch with a mark behind each operation. Where launching takes longer than running, as in
    /// steps of one token, it is launching that is seen.
    pub(super) fn time_operations(&mut self, x: &[f32], tokens: usize) -> Result<Vec<f64>, DeviceError> {
        let source = self.begin(x, tokens)?;
        let mut marks = Vec::new();
        for pass in &self.passes(tokens) {
            self.load_residual(&source, pass.rows())?;
            let device = self.core.device.as_ref();
            let mut of_pass = vec![(None, device.mark(STREAM)?)];
            self.enqueue_layers(STREAM, pass, &mut |operation| {
                of_pass.push((Some(operation), device.mark(STREAM)?));
                Ok(())
            })?;
            marks.push(of_pass);
        }
        self.advance(tokens);
        let mut seconds = vec![0.0; Operation::ALL.len()];
        for pair in marks.iter().flat_map(|of_pass| of_pass.windows(2)) {
            let [(_, start), (operation, end)] = pair else { continue };
            if let Some(at) = Operation::ALL.iter().position(|other| Some(*other) == *operation) {
                seconds[at] += end.seconds_since(start.as_ref())?;
            }
        }
        Ok(seconds)
    }

    /// Sends a residual stream to start from, and which rows of a run are whose.
    fn begin(&mut self, x: &[f32], tokens: usize) -> Result<Buffer, DeviceError> {
        (self.ready, self.chosen) = (None, None);
        self.keep_places(self.sequences * tokens)?;
        self.write_places(&self.passes(tokens))?;
        let bytes = rounded(x.iter().copied(), self.core.types.float);
        Buffer::upload(&self.core.device, "residual stream", &bytes)
    }

    /// Enqueues the filling of the first `rows` rows of the residual stream with those of `source`, over and over.
    fn load_residual(&self, source: &Buffer, rows: usize) -> Result<(), DeviceError> {
        let bytes = (rows * self.core.config.hidden) as u64 * self.core.types.float.bytes();
        let mut to = 0;
        while to < bytes {
            let count = source.bytes().min(bytes - to);
            self.core.device.copy(STREAM, source.address(), self.scratch.residual + to, count)?;
            to += count;
        }
        Ok(())
    }

    fn advance(&mut self, tokens: usize) {
        self.length += tokens;
        self.end = self.length;
    }

    /// Appends keys and values of `qkv`, its rows over and over, to the first sequence and layer, and copies what those hold to all
    /// others.
    pub(super) fn fill(&mut self, qkv: &[f32], tokens: usize) -> Result<(), DeviceError> {
        (self.ready, self.chosen) = (None, None);
        let core = self.core.as_ref();
        let device = core.device.as_ref();
        let Some(first) = self.caches.first() else { return Ok(()) };
        device.synchronize(STREAM)?;
        let width = (core.config.heads + 2 * core.config.kv_heads) * core.config.head_dim;
        let operands = RopeHadamardQuantizeOperands {
            qkv: self.scratch.qkv,
            rope: self.attention.table.address(),
            queries: self.scratch.queries,
            cache: first.operand(),
            sequences: self.places.address(),
            page_table: self.attention.pages.address(),
        };
        let mut held = None;
        for (piece, first) in pieces(tokens, qkv.len() / width, self.chunk) {
            let (start, count) = (piece.start, piece.len());
            // The first piece is the longest.
            if held != Some(first) {
                let numbers = qkv.iter().copied().cycle().skip(first * width).take(count * width);
                device.write(self.scratch.qkv, &rounded(numbers, core.types.float))?;
                held = Some(first);
            }
            let place = Sequence { first: 0, tokens: count as u32, position: (self.length + start) as u32, table: 0 };
            device.write(self.places.address(), bytemuck::bytes_of(&place))?;
            // SAFETY: the scratch memory has room for the rows of a pass, the places for one; `super::super::Model` checked that the
            // caches have room for the tokens.
            unsafe { self.attention.rope.enqueue(device, STREAM, count, 1, &operands)? };
        }
        self.spread(device, (self.length + tokens).div_ceil(PAGE))?;
        device.synchronize(STREAM)?;
        self.advance(tokens);
        Ok(())
    }

    /// Enqueues copies of the first pages of the first sequence and layer to all others.
    fn spread(&self, device: &dyn Device, pages: usize) -> Result<(), DeviceError> {
        let Some(from) = self.caches.first() else { return Ok(()) };
        let parts = |cache: &KvCache| {
            let (layout, operand) = (cache.layout(), cache.operand());
            let all = layout.pages as u64;
            [
                (operand.keys, layout.key_bytes() / all),
                (operand.values, layout.value_bytes() / all),
                (operand.params, layout.param_bytes() / all),
            ]
        };
        for (layer, cache) in self.caches.iter().enumerate() {
            for sequence in (0..self.sequences).filter(|sequence| (layer, *sequence) != (0, 0)) {
                for ((from, page), (to, _)) in parts(from).into_iter().zip(parts(cache)) {
                    let start = to + (sequence * self.pages) as u64 * page;
                    device.copy(STREAM, from, start, pages as u64 * page)?;
                }
            }
        }
        Ok(())
    }
}
