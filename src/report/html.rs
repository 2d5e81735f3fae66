//! A report as one HTML page that asks nothing of a network.

use super::document::{Block, Document, Drawing, Plot, Section, Table, Warning};
use super::format::unfit;
use super::svg;
use std::fmt::Write;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// What the page may do: nothing but its own style, its own script and pictures inside of it.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; \
                      base-uri 'none'; form-action 'none'";
/// A list longer than this is folded.
const LONG_LIST: usize = 6;
/// A cell longer than this is broken into lines.
const LONG_CELL: usize = 36;

/// A report as an HTML page with plots.
#[must_use]
pub fn html(document: &Document) -> String {
    let title = escape(&document.title);
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <a class=\"skip\" href=\"#main\">To the results</a>\n\
         <header><div><p class=\"brand\">duquant</p><h1>{title}</h1><p class=\"about\">{}</p></div>\
         <button type=\"button\" id=\"theme\" hidden>Theme</button></header>\n",
        escape(&document.about)
    );
    contents(&mut out, &document.sections);
    out.push_str("<main id=\"main\">\n");
    let mut plots = 0;
    for (i, section) in document.sections.iter().enumerate() {
        let level = section.level.clamp(2, 4);
        let _ = writeln!(
            out,
            "<section class=\"level{level}\" aria-labelledby=\"s{i}\"><h{level} id=\"s{i}\">{}</h{level}>",
            escape(&section.title)
        );
        // Neighbouring plots stand side by side where there is room.
        for group in section.blocks.chunk_by(|a, b| matches!((a, b), (Block::Plot(_), Block::Plot(_)))) {
            let several = group.len() > 1;
            out.push_str(if several { "<div class=\"plots\">\n" } else { "" });
            for block in group {
                block_html(&mut out, block, &mut plots);
            }
            out.push_str(if several { "</div>\n" } else { "" });
        }
        out.push_str("</section>\n");
    }
    let _ = write!(
        out,
        "</main>\n<footer>Made by duquant report.</footer>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n"
    );
    out
}

/// Text that is nothing but text, in an element or between quotes. Characters that no document may hold are replaced.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' | '\r' => out.push(' '),
            c if unfit(c) => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

fn contents(out: &mut String, sections: &[Section]) {
    if sections.len() < 3 {
        return;
    }
    out.push_str("<nav aria-label=\"Sections\"><ul>");
    for (i, section) in sections.iter().enumerate() {
        let _ = write!(out, "<li class=\"l{}\"><a href=\"#s{i}\">{}</a></li>", section.level, escape(&section.title));
    }
    out.push_str("</ul></nav>\n");
}

fn block_html(out: &mut String, block: &Block, plots: &mut usize) {
    match block {
        Block::Text(text) => {
            let _ = writeln!(out, "<p>{}</p>", escape(text));
        }
        Block::Highlights(facts) => {
            out.push_str("<ul class=\"tiles\">");
            for fact in facts {
                let _ =
                    write!(out, "<li><strong>{}</strong><span>{}</span></li>", escape(&fact.value), escape(&fact.name));
            }
            out.push_str("</ul>\n");
        }
        Block::Facts(facts) => {
            out.push_str("<dl>");
            for fact in facts {
                let _ = write!(out, "<div><dt>{}</dt><dd>{}</dd></div>", escape(&fact.name), escape(&fact.value));
            }
            out.push_str("</dl>\n");
        }
        Block::Warning(warning) => warning_html(out, warning),
        Block::Table(table) => table_html(out, table),
        Block::Plot(plot) => {
            *plots += 1;
            plot_html(out, plot, &format!("p{plots}"));
        }
    }
}

fn warning_html(out: &mut String, warning: &Warning) {
    let items: String = warning.items.iter().map(|item| format!("<li>{}</li>", escape(item))).collect();
    let title = escape(&warning.title);
    let _ = if warning.items.len() > LONG_LIST {
        writeln!(out, "<details class=\"warning\"><summary>{title}</summary><ul>{items}</ul></details>")
    } else {
        writeln!(out, "<div class=\"warning\"><strong>{title}</strong><ul>{items}</ul></div>")
    };
}

fn table_html(out: &mut String, table: &Table) {
    let title = escape(&table.title);
    if table.detail {
        let _ = write!(out, "<details><summary>{title}</summary>");
    }
    let _ = write!(
        out,
        "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"{title}\"><table><caption>{title}</caption><thead><tr>"
    );
    let class = |i: usize| match table.columns.get(i) {
        Some(column) if column.paper => " class=\"number paper\"",
        Some(column) if column.numeric => " class=\"number\"",
        _ => "",
    };
    for (i, column) in table.columns.iter().enumerate() {
        let _ = write!(out, "<th scope=\"col\"{}>{}</th>", class(i), escape(&column.title));
    }
    out.push_str("</tr></thead><tbody>");
    for row in &table.rows {
        out.push_str("<tr>");
        for (i, cell) in row.iter().enumerate() {
            let class = if cell.chars().count() > LONG_CELL { " class=\"long\"" } else { class(i) };
            let cell = if cell.is_empty() { "\u{2013}".to_owned() } else { escape(cell) };
            let (open, close) = if i == 0 { ("th scope=\"row\"", "th") } else { ("td", "td") };
            let _ = write!(out, "<{open}{class}>{cell}</{close}>");
        }
        out.push_str("</tr>");
    }
    out.push_str("</tbody></table></div>");
    if !table.note.is_empty() {
        let _ = write!(out, "<p class=\"note\">{}</p>", escape(&table.note));
    }
    out.push_str(if table.detail { "</details>\n" } else { "\n" });
}

fn plot_html(out: &mut String, plot: &Plot, id: &str) {
    let title = escape(&plot.title);
    let wide = if matches!(plot.drawing, Drawing::Outliers(_)) { " class=\"wide\"" } else { "" };
    let _ = write!(out, "<figure{wide}><figcaption><strong>{title}</strong>");
    if !plot.caption.is_empty() {
        let _ = write!(out, "<span>{}</span>", escape(&plot.caption));
    }
    out.push_str("</figcaption>");
    let (keys, marks) = svg::legend(&plot.drawing);
    if !keys.is_empty() {
        out.push_str("<ul class=\"legend\">");
        for key in keys {
            let _ = write!(out, "<li>{}{}</li>", svg::legend_mark(key.slot, marks), escape(&key.name));
        }
        out.push_str("</ul>");
    }
    let _ = writeln!(
        out,
        "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"{title}\">{}</div></figure>",
        svg::draw(plot, id)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_text_ends_no_element_and_no_attribute() {
        assert_eq!(
            escape("<a href='x'>&\"\u{0}\u{1b}\u{feff}"),
            "&lt;a href=&#39;x&#39;&gt;&amp;&quot;\u{fffd}\u{fffd}\u{feff}"
        );
    }
}
