//! A quantized model as a program that times a round when told to, so that another program can take turns with it; see
//! `benches/peers/model.py`.
//!
//! ```text
//! cargo run --release --example model_rounds -- DIR
//! ```
//!
//! A request `PREFILL DECODE` on standard input is answered by a line of JSON: seconds for the prompt with the logits behind
//! its last token, seconds for the tokens decoded behind it one by one, and those tokens.
#![allow(clippy::print_stdout, reason = "it answers on standard output")]

use duquant::checkpoint::Checkpoint;
use duquant::model::Model;
use std::io::BufRead;
use std::path::Path;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Some(folder) = std::env::args().nth(1) else { return Err("usage: model_rounds DIR".into()) };
    let model = Model::load(&Checkpoint::open(Path::new(&folder))?)?;
    let vocabulary = model.vocabulary();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let Some((prefill, decode)) = line.split_once(' ') else { return Err(format!("bad request {line:?}").into()) };
        let (prefill, decode): (usize, usize) = (prefill.parse()?, decode.parse()?);
        let prompt = prompt(prefill, vocabulary);
        let mut state = model.new_state(prefill + decode)?;

        let start = Instant::now();
        model.forward(&mut state, &prompt)?;
        let mut token = model.greedy(&mut state)?;
        let middle = Instant::now();
        let mut tokens = Vec::with_capacity(decode);
        for _ in 0..decode {
            tokens.push(token);
            model.forward(&mut state, &[token])?;
            token = model.greedy(&mut state)?;
        }
        let (prefill, decode) = ((middle - start).as_secs_f64(), middle.elapsed().as_secs_f64());
        println!("{{\"prefill_seconds\": {prefill}, \"decode_seconds\": {decode}, \"tokens\": {tokens:?}}}");
    }
    Ok(())
}

/// The tokens which `model.py` makes too.
fn prompt(count: usize, vocabulary: usize) -> Vec<u32> {
    let mut state = 1_u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % vocabulary as u32
    };
    (0..count).map(next).collect()
}
