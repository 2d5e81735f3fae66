use super::{Source, TransformQuantize, packed_len};
use crate::kernels::Affine;
use crate::kernels::cpu::lanes::{self, Kernel, LANES, Lanes, MatMul};

/// Where the transformed tokens of a tile go.
pub(super) enum Sink<'a> {
    Codes {
        affine: Affine,
        /// `[count, stride]`.
        codes: &'a mut [u8],
        stride: usize,
        scale: &'a mut [f32],
        zero_point: &'a mut [i32],
        row_sum: &'a mut [i32],
    },
    /// As `f32` `[count, K]`, through the quantizer and back where there is one.
    Values { affine: Option<Affine>, out: &'a mut [f32] },
}

/// `count` tokens from token `first` on, from the source to the sink.
pub(super) struct Tile<'a> {
    pub(super) plan: &'a TransformQuantize,
    pub(super) source: Source<'a>,
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) scratch: &'a mut [f32],
    pub(super) sink: Sink<'a>,
}

impl Kernel for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (plan, k) = (self.plan, self.plan.channels);
        let size = self.count * k;
        let half = self.scratch.len() / 2;
        let (a, b) = self.scratch.split_at_mut(half);
        let (mut x, mut y) = (&mut a[..size], &mut b[..size]);
        load(l, plan, self.source, self.first, x);
        for i in 0..plan.rotations {
            if i > 0 {
                gather(l, x, &plan.permutations[(i - 1) * k..i * k], y);
                std::mem::swap(&mut x, &mut y);
            }
            #[cfg(target_arch = "x86_64")]
            if let Some(vnni) = &plan.vnni {
                vnni.rotate(i, x, y);
                std::mem::swap(&mut x, &mut y);
                continue;
            }
            if plan.strips.as_slice().is_empty() {
                lanes::hadamard(l, x, plan.block);
            } else {
                rotate(l, plan, i, x, y);
                std::mem::swap(&mut x, &mut y);
            }
        }
        write(l, k, x, self.sink);
    }
}

/// The last step of a tile alone: transformed tokens `x` `[count, K]` to the sink.
pub(super) struct Write<'a> {
    pub(super) k: usize,
    pub(super) x: &'a [f32],
    pub(super) sink: Sink<'a>,
}

impl Kernel for Write<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        write(l, self.k, self.x, self.sink);
    }
}

/// Brings the tile's tokens into `x` and smooths them.
#[inline(always)]
fn load<L: Lanes>(l: L, plan: &TransformQuantize, source: Source<'_>, first: usize, x: &mut [f32]) {
    let k = plan.channels;
    for (i, x) in x.chunks_exact_mut(k).enumerate() {
        let t = first + i;
        match source {
            Source::Tokens(tokens) => x.copy_from_slice(&tokens[t * k..(t + 1) * k]),
            Source::RmsNorm { x: tokens, weight, epsilon } => {
                lanes::rms_norm(l, &tokens[t * k..(t + 1) * k], weight, epsilon, x);
            }
            Source::SiluMul { gate_up } => {
                let (gate, up) = gate_up[2 * t * k..2 * (t + 1) * k].split_at(k);
                lanes::silu_mul(l, gate, up, x);
            }
        }
        if let Some(factor) = &plan.inverse_smooth {
            lanes::multiply(l, x, factor);
        }
    }
}

/// `y[j] = x[permutation[j]]` for every token.
#[inline(always)]
fn gather<L: Lanes>(l: L, x: &[f32], permutation: &[u32], y: &mut [f32]) {
    let k = permutation.len();
    let (indices, index_tail) = permutation.as_chunks::<LANES>();
    for (x, y) in x.chunks_exact(k).zip(y.chunks_exact_mut(k)) {
        let (vectors, tail) = y.as_chunks_mut::<LANES>();
        for (y, index) in vectors.iter_mut().zip(indices) {
            // SAFETY: `Transform::validate` has seen that a permutation names channels below `k`, the length of `x`.
            l.store(unsafe { l.gather(x.as_ptr(), index) }, y);
        }
        for (y, &from) in tail.iter_mut().zip(index_tail) {
            *y = x[from as usize];
        }
    }
}

/// Rotation `i`: every block of every token is a row of one product with the `B x B` matrix.
#[inline(always)]
fn rotate<L: Lanes>(l: L, plan: &TransformQuantize, i: usize, x: &[f32], y: &mut [f32]) {
    let block = plan.block;
    let strips = &plan.strips.as_slice()[i * packed_len(block)..(i + 1) * packed_len(block)];
    let product = MatMul {
        x: x.as_ptr(),
        x_stride: block,
        rows: x.len() / block,
        k: block,
        m: strips.as_ptr(),
        row_step: LANES,
        strip_step: block * LANES,
        columns: block,
        y: y.as_mut_ptr(),
        y_stride: block,
        accumulate: false,
    };
    // SAFETY: `x` and `y` are the same number of whole blocks, apart from each other, and `strips` holds every column,
    // padded to whole strips.
    unsafe { product.run(l) };
}

#[inline(always)]
fn write<L: Lanes>(l: L, k: usize, x: &[f32], sink: Sink<'_>) {
    match sink {
        Sink::Codes { affine, codes, stride, scale, zero_point, row_sum } => {
            for (i, x) in x.chunks_exact(k).enumerate() {
                let row = lanes::quantize_row(l, &affine, x, &mut codes[i * stride..i * stride + k]);
                scale[i] = row.scale;
                zero_point[i] = i32::from(row.zero_point);
                row_sum[i] = row.sum;
            }
        }
        Sink::Values { affine: None, out } => out.copy_from_slice(x),
        Sink::Values { affine: Some(affine), out } => {
            for (x, out) in x.chunks_exact(k).zip(out.chunks_exact_mut(k)) {
                lanes::fake_quantize_row(l, &affine, x, out);
            }
        }
    }
}
