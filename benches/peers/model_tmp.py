"""SmolLM2-135M whole: a prompt of 512 tokens and 64 tokens decoded behind it, ours in W4A4 beside PyTorch and llama.cpp.

    target/peers-venv/bin/python benches/peers/model.py [--gguf FILE] [--ours DIR] [--rounds 5] [--out FILE]

PyTorch runs the GGUF's weights in f32 and bf16 through transformers, with its KV cache, in eager attention and in SDPA.
llama.cpp runs the GGUF (Q4_1) as it is, with and without its repacked (AMX) weights. Ours runs DIR, which is made by
`duquant quantize` when it is not given. All stay loaded and take turns, a round each. Everybody computes logits for the
last token of the prompt alone and takes the likeliest token in decode. JSON to standard output: tokens a second, median
and best over the rounds.
"""

import argparse
import ctypes
import os
import statistics
import subprocess
import time

parser = argparse.ArgumentParser()
parser.add_argument("--gguf")
parser.add_argument("--ours", help="a folder that `duquant quantize` wrote")
parser.add_argument("--without-ours", action="store_true")
parser.add_argument("--prefill", type=int, default=512)
parser.add_argument("--decode", type=int, default=64)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--out")
options = parser.parse_args()
os.environ["OMP_NUM_THREADS"] = str(options.threads)
os.environ["HF_HUB_OFFLINE"] = "1"

import llama_cpp  # noqa: E402  (threads are set above)
import numpy  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

import common  # noqa: E402

VOCABULARY = 49152


def prompt(count):
    """The tokens which `examples/model_rounds.rs` makes too."""
    state, tokens = 1, []
    for _ in range(count):
        state = (state * 1_664_525 + 1_013_904_223) % 2**32
        tokens.append((state >> 8) % VOCABULARY)
    return tokens


class Torch:
    def __init__(self, gguf, dtype, attention):
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=dtype, attn_implementation=attention
        ).eval()

    def round(self, tokens, count):
        with torch.inference_mode():
            start = time.perf_counter()
            output = self.model(torch.tensor([tokens]), use_cache=True, logits_to_keep=1)
            token = output.logits[:, -1:].argmax(-1)
            middle = time.perf_counter()
            chosen = []
            for _ in range(count):
                chosen.append(int(token))
                output = self.model(token, past_key_values=output.past_key_values, use_cache=True)
                token = output.logits[:, -1:].argmax(-1)
            return middle - start, time.perf_counter() - middle, chosen


class Llama:
    def __init__(self, gguf, repack):
        settings = llama_cpp.llama_model_default_params()
        settings.use_extra_bufts = repack
        self.model = llama_cpp.llama_model_load_from_file(str(gguf).encode(), settings)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = options.prefill + options.decode
        settings.n_batch = settings.n_ubatch = max(options.prefill, 32)
        settings.n_threads = settings.n_threads_batch = options.threads
        self.context = llama_cpp.llama_init_from_model(self.model, settings)

    def decode(self, tokens):
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        status = llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(array, len(tokens)))
        if status != 0:
            raise SystemExit(f"llama_decode gave {status}")
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        return int(numpy.argmax(numpy.ctypeslib.as_array(logits, shape=(VOCABULARY,))))

    def round(self, tokens, count):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        start = time.perf_counter()
        token = self.decode(tokens)
        middle = time.perf_counter()
        chosen = []
        for _ in range(count):
            chosen.append(token)
            token = self.decode([token])
        return middle - start, time.perf_counter() - middle, chosen


class Ours:
    def __init__(self, folder):
        self.process = common.Ours("model_rounds", [folder], options.threads)

    def round(self, tokens, count):
        answer = self.process.ask(f"{len(tokens)} {count}")
        return answer["prefill_seconds"], answer["decode_seconds"], answer["tokens"]


def quantized(gguf):
    """Our W4A4 checkpoint of the GGUF with the command line's defaults, made once."""
    folder = common.ROOT / "target/peers-smollm2-w4a4"
    if not folder.exists():
        command = ["cargo", "run", "--release", "--quiet", "--", "quantize", str(gguf), "--out", str(folder)]
        subprocess.run(command, cwd=common.ROOT, check=True)
    return folder


@llama_cpp.llama_log_callback
def quiet(level, text, data):
    """llama.cpp's log goes nowhere."""


def main():
    torch.set_num_threads(options.threads)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    gguf = common.find_gguf(options.gguf)
    sides = {
        f"torch {name}, {attention}": Torch(gguf, dtype, attention)
        for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16))
        for attention in ("sdpa", "eager")
    }
    sides["llama.cpp Q4_1"] = Llama(gguf, repack=False)

    if not options.without_ours:
        sides["ours W4A4"] = Ours(options.ours or quantized(gguf))
    tokens = prompt(options.prefill)
    times = {name: [] for name in sides}
    chosen = {}
    for round_ in range(options.rounds + 1):
        for name, side in sides.items():
            prefill, decode, chosen[name] = side.round(tokens, options.decode)
            if round_ > 0:
                times[name].append((prefill, decode))
            time.sleep(0.05)
    result = {
        "machine": common.machine(options.threads),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "llama_cpp_python": llama_cpp.__version__,
        "llama.cpp": llama_cpp.llama_print_system_info().decode(),
        "prefill": options.prefill,
        "decode": options.decode,
        "tokens_per_second": {name: rates(values) for name, values in times.items()},
        "first_tokens": {name: values[:8] for name, values in chosen.items()},
    }
    if not options.without_ours:
        result["ours_is_faster_by"] = {
            phase: {
                name: ours[phase]["median"] / row[phase]["median"]
                for name, row in result["tokens_per_second"].items()
            }
            for ours in [result["tokens_per_second"]["ours W4A4"]]
            for phase in ("prefill", "decode")
        }
    common.report(result, options.out)


def rates(values):
    prefill, decode = zip(*values)
    return {
        "prefill": {"median": options.prefill / statistics.median(prefill), "best": options.prefill / min(prefill)},
        "decode": {"median": options.decode / statistics.median(decode), "best": options.decode / min(decode)},
    }


main()
