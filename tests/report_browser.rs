//! A report opens in a browser: every plot is drawn, in both themes and on a phone, and nothing is asked of a network.
//!
//! Chromium is found as `chromium`, `chromium-browser`, `google-chrome` or `$CHROME`. Where it is missing the tests say so
//! and pass, but never in CI.
#![cfg(feature = "runner")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "helpers of tests fail their test")]

mod records;

use duquant::report::{Source, document, html};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Put in front of everything else on a copy of a page: collects what goes wrong, measures what was drawn in both themes,
/// and tells the page around it.
const PROBE: &str = include_str!("records/probe.js");
/// On a phone.
const NARROW: u32 = 360;
const WIDE: u32 = 1280;

fn browser(test: &str) -> Option<PathBuf> {
    let named = std::env::var_os("CHROME").map(PathBuf::from).filter(|path| path.is_file());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = named.or_else(|| {
        let names = ["chromium", "chromium-browser", "google-chrome"];
        let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
        names.iter().flat_map(|name| folders.iter().map(move |f| f.join(name))).find(|path| path.is_file())
    });
    if found.is_none() {
        let ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
        assert!(!ci, "{test}: no browser; install chromium or set CHROME");
        println!("skipped: {test} needs a browser; install chromium or set CHROME");
    }
    found
}

/// What one visit to a page found.
struct Visit {
    found: Value,
    /// What the browser's console said.
    console: Vec<String>,
    /// Addresses that the page asked for, whatever became of it.
    requests: Vec<String>,
}

/// Opens a copy of `page` with the probe in it, in a frame `width` pixels wide: a window cannot be narrower than 500.
fn visit(browser: &Path, page: &str, width: u32, dark: bool) -> Visit {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let probed = page.replacen("<head>", &format!("<head><script>{PROBE}</script>"), 1);
    assert_ne!(probed, page, "the page has a head");
    std::fs::write(at("page.html"), probed).unwrap();
    let frame = format!(
        "<!DOCTYPE html><style>body{{margin:0}}iframe{{border:0}}</style><script>addEventListener('message', e => {{ \
         document.documentElement.dataset.found = e.data }})</script><iframe src=\"page.html\" width=\"{width}\" \
         height=\"900\"></iframe>"
    );
    std::fs::write(at("frame.html"), frame).unwrap();
    let log = |name: &str| Stdio::from(std::fs::File::create(at(name)).unwrap());
    let mut child = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0"])
        .args(["--virtual-time-budget=4000", "--window-size=1400,1000", "--dump-dom"])
        .arg(format!("--blink-settings=preferredColorScheme={}", u8::from(!dark)))
        .arg(format!("--user-data-dir={}", at("profile").display()))
        .arg(format!("--log-net-log={}", at("net.json").display()))
        .arg(format!("file://{}", at("frame.html").display()))
        .stdout(log("dom"))
        .stderr(log("said"))
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > Duration::from_secs(180) {
            child.kill().unwrap();
            panic!("the browser does not end");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let read = |name: &str| String::from_utf8_lossy(&std::fs::read(at(name)).unwrap()).into_owned();
    let (dom, said) = (read("dom"), read("said"));
    let told = dom.split_once("data-found=\"").map(|(_, rest)| rest.split('"').next().unwrap_or_default());
    let told = told.unwrap_or_else(|| panic!("the page told nothing:\n{dom}\n{said}"));
    let told = told
        .replace("&quot;", "\"")
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&nbsp;", " ")
        .replace("&amp;", "&");
    let console = said.lines().filter(|line| line.contains("CONSOLE")).map(str::to_owned).collect();
    Visit { found: serde_json::from_str(&told).unwrap(), console, requests: requests(&read("net.json")) }
}

/// What a page asked for according to the browser's log of its network: the browser's own requests come from no page.
fn requests(log: &str) -> Vec<String> {
    let log: Value = serde_json::from_str(log).unwrap();
    let params = log["events"].as_array().unwrap().iter().map(|event| &event["params"]);
    let mut all: Vec<String> = params
        .filter(|params| params["initiator"].as_str().is_some_and(|from| from != "not an origin"))
        .filter_map(|params| params["url"].as_str())
        .filter(|url| !url.starts_with("file:") && !url.starts_with("data:"))
        .map(str::to_owned)
        .collect();
    all.dedup();
    all
}

/// Everything that is wrong with a visited page.
fn faults(visit: &Visit, width: u32, dark: bool, plots: usize) -> Vec<String> {
    let mut faults: Vec<String> = visit.console.iter().map(|line| format!("the console says {line}")).collect();
    faults.extend(visit.requests.iter().map(|url| format!("the page asks for {url}")));
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    faults.extend(texts(&visit.found["errors"]));
    faults.extend(texts(&visit.found["resources"]).iter().map(|url| format!("the page loads {url}")));
    let themes = visit.found["themes"].as_array().unwrap();
    assert_eq!(themes.len(), 2, "before and behind the button: {}", visit.found);
    for (theme, dark) in themes.iter().zip([dark, !dark]) {
        let name = if dark { "dark" } else { "light" };
        if theme["width"] != width {
            faults.push(format!("{name}: {} pixels wide, not {width}", theme["width"]));
        }
        if theme["overflow"].as_f64().unwrap() > 0.0 {
            faults.push(format!("{name}: the page is {} pixels too wide: {}", theme["overflow"], theme["widest"]));
        }
        if theme["dark"] != dark {
            faults.push(format!("{name}: not that theme"));
        }
        let drawn = theme["plots"].as_array().unwrap();
        if drawn.len() != plots {
            faults.push(format!("{name}: {} plots, not {plots}", drawn.len()));
        }
        for plot in drawn {
            let number = |key: &str| plot[key].as_f64().unwrap();
            if number("width") < 100.0 || number("height") < 50.0 || number("marks") < 1.0 || plot["title"] == "" {
                faults.push(format!("{name}: not drawn: {plot}"));
            }
        }
        faults.extend(texts(&theme["faint"]).iter().map(|text| format!("{name}: too little contrast: {text}")));
    }
    faults
}

/// One page with every kind of record, and how many plots it has.
fn everything() -> (String, usize) {
    let sources: Vec<Source> = records::all().into_iter().map(|(_, points)| records::source(points)).collect();
    let page = html(&document(&sources));
    let plots = page.matches("<svg class=\"plot\"").count();
    (page, plots)
}

#[test]
fn a_page_opens_in_both_themes_on_a_desk_and_on_a_phone() {
    let Some(browser) = browser("a_page_opens_in_both_themes_on_a_desk_and_on_a_phone") else { return };
    let (page, plots) = everything();
    assert_eq!(plots, 22);
    for (width, dark) in [(WIDE, false), (NARROW, false), (NARROW, true)] {
        let visit = visit(&browser, &page, width, dark);
        assert_eq!(faults(&visit, width, dark, plots), [""; 0], "{width} {dark}");
    }
}

#[test]
fn what_a_page_must_not_do_is_found() {
    let Some(browser) = browser("what_a_page_must_not_do_is_found") else { return };
    let page = html(&document(&[records::source(duquant::bench::Points::Kernel(records::kernel_points()))]));
    let without_policy = |page: &str| page.replacen("http-equiv=\"Content-Security-Policy\"", "name=\"was-policy\"", 1);
    let add = |what: &str| page.replacen("<footer>", &format!("{what}<footer>"), 1);
    let image = add("<img src=\"http://elsewhere.example/x.png\" alt=\"\">");
    let cases = [
        ("an error of a script", add("<script>nothing.there()</script>"), "nothing is not defined"),
        ("a word on the console", add("<script>console.log('psst')</script>"), "psst"),
        ("an image that the policy stops", image.clone(), "stopped by the policy: img-src"),
        ("an image from elsewhere", without_policy(&image), "the page asks for http://elsewhere.example/x.png"),
        (
            "a plot without a mark",
            add("<svg class=\"plot\" width=\"300\" height=\"200\"><title>empty</title></svg>"),
            "not drawn",
        ),
        ("something too wide", add("<div id=\"wide\" style=\"width:700px\">a</div>"), "pixels too wide: \"div#wide\""),
        ("faint text", add("<p style=\"color:#8888\">faint</p>"), "too little contrast: faint"),
    ];
    for (what, page, expected) in cases {
        let visit = visit(&browser, &page, NARROW, false);
        let faults = faults(&visit, NARROW, false, page.matches("<svg class=\"plot\"").count());
        assert!(faults.iter().any(|fault| fault.contains(expected)), "{what}: {faults:?}");
    }
}
