//! Single kernels.

use super::document::{Block, Column, Section, Table};
use super::format::{number, percent};
use super::{roofline, what_ran};
use crate::bench::{KernelPoint, Record};

/// A point in words.
pub(super) fn point_name(point: &KernelPoint) -> String {
    format!("{} {}, {}", point.name, point.bits, shape(point))
}

/// A shape in words.
pub(super) fn shape(point: &KernelPoint) -> String {
    point.shape.iter().map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ")
}

/// A table and the roofline.
pub(super) fn sections(record: &Record, points: &[KernelPoint]) -> Vec<Section> {
    let columns = vec![
        Column::text("kernel"),
        Column::text("variant"),
        Column::text("shape"),
        Column::text("bits"),
        Column::number("median ms"),
        Column::number("[p10, p90]"),
        Column::number("GB/s"),
        Column::number("Gop/s"),
        Column::text("arithmetic"),
        Column::number("of the ceiling"),
        Column::text("bound by"),
        Column::text("noise"),
    ];
    let mut table = Table::new("Kernels", columns);
    table.note =
        "Bytes and operations are the least that the kernel must move and do; the ceiling is the most that the \
                  same run saw the machine do."
            .into();
    for point in points {
        let time = &point.time;
        table.rows.push(vec![
            point.name.clone(),
            point.variant.clone(),
            shape(point),
            point.bits.clone(),
            number(time.median_ms),
            format!("[{}, {}]", number(time.p10_ms), number(time.p90_ms)),
            number(point.bytes_per_second / 1e9),
            number(point.ops_per_second / 1e9),
            point.arithmetic.clone(),
            point.of_ceiling.map(percent).unwrap_or_default(),
            point.bound.clone().unwrap_or_default(),
            if time.noise.is_empty() { String::new() } else { "noisy".into() },
        ]);
    }
    if points.is_empty() {
        return Vec::new();
    }
    let mut section = Section::new(3, "Kernels");
    let noisy = points.iter().filter(|point| !point.time.noise.is_empty());
    let noisy = noisy.map(|point| format!("{}: {}", point_name(point), point.time.noise.join("; "))).collect();
    section.blocks.extend(what_ran::noise(points.len(), noisy));
    section.push(Block::Table(table.without_empty_columns()));
    section.blocks.extend(roofline::of_kernels(record, points));
    vec![section]
}
