//! `duquant report`

use super::console::Console;
use super::error::Usage;
use crate::report::{self, Section};
use anyhow::{Context, Result};
use serde::Serialize;
use std::io::Write;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  duquant report layer.json                              its tables
  duquant report layer.json --html layer.html            one page with plots, for any browser, without a network
  duquant report first.json second.json --markdown -     both, and whether their numbers agree

RESULT is a file that `duquant bench --json` wrote: one result, an array of them, or several one after the other.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Results of `duquant bench`
    #[arg(required = true, value_name = "RESULT")]
    results: Vec<PathBuf>,
    /// Write Markdown to a file; `-` is standard output
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Write one HTML page with plots to a file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Output<'a> {
    title: &'a str,
    records: usize,
    markdown: Option<String>,
    html: Option<String>,
    sections: &'a [Section],
}

pub(super) fn run(args: &Args, console: &Console) -> Result<()> {
    let to_stdout = args.markdown.as_deref() == Some(Path::new("-"));
    if to_stdout && console.json() {
        return Err(Usage("--markdown - and --json both want standard output; give one a file".into()).into());
    }
    if args.html.is_some() && args.html == args.markdown {
        return Err(Usage("--markdown and --html name the same file".into()).into());
    }
    let mut sources = Vec::new();
    for path in &args.results {
        sources.extend(report::read(path)?);
    }
    let document = report::document(&sources);
    // Everything is read and laid out before the first byte is written.
    if let Some(path) = &args.html {
        write_whole(path, &report::html(&document))?;
        console.note(format!("wrote {}", path.display()));
    }
    if let Some(path) = args.markdown.as_ref().filter(|_| !to_stdout) {
        write_whole(path, &report::markdown(&document))?;
        console.note(format!("wrote {}", path.display()));
    }
    let named = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    if console.json() {
        let output = Output {
            title: &document.title,
            records: sources.len(),
            markdown: named(&args.markdown),
            html: named(&args.html),
            sections: &document.sections,
        };
        console.result(&output, String::new)
    } else if to_stdout {
        console.print(&report::markdown(&document))
    } else if args.html.is_none() && args.markdown.is_none() {
        console.result(&(), || report::terminal(&document))
    } else {
        Ok(())
    }
}

/// Writes a file that appears whole or not at all: beside its name first, renamed onto it when it is complete.
pub(super) fn write_whole(path: &Path, text: &str) -> Result<()> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed = || format!("cannot write {}", path.display());
    let mut builder = tempfile::Builder::new();
    builder.prefix(".duquant-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // A temporary file is its owner's alone; a report is a file like any other, up to the umask.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let mut file = builder.tempfile_in(folder).with_context(failed)?;
    file.write_all(text.as_bytes()).with_context(failed)?;
    file.as_file().sync_all().with_context(failed)?;
    // Renaming would replace a device such as /dev/null, or fail on a folder in words that nobody understands.
    if path.exists() && !path.is_file() {
        anyhow::bail!("cannot write {}: expected a file, got something else of that name", path.display());
    }
    file.persist(path).map_err(|fault| fault.error).with_context(failed)?;
    Ok(())
}
