//! A report as text for a terminal.

use super::document::{Block, Document, Table};
use super::format::one_line;
use std::fmt::Write;

/// A report as aligned tables. Plots are left out.
#[must_use]
pub fn terminal(document: &Document) -> String {
    let mut out = String::new();
    for section in &document.sections {
        if !out.is_empty() {
            out.push('\n');
        }
        let title = one_line(&section.title);
        let line = if section.level <= 2 { "=" } else { "-" };
        let _ = writeln!(out, "{title}\n{}", line.repeat(title.chars().count()));
        for block in &section.blocks {
            block_text(&mut out, block);
        }
    }
    out.truncate(out.trim_end().len());
    out
}

fn block_text(out: &mut String, block: &Block) {
    match block {
        Block::Text(text) => {
            let _ = writeln!(out, "{}\n", one_line(text));
        }
        Block::Highlights(facts) | Block::Facts(facts) => {
            let width = facts.iter().map(|fact| one_line(&fact.name).chars().count()).max().unwrap_or(0);
            for fact in facts {
                let _ = writeln!(out, "{:<width$}  {}", one_line(&fact.name), one_line(&fact.value));
            }
            out.push('\n');
        }
        Block::Warning(warning) => {
            let _ = writeln!(out, "! {}", one_line(&warning.title));
            for item in &warning.items {
                let _ = writeln!(out, "!   {}", one_line(item));
            }
            out.push('\n');
        }
        Block::Table(table) => table_text(out, table),
        Block::Plot(_) => {}
    }
}

fn table_text(out: &mut String, table: &Table) {
    let _ = writeln!(out, "{}", one_line(&table.title));
    let heads: Vec<String> = table.columns.iter().map(|column| one_line(&column.title)).collect();
    let cell = |text: &String| if text.is_empty() { "-".to_owned() } else { one_line(text) };
    let rows: Vec<Vec<String>> = table.rows.iter().map(|row| row.iter().map(cell).collect()).collect();
    let width = |i: usize| {
        let cells = rows.iter().filter_map(|row| row.get(i)).chain(heads.get(i));
        cells.map(|text| text.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    for row in std::iter::once(&heads).chain(&rows) {
        let mut line = String::from(" ");
        for ((text, &width), column) in row.iter().zip(&widths).zip(&table.columns) {
            let _ = if column.numeric { write!(line, " {text:>width$} ") } else { write!(line, " {text:<width$} ") };
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
    if !table.note.is_empty() {
        let _ = writeln!(out, "  {}", one_line(&table.note));
    }
    out.push('\n');
}
