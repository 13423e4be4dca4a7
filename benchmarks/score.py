"""Multiple choice: lmlab's `score` beside the plain batched log-likelihood loop over transformers, the same weights.

    python benchmarks/score.py [--rounds 3] [--items 60] [--precision float32|bfloat16]

Each item is a context and four options of several tokens; a request is one option. The plain loop is what evaluation
scripts do: context and option joined, padded to the longest of a batch of 16, logits of all positions, log-softmax,
the option's log-probabilities picked out. Each side runs in a process of its own on one thread, in turns, so that its
peak memory is its own; figures are medians of CPU time. In float32 the log-probabilities must agree within 1e-3, or
the benchmark fails. Prints a Markdown table. Needs the extra [dev].
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

os.environ["OMP_NUM_THREADS"] = "1"

import torch
import transformers

from generate_cpu import NoTokenizer, machine
from lmlab.generate.engine import Engine
from lmlab.generate.weights import Precision
from lmlab.model.config import ModelConfig
from lmlab.model.store import load_model, save_model
from lmlab.model.transformer import Transformer

SIDES = ("lmlab", "plain loop")
BATCH = 16


def items(options: argparse.Namespace) -> list[tuple[list[int], list[int]]]:
    """(context, option) of all requests, the same in both processes."""
    draw = random.Random(0)
    word = lambda: draw.randrange(6, options.vocabulary)  # noqa: E731
    found = []
    for _ in range(options.items):
        context = [word() for _ in range(draw.randint(options.context * 3 // 4, options.context))]
        for _ in range(4):
            found.append((context, [word() for _ in range(draw.randint(2, options.option))]))
    return found


def plain_loop(model: transformers.PreTrainedModel, pairs: list[tuple[list[int], list[int]]]) -> list[float]:
    """One pass a batch over joined, padded sequences, the longest first."""
    order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
    found = [0.0] * len(pairs)
    with torch.inference_mode():
        for at in range(0, len(order), BATCH):
            part = [pairs[i] for i in order[at : at + BATCH]]
            longest = max(len(c) + len(o) for c, o in part) - 1
            ids_BT = torch.zeros(len(part), longest, dtype=torch.long)
            for row, (context, option) in enumerate(part):
                sequence = [*context, *option][:-1]
                ids_BT[row, : len(sequence)] = torch.tensor(sequence)
            logprobs_BTV = model(ids_BT).logits.float().log_softmax(-1)  # padding stands behind: causal, so unseen
            for row, (context, option) in enumerate(part):
                start = len(context) - 1
                picked = logprobs_BTV[row, start : start + len(option)].gather(1, torch.tensor(option)[:, None])
                found[order[at + row]] = float(picked.sum())
    return found


def side(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One side's CPU seconds, peak memory and scores."""
    torch.set_num_threads(1)
    pairs = items(options)
    narrow = options.precision == "bfloat16"
    if name == SIDES[0]:
        engine = Engine(load_model(folder), precision=cast(Precision, options.precision))
        engine.score(pairs[:2])  # what is compiled is compiled before the clock starts
        begun = time.process_time()
        scores = [each.logprob for each in engine.score(pairs)]
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        model = model.to(torch.bfloat16) if narrow else model
        plain_loop(model, pairs[:2])
        begun = time.process_time()
        scores = plain_loop(model, pairs)
    spent = time.process_time() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": spent, "mebibytes": peak, "scores": scores}


def main() -> None:
    """Run both sides in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    shape = {"layers": 8, "d-model": 512, "d-ff": 1376, "vocabulary": 32_000, "items": 60, "context": 240, "option": 16}
    for name, default in shape.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(side(options.side, options.model, options)))
        return
    config = ModelConfig(
        layers=options.layers,
        d_model=options.d_model,
        heads=options.d_model // 64,
        d_ff=options.d_ff,
        vocab_size=options.vocabulary,
        context_length=options.context + options.option,
    )
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), Transformer(config).initialise(0), NoTokenizer())
        for _ in range(options.rounds):
            for name in SIDES:
                command = [sys.executable, *sys.argv, "--side", name, "--model", folder]
                runs[name].append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
    ours, theirs = (runs[name][0]["scores"] for name in SIDES)
    difference = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    if options.precision == "float32" and difference > 1e-3:
        sys.exit(f"the two differ by {difference}")
    print(f"{machine()}\n\n{config.parameters()['total'] / 1e6:.1f}M parameters, {options.precision}, ", end="")
    print(f"{options.items} items of 4 options of 2 to {options.option} tokens, contexts of up to {options.context}.\n")
    print("| | requests / CPU s | peak MiB |\n|---|---|---|")
    for name in SIDES:
        rate = statistics.median(len(ours) / each["seconds"] for each in runs[name])
        print(f"| {name} | {rate:,.1f} | {statistics.median(each['mebibytes'] for each in runs[name]):,.0f} |")
    pairs = zip(*(runs[name] for name in SIDES), strict=True)
    ratio = statistics.median(b["seconds"] / a["seconds"] for a, b in pairs)
    print(f"\nRatio {ratio:.2f}, largest difference of a log-probability {difference:.1e}.")


if __name__ == "__main__":
    main()
