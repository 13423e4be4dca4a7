"""Causal and prefix language modelling, and T5's span corruption, as tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmlab.objective.example import Example, Ids
from lmlab.objective.spans import noise_counts, noise_spans

NOTHING = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class CausalTask:
    """All of a text is target."""

    plain = True

    def lengths(self, n: int) -> tuple[float, float]:
        return 0, n

    def capacity(self, n: int) -> tuple[int, int]:
        return 0, n

    def example(self, ids: Ids, rng: np.random.Generator) -> Example | None:
        return Example(NOTHING, ids) if len(ids) > 1 else None

    def continuation(self, before: Ids, after: Ids) -> Example:
        return Example(NOTHING, np.concatenate((before, after)), given=len(before))


@dataclass(frozen=True)
class PrefixTask:
    """The first tokens, 1 to all but one, each number as likely, are source; the others target (1910.10683)."""

    plain = True

    def lengths(self, n: int) -> tuple[float, float]:
        return n / 2, n / 2

    def capacity(self, n: int) -> tuple[int, int]:
        return n, n

    def example(self, ids: Ids, rng: np.random.Generator) -> Example | None:
        if len(ids) < 2:
            return None
        prefix = int(rng.integers(1, len(ids)))
        return Example(ids[:prefix], ids[prefix:])

    def continuation(self, before: Ids, after: Ids) -> Example:
        return Example(before, after)


@dataclass(frozen=True)
class SpanTask:
    """T5's span corruption: source is the text with each span replaced by the next sentinel, target is each sentinel
    followed by its span; both end with `end_id`, as in T5's code."""

    rate: float
    mean_span: float
    sentinels: Sequence[int]
    end_id: int

    plain = False

    def lengths(self, n: int) -> tuple[float, float]:
        noise, spans = noise_counts(n, self.rate, self.mean_span)
        return n - noise + spans + 1, noise + spans + 1

    def capacity(self, n: int) -> tuple[int, int]:
        source, target = self.lengths(n)
        return int(source), int(target)

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
        return Example(np.concatenate((*source, ids[done:], end_mark)), np.concatenate((*target, end_mark)))

    def continuation(self, before: Ids, after: Ids) -> Example:
        """One span, at the end of the text: noise always ends a training text, so the format is a trained one."""
        first = self.sentinels[0]
        return Example(np.concatenate((before, [first, self.end_id])), np.concatenate(([first], after)), given=1)
