//! How long quantization takes, stage by stage.

use super::document::{Bar, Bars, Block, Column, Drawing, Plot, Section, Table, Unit, keys};
use super::format::{bytes, number, percent, seconds};
use super::speed_plots::{MOST_BARS, distinct, left_out};
use super::svg::SLOTS;
use super::what_ran;
use crate::bench::QuantizePoint;

/// A point in words.
pub(super) fn point_name(point: &QuantizePoint) -> String {
    let mode = if point.mode == "none" { String::new() } else { format!(" {}", point.mode) };
    format!("{} {}{mode} {}", point.model, point.method, point.bits)
}

/// Runs, their stages, and a bar each.
pub(super) fn sections(points: &[QuantizePoint]) -> Vec<Section> {
    if points.is_empty() {
        return Vec::new();
    }
    let mut section = Section::new(3, "Quantization");
    let noisy = points.iter().filter(|point| !point.noise.is_empty());
    let noisy = noisy.map(|point| format!("{}: {}", point_name(point), point.noise.join("; "))).collect();
    section.blocks.extend(what_ran::noise(points.len(), noisy));
    section.push(Block::Table(runs(points)));
    section.blocks.extend(bars(points));
    section.blocks.extend(stages(points).map(Block::Table));
    vec![section]
}

fn runs(points: &[QuantizePoint]) -> Table {
    let columns = vec![
        Column::text("method"),
        Column::text("mode"),
        Column::text("model"),
        Column::text("bits"),
        Column::number("calibration tokens"),
        Column::number("layers"),
        Column::number("seconds"),
        Column::number("peak memory"),
        Column::text("noise"),
    ];
    let mut table = Table::new("Runs", columns);
    for point in points {
        table.rows.push(vec![
            point.method.clone(),
            if point.mode == "none" { String::new() } else { point.mode.clone() },
            point.model.clone(),
            point.bits.clone(),
            point.tokens.to_string(),
            point.layers.to_string(),
            number(point.seconds),
            point.peak_bytes.map(|count| bytes(count as f64)).unwrap_or_default(),
            if point.noise.is_empty() { String::new() } else { "noisy".into() },
        ]);
    }
    table.without_empty_columns()
}

fn stages(points: &[QuantizePoint]) -> Option<Table> {
    let columns =
        vec![Column::text("run"), Column::text("stage"), Column::number("seconds"), Column::number("share of the run")];
    let mut table = Table::new("Stages", columns);
    table.detail = true;
    for point in points {
        for stage in &point.stages {
            let share = percent(stage.seconds / point.seconds);
            table.rows.push(vec![point_name(point), stage.name.clone(), number(stage.seconds), share]);
        }
    }
    (!table.rows.is_empty()).then_some(table)
}

fn bars(points: &[QuantizePoint]) -> Option<Block> {
    let mut names = distinct(points.iter().flat_map(|point| &point.stages).map(|stage| &stage.name));
    if names.is_empty() {
        return None;
    }
    // More stages than colours: the last colour takes the rest of the pipeline.
    let rest = (names.len() > SLOTS).then(|| names.split_off(SLOTS - 1));
    if rest.is_some() {
        names.push("others".into());
    }
    // A label holds what tells one run from another.
    let one_model = points.iter().all(|point| point.model == points[0].model && point.bits == points[0].bits);
    let label = |point: &QuantizePoint| match (one_model, point.mode.as_str()) {
        (true, "none") => point.method.clone(),
        (true, mode) => format!("{} {mode}", point.method),
        (false, _) => point_name(point),
    };
    let rows = points.iter().take(MOST_BARS).map(|point| {
        let of = |name: &String| -> f64 {
            point.stages.iter().filter(|stage| stage.name == *name).map(|stage| stage.seconds).sum()
        };
        let mut values: Vec<f64> = names.iter().map(of).collect();
        if let (Some(rest), Some(last)) = (&rest, values.last_mut()) {
            *last = rest.iter().map(of).sum();
        }
        let tip = |(name, value): (&String, &f64)| format!("{}: {name} {}", point_name(point), seconds(*value));
        let tips = names.iter().zip(&values).map(tip).collect();
        Bar { group: String::new(), label: label(point), values, tips, total: seconds(point.seconds), slot: None }
    });
    let rows: Vec<Bar> = rows.collect();
    let caption = format!("The time of the whole run stands behind the bar.{}", left_out(rows.len(), points.len()));
    let drawing = Drawing::Bars(Bars {
        label: "time".into(),
        unit: Unit::Seconds,
        log: false,
        reference: None,
        parts: keys(&names, SLOTS),
        rows,
    });
    Some(Block::Plot(Plot { title: "Time by stage".into(), caption, drawing }))
}
