//! From numbers to pixels, and the numbers worth a line.

use crate::report::document::Unit;
use crate::report::format::{bytes, number, prefixed};

/// An axis.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    log: bool,
    /// The ends in numbers, or their logarithms.
    low: f64,
    high: f64,
    /// The ends in pixels.
    from: f64,
    to: f64,
}

/// Beyond this sums and differences of two numbers overflow; nobody reads such an axis anyway.
const HUGE: f64 = 1e300;
/// Below this a power of ten is no longer a normal number.
const TINY: f64 = 1e-300;

impl Scale {
    /// An axis on which equal differences are equally far apart.
    pub(super) fn linear(low: f64, high: f64, from: f64, to: f64) -> Self {
        let (low, mut high) = (held(low), held(high));
        if high - low <= high.abs().max(low.abs()) * 1e-9 {
            high = low + if low == 0.0 { 1.0 } else { low.abs() };
        }
        Self { log: false, low, high, from, to }
    }

    /// An axis on which equal ratios are equally far apart. Its ends must be positive.
    pub(super) fn log(low: f64, high: f64, from: f64, to: f64) -> Self {
        let (mut low, mut high) = (held(low).max(TINY).log10(), held(high).max(TINY).log10());
        if high - low < 0.1 {
            (low, high) = (low - 0.5, high + 0.5);
        }
        Self { log: true, low, high, from, to }
    }

    /// The pixel of a number; numbers beyond an end stand at that end.
    pub(super) fn at(&self, value: f64) -> f64 {
        let value = if self.log { held(value).max(TINY).log10() } else { held(value) };
        let share = ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        self.from + share * (self.to - self.from)
    }

    /// Numbers worth a line, from the low end to the high one: about `count`.
    pub(super) fn ticks(&self, count: usize) -> Vec<f64> {
        if self.log { self.log_ticks(count) } else { self.linear_ticks(count) }
    }

    fn linear_ticks(&self, count: usize) -> Vec<f64> {
        let step = nice((self.high - self.low) / count.max(1) as f64);
        let first = (self.low / step).ceil();
        let last = (self.high / step + 1e-9).floor();
        // A step is at least a `count`th of a fifth of the axis, so that these are few.
        (0..=4 * count).map(|i| first + i as f64).take_while(|i| *i <= last).map(|i| i * step + 0.0).collect()
    }

    fn log_ticks(&self, count: usize) -> Vec<f64> {
        let decades = self.high - self.low;
        let inside = |exponent: &f64| *exponent >= self.low - 1e-9 && *exponent <= self.high + 1e-9;
        let first = self.low.floor() as i32;
        let last = self.high.ceil() as i32;
        if decades < 2.5 {
            let digits = if decades < 1.2 { [1.0f64, 2.0, 5.0].as_slice() } else { &[1.0, 3.0] };
            let all = (first..=last).flat_map(|e| digits.iter().map(move |d| f64::from(e) + d.log10()));
            return all.filter(inside).map(|exponent| rounded(10f64.powf(exponent))).collect();
        }
        let step = (decades / count.max(1) as f64).ceil().max(1.0) as i32;
        (first..=last)
            .filter(|e| e.rem_euclid(step) == 0)
            .map(f64::from)
            .filter(inside)
            .map(|e| 10f64.powf(e))
            .collect()
    }
}

fn held(value: f64) -> f64 {
    if value.is_nan() { 0.0 } else { value.clamp(-HUGE, HUGE) }
}

/// Undoes what a power of a logarithm adds in the last digits.
fn rounded(value: f64) -> f64 {
    format!("{value:.1e}").parse().unwrap_or(value)
}

/// The next of 1, 2, 5 times a power of ten.
fn nice(step: f64) -> f64 {
    let step = step.max(f64::MIN_POSITIVE * 1e10);
    let power = 10f64.powf(step.log10().floor());
    let digit = [1.0, 2.0, 5.0].into_iter().find(|digit| digit * power >= step * (1.0 - 1e-9)).unwrap_or(10.0);
    digit * power
}

/// A number as an axis shows it.
pub(super) fn tick(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Plain => prefixed(value).replace(' ', "\u{a0}"),
        Unit::Times => format!("{}x", number(value)),
        Unit::Percent => format!("{}%", number(value)),
        Unit::Seconds => format!("{}\u{a0}s", number(value)),
        Unit::Bytes if value == 0.0 => "0".into(),
        Unit::Bytes => bytes(value).replace(' ', "\u{a0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_ticks_are_round_and_few() {
        assert_eq!(Scale::linear(0.0, 2.4, 0.0, 100.0).ticks(5), [0.0, 0.5, 1.0, 1.5, 2.0]);
        assert_eq!(Scale::linear(0.0, 100.0, 0.0, 100.0).ticks(5), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
    }

    #[test]
    fn log_ticks_are_powers_of_ten_or_less_where_few() {
        assert_eq!(Scale::log(1.0, 1e4, 0.0, 100.0).ticks(6), [1.0, 10.0, 100.0, 1e3, 1e4]);
        assert_eq!(Scale::log(40.0, 900.0, 0.0, 100.0).ticks(6), [100.0, 300.0]);
        assert_eq!(Scale::log(1.0, 8.0, 0.0, 100.0).ticks(6), [1.0, 2.0, 5.0]);
    }

    #[test]
    fn any_ends_give_pixels_within_the_axis_and_a_few_ticks() {
        let ends = [
            0.0,
            -0.0,
            5e-324,
            1e-308,
            1e-300,
            1e-9,
            1.0,
            1.0 + 1e-12,
            1e9,
            1e300,
            f64::MAX,
            f64::INFINITY,
            f64::NAN,
            -1.0,
        ];
        for low in ends {
            for high in ends {
                for scale in [Scale::linear(low, high, 10.0, 90.0), Scale::log(low, high, 10.0, 90.0)] {
                    for value in ends {
                        let pixel = scale.at(value);
                        assert!((10.0..=90.0).contains(&pixel), "{low} {high} {value} {pixel}");
                    }
                    let ticks = scale.ticks(5);
                    assert!(ticks.len() <= 21 && ticks.iter().all(|tick| tick.is_finite()), "{low} {high} {ticks:?}");
                    assert!(ticks.is_sorted(), "{low} {high} {ticks:?}");
                }
            }
        }
    }

    #[test]
    fn labels_say_their_unit() {
        assert_eq!(tick(1.5, Unit::Times), "1.5x");
        assert_eq!(tick(2e9, Unit::Bytes), "2\u{a0}GB");
        assert_eq!(tick(1e12, Unit::Plain), "1\u{a0}T");
    }
}
