use crate::checkpoint::Group;
use crate::transform::RotationKind;
use serde::{Deserialize, Serialize};

/// What was measured while a group was quantized.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupReport {
    /// `qkv`, `o`, `gate_up` or `down`.
    pub group: String,
    /// The rotation that was chosen.
    pub rotation: String,
    /// Mean over tokens and linears of `|y - y'|^2 / |y|^2` on calibration tokens.
    pub output_error: f64,
    /// Largest `|x|` of the smoothed input.
    pub input_max: f32,
    /// Largest `|x|` behind the transform.
    pub transformed_max: f32,
    /// Time spent on the group.
    pub seconds: f64,
}

/// What was measured while a model was quantized.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Report {
    /// One entry a layer, one a group inside.
    pub layers: Vec<Vec<GroupReport>>,
    /// Time for the whole run.
    pub seconds: f64,
    /// Time in reading weights and running the floating-point and quantized layers.
    pub calibration_seconds: f64,
    /// Time in finding transforms and quantizing weights.
    pub search_seconds: f64,
    /// Time in writing the result.
    pub writing_seconds: f64,
    /// The same in finer stages, in the order of the pipeline. The groups of a layer run side by side; from finding rotations
    /// to measuring they share wall time in proportion to what each took of the threads.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub stages: Vec<StageTime>,
}

/// A part of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageTime {
    /// What it does.
    pub name: String,
    /// How long it took.
    pub seconds: f64,
}

impl Report {
    /// The file of a quantized folder which holds its report.
    pub const FILE: &str = "duquant_report.json";

    /// The report as it is stored beside the model: without times, so that equal runs write equal folders.
    pub(super) fn record(&self) -> Vec<u8> {
        let mut record = Self { layers: self.layers.clone(), ..Self::default() };
        record.layers.iter_mut().flatten().for_each(|group| group.seconds = 0.0);
        // A report is numbers and short strings; where a number is not finite JSON has null for it.
        serde_json::to_vec_pretty(&record).unwrap_or_default()
    }

    /// Mean output error over all layers and groups.
    #[must_use]
    pub fn mean_error(&self) -> f64 {
        let groups = || self.layers.iter().flatten();
        groups().map(|group| group.output_error).sum::<f64>() / groups().count().max(1) as f64
    }
}

impl GroupReport {
    pub(super) fn new(
        group: Group,
        rotation: RotationKind,
        output_error: f64,
        maxima: (f32, f32),
        elapsed: std::time::Duration,
    ) -> Self {
        Self {
            group: group.name().into(),
            rotation: rotation.name().into(),
            output_error,
            input_max: maxima.0,
            transformed_max: maxima.1,
            seconds: elapsed.as_secs_f64(),
        }
    }
}
