"""One LLaMA decoder layer: `duquant bench layer` beside PyTorch's layer in bf16 (and f32), in prefill and decode.

    target/peers-venv/bin/python benches/peers/layer.py [--length 512] [--batch 1,4,16,64] [--rounds 5] [--out FILE]

Sides take turns, a round each, so that a slow moment of the machine meets both. A round of ours is a run of the program: it
loads, warms up and takes samples of its own. PyTorch's layer is RMSNorm, three linears, RoPE, scaled dot product attention
over a static KV cache, a linear, RMSNorm and SwiGLU, weights and cache in the type that it computes in. In decode both sides
walk over copies of weights and cache, so that these come from memory as in a whole model. JSON to standard output: median
milliseconds over all rounds, and ours against each peer.
"""

import argparse
import json
import math
import os
import subprocess
import time

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="llama2-7b")
parser.add_argument("--length", type=int, default=512, help="tokens of the prompt, and of the context in decode")
parser.add_argument("--prefill-batch", default="1", help="sequences in prefill")
parser.add_argument("--batch", default="1,4,16,64", help="sequences in decode")
parser.add_argument("--methods", default="fp32,rtn,duquant", help="of ours")
parser.add_argument("--peers", default="bf16", help="bf16, f32")
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--samples", type=int, default=3, help="a round, in prefill")
parser.add_argument("--steps", type=int, default=12, help="a round, in decode")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--program", help="a duquant that is built already")
parser.add_argument("--out")
options = parser.parse_args()
os.environ["OMP_NUM_THREADS"] = str(options.threads)

import torch  # noqa: E402  (threads are set above)
import torch.nn.functional as F  # noqa: E402

import common  # noqa: E402

# hidden, intermediate, heads, key and value heads, channels of a head.
SHAPES = {"llama2-7b": (4096, 11008, 32, 32, 128), "llama3-8b": (4096, 14336, 32, 8, 128)}
TYPES = {"bf16": torch.bfloat16, "f32": torch.float32}
# Bytes of weights and caches that decode walks over, as ours does.
BEYOND_CACHES = 1 << 30


class Layer:
    """The weights and the KV cache of one layer."""

    def __init__(self, shape, dtype, batch, capacity):
        hidden, intermediate, heads, kv_heads, dim = shape
        self.heads, self.kv_heads, self.dim = heads, kv_heads, dim

        def weight(n, k):
            return ((torch.rand(n, k) - 0.5) * math.sqrt(12.0 / k)).to(dtype)

        self.qkv = weight((heads + 2 * kv_heads) * dim, hidden)
        self.o = weight(hidden, heads * dim)
        self.gate_up = weight(2 * intermediate, hidden)
        self.down = weight(hidden, intermediate)
        self.norms = [torch.rand(hidden).to(dtype) + 0.5 for _ in range(2)]
        self.keys = torch.rand(batch, kv_heads, capacity, dim).to(dtype)
        self.values = torch.rand(batch, kv_heads, capacity, dim).to(dtype)

    def bytes(self):
        tensors = [self.qkv, self.o, self.gate_up, self.down, self.keys, self.values]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def forward(self, x, position, cos, sin):
        batch, tokens, hidden = x.shape
        end = position + tokens
        h = F.rms_norm(x, (hidden,), self.norms[0], 1e-5)
        qkv = F.linear(h, self.qkv).view(batch, tokens, self.heads + 2 * self.kv_heads, self.dim).transpose(1, 2)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        self.keys[:, :, position:end] = k
        self.values[:, :, position:end] = v
        attended = F.scaled_dot_product_attention(
            q,
            self.keys[:, :, :end],
            self.values[:, :, :end],
            is_causal=tokens > 1,
            enable_gqa=self.heads != self.kv_heads,
        )
        x = x + F.linear(attended.transpose(1, 2).reshape(batch, tokens, -1), self.o)
        h = F.rms_norm(x, (hidden,), self.norms[1], 1e-5)
        gate, up = F.linear(h, self.gate_up).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, self.down)


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def angles(position, tokens, dim, dtype):
    frequencies = 10000.0 ** (-torch.arange(0, dim, 2) / dim)
    at = torch.arange(position, position + tokens)[:, None] * frequencies
    return at.cos().to(dtype), at.sin().to(dtype)


class Peer:
    """PyTorch's side of one point, loaded."""

    def __init__(self, name, phase, batch):
        shape, dtype = SHAPES[options.model], TYPES[name]
        self.phase, self.position = phase, 0 if phase == "prefill" else options.length
        self.tokens = options.length if phase == "prefill" else 1
        capacity = options.length + 1
        self.layers = [Layer(shape, dtype, batch, capacity)]
        while phase == "decode" and sum(layer.bytes() for layer in self.layers) < BEYOND_CACHES:
            self.layers.append(Layer(shape, dtype, batch, capacity))
        self.x = (torch.rand(batch, self.tokens, shape[0]) * 2 - 1).to(dtype)
        self.angles = angles(self.position, self.tokens, shape[4], dtype)

    def round(self):
        def run():
            for layer in self.layers:
                layer.forward(self.x, self.position, *self.angles)

        count = options.samples if self.phase == "prefill" else max(1, options.steps // len(self.layers))
        return [seconds * 1e3 / len(self.layers) for seconds in common.timed(run, 0.0, count)]


def ours(program, phase, batch):
    command = [program, "bench", "layer", "--model", options.model, "--phase", phase, "--length", options.length]
    command += ["--batch", batch, "--methods", options.methods, "--samples", options.samples]
    command += ["--steps", options.steps, "--threads", options.threads, "--json", "--quiet"]
    return json.loads(subprocess.run(list(map(str, command)), check=True, capture_output=True).stdout)


def main():
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    program = options.program
    if not program:
        subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=common.ROOT, check=True)
        program = str(common.ROOT / "target/release/duquant")
    result = {"machine": common.machine(options.threads), "torch": torch.__version__, "model": options.model}
    result |= {"length": options.length, "points": []}
    with torch.inference_mode():
        for phase, batches in (("prefill", options.prefill_batch), ("decode", options.batch)):
            for batch in map(int, filter(None, batches.split(","))):
                result["points"].append(point(program, phase, batch, result))
    common.report(result, options.out)


def point(program, phase, batch, result):
    peers = {f"torch {name}": Peer(name, phase, batch) for name in options.peers.split(",")}
    times, overheads, noise = {}, [], []
    for _ in range(options.rounds):
        for name, peer in peers.items():
            times.setdefault(name, []).extend(peer.round())
            time.sleep(0.05)
        record = ours(program, phase, batch)
        result.setdefault("duquant", {key: record[key] for key in ("duquant", "commit", "machine")})
        for one in record["points"]:
            times.setdefault(f"ours {one['method']}", []).extend(one["samples_ms"])
            noise.extend(one["noise"])
            if one["method"] == "duquant":
                overheads.append(one["transform_overhead"])
    table = {name: common.summary(values) for name, values in times.items()}
    for row in table.values():
        row["duquant_is_faster_by"] = row["median"] / table["ours duquant"]["median"]
    return {
        "phase": phase,
        "batch": batch,
        "milliseconds": table,
        "transform_overhead": [x for x in overheads if x is not None],
        "noise": sorted(set(noise)),
    }


main()
