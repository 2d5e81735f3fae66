use super::*;

/// A small generator, so that tests need no other crate and repeat themselves.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    fn below(&mut self, end: u32) -> u32 {
        self.next() % end
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Fill {
    Random,
    Zeros,
    Max,
}

fn code(fill: Fill, bits: u32, random: &mut Random) -> u8 {
    match fill {
        Fill::Random => random.below(1 << bits) as u8,
        Fill::Zeros => 0,
        Fill::Max => ((1_u32 << bits) - 1) as u8,
    }
}

/// A weight and its codes, one a byte.
fn weight(n: usize, k: usize, bits: u32, fill: Fill, random: &mut Random) -> (QuantizedMatrix, Vec<u8>) {
    let codes: Vec<u8> = (0..n * k).map(|_| code(fill, bits, random)).collect();
    let row_bytes = QuantizedMatrix::row_bytes_of(k, bits);
    let mut packed = vec![0_u8; n * row_bytes];
    for (i, &code) in codes.iter().enumerate() {
        let (row, k) = (i / k, i % k);
        if bits <= 4 {
            packed[row * row_bytes + k / 2] |= code << (4 * (k % 2));
        } else {
            packed[row * row_bytes + k] = code;
        }
    }
    let scale = (0..n).map(|_| 0.001 + random.below(1000) as f32 * 1e-5).collect();
    let zero_point = (0..n).map(|_| code(Fill::Random, bits, random)).collect();
    (QuantizedMatrix { n, k, bits, packed, scale, zero_point }, codes)
}

fn tokens(t: usize, k: usize, bits: u32, fill: Fill, random: &mut Random) -> QuantizedTokens {
    let mut x = QuantizedTokens::new(t + 3, k);
    x.set_tokens(t).unwrap();
    for t in 0..t {
        let stride = x.stride();
        for k in 0..k {
            x.codes[t * stride + k] = code(fill, bits, random);
        }
        x.scale[t] = 0.01 + random.below(1000) as f32 * 1e-4;
        x.zero_point[t] = i32::from(code(Fill::Random, bits, random));
        x.row_sum[t] = x.row(t).iter().map(|&code| i32::from(code)).sum();
    }
    x
}

/// `I[t, n] = sum_k (qx - zx) (qw - zw)` in `i64`, straight from the definition.
fn expected(x: &QuantizedTokens, w: &QuantizedMatrix, codes: &[u8]) -> Vec<i32> {
    let mut out = Vec::new();
    for t in 0..x.tokens() {
        for n in 0..w.n {
            let (zx, zw) = (i64::from(x.zero_point[t]), i64::from(w.zero_point[n]));
            let row = &codes[n * w.k..(n + 1) * w.k];
            let sum: i64 = x.row(t).iter().zip(row).map(|(&x, &w)| (i64::from(x) - zx) * (i64::from(w) - zw)).sum();
            out.push(i32::try_from(sum).unwrap());
        }
    }
    out
}

/// Runs every instruction set on these operands: integers against the oracle, `y` against the written-out epilogue.
fn check(x: &QuantizedTokens, activation_bits: u32, w: &QuantizedMatrix, codes: &[u8], random: &mut Random) {
    let (t, n, k) = (x.tokens(), w.n, w.k);
    let desc = GemmW4A4Desc { m_max: t + random.below(3) as usize, n, k, weight_bits: w.bits, activation_bits };
    let integers = expected(x, w, codes);
    let bias: Vec<f32> = (0..n).map(|_| random.below(1000) as f32 * 0.01 - 5.0).collect();
    let before: Vec<f32> = (0..t * n).map(|_| random.below(1000) as f32 * 0.01 - 5.0).collect();
    for &isa in Isa::available() {
        let what = format!("{isa:?} T {t} N {n} K {k} W{} A{activation_bits}", w.bits);
        let plan = GemmW4A4::plan(&desc, isa).unwrap();
        let packed = plan.pack(w).unwrap();
        // Rubbish in the workspace, at an odd address.
        let mut workspace = vec![0xa5_u8; plan.workspace_bytes() + 1];
        let workspace = &mut workspace[1..];
        let mut got = vec![-1; t * n];
        plan.run_integer(&packed, x, &mut got, workspace).unwrap();
        assert!(got == integers, "integers of {what}, kernel {}", plan.kernel(t));
        for (with_bias, accumulate) in [(false, false), (true, false), (false, true), (true, true)] {
            let mut y = before.clone();
            let epilogue = Epilogue { bias: with_bias.then_some(&bias[..]), accumulate };
            plan.run(&packed, x, epilogue, &mut y, workspace).unwrap();
            for i in 0..t * n {
                let mut value = (x.scale[i / n] * w.scale[i % n]) * integers[i] as f32;
                if with_bias {
                    value += bias[i % n];
                }
                if accumulate {
                    value += before[i];
                }
                assert_eq!(value.to_bits(), y[i].to_bits(), "y[{i}] of {what}, bias {with_bias}, add {accumulate}");
            }
        }
    }
}

#[test]
fn every_instruction_set_equals_the_definition() {
    let mut random = Random(1);
    let all_k = [1, 5, 8, 31, 63, 64, 65, 96, 127, 128, 576, 1536];
    let all_n = [1, 2, 15, 16, 17, 31, 33, 100];
    for t in [0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 257] {
        for k in all_k {
            // Every T meets every K; the widths take turns, the widest only where the product stays small.
            let n = if t * k <= 64 * 128 { 576 } else { all_n[random.below(8) as usize] };
            for (weight_bits, activation_bits) in [(4, 4), (8, 8), (2, 8), (5, 4)] {
                let (t, n) = if t * k * n > 8_000_000 { (t, 17) } else { (t, n) };
                let (w, codes) = weight(n, k, weight_bits, Fill::Random, &mut random);
                let x = tokens(t, k, activation_bits, Fill::Random, &mut random);
                check(&x, activation_bits, &w, &codes, &mut random);
                if (weight_bits, activation_bits) != (4, 4) && k > 128 {
                    break;
                }
            }
        }
    }
}

#[test]
fn extremes_do_not_saturate() {
    let mut random = Random(2);
    for (weight_bits, activation_bits) in [(2, 2), (4, 4), (4, 8), (5, 8), (7, 8), (8, 7), (8, 2), (8, 8)] {
        for (t, k, n) in [(1, 11_008, 17), (19, 1536, 33), (9, 65, 16), (37, 1600, 17)] {
            for (fill_x, fill_w) in [(Fill::Max, Fill::Max), (Fill::Zeros, Fill::Max), (Fill::Max, Fill::Random)] {
                let (w, codes) = weight(n, k, weight_bits, fill_w, &mut random);
                let x = tokens(t, k, activation_bits, fill_x, &mut random);
                check(&x, activation_bits, &w, &codes, &mut random);
            }
        }
    }
}

#[test]
fn the_largest_k_of_8_bits_is_exact() {
    let mut random = Random(3);
    let (mut w, codes) = weight(3, 33_025, 8, Fill::Max, &mut random);
    w.zero_point.fill(0);
    let mut x = tokens(17, 33_025, 8, Fill::Max, &mut random);
    x.zero_point.fill(0);
    check(&x, 8, &w, &codes, &mut random);
    let desc = GemmW4A4Desc { m_max: 1, n: 3, k: 33_026, weight_bits: 8, activation_bits: 8 };
    assert!(matches!(GemmW4A4::plan(&desc, Isa::Portable), Err(Error::Unsupported { what: "k", .. })));
}

#[test]
fn stacking_equals_one_matrix() {
    let mut random = Random(4);
    let k = 100;
    let parts: Vec<_> = [5, 16, 30].iter().map(|&n| weight(n, k, 4, Fill::Random, &mut random)).collect();
    let x = tokens(20, k, 4, Fill::Random, &mut random);
    let n = 51;
    for &isa in Isa::available() {
        let plan = GemmW4A4::plan(&GemmW4A4Desc { m_max: 20, n, k, weight_bits: 4, activation_bits: 4 }, isa).unwrap();
        let matrices: Vec<_> = parts.iter().map(|(w, _)| w).collect();
        let packed = plan.pack_stacked(&matrices).unwrap();
        let mut got = vec![0; 20 * n];
        plan.run_integer(&packed, &x, &mut got, &mut vec![0; plan.workspace_bytes()]).unwrap();
        let mut first = 0;
        for (w, codes) in &parts {
            let want = expected(&x, w, codes);
            for t in 0..20 {
                assert_eq!(got[t * n + first..][..w.n], want[t * w.n..(t + 1) * w.n], "{isa:?} from channel {first}");
            }
            first += w.n;
        }
    }
}

#[test]
fn threads_do_not_change_results() {
    let mut random = Random(5);
    for t in [1, 5, 70, 600] {
        let (n, k) = (576, 300);
        let (w, _) = weight(n, k, 4, Fill::Random, &mut random);
        let x = tokens(t, k, 4, Fill::Random, &mut random);
        let mut first: Option<Vec<f32>> = None;
        for &isa in Isa::available() {
            let desc = GemmW4A4Desc { m_max: t, n, k, weight_bits: 4, activation_bits: 4 };
            let plan = GemmW4A4::plan(&desc, isa).unwrap();
            let packed = plan.pack(&w).unwrap();
            for threads in [1, 2, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let mut y = vec![f32::NAN; t * n];
                let mut workspace = vec![1; plan.workspace_bytes()];
                pool.install(|| plan.run(&packed, &x, Epilogue::default(), &mut y, &mut workspace)).unwrap();
                let first = first.get_or_insert_with(|| y.clone());
                assert!(*first == y, "{isa:?}, {threads} threads, {t} tokens");
            }
        }
    }
}

#[test]
fn wrong_operands_are_errors() {
    let mut random = Random(6);
    let desc = GemmW4A4Desc { m_max: 9, n: 10, k: 20, weight_bits: 4, activation_bits: 4 };
    let isa = Isa::best();
    let plan = GemmW4A4::plan(&desc, isa).unwrap();
    let (w, _) = weight(10, 20, 4, Fill::Random, &mut random);
    let packed = plan.pack(&w).unwrap();
    let x = tokens(9, 20, 4, Fill::Random, &mut random);
    let mut workspace = vec![0; plan.workspace_bytes()];
    let mut y = vec![0.0; 90];
    let none = Epilogue::default();
    assert!(plan.run(&packed, &x, none, &mut y, &mut workspace).is_ok());

    assert!(plan.run(&packed, &x, none, &mut y[1..], &mut workspace).is_err());
    let bias = [0.0; 9];
    assert!(plan.run(&packed, &x, Epilogue { bias: Some(&bias), accumulate: false }, &mut y, &mut workspace).is_err());
    assert!(plan.run_integer(&packed, &x, &mut [0; 91], &mut workspace).is_err());
    let many = tokens(10, 20, 4, Fill::Random, &mut random);
    assert!(plan.run(&packed, &many, none, &mut [0.0; 100], &mut workspace).is_err());
    let narrow = tokens(9, 19, 4, Fill::Random, &mut random);
    assert!(plan.run(&packed, &narrow, none, &mut y, &mut workspace).is_err());
    if !workspace.is_empty() {
        let error = plan.run(&packed, &x, none, &mut y, &mut workspace[1..]).unwrap_err();
        assert!(error.to_string().contains("workspace"), "{error}");
    }
    for cut in ["codes", "scale", "zero_point", "row_sum"] {
        let mut x = x.clone();
        match cut {
            "codes" => x.codes = crate::kernels::cpu::Aligned::new(x.codes.len() - 1),
            "scale" => drop(x.scale.pop()),
            "zero_point" => drop(x.zero_point.pop()),
            _ => drop(x.row_sum.pop()),
        }
        let error = plan.run(&packed, &x, none, &mut y, &mut workspace).unwrap_err();
        assert!(error.to_string().contains(cut), "{error}");
    }

    let (other_bits, _) = weight(10, 20, 5, Fill::Random, &mut random);
    let (other_n, _) = weight(11, 20, 4, Fill::Random, &mut random);
    let (other_k, _) = weight(10, 21, 4, Fill::Random, &mut random);
    for other in [&other_bits, &other_n, &other_k] {
        assert!(plan.pack(other).is_err());
        let desc = GemmW4A4Desc { n: other.n, k: other.k, weight_bits: other.bits, ..desc };
        let packed = GemmW4A4::plan(&desc, isa).unwrap().pack(other).unwrap();
        assert!(plan.run(&packed, &x, none, &mut y, &mut workspace).is_err());
    }
    let mut broken = w.clone();
    broken.packed.pop();
    assert!(plan.pack(&broken).is_err());
    assert!(plan.pack_stacked(&[]).is_err());
    for desc in [
        GemmW4A4Desc { weight_bits: 1, ..desc },
        GemmW4A4Desc { activation_bits: 9, ..desc },
        GemmW4A4Desc { m_max: usize::MAX, ..desc },
        GemmW4A4Desc { n: usize::MAX / 8, ..desc },
        GemmW4A4Desc { k: usize::MAX, ..desc },
    ] {
        assert!(GemmW4A4::plan(&desc, isa).is_err(), "{desc:?}");
    }
}

#[test]
fn nothing_to_do_is_no_error() {
    let mut random = Random(7);
    for (n, k) in [(0, 20), (20, 0), (0, 0)] {
        let (w, codes) = weight(n, k, 4, Fill::Random, &mut random);
        for t in [0, 1, 20] {
            let x = tokens(t, k, 4, Fill::Random, &mut random);
            check(&x, 4, &w, &codes, &mut random);
        }
    }
}
