"""Causal and prefix language modelling, and T5's span corruption, as tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from lmlab.objective.example import NOTHING, Example, Ids, Room, with_mode
from lmlab.objective.spans import noise_counts, noise_spans


@dataclass(frozen=True)
class CausalTask:
    """All of a text is target."""

    plain = True

    def lengths(self, n: int) -> tuple[float, float]:
        return 0, n

    def room(self, n: int) -> Room:
        return Room(0, n, n)

    def example(self, ids: Ids, rng: np.random.Generator) -> Example | None:
        return Example(NOTHING, ids) if len(ids) > 1 else None

    def continuation(self, before: Ids, after: Ids) -> Example:
        return Example(NOTHING, np.concatenate((before, after)), given=len(before))


@dataclass(frozen=True)
class PrefixTask:
    """The first tokens are source, the others target: 1 to all but one, each number as likely (1910.10683), or a fixed
    share of targets (UL2's S-denoiser)."""

    target: float | None = None
    mode: int | None = None

    @property
    def plain(self) -> bool:
        return self.mode is None

    def lengths(self, n: int) -> tuple[float, float]:
        extra = self.mode is not None
        if self.target is None:
            return n / 2 + extra, n / 2
        return self._prefix(n) + extra, n - self._prefix(n)

    def room(self, n: int) -> Room:
        extra = int(self.mode is not None)
        target = n if self.target is None else n - self._prefix(n)
        source = n if self.target is None else self._prefix(n)
        return Room(source + extra, target, n + extra)

    def _prefix(self, n: int) -> int:
        return n - min(max(round(n * (self.target or 0)), 1), n - 1)

    def example(self, ids: Ids, rng: np.random.Generator) -> Example | None:
        if len(ids) < 2:
            return None
        prefix = int(rng.integers(1, len(ids))) if self.target is None else self._prefix(len(ids))
        return self.continuation(ids[:prefix], ids[prefix:])

    def continuation(self, before: Ids, after: Ids) -> Example:
        return cast(Example, with_mode(Example(before, after), self.mode))


@dataclass(frozen=True)
class SpanTask:
    """T5's span corruption: source is the text with each span replaced by the next sentinel, target is each sentinel
    followed by its span; both end with `end_id`, as in T5's code."""

    rate: float
    mean_span: float
    sentinels: Sequence[int]
    end_id: int
    mode: int | None = None

    plain = False

    def lengths(self, n: int) -> tuple[float, float]:
        noise, spans = noise_counts(n, self.rate, self.mean_span)
        return n - noise + spans + 1 + (self.mode is not None), noise + spans + 1

    def room(self, n: int) -> Room:
        source, target = map(int, self.lengths(n))
        return Room(source, target, source + target)

    def example(self, ids: Ids, rng: np.random.Generator) -> Example | None:
        if len(ids) < 2:
            return None
        spans = noise_spans(len(ids), self.rate, self.mean_span, rng)
        source: list[Ids] = []
        target: list[Ids] = []
        done = 0
        for sentinel, (start, end) in zip(self.sentinels, spans, strict=False):
            mark = np.array([sentinel])
            source += (ids[done:start], mark)
            target += (mark, ids[start:end])
            done = end
        end_mark = np.array([self.end_id])
        made = Example(np.concatenate((*source, ids[done:], end_mark)), np.concatenate((*target, end_mark)))
        return with_mode(made, self.mode)

    def continuation(self, before: Ids, after: Ids) -> Example:
        """One span, at the end of the text: noise always ends a training text, so the format is a trained one."""
        first = self.sentinels[0]
        source, target = np.concatenate((before, [first, self.end_id])), np.concatenate(([first], after))
        return cast(Example, with_mode(Example(source, target, given=1), self.mode))
