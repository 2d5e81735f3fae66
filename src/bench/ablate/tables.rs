//! The rows of the paper's ablation tables, as settings of the quantizer.
#![expect(clippy::approx_constant, reason = "the perplexity of the paper's full method is 6.28")]

use super::Source;
use crate::checkpoint::Group;
use crate::quantize::{Method, Mode, Options};
use crate::transform::PermutationKind;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// An ablation of the paper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Table {
    /// Table 6: smoothing, the rotations and the permutation, one without the other.
    Modules,
    /// Table 7: the transform on the inputs with normal outliers alone, and on those with massive ones.
    Outliers,
    /// Table E14: the rotation block.
    Block,
    /// Table E15: greedy steps.
    Steps,
    /// Table E16: what stands between two rotations.
    Permutation,
    /// Tables E17 and E18: the calibration text, and random tokens.
    Calibration,
    /// Table E19: calibration samples.
    Samples,
    /// Table F23: the greedy rotation against a Hadamard.
    Rotation,
}

impl Table {
    /// All of them, in the paper's order.
    pub const ALL: [Self; 8] = [
        Self::Modules,
        Self::Outliers,
        Self::Block,
        Self::Steps,
        Self::Permutation,
        Self::Calibration,
        Self::Samples,
        Self::Rotation,
    ];

    /// The key that the command line and [`crate::bench::AblationPoint::table`] use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Modules => "modules",
            Self::Outliers => "outliers",
            Self::Block => "block",
            Self::Steps => "steps",
            Self::Permutation => "permutation",
            Self::Calibration => "calibration",
            Self::Samples => "samples",
            Self::Rotation => "rotation",
        }
    }

    /// The paper's number of the table.
    #[must_use]
    pub fn paper(self) -> &'static str {
        match self {
            Self::Modules => "table 6",
            Self::Outliers => "table 7",
            Self::Block => "table E14",
            Self::Steps => "table E15",
            Self::Permutation => "table E16",
            Self::Calibration => "tables E17 and E18",
            Self::Samples => "table E19",
            Self::Rotation => "table F23",
        }
    }
}

/// What the rows of a run share.
#[derive(Debug, Clone)]
pub struct Base {
    /// The full method.
    pub options: Options,
    /// What every row calibrates with unless its table is about that.
    pub given: Source,
    /// The other text of [`Table::Calibration`]; no row without it.
    pub other: Option<Source>,
    /// Calibration samples.
    pub samples: usize,
    /// Tokens of a sample.
    pub length: usize,
}

/// One row: what to quantize with, and what to say of it.
#[derive(Debug, Clone)]
pub struct Row {
    /// Its table.
    pub table: Table,
    /// In words.
    pub words: String,
    /// Settings that differ from the table's others.
    pub settings: BTreeMap<String, Value>,
    /// Settings of the quantizer.
    pub options: Options,
    /// Where its calibration tokens come from.
    pub source: Source,
    /// Calibration samples.
    pub samples: usize,
    /// Whether the variance behind the permutation is measured (eq. 4).
    pub variance: bool,
    /// What the paper gives for it on LLaMA2-7B and WikiText2.
    pub paper: Option<f64>,
}

/// The rows of `table`, in the paper's order.
#[must_use]
pub fn rows(table: Table, base: &Base) -> Vec<Row> {
    let full = &base.options;
    let row = |words: &str, settings: Value, options: Options, paper: Option<f64>| Row {
        table,
        words: words.into(),
        settings: match settings {
            Value::Object(map) => map.into_iter().collect(),
            _ => BTreeMap::new(),
        },
        options,
        source: base.given.clone(),
        samples: base.samples,
        variance: false,
        paper,
    };
    let one_rotation = Options { permutations: 0, permutation: PermutationKind::None, ..full.clone() };
    let plain = |options: &Options| Options { alpha: None, ..options.clone() };
    match table {
        Table::Modules => vec![
            row(
                "smoothing alone",
                json!({"smoothing": true, "rotations": 0, "permutations": 0}),
                Options { transformed: [false; 4], ..full.clone() },
                // The paper's is not a number.
                None,
            ),
            row(
                "one rotation, no smoothing",
                json!({"smoothing": false, "rotations": 1, "permutations": 0}),
                plain(&one_rotation),
                Some(8.48),
            ),
            row(
                "smoothing, one rotation",
                json!({"smoothing": true, "rotations": 1, "permutations": 0}),
                one_rotation.clone(),
                Some(7.92),
            ),
            row(
                "rotation, permutation, rotation, no smoothing",
                json!({"smoothing": false, "rotations": 2, "permutations": 1}),
                plain(full),
                Some(6.79),
            ),
            row(
                "smoothing, rotation, permutation, rotation",
                json!({"smoothing": true, "rotations": 2, "permutations": 1}),
                full.clone(),
                Some(6.28),
            ),
        ],
        Table::Outliers => [
            (
                "normal outliers transformed (qkv, o, gate_up), smoothing alone at down",
                [true, true, true, false],
                18.16,
            ),
            (
                "massive outliers transformed (down), smoothing alone at qkv, o, gate_up",
                [false, false, false, true],
                10.88,
            ),
            ("normal and massive outliers transformed", [true; 4], 6.28),
        ]
        .into_iter()
        .map(|(words, transformed, paper)| {
            let groups = Group::ALL.into_iter().zip(transformed).filter(|(_, transformed)| *transformed);
            let names: Vec<_> = groups.map(|(group, _)| group.name()).collect();
            row(words, json!({"transformed": names}), Options { transformed, ..full.clone() }, Some(paper))
        })
        .collect(),
        Table::Block => [(4, 18.69), (8, 10.77), (16, 8.69), (32, 6.96), (64, 6.38), (128, 6.28)]
            .into_iter()
            .map(|(block, paper)| {
                let words = format!("blocks of {block} channels");
                row(&words, json!({"block": block}), Options { block, ..full.clone() }, Some(paper))
            })
            .collect(),
        Table::Steps => [(1, 6.60), (4, 6.34), (16, 6.32), (64, 6.34), (256, 6.28), (1024, 6.31)]
            .into_iter()
            .map(|(steps, paper)| {
                let words = format!("{steps} greedy step{}", if steps == 1 { "" } else { "s" });
                row(&words, json!({"steps": steps}), Options { steps, ..full.clone() }, Some(paper))
            })
            .collect(),
        Table::Permutation => [
            ("no permutation, one rotation", PermutationKind::None, 7.92),
            ("random permutation", PermutationKind::Random, 6.40),
            ("simulated annealing", PermutationKind::Anneal, 6.26),
            ("zigzag", PermutationKind::Zigzag, 6.28),
        ]
        .into_iter()
        .map(|(words, permutation, paper)| {
            let options = match permutation {
                PermutationKind::None => one_rotation.clone(),
                _ => Options { permutation, ..full.clone() },
            };
            let settings = json!({"permutation": permutation.name()});
            Row { variance: true, ..row(words, settings, options, Some(paper)) }
        })
        .collect(),
        Table::Calibration => {
            let from = |source: &Source, words: String, paper| Row {
                source: source.clone(),
                ..row(&words, json!({"calibration": source.name}), full.clone(), Some(paper))
            };
            let mut rows = Vec::new();
            if base.given.tokens.is_some() {
                rows.push(from(&base.given, format!("text {}", base.given.name), 6.28));
            }
            // The paper's other text is C4.
            if let Some(other) = &base.other {
                rows.push(from(other, format!("another text, {}", other.name), 6.25));
            }
            rows.push(from(&Source::random(), "random tokens".into(), 6.25));
            rows
        }
        Table::Samples => {
            let held = base.given.holds(base.length).unwrap_or(usize::MAX);
            let mut counts = [1, 2, 4, 8].map(|count: usize| count.min(held)).to_vec();
            counts.dedup();
            counts
                .into_iter()
                .map(|samples| {
                    let words = format!("{samples} sample{}", if samples == 1 { "" } else { "s" });
                    Row { samples, ..row(&words, json!({"samples": samples}), full.clone(), None) }
                })
                .collect()
        }
        Table::Rotation => {
            let hadamard = Options { mode: Mode::Hadamard, ..one_rotation.clone() };
            let quarot = Options { method: Method::QuaRot, activation_clip: 1.0, weight_clip: 1.0, ..plain(&hadamard) };
            let of = |words: &str, rotation: &str, options: Options, paper| {
                let smoothing = options.alpha.is_some();
                let clips = [options.activation_clip, options.weight_clip].map(decimal);
                row(words, json!({"rotation": rotation, "smoothing": smoothing, "clips": clips}), options, paper)
            };
            vec![
                of("QuaRot: a Hadamard, no smoothing, no clipping", "hadamard", quarot, Some(9.66)),
                of("a Hadamard, no smoothing", "hadamard", plain(&hadamard), None),
                of("a Hadamard behind smoothing", "hadamard", hadamard, None),
                of("DuQuant's rotation, no smoothing", full.mode.name(), plain(&one_rotation), Some(8.48)),
                of("DuQuant's rotation behind smoothing", full.mode.name(), one_rotation.clone(), Some(7.92)),
            ]
        }
    }
}

/// An `f32` as people write it: 0.9, not 0.8999999761581421.
fn decimal(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}
