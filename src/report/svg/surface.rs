//! Magnitudes over channels and tokens as surfaces, as in the paper's figures 1 and 2, and as heat maps below them.

use super::canvas::{Anchor, Canvas, coordinate};
use super::png::{base64, png};
use crate::report::document::{Picture, PictureStep, Plot};
use crate::report::format::number;
use std::fmt::Write;

/// One step's part of the drawing.
const PANEL: f64 = 236.0;
const HEIGHT: f64 = 408.0;
/// The front left corner of the floor.
const CORNER: (f64, f64) = (42.0, 190.0);
/// Along the channels the floor is so wide.
const ACROSS: f64 = 134.0;
/// The tokens go into the depth, to the right and up.
const DEPTH: (f64, f64) = (52.0, -46.0);
/// How high the largest magnitude stands.
const TALL: f64 = 104.0;
/// Units of a path in that height: whole numbers keep paths short.
const UNITS: f64 = 250.0;
/// Points of a ridge, and ridges of a surface.
const MOST_POINTS: usize = 96;
const MOST_RIDGES: usize = 36;
/// The heat map.
const MAP: (f64, f64, f64, f64) = (42.0, 238.0, 186.0, 96.0);
/// Colours of a heat map.
const COLOURS: usize = 64;

pub(super) fn draw(plot: &Plot, picture: &Picture, id: &str) -> String {
    let width = PANEL * picture.steps.len() as f64;
    let steps = picture
        .steps
        .iter()
        .map(|step| format!("{}: largest {}, median {}", step.name, number(step.max), number(step.median)));
    let description = format!("{} {}.", plot.caption, steps.collect::<Vec<_>>().join("; "));
    let mut canvas = Canvas::new(id, width, HEIGHT, &plot.title, &description);
    for (i, step) in picture.steps.iter().enumerate() {
        canvas.raw(&format!("<g class=\"step\" transform=\"translate({} 0)\">", coordinate(i as f64 * PANEL)));
        canvas.label(8.0, 16.0, Anchor::Start, "group", &step.name, PANEL - 16.0);
        let numbers = format!("max {}, median {}", number(step.max), number(step.median));
        canvas.label(8.0, 33.0, Anchor::Start, "tick", &numbers, PANEL - 16.0);
        surface(&mut canvas, picture, step, &format!("{id}-g{i}"));
        heat_map(&mut canvas, picture, step, i == 0);
        canvas.raw("</g>");
    }
    colour_bar(&mut canvas, picture, &format!("{id}-bar"));
    canvas.finish()
}

/// A magnitude's place on the common scale of colours, 0 to 1.
fn place(picture: &Picture, value: f64) -> f64 {
    let share = if picture.log {
        (value / picture.floor).max(1.0).ln() / (picture.ceiling / picture.floor).ln()
    } else {
        value / picture.ceiling
    };
    // Everything is 0, or all of it is.
    if share.is_nan() { 0.0 } else { share.clamp(0.0, 1.0) }
}

/// Viridis (CC0, from matplotlib) at every eighth: told apart by lightness alone, so without any sense of colour too.
const VIRIDIS: [[f64; 3]; 9] = [
    [68.0, 1.0, 84.0],
    [71.0, 45.0, 123.0],
    [59.0, 82.0, 139.0],
    [44.0, 114.0, 142.0],
    [33.0, 145.0, 140.0],
    [40.0, 174.0, 128.0],
    [94.0, 201.0, 98.0],
    [173.0, 220.0, 48.0],
    [253.0, 231.0, 37.0],
];

fn colour(share: f64) -> [u8; 3] {
    let at = share.clamp(0.0, 1.0) * 8.0;
    let low = (at as usize).min(7);
    let part = at - low as f64;
    std::array::from_fn(|i| (VIRIDIS[low][i] + (VIRIDIS[low + 1][i] - VIRIDIS[low][i]) * part).round() as u8)
}

fn hex([r, g, b]: [u8; 3]) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// The largest of what each cell of a smaller grid covers.
fn pooled(step: &PictureStep, columns: usize, rows: usize) -> Vec<f32> {
    let mut grid = vec![0.0f32; columns * rows];
    for (i, &value) in step.grid.iter().enumerate() {
        let (row, column) = (i / step.columns * rows / step.rows, i % step.columns * columns / step.columns);
        if let Some(cell) = grid.get_mut(row * columns + column) {
            *cell = cell.max(value);
        }
    }
    grid
}

/// The surface as ridges, a token each, the farthest first. A ridge is filled by a gradient in its height, which is exact.
fn surface(canvas: &mut Canvas, picture: &Picture, step: &PictureStep, gradient: &str) {
    let (columns, rows) = (step.columns.clamp(1, MOST_POINTS), step.rows.clamp(1, MOST_RIDGES));
    let grid = pooled(step, columns, rows);
    let top = grid.iter().fold(step.max, |top, value| top.max(f64::from(*value)));
    let top = if top > 0.0 { top } else { 1.0 };
    let mut stops = format!(
        "<linearGradient id=\"{gradient}\" gradientUnits=\"userSpaceOnUse\" x1=\"0\" y1=\"0\" x2=\"0\" y2=\"-{UNITS}\">"
    );
    // Dense where a logarithm changes fast.
    for offset in [0.0, 0.004, 0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0] {
        let _ =
            write!(stops, "<stop offset=\"{offset}\" stop-color=\"{}\"/>", hex(colour(place(picture, offset * top))));
    }
    canvas.raw(&format!("{stops}</linearGradient>"));
    let (x, y) = CORNER;
    // The floor and the two walls behind it.
    let corners = [(0.0, 0.0), (ACROSS, 0.0), (ACROSS + DEPTH.0, DEPTH.1), DEPTH];
    let floor: Vec<(f64, f64)> = corners.iter().map(|(dx, dy)| (x + dx, y + dy)).collect();
    let path: Vec<String> = floor.iter().map(|(x, y)| format!("{} {}", coordinate(*x), coordinate(*y))).collect();
    // In the colour of nothing, which is what shows where all ridges lie flat.
    canvas.raw(&format!("<path class=\"floor\" fill=\"{}\" d=\"M{}z\"/>", hex(colour(0.0)), path.join("L")));
    for height in [0.5, 1.0] {
        let wall = [(0.0, 0.0), DEPTH, (ACROSS + DEPTH.0, DEPTH.1)];
        let wall: Vec<(f64, f64)> = wall.iter().map(|(dx, dy)| (x + dx, y + dy - TALL * height)).collect();
        canvas.polyline(&wall, "wall");
    }
    let (across, up) = (ACROSS / columns.saturating_sub(1).max(1) as f64, TALL / UNITS);
    for (row, ridge) in grid.chunks(columns).enumerate().rev() {
        let depth = row as f64 / rows.saturating_sub(1).max(1) as f64;
        let _ = write_ridge(canvas, ridge, top, gradient, (x + DEPTH.0 * depth, y + DEPTH.1 * depth), (across, up));
    }
    canvas.line(x, y, x, y - TALL, "axis");
    canvas.text(x - 5.0, y - TALL + 4.0, Anchor::End, "tick", &number(top));
    canvas.text(x - 5.0, y + 4.0, Anchor::End, "tick", "0");
    canvas.text(x + ACROSS / 2.0, y + 16.0, Anchor::Middle, "axis-name", "channels");
    canvas.text(PANEL - 2.0, y + 2.0, Anchor::End, "axis-name", "tokens");
}

fn write_ridge(
    canvas: &mut Canvas,
    ridge: &[f32],
    top: f64,
    gradient: &str,
    (x, y): (f64, f64),
    (across, up): (f64, f64),
) -> std::fmt::Result {
    let mut path = String::from("M0 0");
    let mut before = 0;
    for (i, value) in ridge.iter().enumerate() {
        let height = (f64::from(*value) / top * UNITS).round() as i64;
        // Relative to the last point: one to the right and up by the difference.
        write!(path, "{}{} {}", if i == 0 { "l" } else { " " }, i.min(1), before - height)?;
        before = height;
    }
    // A single channel is drawn one wide.
    if ridge.len() == 1 {
        path.push_str("h1");
    }
    path.push_str("V0z");
    canvas.raw(&format!(
        "<path class=\"ridge\" fill=\"url(#{gradient})\" transform=\"translate({} {}) scale({across:.4} {up:.4})\" d=\"{path}\"/>",
        coordinate(x),
        coordinate(y)
    ));
    Ok(())
}

fn heat_map(canvas: &mut Canvas, picture: &Picture, step: &PictureStep, first: bool) {
    let (x, y, width, height) = MAP;
    let palette: Vec<[u8; 3]> = (0..COLOURS).map(|i| colour(i as f64 / (COLOURS - 1) as f64)).collect();
    let index = |value: &f32| (place(picture, f64::from(*value)) * (COLOURS - 1) as f64).round() as u8;
    // The first token at the bottom, as on the surface above.
    let indices: Vec<u8> = step.grid.chunks(step.columns.max(1)).rev().flatten().map(index).collect();
    let data = base64(&png(step.columns, &indices, &palette));
    canvas.raw(&format!(
        "<image class=\"map\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" preserveAspectRatio=\"none\" \
         href=\"data:image/png;base64,{data}\"><title>{}</title></image>",
        crate::report::html::escape(&format!(
            "{}: largest {}, median {}",
            step.name,
            number(step.max),
            number(step.median)
        ))
    ));
    canvas.rect(x, y, width, height, "frame", "");
    canvas.text(x, y + height + 15.0, Anchor::Start, "tick", "0");
    canvas.text(x + width, y + height + 15.0, Anchor::End, "tick", &(picture.channels.saturating_sub(1)).to_string());
    canvas.text(x + width / 2.0, y + height + 15.0, Anchor::Middle, "axis-name", "channels");
    if first {
        canvas.upright(24.0, y + height / 2.0, &format!("{} tokens", picture.tokens));
    }
}

fn colour_bar(canvas: &mut Canvas, picture: &Picture, gradient: &str) {
    let (x, width) = (MAP.0, MAP.2);
    let mut stops = format!("<linearGradient id=\"{gradient}\">");
    for i in 0..=8 {
        let share = f64::from(i) / 8.0;
        let _ = write!(stops, "<stop offset=\"{share}\" stop-color=\"{}\"/>", hex(colour(share)));
    }
    let y = HEIGHT - 38.0;
    canvas.raw(&format!(
        "{stops}</linearGradient><rect class=\"scale\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"10\" fill=\"url(#{gradient})\"/>"
    ));
    let name = if picture.log { "|x|, logarithmic" } else { "|x|" };
    canvas.text(x, y + 24.0, Anchor::Start, "tick", &number(picture.floor));
    canvas.text(x + width, y + 24.0, Anchor::End, "tick", &number(picture.ceiling));
    canvas.text(x + width / 2.0, y + 24.0, Anchor::Middle, "axis-name", name);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_run_over_the_whole_scale() {
        assert_eq!(colour(0.0), [68, 1, 84]);
        assert_eq!(colour(1.0), [253, 231, 37]);
        assert_eq!(colour(0.5), [33, 145, 140]);
        let mut picture = Picture { channels: 1, tokens: 1, log: true, floor: 0.1, ceiling: 1000.0, steps: Vec::new() };
        assert_eq!(place(&picture, 0.01), 0.0);
        assert!((place(&picture, 10.0) - 0.5).abs() < 1e-9);
        picture = Picture { log: false, floor: 0.0, ceiling: 0.0, ..picture };
        assert_eq!(place(&picture, 0.0), 0.0);
    }
}
