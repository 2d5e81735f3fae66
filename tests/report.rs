//! Reports say what is in a record, in three outputs that no record can break.
#![cfg(feature = "runner")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail their test")]

#[path = "records/page.rs"]
mod page;
mod records;

use duquant::bench::{KernelPoint, Points, SpeedPoint};
use duquant::report::{Block, Document, Drawing, Source, document, html, markdown, parse, terminal};
use proptest::prelude::*;
use records::{record, source};
use std::path::Path;

/// All three outputs; the page is well formed and asks nothing of a network.
fn outputs(sources: &[Source]) -> (Document, String) {
    let document = document(sources);
    let page = html(&document);
    assert_eq!(page::faults(&page), [""; 0]);
    assert_eq!(page::bad_numbers(&page), [""; 0]);
    let svgs = page.matches("<svg class=\"plot\"").count();
    assert_eq!(svgs, drawings(&document).len(), "every plot is drawn");
    for text in [terminal(&document), markdown(&document)] {
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    }
    (document, page)
}

fn drawings(document: &Document) -> Vec<(&str, &Drawing)> {
    let blocks = document.sections.iter().flat_map(|section| &section.blocks);
    blocks
        .filter_map(|block| match block {
            Block::Plot(plot) => Some((plot.title.as_str(), &plot.drawing)),
            _ => None,
        })
        .collect()
}

fn read(text: &str) -> Result<Vec<Source>, String> {
    parse(text, Path::new("x.json")).map_err(|error| error.to_string())
}

#[test]
fn every_kind_has_its_plots_and_tables() {
    let wanted: [(&str, &[&str]); 6] = [
        (
            "layer",
            &[
                "Speed-up, prefill",
                "Roofline, prefill, batch 64",
                "Memory by purpose, prefill",
                "Where the time goes, prefill",
                "Speed-up, decode",
                "Roofline, decode, batch 64",
                "Memory by purpose, decode",
                "Where the time goes, decode",
            ],
        ),
        (
            "model",
            &[
                "Speed-up, prefill",
                "Roofline, prefill, batch 64",
                "Memory by purpose, prefill",
                "Where the time goes, prefill",
                "Speed-up, decode",
                "Roofline, decode, batch 64",
                "Memory by purpose, decode",
                "Where the time goes, decode",
            ],
        ),
        ("kernel", &["Roofline"]),
        ("quantize", &["Time by stage"]),
        ("ablate", &["Perplexity: modules", "Perplexity: permutation"]),
        ("outliers", &["Outliers: layer 1, input of qkv", "Outliers: layer 11, input of down"]),
    ];
    for ((kind, points), (name, plots)) in records::all().into_iter().zip(wanted) {
        assert_eq!(kind, name);
        let (document, page) = outputs(&[source(points)]);
        let titles: Vec<&str> = drawings(&document).into_iter().map(|(title, _)| title).collect();
        assert_eq!(titles, plots, "{kind}");
        assert!(page.len() < 2_000_000, "{kind}: {} bytes", page.len());
        for outside in ["http:", "https:", "src=", "@import", "url(h", "//cdn"] {
            assert!(!page.contains(outside), "{kind}: {outside}");
        }
        let text = terminal(&document);
        for said in [
            "amx-int8",
            "9d985a1, with changes",
            "2025-11-29",
            "prefill",
            "not enough memory",
            "1 point could not be measured",
        ] {
            assert!(text.contains(said), "{kind}: {said} in\n{text}");
        }
        assert!(markdown(&document).contains("| ---"), "{kind}");
        // For a look: target/tmp/report-KIND.html.
        std::fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("report-{kind}.html")), &page).unwrap();
        std::fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("report-{kind}.txt")), &text).unwrap();
    }
}

#[test]
fn numbers_of_a_layer_are_in_its_tables() {
    let (document, _) = outputs(&[source(Points::Layer(records::speed_points()))]);
    let text = terminal(&document);
    let row =
        text.lines().find(|line| line.contains("duquant ") && line.contains(" 16 ") && line.contains("2048")).unwrap();
    // 2.6 * (1 - 0.25 / 16), over rtn 3.2 / 2.6 - 1.
    for cell in ["W4A4", "2.56x", "+23.1%", "23.0%"] {
        assert!(row.contains(cell), "{cell} in {row}");
    }
    assert!(text.contains("The machine was noisy: 2 of 48 points may not be repeatable to 5%"), "{text}");
    assert!(text.contains("the 90th percentile is 12% above the median"));
    assert!(text.contains("noisy"));
}

#[test]
fn the_papers_numbers_stand_apart() {
    let text = terminal(&document(&[source(Points::Layer(records::speed_points()))]));
    let (ours, theirs) = text.split_once("The paper, on its GPUs").unwrap();
    for number in ["1.95x", "2.08x", "1.508x", "15.282 GB", "294 ms", "3.20x", "659 ms", "8.9%"] {
        assert!(theirs.contains(number), "{number}");
    }
    assert!(!ours.contains("15.282") && !theirs.contains("9.3%"));
    let mut other = source(Points::Layer(records::speed_points()));
    other.record.model.as_mut().unwrap().name = "llama-2-13b".into();
    let text = terminal(&document(&[other.clone()]));
    assert!(text.contains("9.3%") && text.contains("2.34x") && !text.contains("15.282 GB"));
    other.record.model.as_mut().unwrap().name = "SmolLM2-135M".into();
    assert!(!terminal(&document(&[other])).contains("on its GPUs"));
    let text = terminal(&document(&[source(Points::Ablate(records::ablation_points()))]));
    assert!(text.contains("the paper's LLaMA2-7B, WikiText2") && text.contains("not finite"), "{text}");
}

#[test]
fn two_runs_are_compared_point_by_point() {
    let first = Source { name: "first.json".into(), record: record(Points::Layer(records::speed_points())) };
    let mut second = Source { name: "second.json".into(), ..first.clone() };
    if let Points::Layer(points) = &mut second.record.points {
        points[0].time.median_ms *= 1.04;
        points[1].time.median_ms *= 1.3;
        points[2].time.median_ms /= 1.3;
        points[2].time.noise = vec!["busy".into()];
        points.remove(3);
    }
    let (document, page) = outputs(&[first.clone(), second.clone()]);
    std::fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join("report-two.html"), page).unwrap();
    let text = terminal(&document);
    let (_, compared) = text.split_once("Runs beside each other: layer").unwrap();
    assert!(compared.contains("so that they should agree"));
    assert!(compared.contains("45 of 47 points agree within 5%. 2 differ by more, 1 of them"), "{compared}");
    assert!(compared.contains("1.040x  within 5%"), "{compared}");
    assert!(compared.contains("differs by +30.0%\n"), "{compared}");
    assert!(compared.contains("differs by -23.1%, the second was noisy"), "{compared}");
    second.record.machine.device = "avx512".into();
    assert!(terminal(&duquant::report::document(&[first.clone(), second])).contains("differ in: machine or device"));
    let other = source(Points::Kernel(records::kernel_points()));
    assert!(!terminal(&duquant::report::document(&[first, other])).contains("beside each other"));
}

#[test]
fn extreme_values_break_no_plot() {
    let extremes = [0.0, -0.0, 1e-300, 5e-324, 1.0, 1e300, f64::MAX, f64::NAN, f64::INFINITY, -1.0];
    let mut layer = records::speed_points();
    for (i, point) in layer.iter_mut().enumerate() {
        let at = |j: usize| extremes[(i + j) % extremes.len()];
        point.speedup = Some(at(0));
        point.batch = [0, 1, usize::MAX, 7][i % 4];
        (point.time.median_ms, point.time.p10_ms, point.tokens_per_second) = (at(1), at(2), at(3));
        (point.memory.weights, point.memory.kv_cache, point.peak_bytes) = (u64::MAX, u64::MAX, 0);
        for (j, kernel) in point.kernels.iter_mut().enumerate() {
            (kernel.ms, kernel.bytes, kernel.ops) = (at(j), at(j + 1), at(j + 2));
        }
    }
    outputs(&[source(Points::Layer(layer.clone()))]);
    layer.truncate(1);
    outputs(&[source(Points::Model(layer))]);

    let mut one = records::speed_points();
    one.retain(|point| point.method == "duquant" && point.batch == 4);
    outputs(&[source(Points::Layer(one))]);

    let mut kernels = records::kernel_points();
    for (i, point) in kernels.iter_mut().enumerate() {
        let at = |j: usize| extremes[(i + j) % extremes.len()];
        (point.bytes, point.ops, point.time.median_ms) = (at(0), at(3), at(6));
    }
    for ceiling in extremes {
        let mut source = source(Points::Kernel(kernels.clone()));
        let ceilings = source.record.ceilings.as_mut().unwrap();
        (ceilings.bytes_per_second, ceilings.integer_per_second) = (ceiling, 1e300);
        outputs(&[source.clone()]);
        source.record.ceilings = None;
        source.record.unix_seconds = u64::MAX;
        outputs(&[source]);
    }

    let mut rows = records::ablation_points();
    let mut runs = records::quantize_points();
    let mut picture = records::outlier_point(0, true);
    for (i, value) in extremes.into_iter().enumerate() {
        let row = i % rows.len();
        (rows[row].perplexity, rows[row].baseline) = (Some(value), extremes[i / 2]);
        let run = i % runs.len();
        (runs[run].seconds, runs[run].stages[i % 6].seconds) = (value, value);
        let step = i % picture.steps.len();
        picture.steps[step].grid[i] = value as f32;
        (picture.steps[step].max, picture.steps[step].median) = (value as f32, extremes[i / 2] as f32);
        outputs(&[source(Points::Ablate(rows.clone()))]);
        outputs(&[source(Points::Quantize(runs.clone()))]);
        outputs(&[source(Points::Outliers(vec![picture.clone()]))]);
    }
}

#[test]
fn a_thousand_points_fit_on_a_page() {
    let layer: Vec<SpeedPoint> = records::speed_points()
        .into_iter()
        .cycle()
        .take(1000)
        .enumerate()
        .map(|(i, mut point)| {
            point.batch = 1 + i / 6;
            point.method = format!("method {}", i % 40);
            point
        })
        .collect();
    let kernels: Vec<KernelPoint> = records::kernel_points()
        .into_iter()
        .cycle()
        .take(1000)
        .enumerate()
        .map(|(i, mut point)| {
            point.name = format!("kernel {}", i % 50);
            point
        })
        .collect();
    let pictures = (0..32).map(|layer| records::outlier_point(layer, layer % 3 == 0)).collect();
    let ablation = records::ablation_points().into_iter().cycle().take(1000).collect();
    let quantize = records::quantize_points().into_iter().cycle().take(1000).collect();
    for points in [
        Points::Layer(layer),
        Points::Kernel(kernels),
        Points::Outliers(pictures),
        Points::Ablate(ablation),
        Points::Quantize(quantize),
    ] {
        let (_, page) = outputs(&[source(points)]);
        assert!(page.len() < 4_000_000, "{} bytes", page.len());
    }
}

#[test]
fn six_pictures_at_full_size_stay_below_two_megabytes() {
    let pictures = (0..6).map(|layer| records::outlier_point(layer, layer % 2 == 0)).collect();
    let (_, page) = outputs(&[source(Points::Outliers(pictures))]);
    assert!(page.len() < 2_000_000, "{} bytes", page.len());
}

#[test]
fn records_come_one_by_one_in_arrays_and_behind_each_other() {
    let one = serde_json::to_string_pretty(&record(Points::Layer(records::speed_points()))).unwrap();
    let two = serde_json::to_string(&record(Points::Quantize(records::quantize_points()))).unwrap();
    assert_eq!(read(&one).unwrap()[0].name, "x.json");
    for text in
        [format!("[{one},{two}]"), format!("{one}\n{two}\n"), format!("[{one}][{two}]"), format!("[{one}]\n{two}")]
    {
        let sources = read(&text).unwrap();
        assert_eq!(sources.len(), 2);
        assert_eq!(sources[1].name, "x.json #2");
        assert_eq!(sources[1].record, record(Points::Quantize(records::quantize_points())));
    }
}

#[test]
fn bad_files_are_told_apart() {
    let good = record(Points::Layer(records::speed_points()));
    let value = serde_json::to_value(&good).unwrap();
    let text = serde_json::to_string_pretty(&good).unwrap();
    let changed = |path: &str, new: serde_json::Value| {
        let mut value = value.clone();
        *value.pointer_mut(path).unwrap() = new;
        serde_json::to_string_pretty(&value).unwrap()
    };
    let mut empty = good.clone();
    (empty.points, empty.failures) = (Points::Kernel(Vec::new()), Vec::new());
    let mut grid = records::outlier_point(3, false);
    grid.steps[1].grid.pop();
    let grid = serde_json::to_string(&record(Points::Outliers(vec![grid]))).unwrap();
    let cases: Vec<(String, &[&str])> = vec![
        (String::new(), &["empty file"]),
        (" \n ".into(), &["empty file"]),
        ("[]".into(), &["empty file"]),
        ("hello".into(), &["expected JSON", "line 1 column 1"]),
        (text[..text.len() / 2].into(), &["expected JSON", "EOF", " at line "]),
        (format!("{text}\n{{\"format\": nope}}"), &["expected JSON", " at line "]),
        (
            "{\"name\": \"gemm\", \"ms\": 3}".into(),
            &["expected format \"duquant-bench\"", "an object without a format"],
        ),
        ("[1, 2]".into(), &["a number instead of an object"]),
        ("null".into(), &["null instead of an object"]),
        (changed("/format", "criterion<b>".into()), &["got \"criterion<b>\" at line 1"]),
        (changed("/version", 2.into()), &["expected version 1", "got 2", "use the duquant that wrote it"]),
        (changed("/version", "1".into()), &["expected version 1", "got \"1\""]),
        (changed("/machine/cores", "two".into()), &["invalid type: string \"two\", expected usize", "line "]),
        (
            changed("/points/5/median_ms", serde_json::Value::Null),
            &["invalid type: null, expected f64 in point 6, field `median_ms`", "line "],
        ),
        (changed("/points/7/batch", (-1).into()), &["in point 8"]),
        (changed("/points/0/phase", "lunch".into()), &["unknown variant `lunch`", "in point 1"]),
        (changed("/bench", "breakfast".into()), &["unknown variant `breakfast`"]),
        (changed("/points", "none".into()), &["expected a sequence"]),
        (text.replacen("2048", "1e999", 1), &["number out of range"]),
        (serde_json::to_string(&empty).unwrap(), &["expected at least one point, got none"]),
        (grid, &["point 1, after smoothing: expected whole rows of 192 columns, got 18431 cells"]),
        ("[".repeat(5000), &["recursion limit"]),
    ];
    for (text, expected) in cases {
        let error = read(&text).unwrap_err();
        for part in expected {
            assert!(error.contains(part), "{part:?} in {error}");
        }
        assert!(error.starts_with("x.json: ") && !error.contains('\n') && error.len() < 500, "{error}");
    }
    let missing = duquant::report::read(Path::new("/nowhere/x.json")).unwrap_err().to_string();
    assert!(missing.starts_with("/nowhere/x.json: cannot read: "), "{missing}");
    // A failure is something to report even without a point.
    empty.failures = good.failures;
    assert_eq!(read(&serde_json::to_string(&empty).unwrap()).unwrap().len(), 1);
}

#[test]
fn the_place_of_an_error_counts_from_the_start_of_the_file() {
    let good = serde_json::to_string_pretty(&record(Points::Quantize(records::quantize_points()))).unwrap();
    let bad = good.replacen("\"cores\": 2", "\"cores\": true", 1);
    let line = good.lines().count() + bad.lines().position(|line| line.contains("true")).unwrap() + 1;
    let error = read(&format!("{good}\n{bad}")).unwrap_err();
    assert!(error.contains(&format!("line {line} column ")), "{line}: {error}");
}

/// Text as no sane program writes it.
fn strange() -> impl Strategy<Value = String> {
    prop_oneof![
        ".{0,12}",
        "\\PC{0,40}",
        Just("</script><script>alert(1)</script>".to_owned()),
        Just("\"><img src=http://x onerror=alert(1)>".to_owned()),
        Just("&amp;&#60;\u{0}\u{1b}[2J\u{202e}|*_`\r\n".to_owned()),
        Just("duquant".to_owned()),
        Just(String::new()),
        "[a-z]{300}",
    ]
}

fn number() -> impl Strategy<Value = f64> {
    prop_oneof![any::<f64>(), Just(0.0), Just(1e-300), Just(1e300), Just(f64::NAN), Just(f64::INFINITY), 0.1f64..100.0]
}

/// Puts strange text and numbers into every place of a record, as JSON sees it.
fn disturb(value: &mut serde_json::Value, texts: &[String], numbers: &[f64], at: &mut usize) {
    use serde_json::Value;
    let mut step = || {
        *at += 1;
        *at
    };
    match value {
        Value::String(text) => *text = texts[step() % texts.len()].clone(),
        Value::Number(old) => {
            let new = numbers[step() % numbers.len()];
            if old.is_u64() {
                *value = Value::from(new.abs() as u64);
            } else if let Some(new) = serde_json::Number::from_f64(new) {
                *value = Value::Number(new);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| disturb(item, texts, numbers, at)),
        Value::Object(fields) => {
            let keep = ["format", "version", "bench", "phase", "columns"];
            fields
                .iter_mut()
                .filter(|(key, _)| !keep.contains(&key.as_str()))
                .for_each(|(_, v)| disturb(v, texts, numbers, at));
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn no_record_breaks_an_output(
        kind in 0usize..6,
        texts in proptest::collection::vec(strange(), 1..7),
        numbers in proptest::collection::vec(number(), 1..9),
    ) {
        let (_, mut points) = records::all().swap_remove(kind);
        if let Points::Outliers(pictures) = &mut points {
            pictures.truncate(1);
        }
        let mut value = serde_json::to_value(record(points)).unwrap();
        disturb(&mut value, &texts, &numbers, &mut 0);
        let sources = read(&value.to_string()).unwrap();
        let (document, page) = outputs(&[sources[0].clone(), sources[0].clone()]);
        prop_assert!(!page.contains("<img") && page.matches("<script>").count() == 1);
        prop_assert!(serde_json::to_string(&document).is_ok());
    }

    #[test]
    fn any_text_is_refused_or_read(text in "\\PC{0,200}", cut in 0usize..4000) {
        let _ = read(&text);
        let good = serde_json::to_string(&record(Points::Quantize(records::quantize_points()))).unwrap();
        let _ = read(&good[..cut.min(good.len())]);
    }
}

#[test]
fn a_page_that_is_not_well_formed_is_found() {
    let page = html(&document(&[source(Points::Kernel(records::kernel_points()))]));
    assert_eq!(page::faults(&page), [""; 0]);
    for (from, to) in [
        ("</table>", ""),
        ("<th scope=\"col\"", "<th scope=col"),
        ("id=\"s1\"", "id=\"s0\""),
        ("Made by", "Made & by"),
        ("</main>", "<p>a</main>"),
        ("href=\"#main\"", "href=\"http://x\""),
    ] {
        assert_ne!(page::faults(&page.replacen(from, to, 1)), [""; 0], "{from}");
    }
    let broken = page.replacen("cx=\"", "cx=\"NaN", 1).replacen("d=\"M", "d=\"Minf ", 1);
    assert_eq!(page::bad_numbers(&broken).len(), 2);
}
