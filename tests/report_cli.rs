//! `duquant report` writes whole files or none, and says on one line what is wrong with a file.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail their test")]

mod common;
mod records;

use common::{json_of, run};
use duquant::bench::Points;
use records::record;
use std::path::Path;

/// A folder with `layer.json`, `two.json` (an array of two) and `bad.json` (cut off).
fn workplace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let layer = serde_json::to_string_pretty(&record(Points::Layer(records::speed_points()))).unwrap();
    write("layer.json", &layer);
    write("two.json", &format!("[{layer},{layer}]"));
    write("bad.json", &layer[..layer.len() / 3]);
    folder
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn tables_go_to_standard_output_and_pages_to_files() {
    let folder = workplace();
    let at = folder.path();
    let shown = run(at, &["report", "layer.json"]);
    assert!(shown.status.success() && shown.stderr.is_empty());
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(text.contains("Times, prefill") && text.contains("result file") && text.ends_with('\n'), "{text}");

    let shown = run(at, &["report", "two.json", "--markdown", "-"]);
    assert!(shown.status.success());
    assert!(String::from_utf8(shown.stdout).unwrap().starts_with("# 2 measurements\n"));

    std::fs::write(at.join("page.html"), "old").unwrap();
    let wrote = run(at, &["report", "layer.json", "two.json", "--html", "page.html", "--markdown", "page.md"]);
    assert!(wrote.status.success() && wrote.stdout.is_empty());
    assert_eq!(String::from_utf8(wrote.stderr).unwrap(), "wrote page.html\nwrote page.md\n");
    let page = std::fs::read_to_string(at.join("page.html")).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
    assert!(std::fs::read_to_string(at.join("page.md")).unwrap().contains("Runs beside each other"));
    assert_eq!(names(at), ["bad.json", "layer.json", "page.html", "page.md", "two.json"]);

    let json = json_of(at, &["report", "two.json", "--html", "page.html"]);
    assert_eq!((json["records"].as_u64(), json["html"].as_str()), (Some(2), Some("page.html")));
    assert!(json["sections"].as_array().unwrap().len() > 5);
}

#[test]
fn what_is_wrong_is_said_on_one_line_and_nothing_is_written() {
    let folder = workplace();
    let at = folder.path();
    std::fs::create_dir(at.join("taken")).unwrap();
    let before = names(at);
    let cases: [(&[&str], i32, &str); 8] = [
        (&["report", "none.json", "--html", "p.html"], 1, "none.json: cannot read: No such file"),
        (&["report", "taken", "--html", "p.html"], 1, "taken: cannot read: "),
        (&["report", "layer.json", "bad.json", "--html", "p.html", "--markdown", "p.md"], 1, "bad.json: expected JSON"),
        (&["report", "layer.json", "--html", "nowhere/p.html"], 1, "cannot write nowhere/p.html"),
        (&["report", "layer.json", "--html", "taken"], 1, "cannot write taken: expected a file"),
        (&["report", "layer.json", "--json", "--markdown", "-"], 2, "both want standard output"),
        (&["report", "layer.json", "--html", "p", "--markdown", "p"], 2, "name the same file"),
        (&["report"], 2, "RESULT"),
    ];
    for (args, status, said) in cases {
        let output = run(at, args);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{args:?}: {error}");
        assert!(output.stdout.is_empty() && error.contains(said), "{args:?}: {error}");
        if status == 1 {
            assert!(error.starts_with("error: ") && error.lines().count() == 1, "{error}");
        }
    }
    assert_eq!(names(at), before);
}

#[cfg(unix)]
#[test]
fn a_report_has_the_rights_of_any_new_file() {
    use std::os::unix::fs::PermissionsExt;
    let folder = workplace();
    let at = folder.path();
    assert!(run(at, &["report", "layer.json", "--html", "page.html"]).status.success());
    let mode = |name: &str| at.join(name).metadata().unwrap().permissions().mode();
    assert_eq!(mode("page.html"), mode("layer.json"));
}
