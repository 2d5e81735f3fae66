//! Text to tokens to activations at every linear's input.
