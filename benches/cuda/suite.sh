#!/usr/bin/env bash
# The CUDA kernels on the GPU of this machine, and what came of it as JSON.
#
#   bash benches/cuda/suite.sh test      every tests/cuda_*.rs, on the GPU instead of the host shim
#   bash benches/cuda/suite.sh sanitize  the same under compute-sanitizer: memcheck, racecheck, initcheck, synccheck
#   bash benches/cuda/suite.sh bench     the kernels against cuBLASLt (benches/cuda/main.rs says what); arguments behind -- go to it
#   bash benches/cuda/suite.sh build DIR the test programs, stripped, for another machine, which needs no Rust and no sources
#
# Options of `test`, `sanitize` and `bench`:
#   --binaries DIR  runs what `build DIR` left, instead of building
#   --only GLOB     only the test programs whose name matches, as 'cuda_gemm*'
#   --tools LIST    only these tools of compute-sanitizer, between commas
#   --timeout N     seconds for one program under one tool, 540 if not said
#   --out DIR       where cuda-test.json and cuda-test.log go (cuda-sanitize.*, cuda-bench.*): $OUT, or else benches/results
# NVRTC is found as the library finds it (DUQUANT_NVRTC, the loader's path, the toolkit); compute-sanitizer in PATH, in
# /usr/local/cuda, or at $COMPUTE_SANITIZER. It exits with 1 when a program fails, runs no test, or skips one that could run here.
set -uo pipefail

die() {
    echo "suite.sh: $*" >&2
    exit 2
}

# --- test programs -----------------------------------------------------------------------------------------------------------

# All tests of CUDA but the two that have no use for a GPU: of the machine code, and of the host shim.
test_names() {
    local file name
    for file in tests/cuda_*.rs; do
        name=$(basename "$file" .rs)
        [[ $name == cuda_sass || $name == cuda_shim ]] || echo "$name"
    done
}

commit_here() {
    local commit
    commit=$(git rev-parse HEAD 2>/dev/null) || { echo unknown; return; }
    [[ -z $(git status --porcelain --untracked-files=no) ]] || commit+=" with changes"
    echo "$commit"
}

# Builds the test programs and puts them, stripped, into a folder, with a manifest: lines of a word and its value.
build() {
    local into=$1 name file arguments=() messages
    command -v cargo >/dev/null || die "no cargo here; build elsewhere with 'suite.sh build DIR' and give --binaries DIR"
    mkdir -p "$into" || die "cannot make $into"
    for name in $(test_names); do arguments+=(--test "$name"); done
    arguments+=(--bench cuda)
    # The profile of tests: optimised, checks on. What is timed is the device.
    messages=$(cargo test --locked --no-default-features --features cli,cuda --no-run --message-format=json-render-diagnostics \
        "${arguments[@]}") || die "the tests do not build"
    rm -f "$into"/cuda* "$into/manifest"
    for name in $(test_names) cuda; do
        # Cargo names the program of a test in the message about its artifact.
        file=$(grep -F "\"name\":\"$name\"" <<<"$messages" | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
        [[ -n $file ]] || die "cargo names no program for $name"
        strip -o "$into/$name" "$file" || die "cannot strip $name"
    done
    {
        echo "commit $(commit_here)"
        echo "rustc $(rustc --version)"
        for name in $(test_names); do echo "test $name"; done
    } >"$into/manifest"
    echo "$(test_names | wc -l) test programs, $(du -sm "$into" | cut -f 1) MiB, in $into"
}

# --- JSON --------------------------------------------------------------------------------------------------------------------

# A JSON string; null for nothing.
quote() {
    [[ -n $1 ]] || { echo null; return; }
    local text=${1//\\/\\\\}
    text=${text//\"/\\\"} text=${text//$'\t'/\\t} text=${text//$'\n'/\\n}
    # Colours and other control characters say nothing here.
    printf '"%s"' "$(tr -d '\000-\037' <<<"$text")"
}

gpu() { nvidia-smi --query-gpu="$1" --format=csv,noheader 2>/dev/null | head -n 1; }

report() {
    local all
    all=$(printf ',\n%s' "${results[@]}")
    cat <<JSON
{
  "suite": $(quote "$suite"),
  "machine": $(quote "$(uname -sm), $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)"),
  "device": $(quote "$(gpu name)"),
  "driver": $(quote "$(gpu driver_version)"),
  "sanitizer": $(quote "$sanitizer_version"),
  "commit": $(quote "$commit"),
  "time": $(quote "$(date -u +%FT%TZ)"),
  "outcome": "$([[ $failed == 0 ]] && echo passed || echo failed)",
  "results": [
${all:2}
  ]
}
JSON
}

# --- runs --------------------------------------------------------------------------------------------------------------------

# run NAME TOOL COMMAND..: runs one program, judges it, and adds it to the results.
run() {
    local name=$1 tool=$2 start end code output outcome=passed counts message=
    shift 2
    printf '%-32s %-10s ' "$name" "$tool"
    start=$(date +%s%N)
    output=$(timeout --kill-after=10 "$limit" "$@" --nocapture --test-threads=1 2>&1 </dev/null)
    code=$?
    end=$(date +%s%N)
    printf '\n=== %s %s: exit %d\n%s\n' "$name" "$tool" "$code" "$output" >>"$log"
    counts=$(sed -n 's/^test result: [^.]*\. \([0-9]*\) passed; \([0-9]*\) failed.*/\1 \2/p' <<<"$output" | tail -n 1)
    read -r passed_tests failed_tests <<<"${counts:-0 0}"
    if [[ $code == 124 || $code == 137 ]]; then
        outcome="timeout" message="no end within $limit s"
    elif [[ $code == "$sanitizer_code" ]]; then
        outcome="errors" message=$(grep -A 3 '^========= .*[Ee]rror\|^========= .*hazard\|^========= Invalid\|^========= Uninit' \
            <<<"$output" | head -n 12)
    elif [[ $code != 0 ]]; then
        outcome="failed" message=$(grep -A 4 'panicked at\|host shim:\|error while loading' <<<"$output" | head -n 12)
        [[ -n $message ]] || message=$(tail -n 8 <<<"$output")
    elif grep -qE '(^|\.\.\. ?)skipped ' <<<"$output"; then
        outcome="skipped" message=$(grep -oE '(^|\.\.\. ?)skipped .*' <<<"$output" | head -n 4)
    elif [[ $passed_tests == 0 ]]; then
        outcome="empty" message="it ran no test"
    fi
    # Some tests are of kernels that this GPU has no instructions for.
    [[ $outcome == passed ]] || { [[ $outcome == skipped ]] && ! grep -vq 'there is nothing in it for' <<<"$message"; } || failed=1
    local seconds=$(((end - start) / 1000000))
    printf '%-8s %7d.%03d s  %d passed, %d failed\n' "$outcome" $((seconds / 1000)) $((seconds % 1000)) "$passed_tests" "$failed_tests"
    [[ -z $message ]] || sed 's/^/    /' <<<"$message"
    results+=("    {\"binary\": \"$name\", \"tool\": $(quote "${tool#-}"), \"outcome\": \"$outcome\", \"exit\": $code, \
\"seconds\": $((seconds / 1000)).$(printf %03d $((seconds % 1000))), \"passed\": $passed_tests, \"failed\": $failed_tests, \
\"message\": $(quote "$message")}")
}

find_sanitizer() {
    local candidate
    for candidate in "${COMPUTE_SANITIZER:-}" "$(command -v compute-sanitizer)" /usr/local/cuda/bin/compute-sanitizer; do
        [[ -n $candidate && -x $candidate ]] && { echo "$candidate"; return; }
    done
    return 1
}

suite=${1:-}
case $suite in
test | sanitize | bench) shift ;;
build)
    [[ $# == 2 ]] || die "build takes a folder"
    into=$(realpath -m "$2")
    cd "$(dirname "$0")/../.." || exit 2
    build "$into"
    exit
    ;;
*) die "expected test, sanitize, bench or build; $0 says at its beginning what they do" ;;
esac

binaries='' only='*' tools=memcheck,racecheck,initcheck,synccheck limit=540 out=${OUT:-}
while [[ $# -gt 0 ]]; do
    [[ $1 == -- && $suite == bench ]] && { shift; break; }
    [[ $# -ge 2 ]] || die "$1 takes a value"
    case $1 in
    --binaries) binaries=$(realpath -m "$2") ;;
    --only) only=$2 ;;
    --tools) tools=$2 ;;
    --timeout) limit=$2 ;;
    --out) out=$(realpath -m "$2") ;;
    *) die "no such option: $1" ;;
    esac
    shift 2
done
cd "$(dirname "$0")/../.." || exit 2
out=${out:-$PWD/benches/results}
mkdir -p "$out" || die "cannot make $out"
if [[ -z $binaries ]]; then
    binaries=$PWD/target/cuda-suite
    build "$binaries"
fi
[[ -f $binaries/manifest ]] || die "$binaries has no manifest; make it with 'suite.sh build DIR'"
commit=$(sed -n 's/^commit //p' "$binaries/manifest")

if [[ $suite == bench ]]; then
    export DUQUANT_COMMIT=$commit
    timeout --kill-after=10 "$limit" "$binaries/cuda" "$@" >"$out/cuda-bench.json" 2> >(tee "$out/cuda-bench.log" >&2)
    code=$?
    echo "$out/cuda-bench.json"
    exit "$code"
fi
export DUQUANT_CUDA=gpu RUST_BACKTRACE=0
json=$out/cuda-$suite.json log=$out/cuda-$suite.log
results=() failed=0 sanitizer='' sanitizer_version='' sanitizer_code=86
: >"$log"
if [[ $suite == sanitize ]]; then
    sanitizer=$(find_sanitizer) || die "no compute-sanitizer; set COMPUTE_SANITIZER"
    sanitizer_version=$("$sanitizer" --version | sed -n 's/^Version //p')
fi
for name in $(sed -n 's/^test //p' "$binaries/manifest"); do
    # shellcheck disable=SC2053 # a pattern is wanted
    [[ $name == $only ]] || continue
    if [[ $suite == test ]]; then
        run "$name" - "$binaries/$name"
        continue
    fi
    for tool in ${tools//,/ }; do
        run "$name" "$tool" "$sanitizer" --tool "$tool" --error-exitcode "$sanitizer_code" "$binaries/$name"
    done
done
[[ ${#results[@]} -gt 0 ]] || die "no test program is named $only"
report >"$json"
echo "$json"
exit "$failed"
