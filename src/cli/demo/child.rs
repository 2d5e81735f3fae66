//! Runs this program again, so that each measurement has a process, and a peak of memory, of its own.

use crate::cli::console::Console;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::ffi::OsStr;
use std::process::{Command, Stdio};

/// Runs `duquant ARGS --json` and gives what it printed. Its progress goes to the terminal where there is one.
pub(super) fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>, console: &Console) -> Result<Value> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(program);
    command.args(args).args(["--json", "--threads", &rayon::current_num_threads().to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command.stderr(if console.bars() { Stdio::inherit() } else { Stdio::piped() });
    let output = command.output().context("cannot start this program again")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().last().unwrap_or_default();
        bail!("a measurement failed ({}): {}", output.status, last.strip_prefix("error: ").unwrap_or(last));
    }
    serde_json::from_slice(&output.stdout).context("a measurement printed no JSON")
}

/// A number of such a result.
pub(super) fn number(value: &Value, path: &str) -> Result<f64> {
    value.pointer(path).and_then(Value::as_f64).with_context(|| format!("a measurement gave no number at {path}"))
}
