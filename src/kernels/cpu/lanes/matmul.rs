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

/// Exact integer products of signed rows with blocks of unsigned columns: `sum_k q[r, k] columns[k, n]`.
#[derive(Clone, Copy)]
pub(in crate::kernels::cpu) struct Dots {
    /// Signed bytes, `[rows, 4 groups]`, rows `q_stride` apart.
    pub(in crate::kernels::cpu) q: *const i8,
    pub(in crate::kernels::cpu) q_stride: usize,
    /// Number of the first row.
    pub(in crate::kernels::cpu) first: usize,
    pub(in crate::kernels::cpu) rows: usize,
    /// Length of a product over 4.
    pub(in crate::kernels::cpu) groups: usize,
    /// `[blocks, groups, 16, 4]`: 4 bytes of each of 16 columns, then the next 4.
    pub(in crate::kernels::cpu) columns: *const u8,
    pub(in crate::kernels::cpu) blocks: usize,
    /// Whether bytes of either side exceed 127 in magnitude.
    pub(in crate::kernels::cpu) wide: bool,
}

/// What becomes of products.
pub(in crate::kernels::cpu) trait Finish: Copy {
    /// Takes those of some rows from `first` on with a block of columns.
    ///
    /// # Safety
    /// The rows and the block are among those of the [`Dots`].
    unsafe fn finish<L: Lanes>(self, l: L, first: usize, block: usize, dots: &[L::F]);
}

impl Dots {
    /// The same without the first `rows` rows.
    #[cfg(target_arch = "x86_64")]
    pub(in crate::kernels::cpu) fn skip(self, rows: usize) -> Self {
        let q = self.q.wrapping_add(rows * self.q_stride);
        Self { q, first: self.first + rows, rows: self.rows - rows, ..self }
    }

    /// Computes them.
    ///
    /// # Safety
    /// The operands can be read as the fields say, and `finish` takes what comes.
    #[inline(always)]
    pub(in crate::kernels::cpu) unsafe fn run<L: Lanes, F: Finish>(self, l: L, finish: F) {
        l.call(Checked((self, finish)));
    }
}

impl<F: Finish> Kernel for Checked<(Dots, F)> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (p, finish) = self.0;
        // SAFETY: `Dots::run` was promised that the operands are as the fields say.
        unsafe {
            if p.wide {
                dot_panels::<L, F, true>(l, p, finish);
            } else {
                dot_panels::<L, F, false>(l, p, finish);
            }
        }
    }
}

#[inline(always)]
unsafe fn dot_panels<L: Lanes, F: Finish, const WIDE: bool>(l: L, p: Dots, finish: F) {
    let mut b = 0;
    // SAFETY: every panel lies inside the blocks of `p`.
    unsafe {
        while b < p.blocks {
            let strips = (p.blocks - b).min(L::STRIPS);
            match strips {
                1 => dot_panel::<L, F, 1, WIDE>(l, &p, finish, b),
                2 => dot_panel::<L, F, 2, WIDE>(l, &p, finish, b),
                3 => dot_panel::<L, F, 3, WIDE>(l, &p, finish, b),
                _ => dot_panel::<L, F, 4, WIDE>(l, &p, finish, b),
            }
            b += strips;
        }
    }
}

#[inline(always)]
unsafe fn dot_panel<L: Lanes, F: Finish, const NV: usize, const WIDE: bool>(l: L, p: &Dots, finish: F, b: usize) {
    let mut r = 0;
    // SAFETY: every block lies inside the rows of `p`.
    unsafe {
        while p.rows - r >= 6 {
            dot_block::<L, F, 6, NV, WIDE>(l, p, finish, r, b);
            r += 6;
        }
        match p.rows - r {
            0 => {}
            1 => dot_block::<L, F, 1, NV, WIDE>(l, p, finish, r, b),
            2 => dot_block::<L, F, 2, NV, WIDE>(l, p, finish, r, b),
            3 => dot_block::<L, F, 3, NV, WIDE>(l, p, finish, r, b),
            4 => dot_block::<L, F, 4, NV, WIDE>(l, p, finish, r, b),
            _ => dot_block::<L, F, 5, NV, WIDE>(l, p, finish, r, b),
        }
    }
}

#[inline(always)]
unsafe fn dot_block<L: Lanes, F: Finish, const MR: usize, const NV: usize, const WIDE: bool>(
    l: L,
    p: &Dots,
    finish: F,
    row: usize,
    block: usize,
) {
    let mut acc = [[l.zero_int(); NV]; MR];
    // SAFETY: rows `row..row + MR` and blocks `block..block + NV` are inside the operands.
    unsafe {
        let q = p.q.add(row * p.q_stride);
        let columns = p.columns.add(block * p.groups * 64);
        for g in 0..p.groups {
            for v in 0..NV {
                let k = l.load_bytes_at(columns.add((v * p.groups + g) * 64));
                for r in 0..MR {
                    let q = q.add(r * p.q_stride + g * 4).cast::<i32>().read_unaligned();
                    acc[r][v] = l.dot4::<WIDE>(acc[r][v], k, q);
                }
            }
        }
        for v in 0..NV {
            let mut dots = [l.splat(0.0); MR];
            for (dot, acc) in dots.iter_mut().zip(&acc) {
                *dot = l.to_float(acc[v]);
            }
            finish.finish(l, p.first + row, block + v, &dots);
        }
    }
}
