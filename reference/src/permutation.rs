//! Channel permutations between two rotations (section 3.2), as gathers: `y[i] = x[permutation[i]]`.

/// `O_j = max |x_j|` over the rows of `x` `[rows, channels]`; zeros where there are no rows.
///
/// # Panics
/// When `x` is no whole number of rows.
#[must_use]
pub fn column_abs_max(x: &[f64], channels: usize) -> Vec<f64> {
    assert_eq!(x.len() % channels.max(1), 0, "x must be whole rows of {channels} channels");
    let mut out = vec![0.0_f64; channels];
    for (i, value) in x.iter().enumerate() {
        let largest = &mut out[i % channels];
        if value.abs() > *largest {
            *largest = value.abs();
        }
    }
    out
}

/// The zigzag permutation of channels with outlier magnitudes `outliers` (`O_j >= 0`) over blocks of `block` channels.
///
/// Channels in descending order of `O_j`, the lower channel first on ties, are dealt to blocks 0, 1, .., K-1, K-1, .., 1,
/// 0, 0, 1, ..: a block at either end gets two in a row. Inside a block they stay in descending order.
///
/// # Panics
/// When `block` does not divide the channels: a block would mix tokens.
#[must_use]
pub fn zigzag_permutation(outliers: &[f64], block: usize) -> Vec<usize> {
    let channels = outliers.len();
    assert!(block > 0 && channels.is_multiple_of(block), "block {block} must divide {channels} channels");
    let blocks = channels / block;
    let mut descending: Vec<usize> = (0..channels).collect();
    descending.sort_by(|&a, &b| outliers[b].total_cmp(&outliers[a]));
    let mut members = vec![Vec::new(); blocks];
    for (rank, channel) in descending.into_iter().enumerate() {
        let (round, place) = (rank / blocks, rank % blocks);
        let visited = if round % 2 == 0 { place } else { blocks - 1 - place };
        members[visited].push(channel);
    }
    members.concat()
}

/// `M_b`: the mean of the outlier magnitudes of each block, in the order that `permutation` puts channels in.
///
/// # Panics
/// When `block` does not divide the channels or the lengths differ.
#[must_use]
pub fn block_means(outliers: &[f64], permutation: &[usize], block: usize) -> Vec<f64> {
    let ordered = gather(outliers, permutation);
    assert!(block > 0 && ordered.len().is_multiple_of(block), "block {block} must divide {} channels", ordered.len());
    ordered.chunks(block).map(|members| members.iter().sum::<f64>() / block as f64).collect()
}

/// Eq. 4: the (population) variance of [`block_means`], which a permutation should make small.
///
/// # Panics
/// As [`block_means`].
#[must_use]
pub fn block_mean_variance(outliers: &[f64], permutation: &[usize], block: usize) -> f64 {
    let means = block_means(outliers, permutation, block);
    if means.is_empty() {
        return 0.0;
    }
    let count = means.len() as f64;
    let mean = means.iter().sum::<f64>() / count;
    means.iter().map(|m| (m - mean) * (m - mean)).sum::<f64>() / count
}

/// `y[i] = x[permutation[i]]` in every row of `x` `[rows, channels]`, where `permutation` has one entry a channel.
///
/// # Panics
/// When `x` is no whole number of rows or an entry is outside the channels.
#[must_use]
pub fn gather(x: &[f64], permutation: &[usize]) -> Vec<f64> {
    let channels = permutation.len();
    assert_eq!(x.len() % channels.max(1), 0, "x must be whole rows of {channels} channels");
    let mut out = Vec::with_capacity(x.len());
    for at in 0..x.len() {
        let (row, i) = (at / channels, at % channels);
        assert!(permutation[i] < channels, "entry {} is outside {channels} channels", permutation[i]);
        out.push(x[row * channels + permutation[i]]);
    }
    out
}

/// The permutation that undoes a gather by `permutation`.
///
/// # Panics
/// When `permutation` is no bijection.
#[must_use]
pub fn inverse_permutation(permutation: &[usize]) -> Vec<usize> {
    assert!(is_bijection(permutation), "only a bijection has an inverse");
    let mut inverse = vec![0; permutation.len()];
    for (to, &from) in permutation.iter().enumerate() {
        inverse[from] = to;
    }
    inverse
}

/// Whether `permutation` names each of `0..len` once.
#[must_use]
pub fn is_bijection(permutation: &[usize]) -> bool {
    (0..permutation.len()).all(|channel| permutation.iter().filter(|&&from| from == channel).count() == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zigzag_by_hand() {
        // Descending: channels 5 1 7 0 3 2 6 4 with 9 8 7 6 5 4 3 2. Two blocks: 0 1 1 0 0 1 1 0.
        let outliers = [6.0, 8.0, 4.0, 5.0, 2.0, 9.0, 3.0, 7.0];
        let permutation = zigzag_permutation(&outliers, 4);
        assert_eq!(permutation, [5, 0, 3, 4, 1, 7, 2, 6]);
        assert_eq!(block_means(&outliers, &permutation, 4), [5.5, 5.5]);
        assert_eq!(block_mean_variance(&outliers, &permutation, 4), 0.0);
        // Four blocks: 0 1 2 3 3 2 1 0.
        assert_eq!(zigzag_permutation(&outliers, 2), [5, 4, 1, 6, 7, 2, 0, 3]);
        // Three blocks of three: 0 1 2 2 1 0 0 1 2.
        let outliers: Vec<f64> = (0..9).rev().map(f64::from).collect();
        assert_eq!(zigzag_permutation(&outliers, 3), [0, 5, 6, 1, 4, 7, 2, 3, 8]);
    }

    #[test]
    fn equal_magnitudes_keep_their_order() {
        assert_eq!(zigzag_permutation(&[1.0; 6], 3), [0, 3, 4, 1, 2, 5]);
        assert_eq!(zigzag_permutation(&[1.0, 2.0, 1.0, 2.0], 2), [1, 2, 3, 0]);
    }

    #[test]
    fn one_block_and_blocks_of_one_sort() {
        let outliers = [3.0, 1.0, 2.0];
        assert_eq!(zigzag_permutation(&outliers, 3), [0, 2, 1]);
        assert_eq!(zigzag_permutation(&outliers, 1), [0, 2, 1]);
        assert_eq!(zigzag_permutation(&[], 4), [0_usize; 0]);
    }

    #[test]
    #[should_panic(expected = "must divide")]
    fn a_block_that_does_not_divide_is_refused() {
        let _ = zigzag_permutation(&[1.0; 10], 4);
    }

    #[test]
    fn variance_by_hand() {
        let outliers = [8.0, 6.0, 2.0, 0.0];
        assert_eq!(block_mean_variance(&outliers, &[0, 1, 2, 3], 2), 9.0);
        assert_eq!(block_mean_variance(&outliers, &[0, 3, 1, 2], 2), 0.0);
    }

    #[test]
    fn gather_works_on_each_row() {
        let x = [0.0, 1.0, 2.0, 10.0, 11.0, 12.0];
        let permutation = [2, 0, 1];
        assert_eq!(gather(&x, &permutation), [2.0, 0.0, 1.0, 12.0, 10.0, 11.0]);
        assert_eq!(inverse_permutation(&permutation), [1, 2, 0]);
        assert_eq!(gather(&gather(&x, &permutation), &inverse_permutation(&permutation)), x);
        assert_eq!(column_abs_max(&[1.0, -5.0, -2.0, 3.0], 2), [2.0, 5.0]);
        assert_eq!(column_abs_max(&[], 2), [0.0, 0.0]);
    }

    #[test]
    fn bijections() {
        assert!(is_bijection(&[]) && is_bijection(&[1, 0, 2]));
        assert!(!is_bijection(&[0, 0, 2]) && !is_bijection(&[1, 2, 3]));
    }
}
