//! The head of every record: on what, with what and when it was measured, and what failed.

use super::document::{Block, Fact, Section, Warning};
use super::format::{bytes, date, prefixed, setting};
use super::read::Source;
use crate::bench::{Points, Record};

/// A record in a few words.
pub(super) fn title(record: &Record) -> String {
    let what = match &record.points {
        Points::Layer(_) => "Speed and memory of one layer",
        Points::Model(_) => "Speed and memory of the model",
        Points::Kernel(_) => "Single kernels",
        Points::Quantize(_) => "Time of quantization",
        Points::Ablate(_) => "Perplexity, setting by setting",
        Points::Outliers(_) => "Outliers along the transform",
    };
    let machine = &record.machine;
    match &record.model {
        Some(model) => format!("{what}: {} on {}", model.name, machine.device),
        None => format!("{what} on {}", machine.device),
    }
}

/// What ran.
pub(super) fn section(source: &Source, alone: bool) -> Section {
    let record = &source.record;
    let machine = &record.machine;
    let mut facts = vec![
        Fact::new(
            "command",
            std::iter::once("duquant").chain(record.command.iter().map(String::as_str)).collect::<Vec<_>>().join(" "),
        ),
        Fact::new("date", date(record.unix_seconds)),
        Fact::new("program", program(record)),
        Fact::new("device", format!("{} ({})", machine.device, machine.backend)),
    ];
    if let Some(driver) = &machine.driver {
        facts.push(Fact::new("driver", driver));
    }
    facts.push(Fact::new(
        "processor",
        format!("{}, {} cores, {} threads used", machine.cpu, machine.cores, machine.threads),
    ));
    if let Some(memory) = machine.memory_bytes {
        facts.push(Fact::new("main memory", bytes(memory as f64)));
    }
    facts.push(Fact::new("system", &machine.os));
    facts.push(Fact::new("floating-point sums", &machine.arithmetic));
    if let Some(model) = &record.model {
        let shape = format!(
            "{}: {} layers, hidden {}, intermediate {}, {} heads over {} key-value heads of {}, vocabulary {}",
            model.name,
            model.layers,
            model.hidden,
            model.intermediate,
            model.heads,
            model.kv_heads,
            model.head_dim,
            model.vocabulary
        );
        facts.push(Fact::new("model", shape));
    }
    for (name, value) in &record.settings {
        facts.push(Fact::new(name, setting(value)));
    }
    if let Some(ceilings) = &record.ceilings {
        let bf16 = ceilings.bf16_per_second.map(|bf16| format!("{}op/s in bfloat16, ", prefixed(bf16)));
        let text = format!(
            "{}B/s from memory, {}op/s in floating point, {}{}op/s in integers",
            prefixed(ceilings.bytes_per_second),
            prefixed(ceilings.f32_per_second),
            bf16.unwrap_or_default(),
            prefixed(ceilings.integer_per_second)
        );
        facts.push(Fact::new("most that was seen", text));
    }
    facts.push(Fact::new("result file", &source.name));
    // Alone, it has the title of the whole report already.
    let mut section = Section::new(2, if alone { "What ran".into() } else { title(record) });
    section.push(Block::Facts(facts));
    if !record.failures.is_empty() {
        let count = record.failures.len();
        let title = if count == 1 {
            "1 point could not be measured".into()
        } else {
            format!("{count} points could not be measured")
        };
        let items = record.failures.iter().map(|failure| format!("{}: {}", failure.what, failure.error)).collect();
        section.push(Block::Warning(Warning { title, items }));
    }
    section
}

fn program(record: &Record) -> String {
    match &record.commit {
        Some(commit) if commit.ends_with('+') => {
            format!(
                "duquant {}, commit {}, with changes that are not committed",
                record.duquant,
                commit.trim_end_matches('+')
            )
        }
        Some(commit) => format!("duquant {}, commit {commit}", record.duquant),
        None => format!("duquant {}", record.duquant),
    }
}

/// Points that the machine's noise makes doubtful: each with its reasons.
pub(super) fn noise(total: usize, noisy: Vec<String>) -> Option<Block> {
    if noisy.is_empty() {
        return None;
    }
    let title = format!("The machine was noisy: {} of {total} points may not be repeatable to 5%", noisy.len());
    Some(Block::Warning(Warning { title, items: noisy }))
}
