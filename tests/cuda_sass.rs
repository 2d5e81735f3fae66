//! The machine code of every CUDA kernel, for every architecture that it is written for, without a GPU: no spills, no more registers
//! than its plan counts on, and the instructions that it is written for, in its main loop.
//!
//! `cargo test --test cuda_sass -- --nocapture` prints a table.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails and reports this way")]

mod machine_code;

use duquant::kernels::cuda::{Arch, Define, Kernel, Source, kernels};
use machine_code::expect::{Expectation, MATRIX, WIDE};
use machine_code::sass::Routine;
use machine_code::{Code, Tools};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What is compiled once: a file with its defines, for an architecture.
type Unit = (&'static str, Vec<Define>, Arch);

#[test]
fn machine_code_is_as_planned() {
    let tools = match Tools::find() {
        Ok(tools) => tools,
        Err(fault) => {
            assert!(std::env::var_os("CI").is_none(), "{fault}");
            println!("skipped machine_code_is_as_planned: {fault}");
            return;
        }
    };
    let mut units: BTreeMap<Unit, Vec<Kernel>> = BTreeMap::new();
    for kernel in kernels() {
        for &arch in kernel.archs {
            units.entry((kernel.file, kernel.defines.clone(), arch)).or_default().push(kernel.clone());
        }
    }
    let units: Vec<(Unit, Vec<Kernel>)> = units.into_iter().collect();
    let (next, reports, seconds) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()), Mutex::new(Vec::<f64>::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(((_, _, arch), kernels)) = units.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let code = tools.code(&kernels[0], *arch);
                    seconds.lock().unwrap().extend(code.as_ref().ok().and_then(|code| code.compiled));
                    for kernel in kernels {
                        let report = Report::of(kernel, *arch, &code);
                        reports.lock().unwrap().insert((kernel.to_string(), *arch), report);
                    }
                }
            });
        }
    });
    let reports = reports.into_inner().unwrap();
    println!("NVRTC {}", tools.version());
    println!("{:<88} {}", "kernel", Report::HEAD);
    reports.iter().for_each(|((kernel, arch), report)| println!("{kernel:<88} {:<7} {}", arch.name(), report.line));
    let seconds = seconds.into_inner().unwrap();
    println!(
        "{} kernels in {} files of machine code, {} of them compiled now, in {:.1} s of all threads together",
        reports.len(),
        units.len(),
        seconds.len(),
        seconds.iter().fold(0.0, |sum, one| sum + one)
    );
    let faults: Vec<String> = reports
        .iter()
        .flat_map(|((kernel, arch), report)| {
            report.faults.iter().map(move |fault| format!("{kernel} on {}: {fault}", arch.name()))
        })
        .collect();
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

/// Every kernel of [`kernels`] is another one, and every file of `cuda/` with kernels has some there.
#[test]
fn kernels_are_listed_once() {
    let all = kernels();
    let distinct: BTreeSet<String> = all.iter().map(|kernel| format!("{}: {kernel}", kernel.file)).collect();
    assert_eq!(distinct.len(), all.len(), "a kernel is listed twice");
    for source in duquant::kernels::cuda::SOURCES.iter().filter(|source| source.name.ends_with(".cu")) {
        for line in source.text.lines().filter(|line| line.starts_with("KERNEL(")) {
            let entry = line.trim_start_matches("KERNEL(").split(',').next().unwrap();
            let listed = all.iter().any(|kernel| kernel.file == source.name && kernel.entry == entry);
            assert!(listed, "{} has a kernel {entry} that kernels() does not list", source.name);
        }
    }
}

/// What the other tests bring of their own compiles too, so that they do not fail on a GPU for that.
#[test]
fn kernels_of_tests_compile() {
    let tools = match Tools::find() {
        Ok(tools) => tools,
        Err(fault) => {
            assert!(std::env::var_os("CI").is_none(), "{fault}");
            println!("skipped kernels_of_tests_compile: {fault}");
            return;
        }
    };
    let sources = [
        Source { name: "layouts.cu", text: include_str!("cuda/layouts.cu") },
        Source { name: "mistakes.cu", text: include_str!("cuda/mistakes.cu") },
    ];
    let newer = Source { name: "mistakes_sm90.cu", text: include_str!("cuda/mistakes_sm90.cu") };
    let everywhere = sources.iter().flat_map(|source| Arch::ALL.map(|arch| (source, arch)));
    for (source, arch) in everywhere.chain([(&newer, Arch::Sm90a)]) {
        let kernel = Kernel { file: source.name, entry: "", defines: Vec::new(), archs: &Arch::ALL, registers: 255 };
        tools.compiler.compile_source(source, &kernel, arch.name(), arch).unwrap();
    }
}

/// One kernel on one architecture.
struct Report {
    line: String,
    faults: Vec<String>,
}

impl Report {
    const HEAD: &str = "arch    registers  of  static  wide loads  loop  matrix  others per matrix";

    fn of(kernel: &Kernel, arch: Arch, code: &Result<Code, String>) -> Self {
        let code = match code {
            Ok(code) => code,
            Err(fault) => return Self { line: "does not compile".into(), faults: vec![fault.clone()] },
        };
        let found = code.usage.get(kernel.entry).zip(Routine::parse(&code.text, kernel.entry));
        let Some((usage, routine)) = found else {
            return Self { line: "no such entry".into(), faults: vec!["no such entry".into()] };
        };
        // Hopper's system keeps 1 KiB of each block to itself.
        let shared = usage.shared.saturating_sub(if arch == Arch::Sm90a { 1024 } else { 0 });
        let mut faults = Vec::new();
        let mut at_most = |what: &str, got: u32, limit: u32| {
            if got > limit {
                faults.push(format!("{what}: expected at most {limit}, got {got}"));
            }
        };
        at_most("registers", usage.registers, kernel.registers);
        at_most("bytes of stack", usage.stack, 0);
        at_most("bytes of local memory", usage.local, 0);
        at_most("bytes of static shared memory", shared, 0);
        let expectation = Expectation::of(kernel, arch);
        match expectation {
            Some(expectation) => faults.extend(expectation.faults(&routine)),
            None => faults.push("tests/machine_code/expect.rs does not say what is expected of it".into()),
        }
        // Warps take registers that others give of those that the block starts with: with fewer they would wait for ever.
        if routine.count_all("USETMAXREG") > 0 && usage.registers != kernel.registers {
            faults.push(format!(
                "registers that warps trade: expected {} to start with, got {}",
                kernel.registers, usage.registers
            ));
        }
        let main = expectation.and_then(|one| one.work).and_then(|work| routine.main_loop(work));
        let (length, matrix) = main.map_or((0, 0), |main| (main.body.len(), routine.count(MATRIX, &main.body)));
        let others = if matrix > 0 { format!("{:.2}", (length - matrix) as f64 / matrix as f64) } else { "-".into() };
        let line = format!(
            "{:>9} {:>3} {shared:>7} {:>11} {length:>5} {matrix:>7}  {others:>17}",
            usage.registers,
            kernel.registers,
            routine.count_all(WIDE),
        );
        Self { line, faults }
    }
}
