//! A report as Markdown (GitHub's, for its tables).

use super::document::{Block, Document, Fact, Table};
use super::format::one_line;
use std::fmt::Write;

/// A report as Markdown. Plots are left out.
#[must_use]
pub fn markdown(document: &Document) -> String {
    let mut out = format!("# {}\n\n{}\n", escape(&document.title), escape(&document.about));
    for section in &document.sections {
        let _ = writeln!(out, "\n{} {}\n", "#".repeat(section.level.into()), escape(&section.title));
        for block in &section.blocks {
            block_text(&mut out, block);
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
    }
    out
}

fn block_text(out: &mut String, block: &Block) {
    match block {
        Block::Text(text) => {
            let _ = writeln!(out, "{}\n", escape(text));
        }
        Block::Highlights(facts) | Block::Facts(facts) => {
            for Fact { name, value } in facts {
                let _ = writeln!(out, "- {}: {}", escape(name), escape(value));
            }
            out.push('\n');
        }
        Block::Warning(warning) => {
            let _ = writeln!(out, "> **{}**\n>", escape(&warning.title));
            for item in &warning.items {
                let _ = writeln!(out, "> - {}", escape(item));
            }
            out.push('\n');
        }
        Block::Table(table) => table_text(out, table),
        Block::Plot(_) => {}
    }
}

fn table_text(out: &mut String, table: &Table) {
    let _ = writeln!(out, "**{}**\n", escape(&table.title));
    let row = |cells: &mut dyn Iterator<Item = String>| format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "));
    out.push_str(&row(&mut table.columns.iter().map(|column| escape(&column.title))));
    out.push_str(&row(&mut table
        .columns
        .iter()
        .map(|column| if column.numeric { "---:".into() } else { "---".into() })));
    for cells in &table.rows {
        out.push_str(&row(&mut cells.iter().map(|cell| if cell.is_empty() { "-".into() } else { escape(cell) })));
    }
    out.push('\n');
    if !table.note.is_empty() {
        let _ = writeln!(out, "{}\n", escape(&table.note));
    }
}

/// Text in which no character has a meaning of its own, on one line.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in one_line(text).chars() {
        match c {
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '~' | '$' | '#' => out.extend(['\\', c]),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn nothing_from_a_file_is_markup() {
        assert_eq!(escape("a|b\n*c* <i>[d](e)"), r"a\|b \*c\* &lt;i&gt;\[d\](e)");
        assert_eq!(escape("duquant bench --model x_y"), r"duquant bench --model x\_y");
    }
}
