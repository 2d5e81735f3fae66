//! The paper's own figures (arXiv 2406.01721), for readers who compare: they were measured on its GPUs, not here.

use super::document::{Block, Column, Section, Table};
use super::read::Source;
use crate::bench::Points;

/// The paper's figures on the models that layers or models were measured of.
pub(super) fn section(sources: &[Source]) -> Option<Section> {
    let names: Vec<String> = sources
        .iter()
        .filter(|source| matches!(source.record.points, Points::Layer(_) | Points::Model(_)))
        .filter_map(|source| source.record.model.as_ref())
        .map(|model| model.name.to_lowercase().chars().filter(char::is_ascii_alphanumeric).collect())
        .collect();
    let of = |size: &str| names.iter().any(|name| name.contains(&format!("llama2{size}")));
    let (seven, thirteen) = (of("7b"), of("13b"));
    if !seven && !thirteen {
        return None;
    }
    let mut section = Section::new(2, "The paper, on its GPUs");
    section.push(Block::Text(
        "None of these numbers was measured here. The paper timed QuaRot's CUDA kernels with its own transform in front of \
         them on an RTX 3090, with prompts of 2048 tokens."
            .into(),
    ));
    let mut layers: Vec<&[&str]> = Vec::new();
    let mut overheads: Vec<&[&str]> = Vec::new();
    if seven {
        layers.extend([
            &["LLaMA2-7B", "1", "1.95x"] as &[&str],
            &["LLaMA2-7B", "4", "2.03x"],
            &["LLaMA2-7B", "16", "2.08x"],
        ]);
        overheads.push(&["LLaMA2-7B", "8.9%"]);
    }
    if thirteen {
        layers.extend([
            &["LLaMA2-13B", "1", "2.15x"] as &[&str],
            &["LLaMA2-13B", "4", "2.30x"],
            &["LLaMA2-13B", "16", "2.34x"],
        ]);
        overheads.push(&["LLaMA2-13B", "9.3%"]);
    }
    let mut add = |title: &str, columns: &[&str], rows: &[&[&str]]| {
        let column = |(i, name): (usize, &&str)| if i == 0 { Column::text(*name) } else { Column::paper(*name) };
        let mut table = Table::new(title, columns.iter().enumerate().map(column).collect());
        table.rows = rows.iter().map(|row| row.iter().map(|cell| (*cell).to_owned()).collect()).collect();
        section.push(Block::Table(table));
    };
    add("Table 9: one layer, prefill, DuQuant W4A4 over FP16", &["model", "batch", "speed-up"], &layers);
    add(
        "Figure 5: what two rotations and a permutation add to plain W4A4, in time",
        &["model", "transform adds"],
        &overheads,
    );
    if seven {
        seven_billion(&mut add);
    }
    Some(section)
}

/// Tables that the paper has for LLaMA2-7B alone.
fn seven_billion(add: &mut impl FnMut(&str, &[&str], &[&[&str]])) {
    add(
        "Table 10: one layer, decode, LLaMA2-7B, batch 64",
        &["method", "speed-up"],
        &[
            &["FP16", ""],
            &["SmoothQuant", "1.508x"],
            &["QLLM", "out of memory"],
            &["QuaRot", "1.442x"],
            &["DuQuant", "1.321x"],
        ],
    );
    add(
        "Table 11: peak memory, LLaMA2-7B, batch 1, 2048 tokens of prefill and 128 of decode",
        &["method", "prefill", "saving", "decode", "saving"],
        &[
            &["FP16", "15.282 GB", "", "13.638 GB", ""],
            &["SmoothQuant", "4.782 GB", "3.196x", "3.890 GB", "3.506x"],
            &["QLLM", "5.349 GB", "2.857x", "3.894 GB", "3.502x"],
            &["QuaRot", "4.784 GB", "3.194x", "3.891 GB", "3.505x"],
            &["DuQuant", "4.786 GB", "3.193x", "3.893 GB", "3.503x"],
        ],
    );
    add(
        "Table E11: the whole model, prefill, LLaMA2-7B",
        &["batch", "FP16", "DuQuant", "speed-up"],
        &[
            &["1", "568 ms", "294 ms", "1.93x"],
            &["2", "1003 ms", "509 ms", "1.97x"],
            &["3", "1449 ms", "720 ms", "2.01x"],
        ],
    );
    add(
        "Table E12: the whole model, peak memory in prefill, LLaMA2-7B",
        &["batch", "FP16", "DuQuant", "saving"],
        &[
            &["1", "15.28 GB", "4.79 GB", "3.20x"],
            &["2", "17.94 GB", "5.94 GB", "3.02x"],
            &["3", "20.56 GB", "7.10 GB", "2.90x"],
        ],
    );
    add(
        "Table E13: one layer, decode, LLaMA2-7B, batch 64",
        &["method", "time", "speed-up", "memory", "saving"],
        &[
            &["FP16", "659 ms", "", "3.550 GB", ""],
            &["SmoothQuant", "437 ms", "1.508x", "1.669 GB", "2.127x"],
            &["QLLM", "out of memory", "", "out of memory", ""],
            &["QuaRot", "457 ms", "1.442x", "1.678 GB", "2.116x"],
            &["DuQuant", "499 ms", "1.321x", "1.677 GB", "2.117x"],
        ],
    );
}
