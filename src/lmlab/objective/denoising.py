"""BART's noises (1910.13461, section 2.2) and the task of writing a text in full from its damaged copy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmlab.objective.example import Example, Ids, Room
from lmlab.objective.settings import (
    DocumentRotation,
    Noise,
    SentencePermutation,
    TextInfilling,
    TokenDeletion,
    TokenMasking,
)
from lmlab.objective.spans import place_spans, poisson_lengths


def mask_tokens(ids: Ids, rate: float, mask_id: int, rng: np.random.Generator) -> Ids:
    """round(n rate) tokens become the mask."""
    out = ids.copy()
    out[rng.choice(len(ids), _count(len(ids), rate), replace=False)] = mask_id
    return out


def delete_tokens(ids: Ids, rate: float, rng: np.random.Generator) -> Ids:
    """round(n rate) tokens vanish, but never all."""
    return np.delete(ids, rng.choice(len(ids), min(_count(len(ids), rate), len(ids) - 1), replace=False))


def infill(ids: Ids, rate: float, mean_span: float, mask_id: int, rng: np.random.Generator) -> Ids:
    """Spans of Poisson(mean_span) tokens, round(n rate) tokens in all, become one mask each; the spans of length 0 among
    them put a mask between two tokens."""
    lengths = poisson_lengths(_count(len(ids), rate), mean_span, rng)
    out: list[Ids] = []
    done = 0
    for start, end in place_spans(len(ids), [each for each in lengths if each], rng):
        out += (ids[done:start], np.array([mask_id]))
        done = end
    kept = np.concatenate((*out, ids[done:]))
    return np.insert(kept, rng.integers(0, len(kept) + 1, lengths.count(0)), mask_id)


def sentences(ids: Ids, stops: np.ndarray) -> list[Ids]:
    """A text cut after each of the tokens `stops`."""
    cuts = np.flatnonzero(np.isin(ids, stops)) + 1
    return [each for each in np.split(ids, cuts) if len(each)]


def permute_sentences(ids: Ids, stops: np.ndarray, rng: np.random.Generator) -> Ids:
    """Sentences in another order, each order as likely."""
    parts = sentences(ids, stops)
    return np.concatenate([parts[i] for i in rng.permutation(len(parts))])


def rotate(ids: Ids, rng: np.random.Generator) -> Ids:
    """The text from a token drawn uniformly on, then what stood before it."""
    return np.roll(ids, -int(rng.integers(len(ids))))


def _count(n: int, rate: float) -> int:
    return min(max(round(n * rate), 1), n)


@dataclass(frozen=True)
class DenoisingTask:
    """Source: the damaged text; target: all of the text; both end with `end_id`. `stops`: tokens that end a sentence."""

    noises: Sequence[Noise]
    mask_id: int
    end_id: int
    stops: np.ndarray

    plain = False

    def lengths(self, n: int) -> tuple[float, float]:
        source = float(n)
        for noise in self.noises:
            source = _SHRUNK.get(type(noise), lambda n, noise: n)(source, noise)
        return source + 1, n + 1

    def room(self, n: int) -> Room:
        """Masks of empty spans may make a source longer; a text whose source is longer than this is damaged anew."""
        return Room(n + 1, n + 1, 2 * n + 2)

    def example(self, ids: Ids, rng: np.random.Generator) -> Example | None:
        if len(ids) < 2:
            return None
        while True:
            source = ids
            for noise in self.noises:
                source = _NOISES[type(noise)](self, source, noise, rng)
            if len(source) <= len(ids):
                break
        return Example(self._ended(source), self._ended(ids))

    def _ended(self, ids: Ids) -> Ids:
        return np.concatenate((ids, [self.end_id]))

    def continuation(self, before: Ids, after: Ids) -> Example:
        """The text ends in one mask: its beginning is given again in the target, and what follows is scored."""
        source = np.concatenate((before, [self.mask_id, self.end_id]))
        return Example(source, np.concatenate((before, after)), given=len(before))


_NOISES: dict[type, Callable[[DenoisingTask, Ids, Any, np.random.Generator], Ids]] = {
    TokenMasking: lambda task, ids, noise, rng: mask_tokens(ids, noise.rate, task.mask_id, rng),
    TokenDeletion: lambda task, ids, noise, rng: delete_tokens(ids, noise.rate, rng),
    TextInfilling: lambda task, ids, noise, rng: infill(ids, noise.rate, noise.mean_span, task.mask_id, rng),
    SentencePermutation: lambda task, ids, noise, rng: permute_sentences(ids, task.stops, rng),
    DocumentRotation: lambda task, ids, noise, rng: rotate(ids, rng),
}
_SHRUNK: dict[type, Callable[[float, Any], float]] = {
    TokenDeletion: lambda n, noise: n * (1 - noise.rate),
    # A span and the empty ones beside it: noise tokens / mean length masks come in for them.
    TextInfilling: lambda n, noise: min(n, n * (1 - noise.rate) + math.ceil(n * noise.rate) / noise.mean_span),
}
