"""Generation of a 110M-parameter Llama shape: lmlab's engine beside transformers' `generate`, the same weights in both.

    python benchmarks/generate.py [--rounds 3] [--batches 1,8,32] [--precisions float32,bfloat16,int8]

Both run in one process on one thread, in turns; what is measured is the process's own CPU time, prefill included. A
figure is the median of its rounds, the ratio the median of the rounds' ratios. transformers runs in the same precision,
and beside int8, which it has not without other packages, in bfloat16. In float32 the greedy ids must be equal, or the
benchmark fails. At batch 1 the last column is the share of this machine's read bandwidth, measured before and after on
an array that no cache holds: bytes of weights that a token reads / CPU seconds of a token of decoding alone.
Prints a Markdown table. Needs the extra [dev].
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
from lmlab.generate.engine import Engine, Sampling
from lmlab.generate.weights import Precision
from lmlab.model.config import ModelConfig
from lmlab.model.store import save_model
from lmlab.model.transformer import Transformer

BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


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


def weight_bytes(model: Transformer, precision: str) -> int:
    """What decoding one token reads of the weights: every matrix once, the tied embedding as the head."""
    return BYTES[precision] * sum(p.numel() for p in model.parameters() if p.dim() == 2)


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
    engine: Engine, peer: transformers.PreTrainedModel, batch: int, options: argparse.Namespace, same: bool
) -> tuple[list[float], float]:
    """([lmlab's new tokens a CPU second, transformers', the ratio], lmlab's CPU seconds of a step of decoding)."""
    generator = torch.Generator().manual_seed(batch)
    prompts = torch.randint(6, engine.model.config.vocab_size, (batch, options.prompt), generator=generator)
    mask, rows = torch.ones_like(prompts), prompts.tolist()

    def ours(new: int = options.new) -> list[list[int]]:
        engine.free()  # nothing is kept of the round before: prefill counts
        return [answer.ids for answer in engine.generate(rows, Sampling(new, stop_ids=()))]

    def theirs() -> list[list[int]]:
        with torch.inference_mode():
            found = peer.generate(prompts, attention_mask=mask, max_new_tokens=options.new, do_sample=False)
        return found[:, options.prompt :].tolist()

    first, second = ours(), theirs()  # warm both up
    if any(len(ids) != options.new for ids in [*first, *second]) or (same and first != second):
        sys.exit(f"batch {batch}: the two do not say the same")
    times = [(seconds(ours), seconds(theirs), seconds(lambda: ours(1))) for _ in range(options.rounds)]
    new = batch * options.new
    fast, slow = (statistics.median(new / each[which] for each in times) for which in (0, 1))
    step = statistics.median((whole - prefill) / (options.new - 1) for whole, _, prefill in times)
    return [fast, slow, statistics.median(b / a for a, b, _ in times)], step


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--precisions", default="float32,bfloat16,int8")
    shape = {"layers": 12, "d-model": 768, "d-ff": 2048, "vocabulary": 32_000, "prompt": 128, "new": 128}
    for name, default in {**shape, "bandwidth-mib": 1024}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, peer = make(options)
    print(f"{machine()}\n")
    print(
        f"Greedy, {model.config.parameters()['total'] / 1e6:.1f}M parameters, prompt {options.prompt}, {options.new} new "
        "tokens a row.\n"
    )
    print("| precision | batch | lmlab, tokens / CPU s | transformers | ratio | share of read bandwidth |")
    print("|---|---|---|---|---|---|")
    for precision in options.precisions.split(","):
        peer = peer.to(torch.float32 if precision == "float32" else torch.bfloat16)
        engine = Engine(model, precision=cast(Precision, precision), max_batch=64)
        for batch in map(int, options.batches.split(",")):
            before = read_bandwidth(options.bandwidth_mib)
            (fast, slow, ratio), step = compare(engine, peer, batch, options, precision == "float32")
            bandwidth = statistics.mean((before, read_bandwidth(options.bandwidth_mib)))
            share = f"{weight_bytes(model, precision) / step / bandwidth:.0%} of {bandwidth / 1e9:.0f} GB/s"
            share = share if batch == 1 else ""
            print(f"| {precision} | {batch} | {fast:,.1f} | {slow:,.1f} | {ratio:.2f} | {share} |", flush=True)


if __name__ == "__main__":
    main()
