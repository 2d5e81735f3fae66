//! The CUDA kernels against the vendor's library, both sides in one run, with the ceilings of the same run. Prints one JSON object.
//!
//! ```text
//! cargo bench --no-default-features --features cuda --bench cuda -- [--what ceilings,gemm,transform,attention]
//!     [--tokens 1,16,2048] [--models llama2-7b,llama2-13b] [--samples 9] [--device N | --device host]
//! ```
//!
//! Times are device time: a CUDA graph of several launches between two events, each on its own copy of the operands, so that
//! weights come from memory and not from the second-level cache. `--device host` runs tiny shapes under the tests' host shim, where
//! times mean nothing: it shows that the benchmark itself works.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a measurement reports this way")]

mod attention;
mod ceilings;
mod gemm;
mod machine;
mod transform;

#[allow(clippy::unwrap_used, clippy::panic, dead_code, reason = "the tests' shim fails as tests do")]
#[path = "../../tests/cuda/host/mod.rs"]
mod host;

use machine::Machine;
use serde_json::{Value, json};

type Fault = Box<dyn std::error::Error>;

struct Settings {
    what: Vec<String>,
    tokens: Vec<usize>,
    models: Vec<String>,
    samples: usize,
    device: Option<usize>,
}

fn settings() -> Result<Settings, Fault> {
    let words = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
    let mut out = Settings {
        what: words("ceilings,gemm,transform,attention"),
        tokens: vec![1, 4, 8, 16, 32, 64, 128, 512, 2048, 8192, 32768],
        models: words("llama2-7b,llama2-13b"),
        samples: 9,
        device: Some(0),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{flag} wants a value"));
        match flag.as_str() {
            // Cargo passes it.
            "--bench" => {}
            "--what" => out.what = words(&value()?),
            "--models" => out.models = words(&value()?),
            "--tokens" => out.tokens = value()?.split(',').map(str::parse).collect::<Result<_, _>>()?,
            "--samples" => out.samples = value()?.parse::<usize>()?.max(1),
            "--device" => {
                let text = value()?;
                out.device = if text == "host" { None } else { Some(text.parse()?) };
            }
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    Ok(out)
}

fn main() -> Result<(), Fault> {
    let settings = settings()?;
    let machine = Machine::open(settings.device, settings.samples)?;
    let mut report = machine.describe();
    let mut fail = None;
    for what in &settings.what {
        let part: Result<Value, Fault> = match what.as_str() {
            "ceilings" => ceilings::measure(&machine),
            "gemm" => gemm::measure(&machine, &settings.models, &settings.tokens),
            "transform" => transform::measure(&machine, &settings.tokens),
            "attention" => attention::measure(&machine),
            other => Err(format!("unknown part {other}: expected ceilings, gemm, transform or attention").into()),
        };
        // What was measured before is printed all the same.
        match part {
            Ok(part) => report[what] = part,
            Err(fault) => {
                report[what] = json!({ "failed": fault.to_string() });
                fail = Some(fault);
            }
        }
    }
    println!("{}", serde_json::to_string_pretty(&report)?);
    fail.map_or(Ok(()), Err)
}
