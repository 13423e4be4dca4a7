"""Generation of a 110M-parameter Llama shape: lmlab's engine, transformers' `generate` and llama.cpp, the same weights.

    python benchmarks/generate.py [--rounds 3] [--batches 1,8,32] [--precisions float32,bfloat16,int8,int4]

All run in one process on one thread, in turns; what is measured is the process's own CPU time. A figure is the median of
its rounds, a ratio the median of the rounds' ratios. transformers runs in the same precision, and beside int8 and int4,
which it has not without other packages, in bfloat16; llama.cpp runs in F32, BF16, Q8_0 and Q4_0 (llama_peer.py). In
float32 the greedy ids must be transformers', or the benchmark fails. New tokens are counted over the whole of an answer,
prefill included; the prefill alone is the time to the first token. At batch 1 the last column is the share of this
machine's read bandwidth, measured before and after on an array that no cache holds: bytes of weights that a token reads /
CPU seconds of a token of decoding alone. Prints two Markdown tables. Needs the extras [dev] and, for llama.cpp, [bench-engine].
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

os.environ["OMP_NUM_THREADS"] = "1"

import torch
import transformers

from generate_cpu import NoTokenizer, machine
from llama_peer import LlamaPeer
from llama_peer import missing as llama_missing
from lmlab.generate.engine import Engine, Sampling
from lmlab.generate.weights import Precision
from lmlab.model.config import ModelConfig
from lmlab.model.store import save_model
from lmlab.model.transformer import Transformer

SIDES = ("lmlab", "transformers", "llama.cpp")


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def read_bandwidth(mebibytes: int) -> float:
    """Bytes a CPU second of one thread that reads an array: the best of three ways, each tried three times."""
    array = torch.ones(mebibytes << 18)
    ways = (array.sum, array.amax, lambda: torch.dot(array, array))
    return array.numel() * 4 / min(seconds(way) for way in ways for _ in range(3))


def weight_bytes(engine: Engine) -> int:
    """What decoding one token reads of the weights: every matrix once, the tied embedding as the head, in the precision
    that it has (scales included)."""
    decoder = engine._decoder(engine.precision)
    matrices = [
        decoder.head,
        *(each for layer in decoder.layers for each in (layer.qkv, layer.out, layer.up, layer.down)),
    ]
    return sum(each.bytes for each in matrices)


def make(options: argparse.Namespace) -> tuple[Transformer, transformers.PreTrainedModel]:
    """lmlab's model and transformers', with the same random weights."""
    config = ModelConfig(
        layers=options.layers,
        d_model=options.d_model,
        heads=options.d_model // 64,
        d_ff=options.d_ff,
        vocab_size=options.vocabulary,
        context_length=options.prompt + options.new,
    )
    model = Transformer(config).initialise(0).eval()
    with torch.no_grad():
        model.embedding.weight *= 20  # logits far enough apart that rounding cannot change the likeliest token
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), model, NoTokenizer())
        peer = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    peer.generation_config.eos_token_id = None  # neither may end early
    return model, peer


def compare(
    engine: Engine, peer: transformers.PreTrainedModel, llama: LlamaPeer | None, batch: int, options: argparse.Namespace
) -> dict[str, list[list[float]]]:
    """{who: [[CPU seconds of all new tokens, of the first alone], ...]}, one entry a round."""
    generator = torch.Generator().manual_seed(batch)
    prompts = torch.randint(6, engine.model.config.vocab_size, (batch, options.prompt), generator=generator)
    mask, rows = torch.ones_like(prompts), prompts.tolist()

    def ours(new: int) -> list[list[int]]:
        engine.free()  # nothing is kept of the round before: prefill counts
        return [answer.ids for answer in engine.generate(rows, Sampling(new, stop_ids=()))]

    def theirs(new: int) -> list[list[int]]:
        with torch.inference_mode():
            found = peer.generate(prompts, attention_mask=mask, max_new_tokens=new, do_sample=False)
        return found[:, options.prompt :].tolist()

    sides: dict[str, Callable[[int], list[list[int]]]] = {"lmlab": ours, "transformers": theirs}
    if llama is not None:
        sides["llama.cpp"] = lambda new: llama.generate(rows, new)
    times: dict[str, list[list[float]]] = {name: [] for name in sides}
    for side in sides.values():
        side(2)  # warm up
    for _ in range(options.rounds):
        said = {}
        for name, side in sides.items():
            begun = time.process_time()
            said[name] = side(options.new)
            whole = time.process_time() - begun
            times[name].append([whole, seconds(lambda side=side: side(1))])
        short = any(len(ids) != options.new for found in said.values() for ids in found)
        if short or (engine.precision == "float32" and said["lmlab"] != said["transformers"]):
            sys.exit(f"batch {batch}: the two do not say the same")
    return times


def line(times: dict[str, list[list[float]]], which: int, tokens: int) -> str:
    """Tokens a CPU second of each side, and lmlab's ratio to the others."""
    cells = []
    for name in SIDES:
        cells.append(f"{tokens / statistics.median(each[which] for each in times[name]):,.1f}" if name in times else "")
    for name in SIDES[1:]:
        pairs = zip(times.get(name, []), times["lmlab"])
        ratios = [theirs[which] / ours[which] for theirs, ours in pairs]
        cells.append(f"{statistics.median(ratios):.2f}" if ratios else "")
    return " | ".join(cells)


def main() -> None:
    """Run and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--precisions", default="float32,bfloat16,int8,int4")
    shape = {"layers": 12, "d-model": 768, "d-ff": 2048, "vocabulary": 32_000, "prompt": 128, "new": 128}
    for name, default in {**shape, "bandwidth-mib": 1024}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, peer = make(options)
    print(f"{machine()}\n")
    print(
        f"Greedy, {model.config.parameters()['total'] / 1e6:.1f}M parameters, prompt {options.prompt}, {options.new} new "
        f"tokens a row, {options.rounds} rounds. Tokens a CPU second.\n"
    )
    if llama_missing() is not None:
        print(f"{llama_missing()}\n")
    columns = "precision | batch | lmlab | transformers | llama.cpp | / transformers | / llama.cpp"
    print(f"| {columns} | share of read bandwidth |\n|---|---|---|---|---|---|---|---|")
    prefills = []
    for precision in options.precisions.split(","):
        peer = peer.to(torch.float32 if precision == "float32" else torch.bfloat16)
        engine = Engine(model, precision=cast(Precision, precision), max_batch=64)
        for batch in map(int, options.batches.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                llama = None
                if llama_missing() is None:
                    llama = LlamaPeer(model, precision, Path(folder), batch, options.prompt + options.new)
                before = read_bandwidth(options.bandwidth_mib)
                times = compare(engine, peer, llama, batch, options)
                bandwidth = statistics.mean((before, read_bandwidth(options.bandwidth_mib)))
                if llama is not None:
                    llama.close()
            share = ""
            if batch == 1:
                steps = [(whole - first) / (options.new - 1) for whole, first in times["lmlab"]]
                reading = weight_bytes(engine) / statistics.median(steps)
                share = f"{reading / bandwidth:.0%} of {bandwidth / 1e9:.0f} GB/s"
            print(f"| {precision} | {batch} | {line(times, 0, batch * options.new)} | {share} |", flush=True)
            prefills.append(f"| {precision} | {batch} | {line(times, 1, batch * options.prompt)} |")
    print(
        f"\nPrefill, with the first token: prompt tokens a CPU second.\n\n| {columns} |\n|---|---|---|---|---|---|---|"
    )
    print("\n".join(prefills))


if __name__ == "__main__":
    main()
