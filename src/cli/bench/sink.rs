//! Where the points of a run go: to a file as soon as each is measured, and to standard output at the end.

use crate::bench::{Event, Failure, Machine, ModelShape, Points, Record};
use crate::cli::console::Console;
use crate::cli::report::write_whole;
use crate::report;
use anyhow::{Result, bail};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Flags of every subcommand that measures.
#[derive(clap::Args)]
pub(super) struct OutArgs {
    /// Write the result to FILE as well, anew after each point, so that a run which is cut short keeps what it has
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// A record under construction.
pub(super) struct Sink<'a> {
    record: Record,
    out: Option<PathBuf>,
    console: &'a Console,
}

impl<'a> Sink<'a> {
    /// Starts a record; a file that could not be written is refused before anything is measured.
    pub(super) fn new(
        args: &OutArgs,
        console: &'a Console,
        machine: Machine,
        model: Option<ModelShape>,
        settings: BTreeMap<String, serde_json::Value>,
        points: Points,
    ) -> Result<Self> {
        let command = std::env::args().skip(1).collect();
        let record = Record { settings, ..Record::new(command, machine, model, points) };
        let sink = Self { record, out: args.out.clone(), console };
        sink.save()?;
        Ok(sink)
    }

    /// Changes the record and saves it.
    pub(super) fn update(&mut self, change: impl FnOnce(&mut Record)) -> Result<()> {
        change(&mut self.record);
        self.save()
    }

    /// Keeps a point that could not be measured, and says so.
    pub(super) fn fail(&mut self, what: &str, error: &anyhow::Error) -> Result<()> {
        let error = crate::cli::error::line(error);
        self.console.note(format!("{what}: {error}"));
        self.update(|record| record.failures.push(Failure { what: what.into(), error }))
    }

    /// Keeps what a benchmark tells; `keep` puts new points to the others.
    pub(super) fn event<T>(&mut self, event: Event<'_, T>, keep: impl FnOnce(&mut Points, Vec<T>)) -> Result<()> {
        match event {
            Event::Start(what) => {
                self.console.note(format!("{what} ..."));
                Ok(())
            }
            Event::Points(more) => self.update(|record| keep(&mut record.points, more)),
            Event::Failed(what, error) => self.fail(what, &error.into()),
        }
    }

    /// [`Sink::event`] of a benchmark of a layer or a model.
    pub(super) fn speed(&mut self, event: Event<'_>) -> Result<()> {
        self.event(event, |points, more| {
            if let Points::Layer(points) | Points::Model(points) = points {
                points.extend(more);
            }
        })
    }

    /// Prints the record, and fails when a point did.
    pub(super) fn finish(self) -> Result<()> {
        let Self { record, console, .. } = self;
        console.result(&record, || describe(&record))?;
        match record.failures.as_slice() {
            [] => Ok(()),
            [only] => bail!("{}: {}", only.what, only.error),
            [first, rest @ ..] => bail!("{}: {} (and {} more points)", first.what, first.error, rest.len()),
        }
    }

    fn save(&self) -> Result<()> {
        let Some(path) = &self.out else { return Ok(()) };
        write_whole(path, &(serde_json::to_string_pretty(&self.record)? + "\n"))
    }
}

fn describe(record: &Record) -> String {
    let source = report::Source { name: "this run".into(), record: record.clone() };
    report::terminal(&report::document(&[source]))
}
