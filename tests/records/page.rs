//! Whether a page is well formed: a small reader of the HTML that reports write.

/// What is wrong with a page; nothing when it is well formed. Every element must be closed, every attribute quoted and
/// named once, every `&` the start of an entity, every identifier unique, and no text may hold a raw `<`.
pub(crate) fn faults(page: &str) -> Vec<String> {
    const EMPTY: [&str; 1] = ["meta"];
    let mut faults = Vec::new();
    let mut open: Vec<&str> = Vec::new();
    let mut ids = std::collections::BTreeSet::new();
    let Some(mut rest) = page.strip_prefix("<!DOCTYPE html>") else { return vec!["no doctype".into()] };
    while let Some(at) = rest.find('<') {
        check_text(&rest[..at], &mut faults);
        rest = &rest[at..];
        let Some(end) = tag_end(rest) else {
            faults.push(format!("a tag without an end: {}", head(rest)));
            return faults;
        };
        let tag = &rest[1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            if open.pop() != Some(name) {
                faults.push(format!("</{name}> closes nothing"));
                return faults;
            }
            continue;
        }
        let closed = tag.ends_with('/');
        let tag = tag.strip_suffix('/').unwrap_or(tag);
        let name = tag.split(' ').next().unwrap_or_default();
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric()) {
            faults.push(format!("no name of an element: {}", head(tag)));
        }
        for (key, value) in attributes(&tag[name.len()..], &mut faults) {
            check_text(value, &mut faults);
            if key == "id" && !ids.insert(value.to_owned()) {
                faults.push(format!("two elements are called {value}"));
            }
            let link = matches!(key, "src" | "href" | "xlink:href" | "action" | "data" | "srcset");
            if link && !value.starts_with('#') && !value.starts_with("data:image/png;base64,") {
                faults.push(format!("{key} leaves the page: {}", head(value)));
            }
            if key.starts_with("on") {
                faults.push(format!("a script in an attribute: {key}"));
            }
        }
        if name == "script" || name == "style" {
            let Some(end) = rest.find(&format!("</{name}>")) else {
                faults.push(format!("<{name}> has no end"));
                return faults;
            };
            rest = &rest[end + name.len() + 3..];
        } else if !closed && !EMPTY.contains(&name) {
            open.push(name);
        }
    }
    check_text(rest, &mut faults);
    faults.extend(open.iter().map(|name| format!("<{name}> is never closed")));
    faults
}

/// Numbers of drawings that are none.
pub(crate) fn bad_numbers(page: &str) -> Vec<String> {
    let mut bad = Vec::new();
    for svg in page.split("<svg ").skip(1) {
        let svg = &svg[..svg.find("</svg>").unwrap_or(svg.len())];
        for tag in svg.split('<').map(|tag| tag.split('>').next().unwrap_or_default()) {
            for (key, value) in attributes(tag.trim_start_matches(|c: char| c != ' '), &mut Vec::new()) {
                let numeric = matches!(
                    key,
                    "x" | "y"
                        | "x1"
                        | "x2"
                        | "y1"
                        | "y2"
                        | "cx"
                        | "cy"
                        | "r"
                        | "width"
                        | "height"
                        | "d"
                        | "viewBox"
                        | "transform"
                        | "offset"
                );
                let lower = value.to_lowercase();
                if numeric && (lower.contains("nan") || lower.contains("inf") || value.is_empty()) {
                    bad.push(format!("{key}=\"{}\"", head(value)));
                }
                let negative = matches!(key, "width" | "height" | "r") && value.starts_with('-');
                if negative {
                    bad.push(format!("{key}=\"{value}\""));
                }
            }
        }
    }
    bad
}

/// Where a tag ends: the first `>` outside of quotes.
fn tag_end(text: &str) -> Option<usize> {
    let mut quoted = false;
    text.bytes().position(|byte| {
        quoted ^= byte == b'"';
        byte == b'>' && !quoted
    })
}

fn attributes<'a>(mut text: &'a str, faults: &mut Vec<String>) -> Vec<(&'a str, &'a str)> {
    let mut all: Vec<(&str, &str)> = Vec::new();
    loop {
        text = text.trim_start();
        if text.is_empty() {
            return all;
        }
        let end = text.find(['=', ' ']).unwrap_or(text.len());
        let key = &text[..end];
        text = &text[end..];
        if all.iter().any(|(other, _)| *other == key) {
            faults.push(format!("{key} is given twice"));
        }
        let Some(value) = text.strip_prefix("=\"") else {
            if text.starts_with('=') {
                faults.push(format!("{key} is not quoted"));
                return all;
            }
            all.push((key, "yes"));
            continue;
        };
        let Some(end) = value.find('"') else { return all };
        all.push((key, &value[..end]));
        text = &value[end + 1..];
    }
}

fn check_text(text: &str, faults: &mut Vec<String>) {
    for piece in text.split('&').skip(1) {
        let entity = piece.split(';').next().unwrap_or_default();
        if !["amp", "lt", "gt", "quot", "#39"].contains(&entity) {
            faults.push(format!("a raw &: {}", head(piece)));
        }
    }
    if let Some(c) = text.chars().find(|c| c.is_control() && *c != '\n') {
        faults.push(format!("a control character: {c:?}"));
    }
}

fn head(text: &str) -> String {
    text.chars().take(80).collect()
}
