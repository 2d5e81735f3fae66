//! The paper's picture: magnitudes over channels and tokens, before and behind each step of the transform.

use super::document::{Block, Column, Drawing, Picture, PictureStep, Plot, Section, Table};
use super::format::number;
use crate::bench::{Magnitudes, OutlierPoint};

/// Pictures on a page; with the sizes below a page stays under 2 MB.
const MOST_PICTURES: usize = 6;
const MOST_COLUMNS: usize = 200;
const MOST_ROWS: usize = 100;
/// Above this ratio of the largest magnitude to the median one, colours follow the logarithm.
const HUGE_RATIO: f64 = 500.0;

/// A table of all, and pictures of those with the largest outliers.
pub(super) fn sections(points: &[OutlierPoint]) -> Vec<Section> {
    if points.is_empty() {
        return Vec::new();
    }
    let mut section = Section::new(3, "Magnitudes");
    section.push(Block::Table(table(points)));
    let mut order: Vec<usize> = (0..points.len()).filter(|&i| !points[i].steps.is_empty()).collect();
    order.sort_by(|&a, &b| ratio(&points[b]).total_cmp(&ratio(&points[a])));
    order.truncate(MOST_PICTURES);
    order.sort_unstable();
    if order.len() < points.len() {
        let text =
            format!("Pictures of the {} with the largest outliers; the table has all {}.", order.len(), points.len());
        section.push(Block::Text(text));
    }
    for i in order {
        section.push(Block::Plot(picture(&points[i])));
    }
    vec![section]
}

/// A point in words.
pub(super) fn point_name(point: &OutlierPoint) -> String {
    format!("layer {}, input of {}", point.layer, point.group)
}

/// Largest over median magnitude, before anything is done.
fn ratio(point: &OutlierPoint) -> f64 {
    point.steps.first().map_or(0.0, |step| finite(step.max) / finite(step.median).max(f64::MIN_POSITIVE))
}

/// A number of a file may be too large for its type.
fn finite(value: f32) -> f64 {
    if value.is_nan() { 0.0 } else { f64::from(value.clamp(0.0, f32::MAX)) }
}

fn table(points: &[OutlierPoint]) -> Table {
    let columns = vec![
        Column::number("layer"),
        Column::text("input of"),
        Column::text("step"),
        Column::number("largest |x|"),
        Column::number("median |x|"),
        Column::number("largest / median"),
    ];
    let mut table = Table::new("Largest and median magnitude", columns);
    for point in points {
        for step in &point.steps {
            let (max, median) = (finite(step.max), finite(step.median));
            table.rows.push(vec![
                point.layer.to_string(),
                point.group.clone(),
                step.step.clone(),
                number(max),
                number(median),
                number(max / median),
            ]);
        }
    }
    table
}

fn picture(point: &OutlierPoint) -> Plot {
    let steps: Vec<PictureStep> = point.steps.iter().map(reduce).collect();
    let ceiling = steps.iter().map(|step| step.max.max(largest(&step.grid))).fold(0.0, f64::max);
    let medians = steps.iter().map(|step| step.median).filter(|median| *median > 0.0);
    let median = medians.fold(f64::INFINITY, f64::min);
    let log = median.is_finite() && ceiling / median > HUGE_RATIO;
    // Below the median there is nothing to see.
    let floor = if log { median } else { 0.0 };
    let caption = format!(
        "{} channels across, {} tokens into the depth (below: upwards), |x| as height and colour. Every surface reaches up to \
         its own largest |x|; colours are common to all steps{}.",
        point.channels,
        point.tokens,
        if log { " and follow the logarithm" } else { "" }
    );
    let drawing = Picture { channels: point.channels, tokens: point.tokens, log, floor, ceiling, steps };
    Plot { title: format!("Outliers: {}", point_name(point)), caption, drawing: Drawing::Outliers(drawing) }
}

fn largest(grid: &[f32]) -> f64 {
    f64::from(grid.iter().copied().fold(0.0, f32::max))
}

/// A step on a grid that a page can hold; cells keep the largest of what they cover.
fn reduce(step: &Magnitudes) -> PictureStep {
    let columns = step.columns.max(1);
    let rows = (step.grid.len() / columns).max(1);
    let (new_columns, new_rows) = (columns.min(MOST_COLUMNS), rows.min(MOST_ROWS));
    let mut grid = vec![0.0f32; new_columns * new_rows];
    for (i, &value) in step.grid.iter().enumerate().take(rows * columns) {
        let (row, column) = (i / columns * new_rows / rows, i % columns * new_columns / columns);
        let cell = &mut grid[row * new_columns + column];
        *cell = cell.max(finite(value) as f32);
    }
    let (max, median) = (finite(step.max), finite(step.median));
    PictureStep { name: step.step.clone(), max, median, columns: new_columns, rows: new_rows, grid }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smaller_grids_keep_every_peak() {
        let mut grid = vec![0.5f32; 301 * 207];
        grid[206 * 301 + 300] = 9.0;
        grid[0] = f32::INFINITY;
        grid[1] = f32::NAN;
        let step = Magnitudes { step: "s".into(), max: 9.0, median: 0.5, columns: 301, grid };
        let reduced = reduce(&step);
        assert_eq!((reduced.columns, reduced.rows, reduced.grid.len()), (200, 100, 20_000));
        assert_eq!(reduced.grid[19_999], 9.0);
        assert_eq!(reduced.grid[0], f32::MAX);
        assert!(reduced.grid.iter().all(|value| value.is_finite()));
    }
}
