//! What a kernel reads and writes, and the one epilogue that all of them share.

use super::pack::{PANEL, PackedWeights};

/// Where results go. The pointer is `[tokens, n]`, row-major.
#[derive(Clone, Copy)]
pub(super) enum Output<'a> {
    /// `y`, with what the epilogue adds.
    Float { y: *mut f32, bias: Option<&'a [f32]>, accumulate: bool },
    /// `I`, for tests.
    Integer(*mut i32),
}

/// One call of the GEMM. `plan` and `run` have checked every length.
pub(super) struct Task<'a> {
    /// `[tokens, stride]`, at least `blocks * 64` of each row readable.
    pub(super) codes: &'a [u8],
    pub(super) stride: usize,
    pub(super) tokens: usize,
    pub(super) scale: &'a [f32],
    pub(super) zero_point: &'a [i32],
    pub(super) row_sum: &'a [i32],
    #[cfg(target_arch = "x86_64")]
    pub(super) activation_bits: u32,
    pub(super) weights: &'a PackedWeights,
    pub(super) output: Output<'a>,
}

// SAFETY: the pointer in `output` is written by `finish` alone, whose callers write disjoint elements.
unsafe impl Send for Task<'_> {}
// SAFETY: as above; everything else is shared and read.
unsafe impl Sync for Task<'_> {}

impl Task<'_> {
    /// Writes one token of one panel from its sums `acc[i] = sum_k qx[t, k] (qw[n, k] - offset)`.
    ///
    /// `I = acc - (zw - offset) rs - zx c`, wrapping on the way because the result fits, then
    /// `y = (sx sw) float(I)`, `+ bias`, `+ y`: three roundings in this order on every instruction set. It is inlined
    /// into each kernel, so that the compiler vectorises it with that kernel's instructions; Rust never contracts a
    /// product and a sum into an FMA.
    ///
    /// # Safety
    /// `t < tokens`, `panel < weights.panels()`, and no other thread touches these elements of the output.
    #[inline(always)]
    pub(super) unsafe fn finish(&self, t: usize, panel: usize, acc: &[i32; PANEL], offset: i32) {
        let (n, first) = (self.weights.n(), panel * PANEL);
        let width = (n - first).min(PANEL);
        let channels = first..first + PANEL;
        let (zero_point, centred_sum) =
            (&self.weights.zero_point[channels.clone()], &self.weights.centred_sum[channels.clone()]);
        let (zx, rs) = (self.zero_point[t], self.row_sum[t]);
        let mut integers = [0_i32; PANEL];
        for i in 0..PANEL {
            let zw = zero_point[i] - offset;
            integers[i] = acc[i].wrapping_sub(zw.wrapping_mul(rs)).wrapping_sub(zx.wrapping_mul(centred_sum[i]));
        }
        match self.output {
            // SAFETY: `width` elements from here on lie in row `t` of the output, which is `[tokens, n]`.
            Output::Integer(out) => unsafe {
                std::ptr::copy_nonoverlapping(integers.as_ptr(), out.add(t * n + first), width);
            },
            Output::Float { y, bias, accumulate } => {
                let (sx, sw) = (self.scale[t], &self.weights.scale[channels]);
                let mut values = [0.0_f32; PANEL];
                for i in 0..PANEL {
                    values[i] = (sx * sw[i]) * integers[i] as f32;
                }
                // SAFETY: as above, and the caller promises that nobody else holds these elements.
                let y = unsafe { std::slice::from_raw_parts_mut(y.add(t * n + first), width) };
                let bias = bias.map(|bias| &bias[first..first + width]);
                if let (Ok(y), true) = (<&mut [f32; PANEL]>::try_from(&mut *y), width == PANEL) {
                    add(y, &values, bias, accumulate);
                } else {
                    add(y, &values[..width], bias, accumulate);
                }
            }
        }
    }
}

/// `y = values (+ bias) (+ y)`.
#[inline(always)]
fn add(y: &mut [f32], values: &[f32], bias: Option<&[f32]>, accumulate: bool) {
    match (bias, accumulate) {
        (None, false) => y.copy_from_slice(values),
        (None, true) => {
            for (y, value) in y.iter_mut().zip(values) {
                *y += value;
            }
        }
        (Some(bias), false) => {
            for ((y, value), bias) in y.iter_mut().zip(values).zip(bias) {
                *y = value + bias;
            }
        }
        (Some(bias), true) => {
            for ((y, value), bias) in y.iter_mut().zip(values).zip(bias) {
                *y += value + bias;
            }
        }
    }
}
