//! One linear as a program that times a round when told to, so that another program can take turns with it; see
//! `benches/peers/linear.py`.
//!
//! ```text
//! cargo run --release --example linear_rounds -- K N
//! ```
//!
//! Requests come on standard input, one a line, and are answered by a line of JSON: `w4a4 T` and `gemm T` by the times of
//! several calls in seconds (the packed W4A4 GEMM with codes, scales and epilogue; the `gemm` crate in f32), `kernel T`
//! by the name of the kernel.
#![allow(clippy::print_stdout, reason = "it answers on standard output")]

use duquant::kernels::cpu::{Epilogue, GemmW4A4, GemmW4A4Desc, Isa, QuantizedTokens};
use duquant::kernels::{Affine, Error, QuantizedMatrix};
use std::io::BufRead;
use std::time::{Duration, Instant};

/// Most tokens of a request.
const M_MAX: usize = 4096;
/// Time and calls that a round takes at least, as `common.py` does for the peers.
const BUDGET: Duration = Duration::from_millis(200);
const LEAST: usize = 3;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<usize>());
    let (Some(k), Some(n)) = (arguments.next(), arguments.next()) else {
        return Err("usage: linear_rounds K N".into());
    };
    let (k, n) = (k?, n?);
    let weight = numbers(n * k);
    let matrix = QuantizedMatrix::quantize(&weight, n, k, &[Affine::new(4, 0.8)?])?;
    let plan = GemmW4A4::plan(&GemmW4A4Desc { m_max: M_MAX, n, k, weight_bits: 4, activation_bits: 4 }, Isa::best())?;
    let packed = plan.pack(&matrix)?;
    let mut workspace = vec![0; plan.workspace_bytes()];
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let Some((what, tokens)) = line.split_once(' ') else { return Err(format!("bad request {line:?}").into()) };
        let tokens: usize = tokens.parse()?;
        let x = numbers(tokens * k);
        let mut y = vec![0.0; tokens * n];
        let times = match what {
            "kernel" => {
                println!("{:?}", plan.kernel(tokens));
                continue;
            }
            "w4a4" => {
                let codes = quantize(&x, tokens, k)?;
                let mut outcome = Ok(());
                let times = timed(|| outcome = plan.run(&packed, &codes, Epilogue::default(), &mut y, &mut workspace));
                outcome?;
                times
            }
            "gemm" => timed(|| gemm_f32(&x, &weight, &mut y, (tokens, k, n))),
            _ => return Err(format!("bad request {line:?}").into()),
        };
        println!("{times:?}");
    }
    Ok(())
}

fn numbers(count: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(next).collect()
}

/// Quantizes tokens as they are: the transform is not part of this measurement.
fn quantize(x: &[f32], tokens: usize, k: usize) -> Result<QuantizedTokens, Error> {
    let settings = Affine::new(4, 0.9)?;
    let mut quantized = QuantizedTokens::new(tokens, k);
    quantized.set_tokens(tokens)?;
    let stride = quantized.stride();
    for (t, row) in x.chunks(k).enumerate() {
        let codes = &mut quantized.codes[t * stride..t * stride + k];
        let params = settings.quantize_row(row, codes)?;
        quantized.row_sum[t] = codes.iter().map(|&code| i32::from(code)).sum();
        quantized.scale[t] = params.scale;
        quantized.zero_point[t] = i32::from(params.zero_point);
    }
    Ok(quantized)
}

/// `y [T, N] = x [T, K] w [N, K]^T` by the `gemm` crate on every thread.
fn gemm_f32(x: &[f32], w: &[f32], y: &mut [f32], (t, k, n): (usize, usize, usize)) {
    assert!(x.len() == t * k && w.len() == n * k && y.len() == t * n);
    let (column, row_k, row_n) = (1, k as isize, n as isize);
    let threads = gemm::Parallelism::Rayon(0);
    // SAFETY: the three row-major matrices have the sizes that were just checked.
    unsafe {
        gemm::gemm(
            t,
            n,
            k,
            y.as_mut_ptr(),
            column,
            row_n,
            false,
            x.as_ptr(),
            column,
            row_k,
            w.as_ptr(),
            row_k,
            column,
            0.0,
            1.0,
            false,
            false,
            false,
            threads,
        );
    }
}

/// Times of a call in seconds, after one that is not counted.
fn timed(mut run: impl FnMut()) -> Vec<f64> {
    run();
    let (mut times, start) = (Vec::new(), Instant::now());
    while times.len() < LEAST || start.elapsed() < BUDGET {
        let before = Instant::now();
        run();
        times.push(before.elapsed().as_secs_f64());
    }
    times
}
