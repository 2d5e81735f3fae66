//! Reports: any [`Record`](crate::bench::Record) as tables on a terminal, as Markdown, and as one HTML page with plots.
//!
//! [`read()`] takes the files, [`document()`] says what there is to say, and [`terminal()`], [`markdown()`] and [`html()`]
//! write it down. Everything that comes from a file is made harmless where it is written, in one place an output.

mod ablate;
mod compare;
mod document;
mod error;
mod format;
mod html;
mod kernel;
mod markdown;
mod outliers;
mod paper;
mod quantize;
mod read;
mod roofline;
mod speed;
mod speed_plots;
mod svg;
mod terminal;
mod what_ran;

pub use document::{
    Bar, Bars, Block, Column, Document, Drawing, Fact, Key, Lines, Mark, Picture, PictureStep, Plot, Roofline, Section,
    Series, Table, Unit, Warning,
};
pub use error::Error;
pub use html::html;
pub use markdown::markdown;
pub use read::{Source, parse, read};
pub use terminal::terminal;

use crate::bench::Points;

/// What there is to say about some records.
#[must_use]
pub fn document(sources: &[Source]) -> Document {
    let mut sections = Vec::new();
    for source in sources {
        sections.push(what_ran::section(source, sources.len() == 1));
        let record = &source.record;
        sections.extend(match &record.points {
            Points::Layer(points) | Points::Model(points) => speed::sections(record, points),
            Points::Kernel(points) => kernel::sections(record, points),
            Points::Quantize(points) => quantize::sections(points),
            Points::Ablate(points) => ablate::sections(points),
            Points::Outliers(points) => outliers::sections(points),
        });
    }
    sections.extend(compare::sections(sources));
    sections.extend(paper::section(sources));
    let title = match sources {
        [one] => what_ran::title(&one.record),
        several => format!("{} measurements", several.len()),
    };
    let names = sources.iter().map(|source| source.name.as_str()).collect::<Vec<_>>().join(", ");
    Document { title, about: format!("duquant bench, from {names}"), sections }
}
