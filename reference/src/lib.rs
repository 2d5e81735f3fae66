//! The oracle of duquant: every kernel and every step of the quantizer as scalar loops in `f64` and `i64`.
