//! The command line `duquant`.

fn main() -> std::process::ExitCode {
    duquant::cli::run(std::env::args_os())
}
