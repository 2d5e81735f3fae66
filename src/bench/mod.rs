//! Measurements: layers, models, kernels, quantization and ablations, all written as one kind of [`Record`].

mod ablate;
mod cost;
mod kernel;
mod layer;
mod machine;
mod method;
mod model;
mod outliers;
mod presets;
mod quantize;
mod record;
mod speed;
mod times;

pub use crate::model::Memory;
pub use ablate::{Ablation, AblationError, AblationOptions, Base, Row, Source, Table, rows};
pub use kernel::{Rounds, ceilings_of, kernel};
pub use layer::{Event, layer};
pub use method::{Bits, Method};
pub use model::{Weights, model};
pub use outliers::{Grid, OutlierProbe};
pub use presets::{PRESETS, preset};
pub use quantize::{QuantizeRun, measure_quantize};
pub use record::{
    AblationPoint, Ceilings, FORMAT, Failure, KernelPoint, KernelTime, Machine, Magnitudes, ModelShape, OutlierPoint,
    Phase, Points, QuantizePoint, Record, SpeedPoint, Stage, Times, VERSION,
};
pub use speed::{Error, SpeedOptions};
pub use times::Watch;

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

impl Record {
    /// A record of `points` on `machine`, begun now by a program that was called with `command`.
    #[must_use]
    pub fn new(command: Vec<String>, machine: Machine, model: Option<ModelShape>, points: Points) -> Self {
        Self {
            format: FORMAT.into(),
            version: VERSION,
            duquant: env!("CARGO_PKG_VERSION").into(),
            commit: machine::commit(),
            unix_seconds: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            command,
            machine,
            model,
            settings: BTreeMap::new(),
            ceilings: None,
            points,
            failures: Vec::new(),
        }
    }
}
