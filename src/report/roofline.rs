//! How near to what the machine can do at most the kernels come.

use super::document::{Block, Drawing, Mark, Plot, Roofline, Series, keys};
use super::format::{number, percent};
use super::speed::{phase_name, point_name, rate};
use super::speed_plots::distinct;
use super::svg::SLOTS;
use crate::bench::{KernelPoint, Phase, Record, SpeedPoint};

/// A kernel's name, its place in the plot, and all of it in words.
type Dot = (String, Mark);

/// The roofline of the largest batch of a phase.
pub(super) fn of_layers(record: &Record, points: &[&SpeedPoint], phase: Phase) -> Option<Block> {
    let batch = points.iter().filter(|point| !point.kernels.is_empty()).map(|point| point.batch).max()?;
    let mut dots = Vec::new();
    for point in points.iter().filter(|point| point.batch == batch) {
        for kernel in &point.kernels {
            let noisy = !point.time.noise.is_empty();
            let what = format!("{}: {} ({})", point_name(point), kernel.name, kernel.variant);
            dots.extend(dot(&kernel.name, &what, kernel.bytes, kernel.ops, kernel.ms, noisy, ""));
        }
    }
    plot(record, format!("Roofline, {}, batch {batch}", phase_name(phase)), dots)
}

/// The roofline of single kernels.
pub(super) fn of_kernels(record: &Record, points: &[KernelPoint]) -> Option<Block> {
    let dots = points.iter().filter_map(|point| {
        let shape = point.shape.iter().map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ");
        let what = format!("{} ({}) {}, {shape}", point.name, point.variant, point.bits);
        let near = point.of_ceiling.map(|share| format!(", {} of the ceiling", percent(share))).unwrap_or_default();
        dot(&point.name, &what, point.bytes, point.ops, point.time.median_ms, !point.time.noise.is_empty(), &near)
    });
    plot(record, "Roofline".into(), dots.collect())
}

fn dot(name: &str, what: &str, bytes: f64, ops: f64, ms: f64, noisy: bool, more: &str) -> Option<Dot> {
    let (x, y) = (ops / bytes, ops / ms * 1e3);
    // A logarithm needs more than nothing: kernels that only move data have no place here.
    let shown = [x, y].iter().all(|value| value.is_finite() && *value > 0.0);
    let tip = format!(
        "{what}: {} ms, {}, {}, {} operations a byte{more}",
        number(ms),
        rate(y, "op/s"),
        rate(bytes / ms * 1e3, "B/s"),
        number(x)
    );
    shown.then(|| (name.to_owned(), Mark { x, y, tip, noisy }))
}

fn plot(record: &Record, title: String, dots: Vec<Dot>) -> Option<Block> {
    if dots.is_empty() {
        return None;
    }
    let names = distinct(dots.iter().map(|(name, _)| name));
    let series = keys(&names, SLOTS).into_iter().map(|key| {
        let marks = dots.iter().filter(|(name, _)| *name == key.name).map(|(_, mark)| mark.clone()).collect();
        Series { key, marks }
    });
    let usable = |value: f64| value.is_finite() && value > 0.0;
    let ceilings = record.ceilings.as_ref();
    let ops = ceilings.map(|c| {
        [("f32", c.f32_per_second), ("bf16", c.bf16_per_second.unwrap_or(0.0)), ("integer", c.integer_per_second)]
    });
    let ops = ops.into_iter().flatten().filter(|(_, value)| usable(*value)).map(|(name, value)| (name.into(), value));
    let drawing = Drawing::Roofline(Roofline {
        bytes_per_second: ceilings.map(|c| c.bytes_per_second).filter(|value| usable(*value)),
        ops_per_second: ops.collect(),
        series: series.collect(),
    });
    let caption = if ceilings.is_some() {
        "Each mark is a kernel; the lines are the most that plain loops or library calls reached in the same run. Left of a \
         bend memory limits, right of it arithmetic."
    } else {
        "Each mark is a kernel. The run did not measure what the machine can do at most."
    };
    Some(Block::Plot(Plot { title, caption: caption.into(), drawing }))
}
