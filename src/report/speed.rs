//! Layers and models: how fast and how large each method is.

use super::document::{Block, Column, Fact, Section, Table};
use super::format::{bytes, change, factor, number, percent, prefixed};
use super::{roofline, speed_plots, what_ran};
use crate::bench::{Phase, Record, SpeedPoint};
use std::collections::BTreeSet;

/// A phase in a word.
pub(super) fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Prefill => "prefill",
        Phase::Decode => "decode",
    }
}

/// A point in words.
pub(super) fn point_name(point: &SpeedPoint) -> String {
    format!(
        "{}, batch {}, length {}, {} {}",
        phase_name(point.phase),
        point.batch,
        point.length,
        point.method,
        point.bits
    )
}

/// Whether a point is the floating-point baseline.
pub(super) fn is_float(point: &SpeedPoint) -> bool {
    matches!(point.method.as_str(), "fp32" | "fp16" | "bf16")
}

/// The floating-point point to compare one with.
fn baseline<'a>(points: &'a [SpeedPoint], point: &SpeedPoint) -> Option<&'a SpeedPoint> {
    let same = |other: &&SpeedPoint| {
        is_float(other)
            && (other.phase, other.batch, other.length, &other.device)
                == (point.phase, point.batch, point.length, &point.device)
    };
    points.iter().find(same)
}

/// How many times less memory than floating point a point takes.
pub(super) fn saving(points: &[SpeedPoint], point: &SpeedPoint) -> Option<f64> {
    let base = baseline(points, point).filter(|base| !std::ptr::eq(*base, point))?;
    (point.peak_bytes > 0).then(|| base.peak_bytes as f64 / point.peak_bytes as f64)
}

/// Highlights, then a section a phase.
pub(super) fn sections(record: &Record, points: &[SpeedPoint]) -> Vec<Section> {
    let mut sections = Vec::new();
    let noisy = points.iter().filter(|point| !point.time.noise.is_empty());
    let noisy = noisy.map(|point| format!("{}: {}", point_name(point), point.time.noise.join("; "))).collect();
    let highlights = highlights(points);
    let mut first = Section::new(3, "At a glance");
    if !highlights.is_empty() {
        first.push(Block::Highlights(highlights));
    }
    first.blocks.extend(what_ran::noise(points.len(), noisy));
    if !first.blocks.is_empty() {
        sections.push(first);
    }
    for phase in [Phase::Prefill, Phase::Decode] {
        let of_phase: Vec<&SpeedPoint> = points.iter().filter(|point| point.phase == phase).collect();
        if of_phase.is_empty() {
            continue;
        }
        let mut section = Section::new(3, if phase == Phase::Prefill { "Prefill" } else { "Decode" });
        section.push(Block::Table(times(points, &of_phase, phase)));
        section.blocks.extend(speed_plots::speedup(&of_phase, phase));
        section.blocks.extend(roofline::of_layers(record, &of_phase, phase));
        section.blocks.extend(speed_plots::memory(&of_phase, phase));
        section.blocks.extend(speed_plots::shares(&of_phase, phase));
        section.push(Block::Table(memory(points, &of_phase, phase)));
        section.blocks.extend(kernels(&of_phase, phase).map(Block::Table));
        sections.push(section);
    }
    sections
}

/// The best of DuQuant's numbers, which is what most readers come for.
fn highlights(points: &[SpeedPoint]) -> Vec<Fact> {
    let mut facts = Vec::new();
    for phase in [Phase::Prefill, Phase::Decode] {
        let ours = || points.iter().filter(move |p| p.phase == phase && p.method == "duquant");
        let name = phase_name(phase);
        let fastest =
            ours().filter_map(|p| Some((p.speedup.filter(|s| s.is_finite())?, p))).max_by(|a, b| a.0.total_cmp(&b.0));
        if let Some((speedup, point)) = fastest {
            let base = baseline(points, point).map_or("floating point", |base| base.method.as_str());
            facts.push(Fact::new(
                format!("{name}, DuQuant {} over {base}, batch {}", point.bits, point.batch),
                factor(speedup),
            ));
        }
        let smallest = ours().filter_map(|p| Some((saving(points, p)?, p))).max_by(|a, b| a.0.total_cmp(&b.0));
        if let Some((saving, point)) = smallest {
            facts.push(Fact::new(format!("{name}, less memory, batch {}", point.batch), factor(saving)));
        }
        let overheads = ours().filter_map(|p| p.transform_overhead.filter(|o| o.is_finite()));
        if let Some(most) = overheads.max_by(f64::total_cmp) {
            facts.push(Fact::new(format!("{name}, most that the transform adds to plain rounding"), change(most)));
        }
    }
    facts
}

fn times(points: &[SpeedPoint], of_phase: &[&SpeedPoint], phase: Phase) -> Table {
    let columns = vec![
        Column::text("method"),
        Column::text("bits"),
        Column::number("batch"),
        Column::number(if phase == Phase::Prefill { "prompt" } else { "context" }),
        Column::number("median ms"),
        Column::number("[p10, p90]"),
        Column::number("speed-up"),
        Column::number("transform adds"),
        Column::number("transform share"),
        Column::number("tokens/s"),
        Column::number("peak memory"),
        Column::number("saving"),
        Column::text("device"),
        Column::text("noise"),
    ];
    let mut table = Table::new(format!("Times, {}", phase_name(phase)), columns);
    table.note = "Speed-up and saving are over the floating-point method of the same batch in the same run; what the \
                  transform adds is over round-to-nearest (rtn) at the same bits."
        .into();
    let devices: BTreeSet<&str> = points.iter().map(|point| point.device.as_str()).collect();
    for point in of_phase {
        let time = &point.time;
        table.rows.push(vec![
            point.method.clone(),
            point.bits.clone(),
            point.batch.to_string(),
            point.length.to_string(),
            number(time.median_ms),
            format!("[{}, {}]", number(time.p10_ms), number(time.p90_ms)),
            point.speedup.map(factor).unwrap_or_default(),
            point.transform_overhead.map(change).unwrap_or_default(),
            point.transform_share.map(percent).unwrap_or_default(),
            number(point.tokens_per_second),
            bytes(point.peak_bytes as f64),
            saving(points, point).map(factor).unwrap_or_default(),
            if devices.len() > 1 { point.device.clone() } else { String::new() },
            if time.noise.is_empty() { String::new() } else { "noisy".into() },
        ]);
    }
    table.without_empty_columns()
}

fn memory(points: &[SpeedPoint], of_phase: &[&SpeedPoint], phase: Phase) -> Table {
    let columns = vec![
        Column::text("method"),
        Column::text("bits"),
        Column::number("batch"),
        Column::number("weights"),
        Column::number("activations"),
        Column::number("KV cache"),
        Column::number("workspace"),
        Column::number("in all"),
        Column::number("saving"),
        Column::number("says the system"),
    ];
    let mut table = Table::new(format!("Memory, {}", phase_name(phase)), columns);
    table.detail = true;
    for point in of_phase {
        let memory = &point.memory;
        table.rows.push(vec![
            point.method.clone(),
            point.bits.clone(),
            point.batch.to_string(),
            bytes(memory.weights as f64),
            bytes(memory.activations as f64),
            bytes(memory.kv_cache as f64),
            bytes(memory.workspace as f64),
            bytes(point.peak_bytes as f64),
            saving(points, point).map(factor).unwrap_or_default(),
            point.device_bytes.map(|count| bytes(count as f64)).unwrap_or_default(),
        ]);
    }
    table.without_empty_columns()
}

/// One run, kernel by kernel.
fn kernels(of_phase: &[&SpeedPoint], phase: Phase) -> Option<Table> {
    let columns = vec![
        Column::text("method"),
        Column::number("batch"),
        Column::text("kernel"),
        Column::text("variant"),
        Column::number("ms"),
        Column::number("share"),
        Column::number("GB/s"),
        Column::number("Gop/s"),
        Column::number("ops/byte"),
    ];
    let mut table = Table::new(format!("One run, kernel by kernel, {}", phase_name(phase)), columns);
    table.detail = true;
    for point in of_phase {
        let sum: f64 = point.kernels.iter().map(|kernel| kernel.ms).sum();
        for kernel in &point.kernels {
            table.rows.push(vec![
                format!("{} {}", point.method, point.bits),
                point.batch.to_string(),
                kernel.name.clone(),
                kernel.variant.clone(),
                number(kernel.ms),
                percent(kernel.ms / sum),
                number(kernel.bytes / kernel.ms / 1e6),
                number(kernel.ops / kernel.ms / 1e6),
                if kernel.ops > 0.0 { number(kernel.ops / kernel.bytes) } else { String::new() },
            ]);
        }
    }
    (!table.rows.is_empty()).then(|| table.without_empty_columns())
}

/// A rate of operations or bytes in words.
pub(super) fn rate(value: f64, unit: &str) -> String {
    format!("{}{unit}", prefixed(value))
}
