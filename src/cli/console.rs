//! What goes where: results to standard output, everything else to standard error.

use super::error::{self, Closed};
use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::io::{ErrorKind, IsTerminal, Write};
use std::process::ExitCode;

/// The two output streams of a run.
pub(super) struct Console {
    json: bool,
    quiet: bool,
    bars: bool,
}

impl Console {
    pub(super) fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet, bars: !quiet && std::io::stderr().is_terminal() }
    }

    /// Whether progress is drawn on a terminal.
    pub(super) fn bars(&self) -> bool {
        self.bars
    }

    /// Whether standard output must be one JSON object.
    pub(super) fn json(&self) -> bool {
        self.json
    }

    /// Says something on standard error.
    pub(super) fn note(&self, line: impl AsRef<str>) {
        if !self.quiet {
            // There is nobody left to tell when standard error is closed.
            let _ = writeln!(std::io::stderr().lock(), "{}", line.as_ref());
        }
    }

    /// Says an error on one line and gives the exit status.
    pub(super) fn fail(&self, error: &anyhow::Error) -> ExitCode {
        let Some(status) = error::status(error) else { return ExitCode::SUCCESS };
        let _ = writeln!(std::io::stderr().lock(), "error: {}", error::line(error));
        ExitCode::from(status)
    }

    /// The result of a run: `value` as JSON, or the text, with a line break behind it.
    pub(super) fn result(&self, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
        let mut out = if self.json { serde_json::to_string_pretty(value)? } else { text() };
        out.push('\n');
        self.print(&out)
    }

    /// Writes to standard output at once.
    pub(super) fn print(&self, text: &str) -> Result<()> {
        let mut stdout = std::io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Err(fault) if fault.kind() == ErrorKind::BrokenPipe => Err(Closed.into()),
            other => Ok(other?),
        }
    }

    /// Follows `total` steps: a bar on a terminal, some lines elsewhere.
    pub(super) fn progress(&self, what: &str, total: usize) -> Progress<'_> {
        let bar = self.bars.then(|| {
            let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr());
            if let Ok(style) =
                ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} {elapsed}, {eta} left  {msg}")
            {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(what.to_owned());
            bar
        });
        Progress { console: self, what: what.to_owned(), total, done: 0, bar }
    }
}

/// A task of known length that is under way.
pub(super) struct Progress<'a> {
    console: &'a Console,
    what: String,
    total: usize,
    done: usize,
    bar: Option<ProgressBar>,
}

impl Progress<'_> {
    /// One more step is done. Elsewhere than on a terminal about twenty lines are written, whatever the total.
    pub(super) fn step(&mut self, detail: &str) {
        self.done += 1;
        if let Some(bar) = &self.bar {
            bar.set_message(detail.to_owned());
            bar.inc(1);
        } else if self.done.is_multiple_of(self.total.div_ceil(20).max(1)) || self.done == self.total {
            let separator = if detail.is_empty() { "" } else { "  " };
            self.console.note(format!("{} {}/{}{separator}{detail}", self.what, self.done, self.total));
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
