//! Plots of layers and models.

use super::document::{Bar, Bars, Block, Drawing, Lines, Mark, Plot, Series, Unit, keys};
use super::format::{bytes, factor, number, percent};
use super::speed::{is_float, phase_name, point_name};
use super::svg::SLOTS;
use crate::bench::{Phase, SpeedPoint};

/// More bars than this are no picture any more; the table has them all.
pub(super) const MOST_BARS: usize = 64;

/// What a method is called in plots: its bits too where it was run at several.
fn names(points: &[&SpeedPoint]) -> Vec<String> {
    let several = |point: &SpeedPoint| points.iter().any(|p| p.method == point.method && p.bits != point.bits);
    let name = |point: &&SpeedPoint| {
        if several(point) { format!("{} {}", point.method, point.bits) } else { point.method.clone() }
    };
    points.iter().map(name).collect()
}

/// Distinct strings in the order of their first appearance.
pub(super) fn distinct<'a>(all: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut seen = std::collections::BTreeSet::new();
    all.filter(|name| seen.insert(name.as_str())).cloned().collect()
}

/// Speed-up against batch, a line a method.
pub(super) fn speedup(points: &[&SpeedPoint], phase: Phase) -> Option<Block> {
    let names = names(points);
    let known = || points.iter().zip(&names).filter(|(p, _)| p.speedup.is_some_and(f64::is_finite) && !is_float(p));
    let methods = distinct(known().map(|(_, name)| name));
    if methods.is_empty() {
        return None;
    }
    let series = keys(&methods, SLOTS).into_iter().map(|key| {
        let own = known().filter(|(_, name)| **name == key.name);
        let mut marks: Vec<Mark> = own
            .map(|(point, _)| Mark {
                x: point.batch as f64,
                y: point.speedup.unwrap_or_default(),
                tip: format!(
                    "{}: {} over floating point, {} ms{}",
                    point_name(point),
                    factor(point.speedup.unwrap_or_default()),
                    number(point.time.median_ms),
                    if point.time.noise.is_empty() { "" } else { "; noisy" }
                ),
                noisy: !point.time.noise.is_empty(),
            })
            .collect();
        marks.sort_by(|a, b| a.x.total_cmp(&b.x));
        Series { key, marks }
    });
    let drawing = Drawing::Lines(Lines {
        x_label: "batch".into(),
        y_label: "speed-up over floating point".into(),
        unit: Unit::Times,
        reference: Some(1.0),
        series: series.collect(),
    });
    let caption =
        "Higher is better; the dashed line is floating point itself. A hollow mark was measured on a noisy machine.";
    Some(Block::Plot(Plot { title: format!("Speed-up, {}", phase_name(phase)), caption: caption.into(), drawing }))
}

/// Memory by purpose, a bar a method and batch.
pub(super) fn memory(points: &[&SpeedPoint], phase: Phase) -> Option<Block> {
    let names = names(points);
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by_key(|&i| (points[i].batch, points[i].length));
    let parts = ["weights", "activations", "KV cache", "workspace"].map(String::from);
    let mut rows: Vec<Bar> = Vec::new();
    let mut group = String::new();
    for i in order.into_iter().take(MOST_BARS) {
        let (point, memory) = (points[i], &points[i].memory);
        let heading = format!("batch {}", point.batch);
        let values = [memory.weights, memory.activations, memory.kv_cache, memory.workspace];
        let tips = parts
            .iter()
            .zip(values)
            .map(|(part, value)| format!("{}: {part} {}", point_name(point), bytes(value as f64)));
        rows.push(Bar {
            group: if heading == group { String::new() } else { heading.clone() },
            label: names[i].clone(),
            tips: tips.collect(),
            values: values.map(|value| value as f64).to_vec(),
            // Summed as floating point: a file may claim sizes whose sum is none.
            total: bytes(values.iter().map(|&value| value as f64).sum()),
            slot: None,
        });
        group = heading;
    }
    let shown = rows.len();
    if shown == 0 {
        return None;
    }
    let drawing = Drawing::Bars(Bars {
        label: "bytes held at once".into(),
        unit: Unit::Bytes,
        log: false,
        reference: None,
        parts: keys(&parts, SLOTS),
        rows,
    });
    let caption = format!("Lower is better.{}", left_out(shown, points.len()));
    Some(Block::Plot(Plot { title: format!("Memory by purpose, {}", phase_name(phase)), caption, drawing }))
}

/// Shares of kernels in one run, a bar a method, at the smallest and the largest batch.
pub(super) fn shares(points: &[&SpeedPoint], phase: Phase) -> Option<Block> {
    let timed: Vec<&SpeedPoint> = points.iter().copied().filter(|p| !p.kernels.is_empty()).collect();
    let (least, most) = (timed.iter().map(|p| p.batch).min()?, timed.iter().map(|p| p.batch).max()?);
    let mut chosen: Vec<&SpeedPoint> = timed.iter().copied().filter(|p| p.batch == least || p.batch == most).collect();
    chosen.sort_by_key(|point| point.batch);
    let names = names(&chosen);
    let of = |point: &SpeedPoint, name: &str| -> f64 {
        point.kernels.iter().filter(|k| k.name == name).map(|k| k.ms).filter(|ms| ms.is_finite() && *ms > 0.0).sum()
    };
    let mut kernels = distinct(chosen.iter().flat_map(|p| &p.kernels).map(|kernel| &kernel.name));
    // The largest get a colour of their own, the rest share one.
    let share =
        |name: &String| -> f64 { chosen.iter().map(|p| of(p, name) / total(p)).filter(|s| s.is_finite()).sum() };
    if kernels.len() > SLOTS {
        kernels.sort_by(|a, b| share(b).total_cmp(&share(a)));
        kernels.truncate(SLOTS - 1);
        kernels.push("others".into());
    }
    let (mut rows, mut group) = (Vec::new(), None);
    for (point, name) in chosen.iter().zip(names).take(MOST_BARS) {
        let sum = total(point);
        let mut values: Vec<f64> = kernels.iter().map(|kernel| of(point, kernel) / sum * 100.0).collect();
        if let Some(last) = values.last_mut().filter(|_| kernels.last().is_some_and(|k| k == "others")) {
            *last = 0.0;
            let named: f64 = kernels.iter().take(SLOTS - 1).map(|kernel| of(point, kernel) / sum * 100.0).sum();
            *last = (100.0 - named).max(0.0);
        }
        let tips = kernels.iter().zip(&values).map(|(kernel, share)| {
            format!("{}: {kernel} {} of {} ms", point_name(point), percent(share / 100.0), number(sum))
        });
        rows.push(Bar {
            group: if group == Some(point.batch) { String::new() } else { format!("batch {}", point.batch) },
            label: name,
            tips: tips.collect(),
            values,
            total: format!("{} ms", number(sum)),
            slot: None,
        });
        group = Some(point.batch);
    }
    let drawing = Drawing::Bars(Bars {
        label: "share of the kernels' time".into(),
        unit: Unit::Percent,
        log: false,
        reference: None,
        parts: keys(&kernels, SLOTS),
        rows,
    });
    let batches = if least < most { " At the smallest and the largest batch." } else { "" };
    let caption = format!("One run, timed kernel by kernel; its time stands behind the bar.{batches}");
    Some(Block::Plot(Plot { title: format!("Where the time goes, {}", phase_name(phase)), caption, drawing }))
}

fn total(point: &SpeedPoint) -> f64 {
    point.kernels.iter().map(|kernel| kernel.ms).filter(|ms| ms.is_finite() && *ms > 0.0).sum()
}

/// Says that the table has more than the plot.
pub(super) fn left_out(shown: usize, all: usize) -> String {
    if shown < all { format!(" {shown} of {all} are shown; the table has all.") } else { String::new() }
}
