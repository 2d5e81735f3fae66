//! Perplexities of the paper's ablations: one table a question.

use super::document::{Bar, Bars, Block, Column, Drawing, Key, Plot, Section, Table, Unit};
use super::format::{factor, maybe, number, setting};
use super::speed_plots::{MOST_BARS, distinct, left_out};
use crate::bench::AblationPoint;

/// A bar further than this from the shortest asks for a logarithmic axis.
const WIDE_SPREAD: f64 = 10.0;

/// A section a table.
pub(super) fn sections(points: &[AblationPoint]) -> Vec<Section> {
    let tables = distinct(points.iter().map(|point| &point.table));
    let section = |key: &String| {
        let own: Vec<&AblationPoint> = points.iter().filter(|point| point.table == *key).collect();
        let papers = distinct(own.iter().map(|point| &point.paper)).join(", ");
        let mut section = Section::new(3, format!("Ablation: {key}"));
        if !papers.is_empty() {
            section.push(Block::Text(format!("After the paper's {papers}.")));
        }
        section.push(Block::Table(table(key, &own)));
        section.blocks.extend(bars(key, &own));
        section
    };
    tables.iter().map(section).collect()
}

fn table(key: &str, points: &[&AblationPoint]) -> Table {
    let columns = vec![
        Column::text("row"),
        Column::text("settings"),
        Column::number("perplexity"),
        Column::number("floating point"),
        Column::number("difference"),
        Column::number("ratio"),
        Column::number("seconds"),
        Column::number("variance over blocks"),
        Column::paper("the paper's LLaMA2-7B, WikiText2"),
    ];
    let mut table = Table::new(format!("Perplexity: {key}"), columns);
    table.note =
        "Lower is better. The last column, where there is one, is what the paper measured on its model; compare \
                  its order, not its size."
            .into();
    for point in points {
        let settings = point.settings.iter().map(|(name, value)| format!("{name} {}", setting(value)));
        let usable = point.perplexity.filter(|value| value.is_finite());
        table.rows.push(vec![
            point.row.clone(),
            settings.collect::<Vec<_>>().join(", "),
            usable.map_or_else(|| "not finite".into(), number),
            number(point.baseline),
            usable.map(|value| number(value - point.baseline)).unwrap_or_default(),
            usable.map(|value| factor(value / point.baseline)).unwrap_or_default(),
            number(point.seconds),
            maybe(point.variance),
            maybe(point.paper_perplexity),
        ]);
    }
    table.without_empty_columns()
}

fn bars(key: &str, points: &[&AblationPoint]) -> Option<Block> {
    let positive = |value: f64| value.is_finite() && value > 0.0;
    let shown: Vec<(&AblationPoint, f64)> = points
        .iter()
        .filter_map(|point| Some((*point, point.perplexity.filter(|value| positive(*value))?)))
        .take(MOST_BARS)
        .collect();
    let (least, most) = shown.iter().fold((f64::INFINITY, 0.0f64), |(a, b), (_, v)| (a.min(*v), b.max(*v)));
    if shown.is_empty() {
        return None;
    }
    let rows = shown.iter().map(|(point, value)| Bar {
        group: String::new(),
        label: point.row.clone(),
        values: vec![*value],
        tips: vec![format!("{}: perplexity {}, floating point {}", point.row, number(*value), number(point.baseline))],
        total: number(*value),
        slot: None,
    });
    // Several runs may stand in one table only if their baseline is the same.
    let baseline = shown[0].0.baseline;
    let same = positive(baseline) && shown.iter().all(|(point, _)| point.baseline == baseline);
    let drawing = Drawing::Bars(Bars {
        label: "perplexity".into(),
        unit: Unit::Plain,
        log: most / least > WIDE_SPREAD,
        reference: same.then(|| ("floating point".to_owned(), baseline)),
        parts: vec![Key { name: "perplexity".into(), slot: 4 }],
        rows: rows.collect(),
    });
    let scale = if most / least > WIDE_SPREAD { " The axis is logarithmic." } else { "" };
    let dashed =
        if same { format!(" The dashed line is floating point, {}.", number(baseline)) } else { String::new() };
    let caption = format!("Lower is better; ours alone.{dashed}{scale}{}", left_out(shown.len(), points.len()));
    Some(Block::Plot(Plot { title: format!("Perplexity: {key}"), caption, drawing }))
}
