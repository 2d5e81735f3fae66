//! Values of flags, checked before any work begins.

/// Bits of a code: 2 to 8, or 16 for floating point.
pub(super) fn bits(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(bits @ (2..=8 | 16)) => Ok(bits),
        _ => Err("expected 2 to 8, or 16 to keep floating point".into()),
    }
}

/// A clip ratio in `(0, 1]`.
pub(super) fn clip(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(clip) if clip > 0.0 && clip <= 1.0 => Ok(clip),
        _ => Err("expected a ratio above 0 and up to 1".into()),
    }
}

/// A smoothing strength in `[0, 1]`, or `none`.
pub(super) fn alpha(text: &str) -> Result<Alpha, String> {
    if text == "none" {
        return Ok(Alpha(None));
    }
    match text.parse::<f32>() {
        Ok(alpha) if (0.0..=1.0).contains(&alpha) => Ok(Alpha(Some(alpha))),
        _ => Err("expected 0 to 1, or none for no smoothing".into()),
    }
}

/// A smoothing strength; none for no smoothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Alpha(pub(super) Option<f32>);

/// A rotation block: a power of two from 4 to 128.
pub(super) fn block(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(block) if block.is_power_of_two() && (4..=128).contains(&block) => Ok(block),
        _ => Err("expected a power of two from 4 to 128".into()),
    }
}

/// A number of at least one.
pub(super) fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&number| number > 0).ok_or_else(|| "expected a whole number of at least 1".into())
}

/// Sequences at a time.
pub(super) fn batch(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(batch @ 1..=65_536) => Ok(batch),
        _ => Err("expected 1 to 65536 sequences".into()),
    }
}

/// Tokens of a window, which needs a target.
pub(super) fn window(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(window @ 2..=1_048_576) => Ok(window),
        _ => Err("expected 2 to 1048576 tokens".into()),
    }
}

/// Tokens that fit a sequence.
pub(super) fn tokens(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(tokens @ 1..=1_048_576) => Ok(tokens),
        _ => Err("expected 1 to 1048576 tokens".into()),
    }
}

/// A temperature: finite and not negative.
pub(super) fn temperature(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(temperature) if temperature.is_finite() && temperature >= 0.0 => Ok(temperature),
        _ => Err("expected a finite number of at least 0".into()),
    }
}

/// `PREFILL,DECODE` tokens.
pub(super) fn speed(text: &str) -> Result<(usize, usize), String> {
    let pair = text.split_once(',').and_then(|(prefill, decode)| Some((prefill.parse().ok()?, decode.parse().ok()?)));
    match pair {
        Some((prefill @ 1..=1_048_576, decode @ 0..=1_048_576)) => Ok((prefill, decode)),
        _ => Err("expected PREFILL,DECODE in tokens, for example 512,64".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_hold() {
        assert!(["2", "8", "16"].into_iter().all(|text| bits(text).is_ok()));
        assert!(["1", "9", "15", "17", "-4", "4.0", "", "x"].into_iter().all(|text| bits(text).is_err()));
        assert!(["1", "0.5", "1e-3"].into_iter().all(|text| clip(text).is_ok()));
        assert!(["0", "1.01", "-0.5", "nan", "inf"].into_iter().all(|text| clip(text).is_err()));
        assert_eq!(alpha("none"), Ok(Alpha(None)));
        assert_eq!(alpha("0"), Ok(Alpha(Some(0.0))));
        assert!(["1.5", "NaN", "None"].into_iter().all(|text| alpha(text).is_err()));
        assert!(["4", "128"].into_iter().all(|text| block(text).is_ok()));
        assert!(["2", "256", "96", "0"].into_iter().all(|text| block(text).is_err()));
        assert!(["1", "0", "99999999999"].into_iter().all(|text| window(text).is_err()));
        assert!(["0", "99999999999"].into_iter().all(|text| tokens(text).is_err()));
        assert!(["-1", "inf", "nan"].into_iter().all(|text| temperature(text).is_err()));
        assert_eq!(speed("512,64"), Ok((512, 64)));
        assert!(["512", "0,64", "5,", "5,6,7"].into_iter().all(|text| speed(text).is_err()));
        assert!(["0", "-1"].into_iter().all(|text| positive(text).is_err()));
    }
}
