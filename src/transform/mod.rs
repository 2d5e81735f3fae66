//! Smoothing, rotation, permutation, and the chain of them.
