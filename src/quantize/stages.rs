//! Where the time of a run goes.

use super::report::StageTime;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// A part of the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Weights out of the source.
    Read,
    /// The floating-point layer on the samples, and the quantized one where the streams move behind it.
    Calibrate,
    /// Scales, and what they do to activations and weights.
    Smooth,
    /// Draws, the greedy search, and the rotated activations.
    Rotation,
    /// Channel outliers and the permutation.
    Permutation,
    /// Weights and activations through the transform that was found.
    Transform,
    /// Codes of the weights, packed.
    Round,
    /// The output error of the quantized linears on some tokens.
    Measure,
    /// The result on disk.
    Write,
}

impl Stage {
    const ALL: [Self; 9] = [
        Self::Read,
        Self::Calibrate,
        Self::Smooth,
        Self::Rotation,
        Self::Permutation,
        Self::Transform,
        Self::Round,
        Self::Measure,
        Self::Write,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Calibrate => "calibrate",
            Self::Smooth => "smooth",
            Self::Rotation => "rotation",
            Self::Permutation => "permutation",
            Self::Transform => "transform",
            Self::Round => "round and pack",
            Self::Measure => "measure",
            Self::Write => "write",
        }
    }

    /// Whether the groups of a layer go through it side by side.
    fn is_shared(self) -> bool {
        matches!(self, Self::Rotation | Self::Permutation | Self::Transform | Self::Round | Self::Measure)
    }
}

/// Adds up the stages of one run over its threads.
#[derive(Debug, Default)]
pub(super) struct Clock {
    nanos: [AtomicU64; Stage::ALL.len()],
    /// Wall time of the sections in which groups run side by side.
    section: AtomicU64,
}

thread_local! {
    /// The stages that this thread is in, the outermost first. A thread that waits for others inside of a stage may take up
    /// another group meanwhile (rayon), and then the time is that group's.
    static STAGES: RefCell<Vec<Frame>> = const { RefCell::new(Vec::new()) };
}

struct Frame {
    nanos: u64,
    since: Instant,
}

impl Clock {
    /// Runs `work` as part of `stage`.
    pub(super) fn time<T>(&self, stage: Stage, work: impl FnOnce() -> T) -> T {
        let _stage = self.enter(stage);
        work()
    }

    /// Begins a stage on this thread; it lasts until the guard is dropped.
    pub(super) fn enter(&self, stage: Stage) -> InStage<'_> {
        let now = Instant::now();
        STAGES.with_borrow_mut(|stages| {
            if let Some(outer) = stages.last_mut() {
                outer.nanos += nanos(now - outer.since);
            }
            stages.push(Frame { nanos: 0, since: now });
        });
        InStage { clock: self, stage, on_this_thread: PhantomData }
    }

    /// Begins a section in which the groups of a layer run side by side.
    pub(super) fn side_by_side(&self) -> Section<'_> {
        Section { clock: self, since: Instant::now() }
    }

    /// Seconds of stages which one thread goes through after the other.
    pub(super) fn seconds(&self, stage: Stage) -> f64 {
        self.nanos[stage as usize].load(Relaxed) as f64 * 1e-9
    }

    /// Seconds of the sections side by side.
    pub(super) fn section_seconds(&self) -> f64 {
        self.section.load(Relaxed) as f64 * 1e-9
    }

    /// All stages, in the order of the pipeline. What runs side by side shares the wall time of its sections in proportion to
    /// the time that threads spent in it, so that the stages add up to wall time.
    pub(super) fn stages(&self) -> Vec<StageTime> {
        let shared = Stage::ALL.into_iter().filter(|stage| stage.is_shared());
        let spent: f64 = shared.map(|stage| self.seconds(stage)).sum();
        let scale = if spent > 0.0 { self.section_seconds() / spent } else { 0.0 };
        let seconds = |stage: Stage| self.seconds(stage) * if stage.is_shared() { scale } else { 1.0 };
        Stage::ALL.map(|stage| StageTime { name: stage.name().into(), seconds: seconds(stage) }).into()
    }
}

/// A stage that this thread is in. Guards of one thread end in the reverse order of their begin, as scopes do.
pub(super) struct InStage<'a> {
    clock: &'a Clock,
    stage: Stage,
    /// The guard belongs to its thread.
    on_this_thread: PhantomData<*const ()>,
}

impl InStage<'_> {
    /// What follows is part of another stage.
    pub(super) fn switch(&mut self, stage: Stage) {
        if stage != self.stage {
            let now = Instant::now();
            let spent = STAGES.with_borrow_mut(|stages| {
                stages.last_mut().map_or(0, |frame| {
                    let spent = frame.nanos + nanos(now - frame.since);
                    *frame = Frame { nanos: 0, since: now };
                    spent
                })
            });
            self.clock.nanos[self.stage as usize].fetch_add(spent, Relaxed);
            self.stage = stage;
        }
    }
}

impl Drop for InStage<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        let spent = STAGES.with_borrow_mut(|stages| {
            let spent = stages.pop().map_or(0, |frame| frame.nanos + nanos(now - frame.since));
            if let Some(outer) = stages.last_mut() {
                outer.since = now;
            }
            spent
        });
        self.clock.nanos[self.stage as usize].fetch_add(spent, Relaxed);
    }
}

/// A section in which groups run side by side.
pub(super) struct Section<'a> {
    clock: &'a Clock,
    since: Instant,
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        self.clock.section.fetch_add(nanos(self.since.elapsed()), Relaxed);
    }
}

fn nanos(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::sleep;
    use std::time::Duration;

    const TICK: Duration = Duration::from_millis(20);

    #[test]
    fn a_stage_inside_of_another_stops_its_time() {
        let (clock, other) = (Clock::default(), Clock::default());
        let mut outer = clock.enter(Stage::Rotation);
        sleep(TICK);
        other.time(Stage::Round, || sleep(10 * TICK));
        outer.switch(Stage::Permutation);
        sleep(2 * TICK);
        drop(outer);
        let tick = TICK.as_secs_f64();
        assert!((tick..9.0 * tick).contains(&clock.seconds(Stage::Rotation)), "{clock:?}");
        assert!(clock.seconds(Stage::Permutation) >= 2.0 * tick, "{clock:?}");
        assert!(other.seconds(Stage::Round) >= 10.0 * tick && clock.seconds(Stage::Round) == 0.0);
    }

    #[test]
    fn stages_add_up_to_wall_time() {
        let clock = Clock::default();
        clock.time(Stage::Read, || sleep(TICK));
        let section = clock.side_by_side();
        std::thread::scope(|scope| {
            scope.spawn(|| clock.time(Stage::Rotation, || sleep(3 * TICK)));
            scope.spawn(|| clock.time(Stage::Round, || sleep(TICK)));
        });
        drop(section);
        let stages = clock.stages();
        let sum: f64 = stages.iter().map(|stage| stage.seconds).sum();
        let wall = clock.section_seconds() + clock.seconds(Stage::Read);
        assert!((sum - wall).abs() < 1e-9, "{stages:?}");
        assert_eq!(stages.len(), Stage::ALL.len());
        for (at, stage) in Stage::ALL.into_iter().enumerate() {
            assert_eq!(stage as usize, at);
        }
    }
}
