"""One linear, K -> N, on T tokens: the packed W4A4 GEMM beside the `gemm` crate in f32 and PyTorch in f32 and bf16.

    target/peers-venv/bin/python benches/peers/linear.py [--tokens 512,64,1] [--shape 4096x4096] [--rounds 7] [--out FILE]

Both sides stay loaded and take turns, a round each, so that a slow moment of the machine meets both. JSON to standard
output: seconds of a call (median and least over all rounds), tera operations a second, and ours against each peer.
"""

import argparse
import os
import time

parser = argparse.ArgumentParser()
parser.add_argument("--tokens", default="512,64,1")
parser.add_argument("--shape", default="4096x4096", help="KxN")
parser.add_argument("--rounds", type=int, default=7)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--out")
options = parser.parse_args()
os.environ["OMP_NUM_THREADS"] = str(options.threads)

import torch  # noqa: E402  (threads are set above)

import common  # noqa: E402


def main():
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    k, n = map(int, options.shape.split("x"))
    result = {"machine": common.machine(options.threads), "torch": torch.__version__, "k": k, "n": n, "tokens": {}}
    ours = common.Ours("linear_rounds", [k, n], options.threads, ["--no-default-features"])
    weight = torch.randn(n, k)
    weights = {"torch f32": weight, "torch bf16": weight.bfloat16()}
    with torch.inference_mode():
        for tokens in map(int, options.tokens.split(",")):
            x = torch.randn(tokens, k)
            inputs = {name: x.to(weight.dtype) for name, weight in weights.items()}
            calls = {
                name: (lambda name=name: torch.nn.functional.linear(inputs[name], weights[name])) for name in weights
            }
            times = {}
            for _ in range(options.rounds):
                for name, call in calls.items():
                    times.setdefault(name, []).extend(common.timed(call))
                    time.sleep(0.02)
                for name in ("gemm f32", "w4a4"):
                    times.setdefault(name, []).extend(ours.ask(f"{name.split()[0]} {tokens}"))
                    time.sleep(0.02)
            result["tokens"][tokens] = compare(times, 2.0 * tokens * k * n)
    result["kernel"] = {tokens: ours.ask(f"kernel {tokens}") for tokens in result["tokens"]}
    ours.close()
    common.report(result, options.out)


def compare(times, operations):
    table = {name: common.summary(values) for name, values in times.items()}
    for row in table.values():
        row["tera_per_second"] = operations / row["median"] / 1e12
        row["w4a4_is_faster_by"] = row["median"] / table["w4a4"]["median"]
        row["w4a4_is_faster_by_of_least"] = row["min"] / table["w4a4"]["min"]
    return table


main()
