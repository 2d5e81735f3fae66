use super::*;
use crate::testing::{Random, abs_max, close};
use crate::{
    GreedyMode, RopeScaling, SearchSettings, column_abs_max, fold_into_columns, fold_into_norm, gemm_w4a4,
    search_transform, smoothing_scale,
};

const SHAPE: AttentionShape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 8 };
const HIDDEN: usize = 32;
const INNER: usize = 48;
const VOCABULARY: usize = 20;
const TOKENS: [usize; 7] = [3, 0, 19, 7, 7, 12, 5];

fn float_group(random: &mut Random, outputs: &[usize], k: usize, bias: bool) -> LinearGroup {
    let linears = outputs
        .iter()
        .map(|&n| {
            let values = random.normals(n * k).iter().map(|w| w / (k as f64).sqrt()).collect();
            Linear { weight: Weight::Float { n, k, values }, bias: bias.then(|| random.normals(n)) }
        })
        .collect();
    LinearGroup { transform: Transform::identity(k), activation: None, linears }
}

/// A small model in floating point, with biases on q, k and v and one channel that stands out at every norm.
fn float_model(seed: u64) -> Model {
    let mut random = Random::new(seed);
    let mut layers = Vec::new();
    for _ in 0..2 {
        let mut attention_norm = vec![1.0; HIDDEN];
        attention_norm[5] = 3.0;
        layers.push(Layer {
            attention_norm,
            mlp_norm: random.normals(HIDDEN),
            qkv: float_group(&mut random, &[32, 16, 16], HIDDEN, true),
            o: float_group(&mut random, &[HIDDEN], HIDDEN, false),
            gate_up: float_group(&mut random, &[INNER, INNER], HIDDEN, false),
            down: float_group(&mut random, &[HIDDEN], INNER, false),
        });
    }
    let embedding = random.normals(VOCABULARY * HIDDEN);
    Model {
        shape: SHAPE,
        norm_epsilon: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        window: None,
        heads: HeadSettings { query: None, key: None, value: None, hadamard: false },
        head: embedding.clone(),
        embedding,
        layers,
        norm: vec![1.0; HIDDEN],
    }
}

fn groups(layer: &mut Layer) -> [&mut LinearGroup; 4] {
    [&mut layer.qkv, &mut layer.o, &mut layer.gate_up, &mut layer.down]
}

/// Transforms every group by a searched transform with online smoothing; quantizes where `bits` says so.
fn transformed_model(model: &Model, bits: Option<u32>) -> Model {
    let mut out = model.clone();
    let mut random = Random::new(77);
    for group in out.layers.iter_mut().flat_map(groups) {
        let k = group.linears[0].weight.shape().1;
        let sample = random.activations(16, k);
        let settings = SearchSettings { block: 16, steps: 8, permutations: 1, mode: GreedyMode::Paper };
        let mut transform = search_transform(&sample, k, &settings, &mut |_, _| random.orthogonal(15));
        let scale = smoothing_scale(&column_abs_max(&sample, k), &vec![1.0; k], 0.5);
        transform.inverse_smooth = Some(scale.iter().map(|s| 1.0 / s).collect());
        for linear in &mut group.linears {
            let (n, k) = linear.weight.shape();
            let values = transform.apply_to_weight(&linear.weight.values());
            linear.weight = match bits {
                Some(bits) => Weight::Quantized(QuantizedMatrix::quantize(&values, n, k, &Affine::new(bits, 1.0))),
                None => Weight::Float { n, k, values },
            };
        }
        group.transform = transform;
        group.activation = bits.map(|bits| Affine::new(bits, 1.0));
    }
    let affine = bits.map(|bits| Affine::new(bits, 1.0));
    out.heads = HeadSettings { query: affine, key: affine, value: affine, hadamard: true };
    out
}

fn relative_error(got: &[f64], expected: &[f64]) -> f64 {
    let square = |x: f64| x * x;
    let error: f64 = got.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    (error / expected.iter().map(|&b| square(b)).sum::<f64>()).sqrt()
}

#[test]
fn one_token_of_one_layer_by_hand() {
    // With one token attention gives v, and with weights of zero in the MLP only the attention adds to the residual.
    let mut model = float_model(1);
    let zero = |n: usize, k: usize| Weight::Float { n, k, values: vec![0.0; n * k] };
    for layer in &mut model.layers {
        layer.down.linears[0].weight = zero(HIDDEN, INNER);
    }
    model.layers.truncate(1);
    let x = Random::new(2).normals(HIDDEN);
    let layer = &model.layers[0];
    let normed = rms_norm(&x, &layer.attention_norm, 1e-5);
    let v = &layer.qkv.linears[2];
    let v = gemm_float(&normed, &v.weight.values(), v.bias.as_deref(), 1, 16, HIDDEN);
    // Query heads 0 and 1 read value head 0, heads 2 and 3 read value head 1.
    let attended = [&v[..8], &v[..8], &v[8..], &v[8..]].concat();
    let expected = gemm_float(&attended, &layer.o.linears[0].weight.values(), Some(&x), 1, HIDDEN, HIDDEN);
    close(&model.layer(layer, &x), &expected, 1e-13);
}

#[test]
fn the_feed_forward_half_of_a_layer() {
    let mut model = float_model(3);
    let layer = &mut model.layers[0];
    layer.o.linears[0].weight = Weight::Float { n: HIDDEN, k: HIDDEN, values: vec![0.0; HIDDEN * HIDDEN] };
    let layer = &model.layers[0];
    let x = Random::new(4).normals(2 * HIDDEN);
    let normed = rms_norm(&x, &layer.mlp_norm, 1e-5);
    let run = |linear: &Linear, x: &[f64]| {
        let (n, k) = linear.weight.shape();
        gemm_float(x, &linear.weight.values(), None, 2, n, k)
    };
    let inner = swiglu(&run(&layer.gate_up.linears[0], &normed), &run(&layer.gate_up.linears[1], &normed));
    let expected = add(&x, &run(&layer.down.linears[0], &inner));
    close(&model.layer(layer, &x), &expected, 1e-13);
}

#[test]
fn later_tokens_change_nothing_before() {
    let model = transformed_model(&float_model(5), Some(4));
    let all = model.forward(&TOKENS);
    assert_eq!(all.len(), TOKENS.len() * VOCABULARY);
    for count in 1..TOKENS.len() {
        assert_eq!(model.forward(&TOKENS[..count]), all[..count * VOCABULARY]);
    }
}

#[test]
fn position_and_window_matter() {
    let mut model = float_model(6);
    let full = model.forward(&TOKENS);
    model.window = Some(TOKENS.len());
    assert_eq!(model.forward(&TOKENS), full);
    model.window = Some(2);
    let windowed = model.forward(&TOKENS);
    close(&windowed[..2 * VOCABULARY], &full[..2 * VOCABULARY], 0.0);
    assert!(relative_error(&windowed[2 * VOCABULARY..], &full[2 * VOCABULARY..]) > 1e-3);
    let swapped = float_model(6).forward(&[0, 3, 19, 7, 7, 12, 5]);
    assert!(relative_error(&swapped[6 * VOCABULARY..], &full[6 * VOCABULARY..]) > 1e-4);
}

#[test]
fn transforms_keep_the_logits() {
    let model = float_model(7);
    close(&transformed_model(&model, None).forward(&TOKENS), &model.forward(&TOKENS), 1e-11);
}

#[test]
fn folded_smoothing_keeps_the_logits() {
    let model = float_model(8);
    let mut folded = model.clone();
    for layer in &mut folded.layers {
        let scale: Vec<f64> = (0..HIDDEN).map(|j| 0.2 + j as f64 / 7.0).collect();
        layer.attention_norm = fold_into_norm(&layer.attention_norm, &scale);
        for linear in &mut layer.qkv.linears {
            let (n, k) = linear.weight.shape();
            linear.weight = Weight::Float { n, k, values: fold_into_columns(&linear.weight.values(), &scale) };
        }
    }
    close(&folded.forward(&TOKENS), &model.forward(&TOKENS), 1e-11);
}

#[test]
fn more_bits_are_nearer() {
    let model = float_model(9);
    let expected = model.forward(&TOKENS);
    let error = |bits| relative_error(&transformed_model(&model, Some(bits)).forward(&TOKENS), &expected);
    let [four, six, eight] = [4, 6, 8].map(error);
    assert!(eight < 0.05 && eight < six && six < four && four < 0.5, "{eight} {six} {four}");
}

#[test]
fn the_dequantized_path_is_the_integer_path() {
    let model = transformed_model(&float_model(10), Some(4));
    let group = &model.layers[1].gate_up;
    let x = Random::new(11).activations(5, HIDDEN);
    let codes = transform_quantize(&x, 5, &group.transform, &Affine::new(4, 1.0));
    for (linear, y) in group.linears.iter().zip(group.forward(&x, 5)) {
        let Weight::Quantized(matrix) = &linear.weight else { panic!("the model is quantized") };
        close(&gemm_w4a4(&codes, matrix, None).y, &y, 1e-13);
        assert!(abs_max(&y) > 0.0);
    }
}
