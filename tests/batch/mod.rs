//! Several sequences in one state against each of them in a state of its own.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    reason = "each test file takes what it needs; a test fails this way"
)]

use duquant::checkpoint::Checkpoint;
use duquant::model::{Error, Model, Operation, StateDesc};
use std::path::Path;

/// Texts of `tokens` tokens, no two alike.
pub(crate) fn texts(sequences: usize, tokens: usize) -> Vec<Vec<u32>> {
    let token = |sequence: usize, i: usize| ((i * i * 7 + 31 * i + sequence * 13 + sequence * i) % 256) as u32;
    (0..sequences).map(|sequence| (0..tokens).map(|i| token(sequence, i)).collect()).collect()
}

/// `checkpoint` with a sliding window.
pub(crate) fn with_window(folder: &Path, window: usize) -> Checkpoint {
    let file = folder.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    config["model_type"] = "mistral".into();
    config["architectures"] = serde_json::json!(["MistralForCausalLM"]);
    config["sliding_window"] = window.into();
    std::fs::write(&file, config.to_string()).unwrap();
    let checkpoint = Checkpoint::open(folder).unwrap();
    assert_eq!(checkpoint.config().sliding_window, Some(window));
    checkpoint
}

pub(crate) fn likeliest(logits: &[f32]) -> u32 {
    (0..logits.len()).fold(0, |best, at| if logits[at] > logits[best] { at } else { best }) as u32
}

/// Logits `[tokens, vocabulary]` of each text, all in one state, in runs of so many tokens of each; passes have at most `rows` rows.
/// The tokens that the state chooses are those of its own logits.
pub(crate) fn together(model: &Model, texts: &[Vec<u32>], parts: &[usize], rows: Option<usize>) -> Vec<Vec<f32>> {
    let vocabulary = model.vocabulary();
    let capacity = texts[0].len();
    let mut state = model.new_state_with(&StateDesc { sequences: texts.len(), capacity, rows }).unwrap();
    assert_eq!((state.sequences(), state.capacity(), state.len()), (texts.len(), capacity, 0));
    let mut out = vec![Vec::new(); texts.len()];
    let mut first = 0;
    for &part in parts {
        let tokens: Vec<u32> = texts.iter().flat_map(|text| &text[first..first + part]).copied().collect();
        model.forward(&mut state, &tokens).unwrap();
        // Row by row, since a product of other height may sum in another order; all at once they are near.
        let mut logits = vec![0.0; tokens.len() * vocabulary];
        for (row, logits) in logits.chunks_exact_mut(vocabulary).enumerate() {
            model.logits(&mut state, row..row + 1, logits).unwrap();
        }
        let some = tokens.len() / 3..tokens.len();
        let mut at_once = vec![0.0; some.len() * vocabulary];
        model.logits(&mut state, some.clone(), &mut at_once).unwrap();
        assert_near(&at_once, &logits[some.start * vocabulary..], 1e-5, "rows at once");
        let last = |own: &[f32]| likeliest(&own[own.len() - vocabulary..]);
        let expected: Vec<u32> = logits.chunks_exact(part * vocabulary).map(last).collect();
        for _ in 0..2 {
            assert_eq!(model.greedy_each(&mut state).unwrap(), expected);
        }
        for (own, logits) in out.iter_mut().zip(logits.chunks_exact(part * vocabulary)) {
            own.extend_from_slice(logits);
        }
        first += part;
    }
    assert_eq!((first, state.len()), (capacity, capacity));
    out
}

/// The same of one text in a state of its own.
pub(crate) fn alone(model: &Model, text: &[u32], parts: &[usize], rows: Option<usize>) -> Vec<f32> {
    together(model, std::slice::from_ref(&text.to_vec()), parts, rows).remove(0)
}

/// Root mean square of the difference over that of `expected`.
pub(crate) fn error(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len());
    assert!(got.iter().all(|x| x.is_finite()));
    let size: f64 = expected.iter().map(|&x| f64::from(x).powi(2)).sum();
    let error: f64 = got.iter().zip(expected).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
    (error / size.max(f64::MIN_POSITIVE)).sqrt()
}

fn assert_near(got: &[f32], expected: &[f32], most: f64, what: &str) {
    let error = error(got, expected);
    assert!(error <= most, "{what}: {error:.2e}");
}

/// Runs of the layers alone and contexts that no prompt was run for: times are there, and sequences as long as they should be.
pub(crate) fn runs_of_the_layers(model: &Model, sequences: usize, rows: Option<usize>) {
    let config = model.config();
    let numbers = |count: usize| (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 40.0).collect::<Vec<f32>>();
    let (x, qkv) = (numbers(3 * config.hidden), numbers(7 * (config.heads + 2 * config.kv_heads) * config.head_dim));
    let mut state = model.new_state_with(&StateDesc { sequences, capacity: 100, rows }).unwrap();
    let memory = state.memory();
    assert!(memory.activations > 0 && memory.workspace > 0);
    assert_eq!(memory.kv_cache as usize, state.cache_bytes());
    model.fill(&mut state, &qkv, 70).unwrap();
    assert_eq!(state.len(), 70);
    for tokens in [1, 1, 1, 9] {
        let before = state.len();
        let seconds = model.run_layers(&mut state, &x, tokens).unwrap();
        assert!(seconds > 0.0 && seconds < 60.0, "{seconds}");
        assert_eq!(state.len(), before + tokens);
        assert!(matches!(model.greedy_each(&mut state), Err(Error::Shape { .. })), "no hidden states, no tokens");
        let before = state.len();
        let by_operation = model.time_operations(&mut state, &x, tokens).unwrap();
        assert_eq!(by_operation.len(), Operation::ALL.len());
        assert!(by_operation.iter().all(|&seconds| (0.0..60.0).contains(&seconds)), "{by_operation:?}");
        assert!(by_operation.iter().sum::<f64>() > 0.0, "{by_operation:?}");
        assert_eq!(state.len(), before + tokens);
    }
    assert_eq!(state.len(), 94);
    assert!(matches!(model.run_layers(&mut state, &x, 7), Err(Error::Capacity { capacity: 100, wanted: 101 })));
    assert!(matches!(model.fill(&mut state, &qkv, 7), Err(Error::Capacity { .. })));
    assert!(matches!(model.run_layers(&mut state, &x[1..], 1), Err(Error::Shape { .. })));
    assert!(matches!(model.time_operations(&mut state, &[], 1), Err(Error::Shape { .. })));
    assert!(matches!(model.fill(&mut state, &qkv[1..], 1), Err(Error::Shape { .. })));
    assert_eq!(state.len(), 94);
    // It is a state to go on with.
    model.forward(&mut state, &vec![42; sequences]).unwrap();
    let mut logits = vec![0.0; sequences * model.vocabulary()];
    model.logits(&mut state, 0..sequences, &mut logits).unwrap();
    assert!(logits.iter().all(|x| x.is_finite()));
    let tokens: Vec<u32> = logits.chunks_exact(model.vocabulary()).map(likeliest).collect();
    assert_eq!(model.greedy_each(&mut state).unwrap(), tokens);
    for operation in Operation::ALL {
        assert!(!model.kernel(operation, 5).is_empty(), "{operation:?}");
    }
}

/// A context that was filled in is the keys and values of its numbers, for all sequences, in one call or two. `most` is how far the
/// logits of other numbers of rows may be off.
pub(crate) fn contexts_that_no_prompt_was_run_for(model: &Model, most: f64) {
    let config = model.config();
    let width = (config.heads + 2 * config.kv_heads) * config.head_dim;
    let qkv: Vec<f32> = (0..10 * width).map(|i| ((i * 53 % 211) as f32 - 105.0) / 70.0).collect();
    let logits = |sequences: usize, rows: Option<usize>, calls: &[usize]| {
        let mut state = model.new_state_with(&StateDesc { sequences, capacity: 40, rows }).unwrap();
        calls.iter().for_each(|&tokens| model.fill(&mut state, &qkv, tokens).unwrap());
        model.forward(&mut state, &vec![7; sequences]).unwrap();
        let mut logits = vec![0.0; sequences * model.vocabulary()];
        model.logits(&mut state, 0..sequences, &mut logits).unwrap();
        logits.split_off((sequences - 1) * model.vocabulary())
    };
    let expected = logits(1, None, &[30]);
    // A call begins with the first row.
    for (sequences, rows, calls) in
        [(3, None, &[30][..]), (1, None, &[10, 20]), (2, Some(3), &[20, 10]), (1, Some(16), &[30])]
    {
        let error = error(&logits(sequences, rows, calls), &expected);
        assert!(error < most, "{sequences} sequences, {calls:?} by {rows:?}: {error:.2e}");
    }
}

/// Calls that several sequences cannot take are errors, and change nothing. `most` is as above.
pub(crate) fn bad_calls(model: &Model, most: f64) {
    let desc = StateDesc { sequences: 3, capacity: 4, rows: None };
    assert!(matches!(model.new_state_with(&StateDesc { sequences: 0, ..desc }), Err(Error::Shape { .. })));
    let mut state = model.new_state_with(&desc).unwrap();
    assert!(matches!(model.forward(&mut state, &[1; 4]), Err(Error::Shape { .. })));
    assert!(matches!(model.forward(&mut state, &[1; 15]), Err(Error::Capacity { capacity: 4, wanted: 5 })));
    assert!(matches!(model.forward(&mut state, &[1, 2, 256]), Err(Error::Token { token: 256, .. })));
    assert!(matches!(model.greedy_each(&mut state), Err(Error::Shape { .. })));
    assert!(state.is_empty());
    model.forward(&mut state, &[1; 9]).unwrap();
    assert_eq!(state.len(), 3);
    assert!(matches!(model.greedy(&mut state), Err(Error::Shape { .. })), "greedy is of one sequence");
    let mut logits = vec![0.0; model.vocabulary()];
    assert!(matches!(model.logits(&mut state, 9..10, &mut logits), Err(Error::Shape { .. })));
    model.logits(&mut state, 8..9, &mut logits).unwrap();
    // A state of sequences that were rewound is as a fresh one.
    state.truncate(1);
    assert_eq!(state.len(), 1);
    model.forward(&mut state, &[1; 6]).unwrap();
    let mut again = vec![0.0; model.vocabulary()];
    model.logits(&mut state, 5..6, &mut again).unwrap();
    assert!(error(&again, &logits) < most);
}
