use super::*;
use crate::kernels::Affine;

/// Runs the same expression with the lanes of each instruction set and collects the results.
macro_rules! each_isa {
    (|$l:ident| $body:expr) => {{
        let mut results = Vec::new();
        for &isa in Isa::available() {
            let result = match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Amx | Isa::Avx512Vnni => {
                    // SAFETY: the instruction set is in `Isa::available`.
                    let $l = unsafe { avx512::Avx512::new() };
                    $body
                }
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => {
                    // SAFETY: as above.
                    let $l = unsafe { avx2::Avx2::new() };
                    $body
                }
                _ => {
                    let $l = portable::Portable;
                    $body
                }
            };
            results.push((isa, result));
        }
        results
    }};
}

fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        f64::from(state) / f64::from(u32::MAX) - 0.5
    };
    (0..n).map(|_| (next() + next() + next()) as f32).collect()
}

#[test]
fn exp_is_right_to_a_millionth_and_the_same_everywhere() {
    let xs: Vec<f32> = (0..16 * 4096).map(|i| -87.0 + i as f32 * (175.0 / 65536.0)).collect();
    let results = each_isa!(|l| {
        let mut out = vec![0.0; xs.len()];
        for (x, out) in xs.as_chunks::<16>().0.iter().zip(out.as_chunks_mut::<16>().0) {
            l.store(math::exp(l, l.load(x)), out);
        }
        out
    });
    for (&x, &got) in xs.iter().zip(&results[0].1) {
        let want = f64::from(x).exp();
        assert!((f64::from(got) - want).abs() <= 3e-7 * want, "exp({x}) = {want}, got {got}");
    }
    assert!(results.iter().all(|(_, out)| *out == results[0].1));
    for (_, (zero, nan, low, high)) in each_isa!(|l| {
        let one = |x: f32| {
            let mut out = [0.0; 16];
            l.store(math::exp(l, l.splat(x)), &mut out);
            out[7]
        };
        (one(0.0), one(f32::NAN), one(f32::NEG_INFINITY), one(f32::INFINITY))
    }) {
        assert!(zero == 1.0 && nan.is_nan() && low < 1e-37 && high > 1e38 && high.is_finite());
    }
}

#[test]
fn hadamard_is_sylvester_normalised_and_its_own_inverse() {
    for block in [1_usize, 2, 4, 8, 16, 32, 64, 128, 256, 512] {
        let n = block * if block < 16 { 7 } else { 3 };
        let x = noise(n, block as u32);
        let results = each_isa!(|l| {
            let mut y = x.clone();
            math::hadamard(l, &mut y, block);
            y
        });
        let y = &results[0].1;
        for (x, y) in x.chunks_exact(block).zip(y.chunks_exact(block)) {
            for j in 0..block {
                let sign = |k: usize| if (k & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
                let want: f64 = (0..block).map(|k| sign(k) * f64::from(x[k])).sum::<f64>() / (block as f64).sqrt();
                assert!((f64::from(y[j]) - want).abs() < 1e-5, "block {block} channel {j}");
            }
        }
        assert!(results.iter().all(|(_, other)| other == y), "block {block}");
        let back = each_isa!(|l| {
            let mut z = y.clone();
            math::hadamard(l, &mut z, block);
            z
        });
        assert!(back[0].1.iter().zip(&x).all(|(z, x)| (z - x).abs() < 1e-5));
    }
}

#[test]
fn rows_quantize_like_the_affine_bit_for_bit() {
    for n in [1, 7, 16, 17, 64, 100, 577] {
        for bits in 2..=8 {
            for symmetric in [false, true] {
                for kind in 0..6 {
                    let mut x = noise(n, (n * 8) as u32 + bits);
                    match kind {
                        0 => {}
                        1 => x.fill(0.0),
                        2 => x.iter_mut().for_each(|x| *x = x.abs() + 1.0),
                        3 => x.iter_mut().for_each(|x| *x = -x.abs() - 1.0),
                        4 => x[n / 2] = 3000.0,
                        // Ties: multiples of half a step.
                        _ => x.iter_mut().for_each(|x| *x = (*x * 40.0).round() * 0.5),
                    }
                    let affine = Affine { bits, clip: 0.9, symmetric };
                    let mut want = vec![0; n];
                    let params = affine.quantize_row(&x, &mut want).unwrap();
                    for (isa, (row, codes)) in each_isa!(|l| {
                        let mut codes = vec![9; n];
                        (math::quantize_row(l, &affine, &x, &mut codes), codes)
                    }) {
                        assert_eq!(codes, want, "{isa:?} {n} {bits} {kind}");
                        assert_eq!((row.scale, row.zero_point), (params.scale, params.zero_point));
                        assert_eq!(row.sum, want.iter().map(|&c| i32::from(c)).sum::<i32>());
                    }
                    for (isa, out) in each_isa!(|l| {
                        let mut out = vec![9.0; n];
                        math::fake_quantize_row(l, &affine, &x, &mut out);
                        out
                    }) {
                        for (out, &code) in out.iter().zip(&want) {
                            let want = params.scale * (f32::from(code) - f32::from(params.zero_point));
                            assert_eq!(*out, want, "{isa:?}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_that_is_not_finite_is_poisoned_whole() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 15, 16, 36] {
            let mut x = noise(37, 5);
            x[at] = bad;
            let affine = Affine { bits: 4, clip: 0.9, symmetric: false };
            for (_, (row, codes, out)) in each_isa!(|l| {
                let (mut codes, mut out) = (vec![9; 37], vec![9.0; 37]);
                let row = math::quantize_row(l, &affine, &x, &mut codes);
                math::fake_quantize_row(l, &affine, &x, &mut out);
                (row, codes, out)
            }) {
                assert!(row.scale.is_nan() && row.zero_point == 0 && row.sum == 0);
                assert!(codes.iter().all(|&c| c == 0) && out.iter().all(|x| x.is_nan()));
            }
        }
    }
}

#[test]
fn products_are_chains_in_order_of_k_whatever_the_shape() {
    for (rows, k, columns) in [(1, 4, 4), (5, 16, 16), (7, 33, 40), (13, 64, 64), (25, 20, 70), (18, 128, 128)] {
        let x = noise(rows * k, 1);
        let m = noise(k * columns, 2);
        let strips = columns.div_ceil(16);
        let mut packed = vec![0.0; strips * k * 16];
        for i in 0..k {
            for c in 0..columns {
                packed[(c / 16 * k + i) * 16 + c % 16] = m[i * columns + c];
            }
        }
        for accumulate in [false, true] {
            let before = noise(rows * columns, 3);
            for (isa, y) in each_isa!(|l| {
                let mut y = before.clone();
                let product = MatMul {
                    x: x.as_ptr(),
                    x_stride: k,
                    rows,
                    k,
                    m: packed.as_ptr(),
                    row_step: 16,
                    strip_step: 16 * k,
                    columns,
                    y: y.as_mut_ptr(),
                    y_stride: columns,
                    accumulate,
                };
                // SAFETY: the extents are those of the vectors.
                unsafe { product.run(l) };
                y
            }) {
                for r in 0..rows {
                    for c in 0..columns {
                        let mut want = if accumulate { before[r * columns + c] } else { 0.0 };
                        for i in 0..k {
                            want = x[r * k + i].mul_add(m[i * columns + c], want);
                        }
                        assert_eq!(y[r * columns + c], want, "{isa:?} {rows} {k} {columns} at {r} {c}");
                    }
                }
            }
        }
    }
}

#[test]
fn dot4_is_exact_at_its_extremes() {
    for (a, b, wide) in [(255_u8, -128_i8, true), (255, 127, true), (127, 127, false), (15, 15, false)] {
        let bytes = [a; 64];
        let word = i32::from_le_bytes([b as u8; 4]);
        for (isa, out) in each_isa!(|l| {
            let mut out = [0; 16];
            // SAFETY: 64 bytes are there.
            let a = unsafe { l.load_bytes_at(bytes.as_ptr()) };
            let sum = if wide { l.dot4::<true>(l.zero_int(), a, word) } else { l.dot4::<false>(l.zero_int(), a, word) };
            l.store_int(sum, &mut out);
            out
        }) {
            assert_eq!(out, [4 * i32::from(a) * i32::from(b); 16], "{isa:?}");
        }
    }
}

#[test]
fn bytes_go_where_they_belong() {
    let bytes: [u8; 64] = std::array::from_fn(|i| (i * 37 + 5) as u8);
    let signed: [f32; 64] = std::array::from_fn(|i| (i as f32 * 4.0 - 127.0).min(127.0));
    for (isa, (low, high, mixed, narrow)) in each_isa!(|l| {
        let (mut low, mut high, mut mixed, mut narrow) = ([0; 64], [0; 64], [0; 64], [0_i8; 64]);
        // SAFETY: 64 bytes are there.
        let (a, b) = l.nibbles(unsafe { l.load_bytes_at(bytes.as_ptr()) });
        l.store_block(a, &mut low);
        l.store_block(b, &mut high);
        let rows = bytes.as_chunks::<16>().0;
        l.store_block(l.interleave([&rows[0], &rows[1], &rows[2], &rows[3]]), &mut mixed);
        let v = signed.as_chunks::<16>().0;
        let v = [0, 1, 2, 3].map(|i: usize| l.to_int(l.load(&v[i])));
        l.store_signed_bytes(v, &mut narrow);
        (low, high, mixed, narrow)
    }) {
        for i in 0..64 {
            assert_eq!((low[i], high[i]), (bytes[i] & 15, bytes[i] >> 4), "{isa:?} {i}");
            assert_eq!(mixed[i], bytes[i % 4 * 16 + i / 4], "{isa:?} {i}");
            assert_eq!(narrow[i], signed[i] as i8, "{isa:?} {i}");
        }
    }
}
