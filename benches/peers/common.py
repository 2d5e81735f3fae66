"""What the measurements share: our side as a program that runs a round when told to, and the statistics."""

import json
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


class Ours:
    """An example of ours which reads a request a line and answers with a line of JSON."""

    def __init__(self, example, arguments, threads, features=()):
        build = ["cargo", "build", "--release", "--quiet", "--example", example, *features]
        subprocess.run(build, cwd=ROOT, check=True)
        command = [str(ROOT / "target/release/examples" / example), *map(str, arguments)]
        environment = os.environ | {"RAYON_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def ask(self, request):
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"our side ended at request {request!r} with status {self.process.wait()}")
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def timed(run, budget=0.2, least=3):
    """Times of a call in seconds, after one that is not counted: `least` of them, and `budget` seconds together."""
    run()
    times, start = [], time.perf_counter()
    while len(times) < least or time.perf_counter() - start < budget:
        before = time.perf_counter()
        run()
        times.append(time.perf_counter() - before)
    return times


def summary(times):
    return {"median": statistics.median(times), "min": min(times), "runs": len(times)}


def machine(threads):
    with open("/proc/cpuinfo", encoding="ascii") as file:
        lines = [line.split(":", 1) for line in file if ":" in line]
    fields = {name.strip(): value.strip() for name, value in lines}
    flags = fields.get("flags", "").split()
    interesting = [flag for flag in ("avx2", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8") if flag in flags]
    return {
        "cpu": fields.get("model name", platform.processor()),
        "flags": interesting,
        "cores": os.cpu_count(),
        "threads": threads,
        "load_before": os.getloadavg()[0],
    }


def find_gguf(path):
    """The SmolLM2 GGUF that was given, or the one in the user's cache folder."""
    if path:
        return Path(path)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "duquant"
    found = sorted(cache.rglob(GGUF))
    if not found:
        raise SystemExit(f"no {GGUF} under {cache}; run `cargo run --release -- demo` first, or give --gguf FILE")
    return found[0]


def report(result, out):
    text = json.dumps(result, indent=1)
    if out:
        Path(out).write_text(text + "\n", encoding="utf-8")
    print(text)
