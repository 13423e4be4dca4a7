"""Tokens a second of pretraining: lmlab beside transformers' GPT-2 and Llama, a loop like nanoGPT's, and litgpt.

    python benchmarks/train.py [--shapes small vocabulary] [--precisions float32 bfloat16] [--threads 1] [--rounds 7]
                               [--loops "lmlab llama" "transformers gpt2" ...] [--device cuda] [--eager]
    python benchmarks/train.py --grow sizes contexts processes

Every loop runs in a process of its own; a round is one optimizer step of each, in turns, on the same ids. On one CPU thread
seconds are CPU seconds of the process, which neighbours hardly change; with several threads, or on a GPU, wall seconds: there
the machine must be quiet. Rates are medians; ratios are of medians, with a 95% interval from resampling the rounds (of total
seconds, `lmlab.measure.ratio`). MFU is (6 x matrix parameters + 12 x layers x width x context) FLOPs a token over the best
matrix product of the same rounds in that precision, through either of torch's CPU libraries. Memory: the most that the
process had resident (Linux's VmHWM), compiling included; and in steps after the second, above weights, gradients and
AdamW's state (16 bytes a parameter) and above what `import torch` alone has. On a GPU: what torch's allocator gave out.

Peers are compiled, their attention is the formula ("eager"), which below 1,000 tokens is torch's fastest on a CPU; on a GPU
it is `sdpa`. What is not installed is left out and named: transformers is in the extra [dev]; litgpt pins other versions
of everything, so it goes into a folder of its own (`pip install --no-deps --target DIR litgpt lightning ...`, PYTHONPATH=DIR).
`--grow` measures lmlab alone as the work grows, see `train_grow.py`. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

SHAPES = {
    "small": {"layers": 6, "width": 384, "heads": 6, "context": 256, "vocabulary": 4096, "rows": 12},
    "vocabulary": {"layers": 6, "width": 384, "heads": 6, "context": 256, "vocabulary": 50304, "rows": 8},
    "124M": {"layers": 12, "width": 768, "heads": 12, "context": 1024, "vocabulary": 50304, "rows": 32},
    "1.5B": {"layers": 48, "width": 1600, "heads": 25, "context": 1024, "vocabulary": 50304, "rows": 8},
}
CPU, CUDA = ("small", "vocabulary"), ("124M", "1.5B")
"""The shapes of each device that are measured when none is named."""
NAMES = (
    "lmlab llama",
    "lmlab gpt2",
    "lmlab gpt2 oneDNN",
    "transformers gpt2",
    "transformers llama",
    "nanoGPT-like",
    "litgpt",
)
WARM = 2


class Child:
    """One loop in a process of its own; `step()` is one line to it and one back."""

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        environment = os.environ | {
            "OMP_NUM_THREADS": str(settings["threads"]),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, __file__, "--child", json.dumps({"name": name, **settings})]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, **pipes)
        self.said: list[dict[str, Any]] = []

    def step(self) -> dict[str, Any]:
        """One more step's seconds and loss. Raises RuntimeError where the process has ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write("step\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a loop ended with status {self.process.wait()}: its error stands above")
        self.said.append(json.loads(line))
        return self.said[-1]

    def end(self) -> dict[str, Any]:
        """What it says at the end: parameters and memory."""
        out, _ = self.process.communicate()
        return json.loads(out) if out.strip() else {}


def child(given: str) -> None:
    """What runs in a loop's process."""
    from train_loops import Work, serve

    settings = json.loads(given)
    name = settings.pop("name")
    for found in serve(name, Work(**settings), iter(sys.stdin)):
        print(json.dumps(found), flush=True)


def missing(name: str) -> str | None:
    """Why a loop cannot run here."""
    needed = name.split(maxsplit=1)[0]
    if needed in ("transformers", "litgpt") and importlib.util.find_spec(needed) is None:
        return f"{name} is left out: {needed} is not installed here"
    return None


def side_by_side(
    names: Sequence[str], settings: dict[str, Any], rounds: int
) -> tuple[dict[str, Child], list[dict[str, float]]]:
    """All loops, a step each in turns; and each round's matrix peak."""
    children = {name: Child(name, settings) for name in ("peak", *names)}
    peaks: list[dict[str, float]] = []
    try:
        for index in range(rounds + WARM):
            for name, each in children.items():
                found = each.step()
                if name == "peak":
                    peaks.append(found)
            print(f"round {index - WARM + 1} of {rounds}", file=sys.stderr, flush=True)
    except BaseException:
        for each in children.values():
            each.process.kill()
        raise
    children.pop("peak").end()
    return children, peaks


def rows(names: Sequence[str], settings: dict[str, Any], rounds: int) -> Iterator[str]:
    """The table of one shape, precision and number of threads."""
    from lmlab.measure import ratio

    children, peaks = side_by_side(names, settings, rounds)
    best = max(each[settings["precision"]] for each in peaks)
    from train_loops import LOOPS, Work

    work = Work(**settings)
    seconds = {name: [said["seconds"] for said in each.said[WARM:]] for name, each in children.items()}
    median = {name: statistics.median(each) for name, each in seconds.items()}
    peers = [name for name in names if not name.startswith("lmlab")]
    against = min(peers or names, key=lambda name: median[name])
    kind = "CPU second" if settings["threads"] == 1 and settings["device"] == "cpu" else "second"
    yield (
        f"{work.layers} layers, d {work.width}, context {work.context}, vocabulary {work.vocabulary:,}, {work.rows} rows, "
        f"{work.precision}, {work.threads} thread(s){'' if work.compile else ', not compiled'}; {rounds} rounds; matrix peak "
        + ", ".join(f"{name} {max(p[name] for p in peaks) / 1e9:,.0f}" for name in peaks[0])
        + f" GFLOP/s; load {' '.join(f'{each:.1f}' for each in os.getloadavg())}\n"
    )
    yield f"| loop | tokens a {kind} | range | times {against} | MFU | peak MiB | above state and torch | first loss |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, each in children.items():
        taken, end = seconds[name], each.end()
        rate = work.tokens / median[name]
        mfu = rate * work.flops_per_token(LOOPS[name][1]) / best
        interval = ratio(seconds[against], taken)
        above = end["steady"] - end["bare"] - 16 * end["parameters"] / 2**20
        yield (
            f"| {name} | {rate:,.0f} | {work.tokens / max(taken):,.0f} to {work.tokens / min(taken):,.0f} | "
            f"{median[against] / median[name]:.2f} [{interval.low:.2f}, {interval.high:.2f}] | {mfu:.0%} | "
            f"{end['whole']:,.0f} | {above:,.0f} | {each.said[0]['loss']:.3f} |"
        )
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES)
    parser.add_argument("--precisions", nargs="+", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, help="rows a step, instead of the shape's")
    parser.add_argument("--loops", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--eager", action="store_true", help="nothing is compiled")
    parser.add_argument("--peer-attention", choices=("eager", "sdpa"))
    parser.add_argument("--grow", nargs="+", choices=("sizes", "contexts", "processes"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child)
    import torch

    from lmlab.device import processor

    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here")
    where = torch.cuda.get_device_name() if options.device == "cuda" else processor()["name"]
    print(f"{date.today()}, {where}, torch {torch.__version__}, Python {platform.python_version()}\n", flush=True)
    if options.grow:
        from train_grow import grow

        for line in grow(options):
            print(line, flush=True)
        return None
    named = [(name, missing(name)) for name in options.loops]
    for _, why in named:
        if why:
            print(why, flush=True)
    names = [name for name, why in named if not why]
    cuda = options.device == "cuda"
    for shape in options.shapes or (CUDA if cuda else CPU):
        for precision in options.precisions or (("bfloat16",) if cuda else ("float32", "bfloat16")):
            for threads in options.threads:
                settings = dict(SHAPES[shape]) | {
                    "precision": precision,
                    "threads": threads,
                    "device": options.device,
                    "compile": not options.eager,
                    "peer_attention": options.peer_attention or ("sdpa" if cuda else "eager"),
                }
                settings |= {"rows": options.rows} if options.rows else {}
                whole = precision == "float32" and not cuda
                for line in rows([n for n in names if whole or "oneDNN" not in n], settings, options.rounds):
                    print(line, flush=True)
    return None


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
