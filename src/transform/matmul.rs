use gemm::Parallelism;

/// How the right operand of [`multiply`] lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Right {
    /// `[k, n]`, as it is multiplied.
    Plain,
    /// `[n, k]`, multiplied as its transpose.
    Transposed,
}

/// `out[m, n] = a[m, k] b[k, n]`, all row-major, on the calling thread, so that a result depends on its operands alone.
///
/// The slices must hold at least the shapes' elements; `one` is the number 1 of the type.
pub(super) fn multiply<T: Copy + 'static>(
    a: &[T],
    b: &[T],
    right: Right,
    (m, k, n): (usize, usize, usize),
    one: T,
    out: &mut [T],
) {
    assert!(a.len() >= m * k && b.len() >= k * n && out.len() >= m * n, "multiply: operands shorter than their shapes");
    let (b_column, b_row) = match right {
        Right::Plain => (1, n as isize),
        Right::Transposed => (k as isize, 1),
    };
    // SAFETY: the strides describe row-major (or transposed) matrices of exactly the shapes whose lengths are checked
    // above; `out` is borrowed mutably, so it overlaps neither operand.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            false,
            a.as_ptr(),
            1,
            k as isize,
            b.as_ptr(),
            b_column,
            b_row,
            one,
            one,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
