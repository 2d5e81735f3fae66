//! Reads files of records, and says what is wrong with a file that holds none.

use super::error::Error;
use super::format::{one_line, shorten};
use crate::bench::{
    AblationPoint, FORMAT, KernelPoint, OutlierPoint, Points, QuantizePoint, Record, SpeedPoint, VERSION,
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::Path;

/// No record comes near it: a thousand pictures of outliers are about 200 MB.
const MOST_BYTES: u64 = 1 << 30;

/// A record and the name of where it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// The file, with a number behind it where the file holds several records.
    pub name: String,
    /// What was measured.
    pub record: Record,
}

/// Reads every record of a file: one JSON object, an array of them, or several one after the other.
pub fn read(path: &Path) -> Result<Vec<Source>, Error> {
    let io = |source| Error::Io { path: path.into(), source };
    let bytes = std::fs::metadata(path).map_err(io)?.len();
    if bytes > MOST_BYTES {
        return Err(Error::TooLarge { path: path.into(), bytes, limit: MOST_BYTES });
    }
    let bytes = std::fs::read(path).map_err(io)?;
    let text = match std::str::from_utf8(&bytes) {
        Ok(text) => text,
        Err(fault) => {
            let before = String::from_utf8_lossy(&bytes[..fault.valid_up_to()]);
            let (line, column) = end_of(&before);
            return Err(Error::Json { path: path.into(), what: "bytes that are not UTF-8".into(), line, column });
        }
    };
    // Editors on Windows like to begin with a byte order mark.
    parse(text.strip_prefix('\u{feff}').unwrap_or(text), path)
}

/// As [`read`], of text that is already there; `path` names it in errors.
pub fn parse(text: &str, path: &Path) -> Result<Vec<Source>, Error> {
    let mut records = Vec::new();
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let mut start = 0;
    while let Some(value) = values.next() {
        // Checked as a value first, so that another program's JSON is called that and not "missing field".
        let value = value.map_err(|fault| json_error(path, &fault))?;
        let end = values.byte_offset();
        let piece = &text[start..end];
        let before = end_of(&text[..start + (piece.len() - piece.trim_start().len())]);
        if let Value::Array(items) = &value {
            for item in items {
                check_kind(item, path, before.0)?;
            }
            let typed = serde_json::from_str::<Vec<Record>>(piece);
            let read = typed.map_err(|fault| record_error(path, &fault, items, end_of(&text[..start])))?;
            records.extend(read);
        } else {
            check_kind(&value, path, before.0)?;
            let typed = serde_json::from_str::<Record>(piece);
            let items = std::slice::from_ref(&value);
            records.push(typed.map_err(|fault| record_error(path, &fault, items, end_of(&text[..start])))?);
        }
        start = end;
    }
    if records.is_empty() {
        return Err(Error::Empty { path: path.into() });
    }
    for record in &records {
        check_points(record, path)?;
    }
    let several = records.len() > 1;
    let file = path.display().to_string();
    let name = |i: usize| if several { format!("{file} #{}", i + 1) } else { file.clone() };
    Ok(records.into_iter().enumerate().map(|(i, record)| Source { name: name(i), record }).collect())
}

/// Line and column, from 1, behind the end of `text`.
fn end_of(text: &str) -> (usize, usize) {
    let line = text.matches('\n').count() + 1;
    (line, text.rsplit('\n').next().unwrap_or_default().chars().count() + 1)
}

/// What serde says without its own "at line .. column ..".
fn without_place(fault: &serde_json::Error) -> String {
    let text = fault.to_string();
    let place = format!(" at line {} column {}", fault.line(), fault.column());
    shorten(&one_line(text.strip_suffix(&place).unwrap_or(&text)), 300)
}

fn json_error(path: &Path, fault: &serde_json::Error) -> Error {
    Error::Json { path: path.into(), what: without_place(fault), line: fault.line(), column: fault.column() }
}

/// An error of a piece of the file that begins at `start`, with the first point that does not parse by itself.
fn record_error(path: &Path, fault: &serde_json::Error, items: &[Value], start: (usize, usize)) -> Error {
    let line = start.0 + fault.line().saturating_sub(1);
    let column = if fault.line() <= 1 { start.1 - 1 + fault.column() } else { fault.column() };
    let place = items.iter().find_map(bad_point).map(|place| format!(" in {place}")).unwrap_or_default();
    Error::Record { path: path.into(), what: without_place(fault), place, line, column }
}

/// Which point of a record is at fault. Serde buffers points before it reads them, so it only knows where they end.
fn bad_point(item: &Value) -> Option<String> {
    fn first<T: DeserializeOwned>(points: &[Value]) -> Option<usize> {
        points.iter().position(|point| T::deserialize(point).is_err())
    }
    let points = item.get("points")?.as_array()?;
    let bad = match item.get("bench")?.as_str()? {
        "layer" | "model" => first::<SpeedPoint>(points),
        "kernel" => first::<KernelPoint>(points),
        "quantize" => first::<QuantizePoint>(points),
        "ablate" => first::<AblationPoint>(points),
        "outliers" => first::<OutlierPoint>(points),
        _ => None,
    }?;
    let null = null_field(&points[bad]).map(|field| format!(", field `{field}`")).unwrap_or_default();
    Some(format!("point {}{null}", bad + 1))
}

/// A number that was not one is written as `null`: name the first field where none may stand.
fn null_field(point: &Value) -> Option<String> {
    const MAY_BE_NULL: [&str; 10] = [
        "speedup",
        "transform_share",
        "transform_overhead",
        "device_bytes",
        "of_ceiling",
        "bound",
        "peak_bytes",
        "perplexity",
        "variance",
        "paper_perplexity",
    ];
    let fields = point.as_object()?;
    fields.iter().find(|(name, value)| value.is_null() && !MAY_BE_NULL.contains(&name.as_str())).map(|(n, _)| n.clone())
}

/// Whether a value says that it is a record of this format and version.
fn check_kind(value: &Value, path: &Path, line: usize) -> Result<(), Error> {
    let wrong = |got: String| Error::Format { path: path.into(), expected: FORMAT, got, line };
    let Some(object) = value.as_object() else {
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "true or false",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            _ => "an array",
        };
        return Err(wrong(format!("{kind} instead of an object")));
    };
    match object.get("format") {
        Some(Value::String(format)) if format == FORMAT => {}
        Some(other) => return Err(wrong(shorten(&one_line(&other.to_string()), 80))),
        None => return Err(wrong("an object without a format".into())),
    }
    match object.get("version") {
        Some(version) if version.as_u64() == Some(VERSION.into()) => Ok(()),
        other => {
            let got = other.map_or_else(|| "none".into(), |version| shorten(&one_line(&version.to_string()), 80));
            Err(Error::Version { path: path.into(), expected: VERSION, got })
        }
    }
}

fn check_points(record: &Record, path: &Path) -> Result<(), Error> {
    let count = match &record.points {
        Points::Layer(points) | Points::Model(points) => points.len(),
        Points::Kernel(points) => points.len(),
        Points::Quantize(points) => points.len(),
        Points::Ablate(points) => points.len(),
        Points::Outliers(points) => points.len(),
    };
    if count == 0 && record.failures.is_empty() {
        return Err(Error::NoPoints { path: path.into() });
    }
    let Points::Outliers(points) = &record.points else { return Ok(()) };
    for (i, point) in points.iter().enumerate() {
        for step in &point.steps {
            let cells = step.grid.len();
            if cells == 0 || step.columns == 0 || !cells.is_multiple_of(step.columns) {
                let (step, columns) = (one_line(&step.step), step.columns);
                return Err(Error::Grid { path: path.into(), point: i + 1, step, columns, cells });
            }
        }
    }
    Ok(())
}
