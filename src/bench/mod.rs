//! Measurements: layers, models, kernels, quantization and ablations, all written as one kind of [`Record`].

mod record;

pub use record::{
    AblationPoint, Ceilings, FORMAT, Failure, KernelPoint, KernelTime, Machine, Magnitudes, Memory, ModelShape,
    OutlierPoint, Phase, Points, QuantizePoint, Record, SpeedPoint, Stage, Times, VERSION,
};
