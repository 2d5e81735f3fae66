//! Several records of the same kind beside each other: does a number come back?

use super::document::{Block, Column, Section, Table};
use super::format::{change, factor, number};
use super::read::Source;
use super::{kernel, outliers, quantize, speed};
use crate::bench::{Points, Record};
use std::collections::HashMap;

/// Medians nearer than this are called the same.
const REPEATABLE: f64 = 0.05;

/// One number of a record, by what it is of.
struct Entry {
    what: String,
    value: f64,
    noisy: bool,
}

/// A section a kind of which there are several records.
pub(super) fn sections(sources: &[Source]) -> Vec<Section> {
    let kinds = ["layer", "model", "kernel", "quantize", "ablate", "outliers"];
    let section = |wanted: &&str| {
        let own: Vec<&Source> = sources.iter().filter(|source| kind(&source.record) == *wanted).collect();
        let (first, others) = own.split_first()?;
        if others.is_empty() {
            return None;
        }
        let mut section = Section::new(2, format!("Runs beside each other: {wanted}"));
        for other in others {
            compare(first, other, &mut section);
        }
        Some(section)
    };
    kinds.iter().filter_map(section).collect()
}

fn kind(record: &Record) -> &'static str {
    match &record.points {
        Points::Layer(_) => "layer",
        Points::Model(_) => "model",
        Points::Kernel(_) => "kernel",
        Points::Quantize(_) => "quantize",
        Points::Ablate(_) => "ablate",
        Points::Outliers(_) => "outliers",
    }
}

/// What the numbers are called, and all of them.
fn entries(record: &Record) -> (&'static str, Vec<Entry>) {
    let model = record.model.as_ref().map(|model| format!("{}: ", model.name)).unwrap_or_default();
    match &record.points {
        Points::Layer(points) | Points::Model(points) => {
            let entry = |point: &crate::bench::SpeedPoint| Entry {
                what: format!("{model}{}", speed::point_name(point)),
                value: point.time.median_ms,
                noisy: !point.time.noise.is_empty(),
            };
            ("median ms", points.iter().map(entry).collect())
        }
        Points::Kernel(points) => {
            let entry = |point: &crate::bench::KernelPoint| Entry {
                what: kernel::point_name(point),
                value: point.time.median_ms,
                noisy: !point.time.noise.is_empty(),
            };
            ("median ms", points.iter().map(entry).collect())
        }
        Points::Quantize(points) => {
            let entry = |point: &crate::bench::QuantizePoint| Entry {
                what: format!("{}, {} tokens", quantize::point_name(point), point.tokens),
                value: point.seconds,
                noisy: !point.noise.is_empty(),
            };
            ("seconds", points.iter().map(entry).collect())
        }
        Points::Ablate(points) => {
            let entry = |point: &crate::bench::AblationPoint| Entry {
                what: format!("{model}{}: {}", point.table, point.row),
                value: point.perplexity.unwrap_or(f64::NAN),
                noisy: false,
            };
            ("perplexity", points.iter().map(entry).collect())
        }
        Points::Outliers(points) => {
            let entries = points.iter().flat_map(|point| {
                point.steps.iter().map(|step| Entry {
                    what: format!("{model}{}, {}", outliers::point_name(point), step.step),
                    value: f64::from(step.max),
                    noisy: false,
                })
            });
            ("largest |x|", entries.collect())
        }
    }
}

fn compare(first: &Source, other: &Source, section: &mut Section) {
    let (unit, ours) = entries(&first.record);
    let (_, theirs) = entries(&other.record);
    // Two equal descriptions in one record are told apart by their order.
    let mut by_name: HashMap<&str, Vec<&Entry>> = HashMap::new();
    for entry in theirs.iter().rev() {
        by_name.entry(&entry.what).or_default().push(entry);
    }
    let columns = vec![
        Column::text("point"),
        Column::number(format!("{unit}, first")),
        Column::number(format!("{unit}, second")),
        Column::number("second / first"),
        Column::text("verdict"),
    ];
    let mut table = Table::new(format!("{} and {}", first.name, other.name), columns);
    let (mut close, mut matched, mut noisy_far) = (0, 0, 0);
    for entry in &ours {
        let Some(twin) = by_name.get_mut(entry.what.as_str()).and_then(Vec::pop) else { continue };
        matched += 1;
        let ratio = twin.value / entry.value;
        // The larger over the smaller, so that a verdict does not depend on which run came first.
        let apart = ratio.max(1.0 / ratio) - 1.0;
        let same = entry.value == twin.value || apart < REPEATABLE;
        let verdict = if same {
            close += 1;
            "within 5%".to_owned()
        } else if !ratio.is_finite() {
            "no ratio".to_owned()
        } else {
            let noise = match (entry.noisy, twin.noisy) {
                (false, false) => "",
                (true, false) => ", the first was noisy",
                (false, true) => ", the second was noisy",
                (true, true) => ", both were noisy",
            };
            noisy_far += usize::from(!noise.is_empty());
            format!("differs by {}{noise}", change(ratio - 1.0))
        };
        let ratio = if entry.value == twin.value { 1.0 } else { ratio };
        table.rows.push(vec![entry.what.clone(), number(entry.value), number(twin.value), factor_of(ratio), verdict]);
    }
    section.push(Block::Text(format!("{}.", settings_apart(&first.record, &other.record))));
    if matched == 0 {
        section.push(Block::Text(format!("{} and {} have no point in common.", first.name, other.name)));
        return;
    }
    let far = matched - close;
    table.note = format!(
        "{close} of {matched} points agree within 5%.{}",
        if far > 0 {
            format!(" {far} differ by more, {noisy_far} of them measured on a noisy machine.")
        } else {
            String::new()
        }
    );
    section.push(Block::Table(table));
}

fn factor_of(ratio: f64) -> String {
    if ratio.is_finite() && (0.1..10.0).contains(&ratio) { format!("{ratio:.3}x") } else { factor(ratio) }
}

/// Whether two records should agree at all.
fn settings_apart(a: &Record, b: &Record) -> String {
    let mut apart = Vec::new();
    let machine = |record: &Record| {
        let m = &record.machine;
        (m.cpu.clone(), m.backend.clone(), m.device.clone(), m.driver.clone(), m.threads, m.arithmetic.clone())
    };
    if machine(a) != machine(b) {
        apart.push("machine or device");
    }
    if a.commit != b.commit || a.duquant != b.duquant {
        apart.push("program");
    }
    if a.settings != b.settings {
        apart.push("settings");
    }
    if apart.is_empty() {
        "Both ran the same program with the same settings on the same device, so that they should agree".into()
    } else {
        format!("The two differ in: {}", apart.join(", "))
    }
}
