//! How often a device does something at most, from runs long enough for its clock.

/// Runs that count; the fastest does.
const RUNS: usize = 5;

/// The most of `amount` a second that `run`, told how often to do it, reaches: as often as makes a run `long` seconds, `most` at the
/// most. `run` gives its seconds.
pub(super) fn most_per_second<E>(
    amount: f64,
    long: f64,
    most: u32,
    mut run: impl FnMut(u32) -> Result<f64, E>,
) -> Result<f64, E> {
    // The first run pays for what is loaded lazily.
    run(1)?;
    let mut count = 1;
    while count < most && run(count)? < long {
        count *= 2;
    }
    let mut best = f64::INFINITY;
    for _ in 0..RUNS {
        best = best.min(run(count)?);
    }
    Ok(amount * f64::from(count) / best.max(1e-9))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_of_long_runs_counts() {
        let (mut calls, mut longest) = (0, 0);
        let rate = most_per_second(3.0, 0.5, 1 << 10, |count| {
            (calls, longest) = (calls + 1, longest.max(count));
            // The last run is the fastest.
            Ok::<_, ()>(f64::from(count) / if calls == 12 { 100.0 } else { 50.0 })
        });
        assert_eq!((longest, calls, rate), (32, 12, Ok(300.0)));
        assert_eq!(most_per_second(1.0, 0.5, 4, |count| Ok::<_, ()>(f64::from(count) * 1e-3)), Ok(1e3));
        assert_eq!(most_per_second(1.0, 0.5, 4, |_| Err("gone")), Err("gone"));
    }
}
