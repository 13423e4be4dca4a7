"""What a run shows of itself while it trains: bits per byte of some held-out text, and what the model writes.

    heldout.jsonl   {step, tokens_seen, bits_per_byte, bits_per_byte_low, bits_per_byte_high, documents}
    samples.jsonl   {step, prompt, text}

It reads weights and draws nothing from torch's generator, so that training is bit for bit the same with and without it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from lmlab.config import Config
from lmlab.errors import LmlabError
from lmlab.measure import Score
from lmlab.model.config import ModelConfig
from lmlab.model.transformer import Transformer
from lmlab.progress import read_jsonl, say
from lmlab.run import Context, write_atomic
from lmlab.train.average import averaged
from lmlab.train.checkpoint import gathered
from lmlab.train.heldout import Documents
from lmlab.train.parallel.layout import Layout

HELDOUT, SAMPLES = "heldout.jsonl", "samples.jsonl"

FIRST_SECONDS = 20.0
"""Where time decides, the first measurement comes after so long: a run of seconds needs none."""


class LiveConfig(Config):
    """Held-out bits per byte and samples while training, for `lmlab watch`."""

    apart: ClassVar[frozenset[str]] = frozenset({"every", "share", "documents", "tokens"})

    every: int | None = Field(default=None, ge=1)
    """Measure every so many steps; null: as often as `share` allows."""
    share: float = Field(default=0.01, ge=0, lt=1)
    """Share of the training time that measuring may take; 0 measures only with `every`."""
    documents: int = Field(default=8, ge=1)
    """Held-out documents that are measured, spread over all."""
    tokens: int = Field(default=256, ge=2)
    """Tokens of a document that are measured, its first."""

    @property
    def on(self) -> bool:
        """Whether anything is measured."""
        return self.every is not None or self.share > 0


class Some:
    """A few held-out documents, evenly spread, each cut to its first tokens; read as all of them are."""

    def __init__(self, held: Documents, config: LiveConfig) -> None:
        count = min(len(held), config.documents)
        self._held = [held.document(place * len(held) // count)[: config.tokens] for place in range(count)]

    def __len__(self) -> int:
        return len(self._held)

    def document(self, index: int) -> list[int]:
        return self._held[index]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._held)


class Live:
    """Called after every step (`fit`'s `on_step`); of several ranks all call it, and rank 0 measures and writes. Of a run that
    averages its weights the mean is measured, which is what it will save."""

    def __init__(
        self,
        context: Context,
        config: LiveConfig,
        network: Transformer,
        shape: ModelConfig,
        ranks: Layout,
        tokens_before: Callable[[int], int],
        measure: Callable[[Transformer], Score],
        sample: Callable[[Transformer], Sequence[Mapping[str, str]]],
    ) -> None:
        """`network` is this rank's part of the model of `shape`; `measure` and `sample` get the whole model in evaluation
        mode. `tokens_before`: tokens seen before a step."""
        self.context, self.config, self.network, self.shape, self.ranks = context, config, network, shape, ranks
        self.tokens_before, self.measure, self.sample = tokens_before, measure, sample
        self.cost, self.since = math.inf, time.monotonic()
        self._last: int | None = None
        self._own: Transformer | None = None

    def __call__(self, step: int, _: Mapping[str, float]) -> None:
        """Measure after `step`, where it is time."""
        if self.ranks.leads and (self._last is None or step != self._last + 1):
            self._forget(step)
        self._last = step
        if not self.ranks.agree(float(self._due(step))):
            return
        with averaged(self.network):
            weights = gathered(self.network, self.ranks) if self.ranks.several else None
            if self.ranks.leads:
                self._take(step, weights)

    def _take(self, step: int, weights: Mapping[str, Any] | None) -> None:
        begun = time.monotonic()
        try:
            self._write(step, self._whole(weights))
        except LmlabError as error:  # such as logits that are no numbers: for the trainer to deal with
            say(f"{self.context.name}: step {step} could not be measured: {error}")
        self.since = time.monotonic()
        self.cost = min(self.cost, self.since - begun)  # the first compiles kernels

    def _due(self, step: int) -> bool:
        if self.config.every is not None:
            return (step + 1) % self.config.every == 0
        wait = self.cost / self.config.share if math.isfinite(self.cost) else FIRST_SECONDS
        return time.monotonic() - self.since >= wait

    def _whole(self, weights: Mapping[str, Any] | None) -> Transformer:
        """The whole model. Of several ranks a copy of rank 0's own, whose forward pass speaks to no other rank."""
        if weights is None:
            return self.network
        if self._own is None:
            self._own = Transformer(self.shape).to(self.ranks.world.device)
            self._own.kernel = self.network.kernel
        self._own.load_state_dict(weights)
        return self._own

    def _write(self, step: int, model: Transformer) -> None:
        training = model.training
        model.eval()
        try:
            found, written = self.measure(model), self.sample(model)
        finally:
            model.train(training)
        score = found.to_json()
        row = {
            "step": step,
            "tokens_seen": self.tokens_before(step + 1),
            "bits_per_byte": score["value"],
            "bits_per_byte_low": score["low"],
            "bits_per_byte_high": score["high"],
            "documents": score["n"],
        }
        _append(self.context.out / HELDOUT, [row])
        _append(self.context.out / SAMPLES, [{"step": step, **each} for each in written])

    def _forget(self, step: int) -> None:
        """Drop what an earlier attempt, or a past that was taken back, wrote of this step and later ones."""
        for name in (HELDOUT, SAMPLES):
            path = self.context.out / name
            rows = read_jsonl(path)
            if any(row.get("step", -1) >= step for row in rows):
                kept = [row for row in rows if row.get("step", -1) < step]
                write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))


def _append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
