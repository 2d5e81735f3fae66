//! The command line `duquant`.
fn main() {}
