"""Multiple choice: lmlab's `score`, lm-evaluation-harness over transformers, and the plain loop, the same weights and texts.

    python benchmarks/score.py [--rounds 3] [--items 60] [--precision float32|bfloat16]

Each item is a context and four options of several tokens, words of the standard library's source; a request is one
option, and all sides begin with text. lm-evaluation-harness is its `HFLM` asked for `loglikelihood` with its default
cache of logits (which serves options of one token only), at batch 1, its own default, and at 4 and 16. The plain loop is
what evaluation scripts do: context and option joined, padded to the longest of a batch of 16, logits of all positions,
log-softmax, the option's log-probabilities picked out. Each side runs in a process of its own on one thread, in turns, and
imports what it needs alone. Peak memory is what the process had resident at most (Linux's VmHWM, pages of mapped files
included), and of it what is no file's (RssAnon, looked at every 5 ms); figures are medians of CPU time. In float32 the
log-probabilities must agree within 1e-4 for each token of an option, or the benchmark fails. Prints a Markdown table. Needs
the extras [dev] and [bench-engine].
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch

import lmlab
from lmlab.generate.weights import Precision
from lmlab.model.config import ModelConfig
from lmlab.model.store import save_model
from lmlab.model.transformer import Transformer
from lmlab.text.tokenizer import train

BATCH = 16
HARNESS = {f"lm-evaluation-harness, batch {size}": size for size in (1, 4, 16)}

Pairs = list[tuple[str, str]]


def source() -> list[str]:
    """Source of the standard library, its modules in alphabetical order."""
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return [path.read_text(encoding="utf-8", errors="replace") for path in paths]


def items(options: argparse.Namespace) -> Pairs:
    """(context, option) of all requests. Options begin with a space and contexts end without
    one, where the tokenizer cuts: the tokens are the same whether the two are encoded together or apart."""
    draw = random.Random(0)
    words = [word for text in source() for word in text.split() if word.isidentifier()]
    some = lambda few, many: " ".join(draw.choices(words, k=draw.randint(few, many)))  # noqa: E731
    found = []
    for _ in range(options.items):
        context = some(options.context * 3 // 4, options.context)
        found += [(context, f" {some(options.option // 2, options.option)}") for _ in range(4)]
    return found


def ours(folder: Path, options: argparse.Namespace) -> Callable[[Pairs], list[float]]:
    """lmlab."""
    model = lmlab.load(folder, precision=cast(Precision, options.precision))
    return lambda pairs: [each.logprob for each in model.score(pairs)]


def harness(folder: Path, options: argparse.Namespace) -> Callable[[Pairs], list[float]]:
    """lm-evaluation-harness."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    size = HARNESS[options.side]
    model = HFLM(str(folder), device="cpu", dtype=options.precision, batch_size=size)

    def score(pairs: Pairs) -> list[float]:
        asked = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
        return [logprob for logprob, _ in model.loglikelihood(asked, disable_tqdm=True)]

    return score


def plain_loop(folder: Path, options: argparse.Namespace) -> Callable[[Pairs], list[float]]:
    """One pass a batch over joined, padded sequences, the longest first."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    model = model.to(torch.bfloat16) if options.precision == "bfloat16" else model

    @torch.inference_mode()
    def score(pairs: Pairs) -> list[float]:
        ids = [[tokenizer.encode(text, add_special_tokens=False) for text in pair] for pair in pairs]
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i][0]) - len(ids[i][1]))
        found = [0.0] * len(ids)
        for at in range(0, len(order), BATCH):
            part = [ids[i] for i in order[at : at + BATCH]]
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

    return score


SIDES = {"lmlab": ours, **dict.fromkeys(HARNESS, harness), "plain loop": plain_loop}


def side(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One side's CPU seconds, peak memory and scores."""
    torch.set_num_threads(1)
    pairs = [(context, option) for context, option in json.loads(options.pairs.read_text())]
    score = SIDES[options.side](folder, options)
    score(pairs[:8])  # what is compiled is compiled before the clock starts
    begun = time.process_time()
    scores = score(pairs)
    spent = time.process_time() - begun
    return {"seconds": spent, "mebibytes": memory("self")["VmHWM"], "scores": scores}


def memory(process: int | str) -> dict[str, float]:
    """MiB that Linux says a process has: VmHWM, VmRSS, RssAnon, RssFile."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith(("Vm", "Rss"))}


def run(name: str, folder: str, pairs: Path) -> dict[str, Any]:
    """What `side` gives, in a process of its own, and the most that it had beside mapped files."""
    command = [sys.executable, *sys.argv, "--side", name, "--model", folder, "--pairs", str(pairs)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    seen = [0.0]

    def watch() -> None:
        while process.poll() is None:
            try:
                seen.append(memory(process.pid).get("RssAnon", 0.0))
            except OSError:
                return
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert process.stdout is not None
    output = process.stdout.read()
    watcher.join()
    if process.wait():
        sys.exit(f"{name}: ended with status {process.returncode}")
    return json.loads(output.splitlines()[-1]) | {"anonymous": max(seen)}


def main() -> None:
    """Run the sides in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    shape = {"layers": 8, "d-model": 512, "d-ff": 1376, "vocabulary": 32_000, "items": 60, "context": 120, "option": 8}
    for name, default in shape.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--pairs", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(side(options.model, options)))
        return
    tokenizer = train(source(), min(options.vocabulary, 8192))
    config = ModelConfig(
        layers=options.layers,
        d_model=options.d_model,
        heads=options.d_model // 64,
        d_ff=options.d_ff,
        vocab_size=options.vocabulary,
        context_length=1024,
    )
    names = list(SIDES)
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        names = [name for name in names if name not in HARNESS]
        print("lm-evaluation-harness is left out: it is not installed (pip install 'lmlab[bench-engine]')\n")
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    pairs = items(options)
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), Transformer(config).initialise(0), tokenizer)
        listed = Path(folder) / "pairs.json"
        listed.write_text(json.dumps(pairs))
        for _ in range(options.rounds):
            for name in names:
                runs[name].append(run(name, folder, listed))
    lengths = [[len(each) for each in tokenizer.encode_batch(list(texts))] for texts in zip(*pairs)]
    worst = 0.0
    for name in names[1:]:
        both = zip(runs[names[0]][0]["scores"], runs[name][0]["scores"], lengths[1], strict=True)
        worst = max([worst, *(abs(a - b) / tokens for a, b, tokens in both)])
    if options.precision == "float32" and worst > 1e-4:
        sys.exit(f"the sides differ by {worst} nats a token")
    from generate_cpu import machine  # not above: it imports transformers, which no side but its own has to carry

    print(f"{machine()}\n\n{config.parameters()['total'] / 1e6:.1f}M parameters, {options.precision}, ", end="")
    print(f"{options.items} items of 4 options of {min(lengths[1])} to {max(lengths[1])} tokens (mean ", end="")
    print(f"{statistics.mean(lengths[1]):.1f}), contexts of {min(lengths[0])} to {max(lengths[0])}; ", end="")
    print(f"{options.rounds} rounds.\n")
    print("| | requests / CPU s | lmlab's ratio | peak MiB | of it no file's | lmlab's share of the peak |")
    print("|---|---|---|---|---|---|")
    peaks = {name: statistics.median(each["mebibytes"] for each in runs[name]) for name in names}
    for name in names:
        rates = sorted(len(pairs) / each["seconds"] for each in runs[name])
        ratios = sorted(b["seconds"] / a["seconds"] for a, b in zip(runs[names[0]], runs[name]))
        anonymous = statistics.median(each["anonymous"] for each in runs[name])
        print(f"| {name} | {statistics.median(rates):,.1f} ({rates[0]:,.1f} to {rates[-1]:,.1f}) ", end="")
        print(f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) ", end="")
        print(f"| {peaks[name]:,.0f} | {anonymous:,.0f} | {peaks[names[0]] / peaks[name]:.2f} |")
    print(f"\nLargest difference of an option's log-probability: {worst:.1e} nats a token.")


if __name__ == "__main__":
    main()
