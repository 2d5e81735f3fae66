use super::{Kernel, LANES, Lanes};

/// `y[r, c] (+)= sum_k x[r, k] m[k, c]` in `f32`: each output is one chain of fused multiply-adds in the order of `k`,
/// whatever the rows beside it, so that a row's bits depend on nothing else.
///
/// `m` is read in strips of 16 columns: 16 values at `m + k * row_step + strip * strip_step`.
#[derive(Clone, Copy)]
pub(in crate::kernels::cpu) struct MatMul {
    pub(in crate::kernels::cpu) x: *const f32,
    /// Values between two rows of `x`.
    pub(in crate::kernels::cpu) x_stride: usize,
    pub(in crate::kernels::cpu) rows: usize,
    pub(in crate::kernels::cpu) k: usize,
    pub(in crate::kernels::cpu) m: *const f32,
    pub(in crate::kernels::cpu) row_step: usize,
    pub(in crate::kernels::cpu) strip_step: usize,
    /// Columns of `y`; those past it in the last strip are computed and dropped.
    pub(in crate::kernels::cpu) columns: usize,
    pub(in crate::kernels::cpu) y: *mut f32,
    pub(in crate::kernels::cpu) y_stride: usize,
    /// Whether to add to `y`.
    pub(in crate::kernels::cpu) accumulate: bool,
}

impl MatMul {
    /// Computes it.
    ///
    /// # Safety
    /// `x` and `m` can be read and `y` written as the fields say, and `y` overlaps neither.
    #[inline(always)]
    pub(in crate::kernels::cpu) unsafe fn run<L: Lanes>(self, l: L) {
        l.call(Checked(self));
    }
}

/// A product whose pointers the caller of [`MatMul::run`] has vouched for.
struct Checked<T>(T);

impl Kernel for Checked<MatMul> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let mut p = self.0;
        let mut columns = p.columns;
        while columns > 0 {
            let strips = columns.div_ceil(LANES).min(L::STRIPS);
            let width = columns.min(strips * LANES);
            p.columns = width;
            // SAFETY: the panel lies inside the operands that `MatMul::run` was given.
            unsafe {
                match strips {
                    1 => panel::<L, 1>(l, &p),
                    2 => panel::<L, 2>(l, &p),
                    3 => panel::<L, 3>(l, &p),
                    _ => panel::<L, 4>(l, &p),
                }
            }
            columns -= width;
            p.m = p.m.wrapping_add(strips * p.strip_step);
            p.y = p.y.wrapping_add(width);
        }
    }
}

/// All rows of one panel of `NV` strips.
#[inline(always)]
unsafe fn panel<L: Lanes, const NV: usize>(l: L, p: &MatMul) {
    let mut r = 0;
    // SAFETY: every block lies inside the rows and columns of `p`.
    unsafe {
        if L::TALL && NV <= 2 {
            while p.rows - r >= 12 {
                block::<L, 12, NV>(l, p, r);
                r += 12;
            }
        }
        while p.rows - r >= 6 {
            block::<L, 6, NV>(l, p, r);
            r += 6;
        }
        match p.rows - r {
            0 => {}
            1 => block::<L, 1, NV>(l, p, r),
            2 => block::<L, 2, NV>(l, p, r),
            3 => block::<L, 3, NV>(l, p, r),
            4 => block::<L, 4, NV>(l, p, r),
            _ => block::<L, 5, NV>(l, p, r),
        }
    }
}

#[inline(always)]
unsafe fn block<L: Lanes, const MR: usize, const NV: usize>(l: L, p: &MatMul, first: usize) {
    let zero = l.splat(0.0);
    let mut acc = [[zero; NV]; MR];
    // SAFETY: rows `first..first + MR` and the panel's columns are inside the operands; the last strip of `y` is written
    // through a buffer where it is not whole.
    unsafe {
        let (x, y) = (p.x.add(first * p.x_stride), p.y.add(first * p.y_stride));
        let whole = p.columns / LANES;
        let tail = p.columns % LANES;
        if p.accumulate {
            for r in 0..MR {
                for v in 0..NV {
                    let at = y.add(r * p.y_stride + v * LANES);
                    acc[r][v] =
                        if v < whole { l.load_at(at) } else { l.load_tail(std::slice::from_raw_parts(at, tail), 0.0) };
                }
            }
        }
        let mut m = p.m;
        for k in 0..p.k {
            let mut b = [zero; NV];
            for v in 0..NV {
                b[v] = l.load_at(m.add(v * p.strip_step));
            }
            for r in 0..MR {
                let a = l.splat(*x.add(r * p.x_stride + k));
                for v in 0..NV {
                    acc[r][v] = l.fma(a, b[v], acc[r][v]);
                }
            }
            m = m.wrapping_add(p.row_step);
        }
        for r in 0..MR {
            for v in 0..NV {
                let at = y.add(r * p.y_stride + v * LANES);
                if v < whole {
                    l.store_at(acc[r][v], at);
                } else {
                    l.store_tail(acc[r][v], std::slice::from_raw_parts_mut(at, tail));
                }
            }
        }
    }
}

/// Scores of quantized queries against quantized keys: exact integer dot products, then the asymmetric correction,
///
/// ```text
/// y[r, t] = scale[r] key_scale[t] (sum_d q[r, d] k[t, d] - zk[t] sum_q[r] - zq[r] (sum_k[t] - D zk[t]))
/// ```
///
/// Keys lie in blocks of 16 tokens: 4 codes of each of 16 tokens, then the next 4. All numbers in the parentheses are
/// integers below 2^24, so `f32` holds them exactly.
#[derive(Clone, Copy)]
pub(in crate::kernels::cpu) struct DotRows {
    /// Signed codes, `[rows, 4 groups]`.
    pub(in crate::kernels::cpu) q: *const i8,
    pub(in crate::kernels::cpu) rows: usize,
    /// Head dimension over 4.
    pub(in crate::kernels::cpu) groups: usize,
    /// `[blocks, groups, 16, 4]`.
    pub(in crate::kernels::cpu) keys: *const u8,
    pub(in crate::kernels::cpu) blocks: usize,
    /// Sum of the codes, zero point and scale of each query, `[rows]` each.
    pub(in crate::kernels::cpu) query_sum: *const f32,
    pub(in crate::kernels::cpu) query_zero: *const f32,
    pub(in crate::kernels::cpu) query_scale: *const f32,
    /// Factor on every scale, `1 / sqrt(D)`.
    pub(in crate::kernels::cpu) factor: f32,
    /// Zero point, `sum_k - D zk` and scale of each key, `[16 blocks]` each.
    pub(in crate::kernels::cpu) key_zero: *const f32,
    pub(in crate::kernels::cpu) key_centre: *const f32,
    pub(in crate::kernels::cpu) key_scale: *const f32,
    pub(in crate::kernels::cpu) y: *mut f32,
    pub(in crate::kernels::cpu) y_stride: usize,
    /// Whether codes of either side exceed 127 in magnitude.
    pub(in crate::kernels::cpu) wide: bool,
}

impl DotRows {
    /// The same without the first `rows` rows.
    #[cfg(target_arch = "x86_64")]
    pub(in crate::kernels::cpu) fn skip(self, rows: usize) -> Self {
        Self {
            q: self.q.wrapping_add(rows * 4 * self.groups),
            rows: self.rows - rows,
            query_sum: self.query_sum.wrapping_add(rows),
            query_zero: self.query_zero.wrapping_add(rows),
            query_scale: self.query_scale.wrapping_add(rows),
            y: self.y.wrapping_add(rows * self.y_stride),
            ..self
        }
    }

    /// Computes it.
    ///
    /// # Safety
    /// The operands can be read and `y` written as the fields say.
    #[inline(always)]
    pub(in crate::kernels::cpu) unsafe fn run<L: Lanes>(self, l: L) {
        l.call(Checked(self));
    }

    /// Scores of some rows from `first` on against a block of keys, from their integer dot products.
    ///
    /// # Safety
    /// As [`Self::run`], and the rows and the block are there.
    #[inline(always)]
    pub(in crate::kernels::cpu) unsafe fn finish<L: Lanes>(&self, l: L, first: usize, block: usize, dots: &[L::F]) {
        let at = block * LANES;
        // SAFETY: by the caller's promise.
        unsafe {
            let zero = l.load_at(self.key_zero.add(at));
            let centre = l.load_at(self.key_centre.add(at));
            let key_scale = l.load_at(self.key_scale.add(at));
            for (row, &dot) in (first..).zip(dots) {
                let x = l.fnma(zero, l.splat(*self.query_sum.add(row)), dot);
                let x = l.fnma(centre, l.splat(*self.query_zero.add(row)), x);
                let x = l.mul(l.mul(x, l.splat(*self.query_scale.add(row) * self.factor)), key_scale);
                l.store_at(x, self.y.add(row * self.y_stride + at));
            }
        }
    }
}

impl Kernel for Checked<DotRows> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        // SAFETY: `DotRows::run` was promised that the operands are as the fields say.
        unsafe {
            if self.0.wide {
                dot_panels::<L, true>(l, self.0);
            } else {
                dot_panels::<L, false>(l, self.0);
            }
        }
    }
}

#[inline(always)]
unsafe fn dot_panels<L: Lanes, const WIDE: bool>(l: L, p: DotRows) {
    let mut b = 0;
    // SAFETY: every panel lies inside the blocks of `p`.
    unsafe {
        while b < p.blocks {
            let strips = (p.blocks - b).min(L::STRIPS);
            match strips {
                1 => dot_panel::<L, 1, WIDE>(l, &p, b),
                2 => dot_panel::<L, 2, WIDE>(l, &p, b),
                3 => dot_panel::<L, 3, WIDE>(l, &p, b),
                _ => dot_panel::<L, 4, WIDE>(l, &p, b),
            }
            b += strips;
        }
    }
}

#[inline(always)]
unsafe fn dot_panel<L: Lanes, const NV: usize, const WIDE: bool>(l: L, p: &DotRows, b: usize) {
    let mut r = 0;
    // SAFETY: every block lies inside the rows of `p`.
    unsafe {
        while p.rows - r >= 6 {
            dot_block::<L, 6, NV, WIDE>(l, p, r, b);
            r += 6;
        }
        match p.rows - r {
            0 => {}
            1 => dot_block::<L, 1, NV, WIDE>(l, p, r, b),
            2 => dot_block::<L, 2, NV, WIDE>(l, p, r, b),
            3 => dot_block::<L, 3, NV, WIDE>(l, p, r, b),
            4 => dot_block::<L, 4, NV, WIDE>(l, p, r, b),
            _ => dot_block::<L, 5, NV, WIDE>(l, p, r, b),
        }
    }
}

#[inline(always)]
unsafe fn dot_block<L: Lanes, const MR: usize, const NV: usize, const WIDE: bool>(
    l: L,
    p: &DotRows,
    first: usize,
    block: usize,
) {
    let mut acc = [[l.zero_int(); NV]; MR];
    // SAFETY: rows `first..first + MR` and blocks `block..block + NV` are inside the operands.
    unsafe {
        let q = p.q.add(first * 4 * p.groups);
        let keys = p.keys.add(block * p.groups * 64);
        for g in 0..p.groups {
            for v in 0..NV {
                let k = l.load_bytes_at(keys.add((v * p.groups + g) * 64));
                for r in 0..MR {
                    let q = q.add((r * p.groups + g) * 4).cast::<i32>().read_unaligned();
                    acc[r][v] = l.dot4::<WIDE>(acc[r][v], k, q);
                }
            }
        }
        for v in 0..NV {
            let mut dots = [l.splat(0.0); MR];
            for (dot, acc) in dots.iter_mut().zip(&acc) {
                *dot = l.to_float(acc[v]);
            }
            p.finish(l, first, block + v, &dots);
        }
    }
}
