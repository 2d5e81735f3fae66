//! Drawings as SVG inside a page: colours come from the page's style sheet, so that they follow its theme.

mod bars;
mod canvas;
mod lines;
mod png;
mod roofline;
mod scale;
mod surface;

use super::document::{Drawing, Key, Plot};
use canvas::Canvas;

/// Colours and marks of the palette; the style sheet has a `.s0`, `.s1`, .. for each.
pub(super) const SLOTS: usize = 8;

/// A plot as `<svg>` elements with titles and descriptions; `id` is unique in the page.
pub(super) fn draw(plot: &Plot, id: &str) -> String {
    match &plot.drawing {
        Drawing::Lines(lines) => lines::draw(plot, lines, id),
        Drawing::Bars(bars) => bars::draw(plot, bars, id),
        Drawing::Roofline(roofline) => roofline::draw(plot, roofline, id),
        Drawing::Outliers(picture) => surface::draw(plot, picture, id),
    }
}

/// What a plot's legend names, and whether its keys are marks or patches of colour.
pub(super) fn legend(drawing: &Drawing) -> (Vec<&Key>, bool) {
    match drawing {
        Drawing::Lines(lines) => (lines.series.iter().map(|series| &series.key).collect(), true),
        Drawing::Roofline(roofline) => (roofline.series.iter().map(|series| &series.key).collect(), true),
        Drawing::Bars(bars) if bars.parts.len() > 1 => (bars.parts.iter().collect(), false),
        Drawing::Bars(_) | Drawing::Outliers(_) => (Vec::new(), false),
    }
}

/// The little picture before a name in a legend.
pub(super) fn legend_mark(slot: usize, mark: bool) -> String {
    let mut canvas = Canvas::key();
    if mark {
        canvas.mark(slot, 7.0, 7.0, false, "");
    } else {
        canvas.rect(1.0, 1.0, 12.0, 12.0, &format!("fill s{}", slot % SLOTS), "");
    }
    canvas.finish()
}
