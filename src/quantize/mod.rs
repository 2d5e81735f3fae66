//! The layer-by-layer pipeline from a floating-point model to a W4A4 one.
