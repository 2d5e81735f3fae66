//! Properties of attention in CUDA over random servers: sequences share one paged cache and come in calls of any mix, decode and
//! prefill, with gaps between them; `rope_hadamard_quantize` appends and attention reads.
//!
//! `PROPTEST_CASES=2000 DUQUANT_PROPERTIES=every` looks harder, at every kind of cache, which takes a compiler some minutes.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails this way")]

mod cuda;
mod layer;
mod oracle;
mod server;

use duquant::kernels::Affine;
use duquant::kernels::cuda::{Arch, Device, Dtype, Sequence};
use layer::{Layer, Row, Shape};
use oracle::Random;
use proptest::prelude::*;
use server::{Attention, Numbers, check, rows};
use std::sync::Arc;

/// Chip, channels, stored bits of keys and values, and the type of what is not quantized.
type Form = (Arch, usize, u32, u32, Dtype);

/// Those that other tests compile too.
const FORMS: [Form; 2] = [(Arch::Sm80, 128, 4, 4, Dtype::F16), (Arch::Sm80, 64, 16, 16, Dtype::F16)];
const MORE_FORMS: [Form; 14] = [
    (Arch::Sm80, 64, 4, 4, Dtype::F16),
    (Arch::Sm80, 80, 4, 4, Dtype::F16),
    (Arch::Sm80, 256, 4, 4, Dtype::F16),
    (Arch::Sm80, 64, 8, 4, Dtype::F16),
    (Arch::Sm80, 96, 8, 8, Dtype::F16),
    (Arch::Sm80, 80, 8, 4, Dtype::F16),
    (Arch::Sm80, 256, 8, 8, Dtype::F16),
    (Arch::Sm80, 80, 16, 16, Dtype::Bf16),
    (Arch::Sm80, 256, 16, 16, Dtype::Bf16),
    (Arch::Sm90a, 64, 4, 4, Dtype::F16),
    (Arch::Sm90a, 80, 4, 4, Dtype::F16),
    (Arch::Sm90a, 128, 8, 4, Dtype::F16),
    (Arch::Sm90a, 256, 16, 16, Dtype::F16),
    (Arch::Sm90a, 96, 4, 4, Dtype::F16),
];

fn forms() -> Vec<Form> {
    let every = std::env::var("DUQUANT_PROPERTIES").is_ok_and(|which| which == "every");
    if every { [&FORMS[..], &MORE_FORMS[..]].concat() } else { FORMS.to_vec() }
}

fn config(cases: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(cases);
    ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 60, ..ProptestConfig::default() }
}

/// A quantizer whose codes are stored in so many bits.
fn quantizer() -> impl Strategy<Value = (usize, bool, f32)> {
    (0_usize..3, any::<bool>(), prop_oneof![Just(1.0_f32), Just(0.9), Just(0.5)])
}

fn affine(stored: u32, (narrower, symmetric, clip): (usize, bool, f32)) -> Option<Affine> {
    let bits = match stored {
        4 => [4, 3, 2][narrower],
        8 => [8, 6, 5][narrower],
        _ => return None,
    };
    Some(Affine { bits, clip, symmetric })
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }).collect()
}

/// What a sequence has had so far.
#[derive(Default, Clone)]
struct History {
    /// Whole rows of `qkv`.
    x: Vec<f32>,
    /// What attention gave.
    out: Vec<f32>,
    /// Of each token, whether that was the prefill kernel.
    prefill: Vec<bool>,
}

#[derive(Debug, Clone)]
struct Server {
    layer: Shape,
    sequences: usize,
    window: Option<usize>,
    out: Dtype,
    numbers: Numbers,
    /// Most tokens of a sequence.
    room: usize,
    /// Tokens that the first sequence has before the first call.
    before: usize,
}

/// A call of some tokens for each sequence, in any order of rows and of the list, with rows between them that are nobody's.
fn draw_call(random: &mut Random, server: &Server, histories: &[History], long: bool) -> (Vec<Sequence>, usize) {
    let per_sequence = server.room.div_ceil(64);
    let width = server.layer.width();
    let (mut row, mut call) =
        (random.below(3), vec![Sequence { first: 0, tokens: 0, position: 0, table: 0 }; server.sequences]);
    let order = random.permutation(server.sequences);
    for &i in &order {
        let i = i as usize;
        let position = histories[i].x.len() / width;
        let most = match random.below(if long { 6 } else { 4 }) {
            0 => 0,
            1 => 1,
            2 | 3 => 1 + random.below(8),
            4 => 1 + random.below(70),
            _ => 1 + random.below(150),
        };
        let tokens = most.min(server.room - position);
        call[i] = Sequence {
            first: row as u32,
            tokens: tokens as u32,
            position: position as u32,
            table: (i * per_sequence) as u32,
        };
        row += tokens + [0, 0, 1, 5][random.below(4)];
    }
    (call, row)
}

const TOKENS_MAX: usize = 800;

fn run(device: &Arc<dyn Device>, server: &Server, calls: usize, random: &mut Random) -> (Layer, Vec<History>) {
    let layer = Layer::new(device, server.layer, server.sequences, server.room, TOKENS_MAX);
    let attention = Attention::new(&layer, server.room, server.sequences, server.window, server.out);
    let width = server.layer.heads * server.layer.head_dim;
    let mut histories = vec![History::default(); server.sequences];
    for first in (0..server.before).step_by(TOKENS_MAX) {
        let tokens = (server.before - first).min(TOKENS_MAX);
        let part = Sequence { first: 0, tokens: tokens as u32, position: first as u32, table: 0 };
        histories[0].x.extend(layer.append(&rows(random, &server.layer, tokens, server.numbers), &[part]));
        histories[0].out.extend(vec![0.0; tokens * width]);
        histories[0].prefill.extend(vec![false; tokens]);
    }
    for turn in 0..calls {
        // The first call is a prompt more often than not.
        let long = server.before == 0 && (turn == 0 || random.below(3) == 0);
        let (call, tokens) = draw_call(random, server, &histories, long);
        let x = layer.append(&rows(random, &server.layer, tokens, server.numbers), &call);
        let longest = call.iter().map(|s| s.tokens as usize).max().unwrap();
        let got = attention.run(&layer, &call, tokens, longest);
        check(&layer, &attention, &layer.stored(), &call, tokens, &got);
        for (history, s) in histories.iter_mut().zip(&call) {
            let (from, to) = (s.first as usize, (s.first + s.tokens) as usize);
            history.x.extend_from_slice(&x[from * server.layer.width()..to * server.layer.width()]);
            history.out.extend_from_slice(&got[from * width..to * width]);
            history.prefill.extend(vec![attention.is_prefill(longest); to - from]);
        }
        // Alone in a call of the same size, where the others have no token, a sequence gets the same bits: in decode, too.
        let own = call[random.below(call.len())];
        let part = own.first as usize * width..(own.first + own.tokens) as usize * width;
        let mut quiet = call.clone();
        quiet.iter_mut().filter(|s| **s != own).for_each(|s| s.tokens = 0);
        random.permutation(quiet.len()).iter().for_each(|&i| quiet.swap(0, i as usize));
        let alone = attention.run(&layer, &quiet, tokens, longest);
        assert!(bits(&alone[part.clone()]) == bits(&got[part.clone()]), "{server:?}: {own:?} depends on {call:?}");
        // In a call of its own prefill gives the same bits, decode may split its pages in another way.
        if own.tokens > 0 {
            let single = attention.run(&layer, &[own], tokens, own.tokens as usize);
            if attention.is_prefill(own.tokens as usize) {
                assert!(bits(&single[part.clone()]) == bits(&got[part]), "{server:?}: {own:?} depends on {call:?}");
            }
            check(&layer, &attention, &layer.stored(), &[own], tokens, &single);
        }
    }
    (layer, histories)
}

/// What lies in the cache of a sequence.
fn cached(layer: &Layer, sequence: usize, room: usize, tokens: usize) -> Vec<Row> {
    let stored = layer.stored();
    let own = Sequence { first: 0, tokens: 0, position: 0, table: (sequence * room.div_ceil(64)) as u32 };
    let place = |t, head| layer.place(&own, head, t);
    (0..tokens)
        .flat_map(|t| (0..layer.shape.kv_heads).map(move |head| (t, head)))
        .flat_map(|(t, head)| [false, true].map(|values| stored.row(values, place(t, head))))
        .collect()
}

fn is_same(a: &Row, b: &Row) -> bool {
    let params = |row: &Row| row.params.map(|(scale, zero, sum)| (scale.to_bits(), zero, sum));
    bits(&a.values) == bits(&b.values) && params(a) == params(b)
}

fn check_server(device: &Arc<dyn Device>, server: &Server, calls: usize, seed: u64) {
    let (layer, histories) = run(device, server, calls, &mut Random::new(seed));
    // Nobody has written where no token is.
    let stored = layer.stored();
    let mut taken = vec![false; stored.rows()];
    for (i, history) in histories.iter().enumerate() {
        let table = (i * server.room.div_ceil(64)) as u32;
        let own = Sequence { first: 0, tokens: 0, position: 0, table };
        for t in 0..history.prefill.len() {
            (0..server.layer.kv_heads).for_each(|head| taken[layer.place(&own, head, t)] = true);
        }
    }
    for (row, &taken) in taken.iter().enumerate() {
        assert!(taken != stored.untouched(row), "{server:?}: row {row} of the cache");
    }
    // One sequence in one call, in a cache of its own: the cache has the same bits, and attention where both were prefill.
    let in_one_call = |history: &&History| (1..=TOKENS_MAX).contains(&history.prefill.len());
    let longest = histories.iter().filter(in_one_call).max_by_key(|history| history.prefill.len());
    let Some(history) = longest else { return };
    let (i, tokens) = (histories.iter().position(|h| std::ptr::eq(h, history)).unwrap(), history.prefill.len());
    let whole = Layer::new(device, server.layer, 1, server.room, TOKENS_MAX);
    let attention = Attention::new(&whole, server.room, 1, server.window, server.out);
    let call = whole.sequences(&[(0, tokens)]);
    whole.append(&history.x, &call);
    let got = attention.run(&whole, &call, tokens, tokens);
    check(&whole, &attention, &whole.stored(), &call, tokens, &got);
    let pairs = cached(&whole, 0, server.room, tokens).into_iter().zip(cached(&layer, i, server.room, tokens));
    for (at, (whole, part)) in pairs.enumerate() {
        assert!(is_same(&whole, &part), "{server:?}: row {at}: {part:?} for {whole:?}");
    }
    // What is not finite may reach others of its page, in a way that depends on the call.
    if !attention.is_prefill(tokens) || (server.numbers == Numbers::NotFinite && server.layer.value.is_none()) {
        return;
    }
    let width = server.layer.heads * server.layer.head_dim;
    for (t, (whole, part)) in got.chunks(width).zip(history.out.chunks(width)).enumerate() {
        assert!(!history.prefill[t] || bits(whole) == bits(part), "{server:?}: token {t} depends on its chunk");
    }
}

fn numbers() -> impl Strategy<Value = Numbers> {
    prop_oneof![
        2 => Just(Numbers::Noise),
        3 => Just(Numbers::Odd),
        1 => Just(Numbers::LargeHead(1e4)),
        1 => Just(Numbers::LargeHead(1e-20)),
        2 => Just(Numbers::NotFinite),
    ]
}

proptest! {
    #![proptest_config(config(10))]

    #[test]
    fn a_server_gets_what_the_softmax_over_its_cache_is(
        form: prop::sample::Index,
        (kv_heads, group) in prop_oneof![(1_usize..=2, 1_usize..=4), (Just(1_usize), 5_usize..=40), (3_usize..=4, 1_usize..=2)],
        (key, value) in (quantizer(), quantizer()),
        (sequences, calls) in (1_usize..=5, 1_usize..=4),
        before in prop_oneof![5 => Just(0_usize), 1 => 300_usize..2600],
        window in prop_oneof![3 => Just(None), 1 => (1_usize..200).prop_map(Some), 1 => Just(Some(usize::MAX))],
        room in prop_oneof![Just(64_usize), Just(65), 100_usize..420],
        out in prop_oneof![Just(Dtype::F32), Just(Dtype::F16), Just(Dtype::Bf16)],
        numbers in numbers(),
        multiprocessors in 1_u32..=9,
        seed: u64,
    ) {
        let (arch, head_dim, key_bits, value_bits, float) = *form.get(&forms());
        let Some(device) = cuda::device_of("a_server", arch, multiprocessors) else { return Ok(()) };
        let layer = Shape {
            heads: kv_heads * group,
            kv_heads,
            head_dim,
            key: affine(key_bits, key),
            value: affine(value_bits, value),
            input: Dtype::F32,
            float,
        };
        // Half precision cannot hold so much.
        let numbers = match numbers {
            Numbers::LargeHead(_) if key_bits == 16 && float == Dtype::F16 => Numbers::LargeHead(300.0),
            other => other,
        };
        check_server(&device, &Server { layer, sequences, window, out, numbers, room: room + before, before }, calls, seed);
    }
}
