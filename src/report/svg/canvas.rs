//! Writes SVG: every number and every text of a drawing passes through here.

use super::SLOTS;
use crate::report::format::shorten;
use crate::report::html::escape;
use std::fmt::Write;

/// Width of a letter at the size of labels, near enough for any sans-serif font.
pub(super) const LETTER: f64 = 7.2;

/// A drawing under way.
pub(super) struct Canvas {
    out: String,
}

/// Where a text stands beside its point.
#[derive(Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

impl Canvas {
    /// A drawing of a size in pixels, which shrinks with the page.
    pub(super) fn new(id: &str, width: f64, height: f64, title: &str, description: &str) -> Self {
        let (w, h) = (coordinate(width), coordinate(height));
        let out = format!(
            "<svg class=\"plot\" id=\"{id}\" viewBox=\"0 0 {w} {h}\" width=\"{w}\" height=\"{h}\" role=\"img\" \
             aria-labelledby=\"{id}-t {id}-d\"><title id=\"{id}-t\">{}</title><desc id=\"{id}-d\">{}</desc>",
            escape(title),
            escape(description)
        );
        Self { out }
    }

    /// The mark of a legend, which says nothing by itself.
    pub(super) fn key() -> Self {
        Self { out: "<svg class=\"key\" viewBox=\"0 0 14 14\" width=\"14\" height=\"14\" aria-hidden=\"true\">".into() }
    }

    pub(super) fn finish(mut self) -> String {
        self.out.push_str("</svg>");
        self.out
    }

    /// Something that is written already.
    pub(super) fn raw(&mut self, svg: &str) {
        self.out.push_str(svg);
    }

    pub(super) fn line(&mut self, x1: f64, y1: f64, x2: f64, y2: f64, class: &str) {
        let (x1, y1, x2, y2) = (coordinate(x1), coordinate(y1), coordinate(x2), coordinate(y2));
        let _ = write!(self.out, "<path class=\"{class}\" d=\"M{x1} {y1}L{x2} {y2}\"/>");
    }

    /// A line through several points.
    pub(super) fn polyline(&mut self, points: &[(f64, f64)], class: &str) {
        if points.len() < 2 {
            return;
        }
        let mut path = String::new();
        for (i, (x, y)) in points.iter().enumerate() {
            let _ = write!(path, "{}{} {}", if i == 0 { 'M' } else { 'L' }, coordinate(*x), coordinate(*y));
        }
        let _ = write!(self.out, "<path class=\"{class}\" d=\"{path}\"/>");
    }

    pub(super) fn rect(&mut self, x: f64, y: f64, width: f64, height: f64, class: &str, tip: &str) {
        let (x, y, w, h) = (coordinate(x), coordinate(y), coordinate(width.max(0.0)), coordinate(height.max(0.0)));
        let _ = write!(self.out, "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\"");
        self.end("rect", tip);
    }

    pub(super) fn text(&mut self, x: f64, y: f64, anchor: Anchor, class: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let (x, y) = (coordinate(x), coordinate(y));
        let text = escape(text);
        let _ = write!(self.out, "<text class=\"{class}\" x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{text}</text>");
    }

    /// A label that has room for so many pixels; cut off, it says all when pointed at.
    pub(super) fn label(&mut self, x: f64, y: f64, anchor: Anchor, class: &str, text: &str, room: f64) {
        let short = shorten(text, ((room / LETTER) as usize).max(3));
        if short == text {
            self.text(x, y, anchor, class, text);
        } else {
            let _ = write!(self.out, "<g><title>{}</title>", escape(text));
            self.text(x, y, anchor, class, &short);
            self.out.push_str("</g>");
        }
    }

    /// A text that runs upwards, in the middle of `y`.
    pub(super) fn upright(&mut self, x: f64, y: f64, text: &str) {
        let (x, y) = (coordinate(x), coordinate(y));
        let _ = write!(
            self.out,
            "<text class=\"axis-name\" transform=\"translate({x} {y}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            escape(text)
        );
    }

    /// The mark of a slot: shape as well as colour tells one from another. Hollow ones are doubtful.
    pub(super) fn mark(&mut self, slot: usize, x: f64, y: f64, hollow: bool, tip: &str) {
        let slot = slot % SLOTS;
        let class = if hollow { "hollow" } else { "fill" };
        let (cx, cy) = (coordinate(x), coordinate(y));
        // Relative to the middle, each about as heavy as the others.
        let path = match slot {
            0 => None,
            1 => Some("m-4.4 -4.4h8.8v8.8h-8.8z"),
            2 => Some("m0 -5.6l5.2 9h-10.4z"),
            3 => Some("m0 5.6l5.2 -9h-10.4z"),
            4 => Some("m0 -6l6 6l-6 6l-6 -6z"),
            5 => Some("m-1.8 -5.4h3.6v3.6h3.6v3.6h-3.6v3.6h-3.6v-3.6h-3.6v-3.6h3.6z"),
            6 => Some("m0 -5.8l5 2.9v5.8l-5 2.9l-5 -2.9v-5.8z"),
            _ => Some("m0 -6l1.8 3.6l4 .6l-2.9 2.8l.7 4l-3.6 -1.9l-3.6 1.9l.7 -4l-2.9 -2.8l4 -.6z"),
        };
        match path {
            None => {
                let _ = write!(self.out, "<circle class=\"mark {class} s{slot}\" cx=\"{cx}\" cy=\"{cy}\" r=\"5\"");
                self.end("circle", tip);
            }
            Some(path) => {
                let _ = write!(self.out, "<path class=\"mark {class} s{slot}\" d=\"M{cx} {cy}{path}\"");
                self.end("path", tip);
            }
        }
    }

    /// Ends an element, with a remark inside it where there is one.
    fn end(&mut self, element: &str, tip: &str) {
        if tip.is_empty() {
            self.out.push_str("/>");
        } else {
            let _ = write!(self.out, "><title>{}</title></{element}>", escape(tip));
        }
    }
}

/// A coordinate with a decimal. What is no number, or far outside of any drawing, is put at a border of it: a browser
/// drops the whole element otherwise.
pub(super) fn coordinate(value: f64) -> String {
    let value = if value.is_nan() { 0.0 } else { value.clamp(-1e5, 1e5) };
    let rounded = (value * 10.0).round() / 10.0;
    // No minus before a zero.
    format!("{}", if rounded == 0.0 { 0.0 } else { rounded })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coordinates_are_always_numbers() {
        let cases = [(f64::NAN, "0"), (f64::INFINITY, "100000"), (-1e300, "-100000"), (-0.01, "0"), (12.34, "12.3")];
        for (value, text) in cases {
            assert_eq!(coordinate(value), text);
        }
    }

    #[test]
    fn text_and_tips_are_escaped() {
        let mut canvas = Canvas::new("p", 10.0, 10.0, "<t>", "&");
        canvas.label(0.0, 0.0, Anchor::Start, "c", "<b>\"x\"</b> and so on", 40.0);
        canvas.mark(1, 0.0, 0.0, true, "</title><script>");
        let svg = canvas.finish();
        assert!(!svg.contains("<b>") && !svg.contains("<script>") && svg.contains("&lt;t&gt;"), "{svg}");
    }
}
