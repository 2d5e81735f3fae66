//! Where the program keeps what it can bring again.

use anyhow::{Context, Result};
use std::path::PathBuf;

/// `duquant` in `$XDG_CACHE_HOME`, or in `~/.cache`: models of the demo, compiled pipelines.
pub(super) fn folder() -> Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = variable("XDG_CACHE_HOME")
        .or_else(|| variable("HOME").map(|home| home.join(".cache")))
        .or_else(|| variable("LOCALAPPDATA"))
        .context("there is no cache folder; set XDG_CACHE_HOME or HOME")?;
    Ok(base.join("duquant"))
}
