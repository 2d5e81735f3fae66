//! Lines through points.

use super::canvas::{Anchor, Canvas};
use super::scale::{Scale, tick};
use crate::report::document::{Lines, Mark, Plot, Unit};
use crate::report::format::number;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = WIDTH - 16.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = HEIGHT - 48.0;
/// Points stand this far inside of the frame.
const INSET: f64 = 26.0;
/// More values across than these get round numbers instead of a tick each.
const MOST_TICKS: usize = 9;

pub(super) fn draw(plot: &Plot, lines: &Lines, id: &str) -> String {
    let marks = || lines.series.iter().flat_map(|series| &series.marks).filter(|mark| shown(mark));
    let description = format!("{} {} against {}.", plot.caption, lines.y_label, lines.x_label);
    let mut canvas = Canvas::new(id, WIDTH, HEIGHT, &plot.title, &description);
    let across = across(marks());
    let up = up(marks(), lines.reference);
    let mut values: Vec<f64> = marks().map(|mark| mark.x).collect();
    values.sort_by(f64::total_cmp);
    values.dedup();
    let ticks = if values.len() <= MOST_TICKS { values } else { across.ticks(7) };
    for value in up.ticks(5) {
        let y = up.at(value);
        canvas.line(LEFT, y, RIGHT, y, "grid");
        canvas.text(LEFT - 8.0, y + 4.0, Anchor::End, "tick", &tick(value, lines.unit));
    }
    for value in ticks {
        let x = across.at(value);
        canvas.line(x, TOP, x, BOTTOM, "grid");
        canvas.text(x, BOTTOM + 18.0, Anchor::Middle, "tick", &tick(value, Unit::Plain));
    }
    canvas.line(LEFT, BOTTOM, RIGHT, BOTTOM, "axis");
    if let Some(value) = lines.reference {
        let y = up.at(value);
        canvas.line(LEFT, y, RIGHT, y, "reference");
        canvas.text(RIGHT - 4.0, y - 5.0, Anchor::End, "reference-name", &format!("{}x", number(value)));
    }
    canvas.text((LEFT + RIGHT) / 2.0, HEIGHT - 8.0, Anchor::Middle, "axis-name", &lines.x_label);
    canvas.upright(14.0, (TOP + BOTTOM) / 2.0, &lines.y_label);
    for series in &lines.series {
        let points: Vec<(f64, f64)> =
            series.marks.iter().filter(|mark| shown(mark)).map(|mark| (across.at(mark.x), up.at(mark.y))).collect();
        canvas.polyline(&points, &format!("series s{}", series.key.slot % super::SLOTS));
        for (mark, (x, y)) in series.marks.iter().filter(|mark| shown(mark)).zip(points) {
            canvas.mark(series.key.slot, x, y, mark.noisy, &mark.tip);
        }
    }
    canvas.finish()
}

fn shown(mark: &Mark) -> bool {
    mark.x.is_finite() && mark.y.is_finite()
}

fn ends(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
}

/// Batches double, so that a logarithm sets them evenly.
fn across<'a>(marks: impl Iterator<Item = &'a Mark>) -> Scale {
    let (low, high) = ends(marks.map(|mark| mark.x));
    let (from, to) = (LEFT + INSET, RIGHT - INSET);
    if low > 0.0 && high / low >= 4.0 {
        Scale::log(low, high, from, to)
    } else if low < high {
        Scale::linear(low, high, from, to)
    } else {
        Scale::linear(low - 1.0, low + 1.0, from, to)
    }
}

/// From nothing upwards, unless that would press most points onto the floor.
fn up<'a>(marks: impl Iterator<Item = &'a Mark>, reference: Option<f64>) -> Scale {
    let (low, high) = ends(marks.map(|mark| mark.y).chain(reference));
    if low > 0.0 && high / low > 100.0 {
        Scale::log(low / 1.5, high * 1.5, BOTTOM, TOP)
    } else {
        Scale::linear(low.min(0.0), high + (high - low.min(0.0)) * 0.08, BOTTOM, TOP)
    }
}
