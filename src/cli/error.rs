//! What makes the program end, and with which status.

/// Exit status of a run that failed.
pub(super) const FAILED: u8 = 1;
/// Exit status of a command line that makes no sense.
pub(super) const USAGE: u8 = 2;

/// Flags that each parse but make no sense together.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Usage(pub(super) String);

/// Whoever read our standard output has gone; there is nothing left to do.
#[derive(Debug, thiserror::Error)]
#[error("standard output is closed")]
pub(super) struct Closed;

/// The exit status for an error; `None` when it is no error at all.
pub(super) fn status(error: &anyhow::Error) -> Option<u8> {
    if error.is::<Closed>() {
        return None;
    }
    Some(if error.is::<Usage>() { USAGE } else { FAILED })
}

/// The causes of an error on one line, each said once: many errors repeat their source in their own text.
pub(super) fn line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        if line.is_empty() {
            line = text;
        } else if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[derive(Debug, thiserror::Error)]
    #[error("layer 3: {source}")]
    struct Outer {
        source: std::num::ParseIntError,
    }

    #[test]
    fn each_cause_is_said_once_and_on_one_line() {
        let source = "x".parse::<u8>().unwrap_err();
        let error = Err::<(), _>(Outer { source }).context("cannot read\nmodel.gguf").unwrap_err();
        assert_eq!(line(&error), "cannot read model.gguf: layer 3: invalid digit found in string");
    }

    #[test]
    fn status_tells_usage_from_failure() {
        assert_eq!(status(&anyhow::anyhow!("x")), Some(FAILED));
        assert_eq!(status(&Usage("x".into()).into()), Some(USAGE));
        assert_eq!(status(&anyhow::Error::from(Usage("x".into())).context("y")), Some(USAGE));
        assert_eq!(status(&Closed.into()), None);
    }
}
