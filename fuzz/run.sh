#!/bin/sh
# Runs every fuzz target for SECONDS (default 60), from the seeds and from what earlier runs found in corpus/.
# Exits non-zero on the first crash, hang or allocation above the limit; the input is then in artifacts/.
# Needs only the stable toolchain and a C++ compiler; `cargo fuzz run -s none TARGET` works too.
set -eu
cd "$(dirname "$0")"
seconds=${1:-60}
host=$(rustc -vV | sed -n 's/^host: //p')
# What cargo-fuzz passes, less the sanitizer, which only nightly has. With --target they reach no build script.
RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares" \
    cargo build --release --target "$host" --bins
for target in safetensors gguf tokenizer config; do
    echo "fuzz $target for $seconds s"
    mkdir -p "corpus/$target" "artifacts/$target"
    "${CARGO_TARGET_DIR:-target}/$host/release/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -malloc_limit_mb=512 \
        -max_len=65536 -print_final_stats=1 -verbosity=0 -artifact_prefix="artifacts/$target/" \
        "corpus/$target" "seeds/$target"
done
