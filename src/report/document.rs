//! What a report says, apart from how it looks: the one thing that all outputs are made from.

use serde::Serialize;

/// A whole report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Document {
    /// What it is about, in a few words.
    pub title: String,
    /// One sentence on what was read.
    pub about: String,
    /// Its sections, in order.
    pub sections: Vec<Section>,
}

/// A section with a heading.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Section {
    /// Heading.
    pub title: String,
    /// 2 for a section of its own, 3 for a part of the one before.
    pub level: u8,
    /// What it holds.
    pub blocks: Vec<Block>,
}

impl Section {
    pub(super) fn new(level: u8, title: impl Into<String>) -> Self {
        Self { title: title.into(), level, blocks: Vec::new() }
    }

    /// Adds a block.
    pub(super) fn push(&mut self, block: Block) {
        self.blocks.push(block);
    }
}

/// A piece of a section.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Block {
    /// A paragraph.
    Text(String),
    /// A few numbers to see first.
    Highlights(Vec<Fact>),
    /// Names and values.
    Facts(Vec<Fact>),
    /// What a reader must know before trusting the numbers.
    Warning(Warning),
    /// A table.
    Table(Table),
    /// A plot. Outputs without pictures leave it out: its numbers are in the tables as well.
    Plot(Plot),
}

/// A name and a value.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fact {
    /// What it is.
    pub name: String,
    /// What it says.
    pub value: String,
}

impl Fact {
    pub(super) fn new(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self { name: name.into(), value: value.into() }
    }
}

/// Something that is wrong, with every case of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Warning {
    /// What is wrong.
    pub title: String,
    /// Each case.
    pub items: Vec<String>,
}

/// A table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Table {
    /// What it lists.
    pub title: String,
    /// How to read it, or nothing.
    pub note: String,
    /// Its columns.
    pub columns: Vec<Column>,
    /// Its rows, each as long as `columns`; a cell without a value is empty.
    pub rows: Vec<Vec<String>>,
    /// Whether it is a detail that a page may fold away.
    pub detail: bool,
}

impl Table {
    pub(super) fn new(title: impl Into<String>, columns: Vec<Column>) -> Self {
        Self { title: title.into(), note: String::new(), columns, rows: Vec::new(), detail: false }
    }

    /// Leaves out columns without any value, except the first.
    pub(super) fn without_empty_columns(mut self) -> Self {
        let kept: Vec<bool> =
            (0..self.columns.len()).map(|i| i == 0 || self.rows.iter().any(|row| !row[i].is_empty())).collect();
        let keep = |i: &usize| kept.get(*i).copied().unwrap_or(true);
        self.columns = self.columns.into_iter().enumerate().filter(|(i, _)| keep(i)).map(|(_, c)| c).collect();
        for row in &mut self.rows {
            *row = std::mem::take(row).into_iter().enumerate().filter(|(i, _)| keep(i)).map(|(_, c)| c).collect();
        }
        self
    }
}

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Column {
    /// Its heading.
    pub title: String,
    /// Whether its cells are numbers, which stand to the right.
    pub numeric: bool,
    /// Whether its numbers are the paper's and not ours.
    pub paper: bool,
}

impl Column {
    pub(super) fn text(title: impl Into<String>) -> Self {
        Self { title: title.into(), numeric: false, paper: false }
    }

    pub(super) fn number(title: impl Into<String>) -> Self {
        Self { title: title.into(), numeric: true, paper: false }
    }

    pub(super) fn paper(title: impl Into<String>) -> Self {
        Self { title: title.into(), numeric: true, paper: true }
    }
}

/// A plot with its title and what it shows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plot {
    /// What it shows.
    pub title: String,
    /// How to read it.
    pub caption: String,
    /// The drawing.
    pub drawing: Drawing,
}

/// A drawing as data.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Drawing {
    /// Lines through points.
    Lines(Lines),
    /// Horizontal bars of one or more parts.
    Bars(Bars),
    /// Points below ceilings.
    Roofline(Roofline),
    /// Magnitudes over channels and tokens.
    Outliers(Picture),
}

/// How numbers are written on an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// As they are.
    Plain,
    /// With an x behind them.
    Times,
    /// In percent.
    Percent,
    /// In seconds.
    Seconds,
    /// In bytes.
    Bytes,
}

/// One name in a legend: a line, a kind of point, or a part of the bars.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Key {
    /// What it stands for.
    pub name: String,
    /// Which colour and mark of the palette it has.
    pub slot: usize,
}

/// One point of a plot.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Mark {
    /// Across.
    pub x: f64,
    /// Up.
    pub y: f64,
    /// All of it in words.
    pub tip: String,
    /// Whether it was measured on a noisy machine.
    pub noisy: bool,
}

/// Points of one name.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Series {
    /// Its name.
    pub key: Key,
    /// Its points.
    pub marks: Vec<Mark>,
}

/// Lines through points.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lines {
    /// What is across.
    pub x_label: String,
    /// What is up.
    pub y_label: String,
    /// How numbers on the upright axis are written.
    pub unit: Unit,
    /// A value to compare with.
    pub reference: Option<f64>,
    /// The lines.
    pub series: Vec<Series>,
}

/// Horizontal bars.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bars {
    /// What is measured.
    pub label: String,
    /// How numbers are written.
    pub unit: Unit,
    /// Whether the axis is logarithmic; only for bars of one part.
    pub log: bool,
    /// A value to compare with, and its name.
    pub reference: Option<(String, f64)>,
    /// What the bars are made of.
    pub parts: Vec<Key>,
    /// The bars, from the top.
    pub rows: Vec<Bar>,
}

/// One bar.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bar {
    /// Its heading, where it begins a group.
    pub group: String,
    /// Its name.
    pub label: String,
    /// One value a part.
    pub values: Vec<f64>,
    /// One remark a part, instead of the value.
    pub tips: Vec<String>,
    /// What stands behind its end.
    pub total: String,
    /// Colour of a bar of one part; `None` takes the part's.
    pub slot: Option<usize>,
}

/// Points below what the machine can do at most.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Roofline {
    /// Bytes a second from memory, where they were measured.
    pub bytes_per_second: Option<f64>,
    /// Operations a second by their kind.
    pub ops_per_second: Vec<(String, f64)>,
    /// Operations a byte across, operations a second up.
    pub series: Vec<Series>,
}

/// Magnitudes of one input along its transform.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Picture {
    /// Input channels.
    pub channels: usize,
    /// Tokens.
    pub tokens: usize,
    /// Whether colours follow the logarithm.
    pub log: bool,
    /// What the first colour stands for.
    pub floor: f64,
    /// What the last colour stands for.
    pub ceiling: f64,
    /// Each step.
    pub steps: Vec<PictureStep>,
}

/// Magnitudes behind one step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PictureStep {
    /// Its name.
    pub name: String,
    /// Largest magnitude.
    pub max: f64,
    /// Median magnitude.
    pub median: f64,
    /// Columns of the grid.
    pub columns: usize,
    /// Rows of the grid.
    pub rows: usize,
    /// The largest magnitude of every cell, row by row; left out of JSON, which has it in the record.
    #[serde(skip)]
    pub grid: Vec<f32>,
}

/// Slots of names in a plot: methods, kernels and purposes of memory have theirs in every plot, others get what is left.
pub(super) fn keys(names: &[String], slots: usize) -> Vec<Key> {
    let wanted = |name: &str| match name {
        "fp32" | "fp16" | "bf16" | "gemm_float" | "workspace" => Some(0),
        "rtn" | "transform_quantize" => Some(1),
        "quarot" | "attention" | "KV cache" => Some(2),
        "duquant0" | "rms_norm" | "activations" => Some(3),
        "duquant" | "gemm_w4a4" | "weights" => Some(4),
        "duquant2" | "rope_hadamard_quantize" => Some(5),
        _ => None,
    };
    let mut taken = vec![false; slots];
    let mut chosen: Vec<Option<usize>> = Vec::new();
    for name in names {
        let slot = wanted(name).filter(|&slot| taken.get(slot) == Some(&false));
        if let Some(free) = slot.and_then(|slot| taken.get_mut(slot)) {
            *free = true;
        }
        chosen.push(slot);
    }
    let mut next = 0;
    let fill = |(name, slot): (&String, Option<usize>)| {
        let slot = slot.unwrap_or_else(|| match taken.iter().position(|taken| !taken) {
            Some(free) => {
                taken[free] = true;
                free
            }
            // More names than colours: begin again.
            None => {
                next += 1;
                (next - 1) % slots.max(1)
            }
        });
        Key { name: name.clone(), slot }
    };
    names.iter().zip(chosen).map(fill).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_keep_their_slots_and_others_take_what_is_left() {
        let names: Vec<String> = ["duquant", "other", "fp16", "bf16"].map(String::from).to_vec();
        let slots: Vec<usize> = keys(&names, 8).iter().map(|key| key.slot).collect();
        assert_eq!(slots, [4, 1, 0, 2]);
        let many: Vec<String> = (0..20).map(|i| i.to_string()).collect();
        assert!(keys(&many, 8).iter().all(|key| key.slot < 8));
    }

    #[test]
    fn empty_columns_go_but_the_first_stays() {
        let columns = vec![Column::text("a"), Column::number("b"), Column::number("c")];
        let mut table = Table::new("t", columns);
        table.rows = vec![vec![String::new(), String::new(), "1".into()]];
        let table = table.without_empty_columns();
        assert_eq!(table.columns.len(), 2);
        assert_eq!(table.rows, [["", "1"]]);
    }
}
