"""What claims are measured by: for each measure its unit, which way is better, and the smallest difference that matters.

What matters was fixed before any claim was run, and is the same for all claims of a measure.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmlab.claims import choice
from lmlab.corpus.shards import Shards
from lmlab.errors import Failed
from lmlab.generate.engine import Engine
from lmlab.model.context import with_context
from lmlab.model.store import load_model
from lmlab.report.scores import at, number
from lmlab.text.tokenizer import Tokenizer
from lmlab.train.pretrain_config import PretrainConfig

Runs = Mapping[str, Mapping[int, Path]]
"""arm -> seed -> the run's directory."""
Values = dict[str, dict[int, float]]
"""arm -> seed -> the number; a run that did not finish has none."""


@dataclass(frozen=True)
class Measure:
    """`read(runs, stage, path)` gives each run's number; `path` is of a stage's results.json, "" for the measure's own."""

    title: str
    unit: str
    higher_is_better: bool
    matters: float
    read: Callable[[Runs, str, str], Values]


def result(own: str, diverged: str | None = None) -> Callable[[Runs, str, str], Values]:
    """A reader of a number in a stage's results.json, by its path or else at `own`; `diverged` is the file that holds the
    number of a run that stopped because its loss was none."""

    def read(runs: Runs, stage: str, path: str) -> Values:
        found: Values = {}
        for arm, seeds in runs.items():
            for seed, place in seeds.items():
                value = _value(place / stage / "results.json", path or own)
                if value is None and diverged is not None:
                    value = _value(place / stage / diverged, "")
                if value is not None:
                    found.setdefault(arm, {})[seed] = value
        return found

    return read


def _value(file: Path, path: str) -> float | None:
    """A score's value in a JSON file, None where there is no such file; Failed where it holds no such score."""
    if not file.is_file():
        return None
    tree = _read(file)
    found: Any = at(tree, *path.split(".")) if path else tree
    value = number(found.get("value") if isinstance(found, dict) else found)
    if value is None:
        raise Failed(f"{file}: holds no score at '{path}'")
    return value


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def choices(runs: Runs, stage: str, path: str) -> Values:
    """Zero-shot accuracy of `choice.accuracy`, every arm asked the same questions."""
    return {
        arm: {seed: choice.accuracy(place, stage) for seed, place in seeds.items() if _finished(place, stage)}
        for arm, seeds in runs.items()
    }


def beyond(runs: Runs, stage: str, path: str) -> Values:
    """Bits per byte that windows of the model's whole context cost more than windows of the trained length, over the same
    tokens of the held-out documents; windows do not overlap (2108.12409, appendix B), but that a document's last one is
    filled up from before."""
    return {
        arm: {seed: _beyond(place / stage) for seed, place in seeds.items() if _finished(place, stage)}
        for arm, seeds in runs.items()
    }


def _beyond(place: Path) -> float:
    model, tokenizer = load_model(place / "model"), Tokenizer.load(place / "model")
    trained = PretrainConfig.model_validate(_read(place / "provenance.json")["config"]).model.context_length
    shards = Shards(place / "tokens" / "heldout", verify=False)
    documents = [shards.document(index) for index in range(len(shards))]
    nats = [
        math.fsum(Engine(with_context(model, n), tokenizer).score_documents(documents, window=n, stride=n))
        for n in (trained, model.config.context_length)
    ]
    return (nats[1] - nats[0]) / math.log(2) / sum(len(tokenizer.decode(ids).encode("utf-8")) for ids in documents)


def step_cost(runs: Runs, stage: str, path: str) -> Values:
    """log of the CPU seconds of a forward and backward pass, arms taking turns on one thread so that whatever else this
    machine does falls on all of them alike: the median of 15 turns."""
    found: Values = {}
    for seed in next(iter(runs.values())):
        models = {a: load_model(s[seed] / stage / "model") for a, s in runs.items() if _finished(s[seed], stage)}
        turns: dict[str, list[float]] = {arm: [] for arm in models}
        for turn in range(16):
            for arm, model in models.items():
                seconds = _pass_seconds(model)
                if turn:  # the first warms up
                    turns[arm].append(math.log(seconds))
        for arm, seconds_of in turns.items():
            found.setdefault(arm, {})[seed] = statistics.median(seconds_of)
    return found


def _pass_seconds(model: Any, rows: int = 16) -> float:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tokens_BT = torch.zeros(rows, model.config.context_length, dtype=torch.long)
        begun = time.process_time()
        model(tokens_BT).logits().logsumexp(-1).sum().backward()
        return time.process_time() - begun
    finally:
        torch.set_num_threads(threads)
        model.zero_grad(set_to_none=True)


def _finished(place: Path, stage: str) -> bool:
    return (place / stage / "results.json").is_file()


MEASURES: dict[str, Measure] = {
    "bits": Measure(
        "bits per byte of held-out text", "bits", False, 0.02, result("bits_per_byte.after", "before.json")
    ),
    "choice": Measure("zero-shot choice among four continuations", "share right", True, 0.05, choices),
    "beyond": Measure("bits per byte that windows past the trained length cost", "bits", False, 0.02, beyond),
    "copying": Measure("copying from context", "nats a token", True, 0.1, result("copying.gain")),
    "cost": Measure("CPU time of a pass, forward and backward", "log of seconds", False, 0.05, step_cost),
}
"""The smallest differences that matter: 0.02 bits are about 1% of what these models need for a byte; 5 points of accuracy
one question in twenty; 0.1 nats a tenth more on a token's probability; 0.05 in the logarithm 5% of the time."""
