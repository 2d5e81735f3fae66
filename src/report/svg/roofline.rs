//! Operations a byte against operations a second, both logarithmic, below the ceilings of the machine.

use super::canvas::{Anchor, Canvas, LETTER, coordinate};
use super::scale::{Scale, tick};
use crate::report::document::{Mark, Plot, Roofline, Unit};
use crate::report::format::prefixed;
use crate::report::html::escape;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 350.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = WIDTH - 16.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = HEIGHT - 48.0;

pub(super) fn draw(plot: &Plot, roofline: &Roofline, id: &str) -> String {
    let description = format!("{} Operations a second against operations a byte, both axes logarithmic.", plot.caption);
    let mut canvas = Canvas::new(id, WIDTH, HEIGHT, &plot.title, &description);
    let (x, y) = frame(roofline);
    let across = Scale::log(x.0, x.1, LEFT, RIGHT);
    let up = Scale::log(y.0, y.1, BOTTOM, TOP);
    for value in up.ticks(7) {
        let y = up.at(value);
        canvas.line(LEFT, y, RIGHT, y, "grid");
        canvas.text(LEFT - 8.0, y + 4.0, Anchor::End, "tick", &tick(value, Unit::Plain));
    }
    for value in across.ticks(8) {
        let x = across.at(value);
        canvas.line(x, TOP, x, BOTTOM, "grid");
        canvas.text(x, BOTTOM + 18.0, Anchor::Middle, "tick", &tick(value, Unit::Plain));
    }
    canvas.text((LEFT + RIGHT) / 2.0, HEIGHT - 8.0, Anchor::Middle, "axis-name", "operations a byte");
    canvas.upright(14.0, (TOP + BOTTOM) / 2.0, "operations a second");
    ceilings(&mut canvas, roofline, x, y, &across, &up);
    for series in &roofline.series {
        for mark in series.marks.iter().filter(|mark| shown(mark)) {
            canvas.mark(series.key.slot, across.at(mark.x), up.at(mark.y), mark.noisy, &mark.tip);
        }
    }
    canvas.finish()
}

fn shown(mark: &Mark) -> bool {
    [mark.x, mark.y].iter().all(|value| value.is_finite() && *value > 0.0)
}

type Ends = (f64, f64);

/// The ends of both axes, with room around all marks, ceilings and bends.
fn frame(roofline: &Roofline) -> (Ends, Ends) {
    let marks = || roofline.series.iter().flat_map(|series| &series.marks).filter(|mark| shown(mark));
    let bends = roofline.bytes_per_second.into_iter();
    let bends = bends.flat_map(|bytes| roofline.ops_per_second.iter().map(move |(_, ops)| ops / bytes));
    let ends = |values: &mut dyn Iterator<Item = f64>| {
        let (low, high) = values.fold((f64::INFINITY, 0.0f64), |(low, high), v| (low.min(v), high.max(v)));
        if high > 0.0 { (low / 2.0, high * 2.0) } else { (1.0, 10.0) }
    };
    let x = ends(&mut marks().map(|mark| mark.x).chain(bends));
    let y = ends(&mut marks().map(|mark| mark.y).chain(roofline.ops_per_second.iter().map(|(_, ops)| *ops)));
    (x, y)
}

fn ceilings(canvas: &mut Canvas, roofline: &Roofline, x: Ends, y: Ends, across: &Scale, up: &Scale) {
    let highest = roofline.ops_per_second.iter().map(|(_, ops)| *ops).fold(0.0, f64::max);
    for (name, ops) in &roofline.ops_per_second {
        let bend = roofline.bytes_per_second.map_or(x.0, |bytes| (ops / bytes).max(x.0));
        let height = up.at(*ops);
        canvas.line(across.at(bend), height, across.at(x.1), height, "ceiling");
        let text = format!("{name}: {}op/s", prefixed(*ops));
        // Behind the bend, where few kernels are; at the end where that is too short.
        let room = RIGHT - across.at(bend);
        // Below the line where the slope goes on above it.
        let y = if *ops < highest { height + 14.0 } else { height - 5.0 };
        if room > text.chars().count() as f64 * LETTER + 20.0 {
            canvas.text(across.at(bend) + 14.0, y, Anchor::Start, "ceiling-name", &text);
        } else {
            canvas.text(RIGHT - 4.0, y, Anchor::End, "ceiling-name", &text);
        }
    }
    let Some(bytes) = roofline.bytes_per_second else { return };
    // From where the slope enters the frame to the last bend, or to where it leaves.
    let start = x.0.max(y.0 / bytes);
    let end = if highest > 0.0 { (highest / bytes).min(x.1) } else { x.1.min(y.1 / bytes) };
    if end <= start {
        return;
    }
    let (from, to) = ((across.at(start), up.at(start * bytes)), (across.at(end), up.at(end * bytes)));
    canvas.line(from.0, from.1, to.0, to.1, "ceiling");
    let angle = (to.1 - from.1).atan2(to.0 - from.0).to_degrees();
    let (cx, cy) = ((from.0 + to.0) / 2.0, (from.1 + to.1) / 2.0);
    canvas.raw(&format!(
        "<text class=\"ceiling-name\" text-anchor=\"middle\" transform=\"translate({} {}) rotate({}) translate(0 -6)\">{}</text>",
        coordinate(cx),
        coordinate(cy),
        coordinate(angle),
        escape(&format!("memory: {}B/s", prefixed(bytes)))
    ));
}
