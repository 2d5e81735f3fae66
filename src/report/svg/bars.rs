//! Horizontal bars of one or more parts.

use super::canvas::{Anchor, Canvas, LETTER};
use super::scale::{Scale, tick};
use crate::report::document::{Bar, Bars, Plot, Unit};

const WIDTH: f64 = 560.0;
const ROW: f64 = 24.0;
const THICK: f64 = 16.0;
const HEADING: f64 = 24.0;
const TOP: f64 = 8.0;
/// Below the last bar: ticks and the name of the axis.
const FOOT: f64 = 44.0;
/// Part names and totals get at most this.
const MOST_LABEL: f64 = 220.0;

pub(super) fn draw(plot: &Plot, bars: &Bars, id: &str) -> String {
    let headings = bars.rows.iter().filter(|row| !row.group.is_empty()).count();
    let bottom = TOP + bars.rows.len() as f64 * ROW + headings as f64 * HEADING;
    let height = bottom + FOOT;
    let longest = |texts: &mut dyn Iterator<Item = usize>| (texts.max().unwrap_or(0) as f64 * LETTER).min(MOST_LABEL);
    let left = longest(&mut bars.rows.iter().map(|row| row.label.chars().count())) + 18.0;
    let right = WIDTH - longest(&mut bars.rows.iter().map(|row| row.total.chars().count())) - 18.0;
    let scale = scale(bars, left, right);
    let description = format!("{} Bars of {}.", plot.caption, bars.label);
    let mut canvas = Canvas::new(id, WIDTH, height, &plot.title, &description);
    // Beneath the bars: lines at round numbers, with as many numbers as there is room for.
    for value in scale.ticks(((right - left) / 80.0) as usize) {
        let x = scale.at(value);
        canvas.line(x, TOP, x, bottom, "grid");
        canvas.text(x, bottom + 16.0, Anchor::Middle, "tick", &tick(value, bars.unit));
    }
    let name = if bars.log { format!("{} (logarithmic)", bars.label) } else { bars.label.clone() };
    canvas.text((left + right) / 2.0, height - 8.0, Anchor::Middle, "axis-name", &name);
    let mut y = TOP;
    for row in &bars.rows {
        if !row.group.is_empty() {
            canvas.label(4.0, y + 17.0, Anchor::Start, "group", &row.group, WIDTH - 8.0);
            y += HEADING;
        }
        bar(&mut canvas, bars, row, &scale, (left, right), y);
        y += ROW;
    }
    canvas.line(left, TOP, left, bottom, "axis");
    if let Some((name, value)) = &bars.reference {
        let x = scale.at(*value);
        let text = format!("<title>{}: {}</title>", crate::report::html::escape(name), tick(*value, bars.unit));
        canvas.raw(&format!("<g>{text}"));
        canvas.line(x, TOP, x, bottom, "reference");
        canvas.raw("</g>");
    }
    canvas.finish()
}

fn length(value: f64) -> f64 {
    if value.is_nan() { 0.0 } else { value.clamp(0.0, 1e300) }
}

fn sum(row: &Bar) -> f64 {
    row.values.iter().map(|value| length(*value)).sum()
}

fn scale(bars: &Bars, left: f64, right: f64) -> Scale {
    let most = bars.rows.iter().map(sum).fold(0.0, f64::max);
    let reference = bars.reference.as_ref().map_or(0.0, |(_, value)| length(*value));
    if bars.log {
        let values = bars.rows.iter().map(sum).chain([reference]).filter(|value| *value > 0.0);
        return Scale::log(values.fold(most, f64::min) / 1.5, most.max(reference), left, right);
    }
    let most = if bars.unit == Unit::Percent { 100.0 } else { most.max(reference) };
    Scale::linear(0.0, if most > 0.0 { most } else { 1.0 }, left, right)
}

fn bar(canvas: &mut Canvas, bars: &Bars, row: &Bar, scale: &Scale, (left, right): (f64, f64), y: f64) {
    canvas.label(left - 8.0, y + ROW / 2.0 + 4.0, Anchor::End, "label", &row.label, MOST_LABEL);
    let top = y + (ROW - THICK) / 2.0;
    let (mut from, mut before) = (left, 0.0);
    for (i, value) in row.values.iter().map(|value| length(*value)).enumerate() {
        before += value;
        let to = scale.at(before);
        if value > 0.0 {
            let slot = row.slot.or_else(|| bars.parts.get(i).map(|part| part.slot)).unwrap_or(0);
            let tip = row.tips.get(i).map_or("", String::as_str);
            // However small, a part can be seen and pointed at.
            canvas.rect(from, top, (to - from).max(0.6), THICK, &format!("bar fill s{}", slot % super::SLOTS), tip);
            let text = tick(value.round(), bars.unit);
            if bars.unit == Unit::Percent && to - from > text.chars().count() as f64 * LETTER + 8.0 {
                canvas.text((from + to) / 2.0, y + ROW / 2.0 + 4.0, Anchor::Middle, "in-bar", &text);
            }
        }
        from = to;
    }
    canvas.label(from + 6.0, y + ROW / 2.0 + 4.0, Anchor::Start, "total", &row.total, (WIDTH - right).max(60.0));
}
