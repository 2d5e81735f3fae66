//! A table for people.

/// Columns aligned by their widest cell: the first to the left, the others to the right.
pub(super) fn render(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([header[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let cells = cells.iter().zip(&widths).enumerate();
        let padded =
            cells.map(|(i, (cell, width))| if i == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(header.to_vec()), "-".repeat(widths.iter().sum::<usize>() + 2 * (widths.len() - 1))];
    lines.extend(rows.iter().map(|row| line(row.iter().map(String::as_str).collect())));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_line_up() {
        let rows = [vec!["RTN".into(), "2150.5".into()], vec!["DuQuant".into(), "40.1".into()]];
        let expected = "\
method      ppl
---------------
RTN      2150.5
DuQuant    40.1";
        assert_eq!(super::render(&["method", "ppl"], &rows), expected);
    }
}
