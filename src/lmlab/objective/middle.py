"""Fill in the middle (2207.14255): a text cut at two characters, its middle written last.

PSM  <|fim_prefix|> prefix <|fim_suffix|> suffix <|fim_middle|> middle <|endoftext|>
SPM  <|fim_prefix|> <|fim_suffix|> suffix <|fim_middle|> prefix middle <|endoftext|>   (the paper's second variant)

Cuts are between characters, not tokens, so that a model learns to begin in the middle of a word; each of the three parts is
tokenised for itself, and all tokens carry loss. It is done to each document's piece of a window, which the paper calls
context-level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lmlab.objective.example import NOTHING, Example, Ids, Room

MARKS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
SLACK = 12
"""Tokens that a cut text may be longer by: three marks and an end, and what two cuts through tokens make."""


@dataclass(frozen=True)
class MiddleTask:
    """`marks`: ids of the three marks. A piece that cannot be read as text (a character cut by the window) or that would
    grow too much stays as it is."""

    rate: float
    spm: float
    marks: Sequence[int]
    end_id: int
    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]

    plain = True

    def lengths(self, n: int) -> tuple[float, float]:
        return 0, n + 4 * self.rate

    def room(self, n: int) -> Room:
        return Room(0, n + SLACK, n + SLACK)

    def example(self, ids: Ids, rng: np.random.Generator) -> Example | None:
        if len(ids) < 2:
            return None
        turned = self.rearranged(ids, rng) if rng.random() < self.rate else None
        return Example(NOTHING, ids if turned is None else turned)

    def rearranged(self, ids: Ids, rng: np.random.Generator) -> Ids | None:
        """The piece with its middle last; an end-of-text at its beginning stays there."""
        lead = ids[:1] if ids[0] == self.end_id else ids[:0]
        text = self.decode(ids[len(lead) :].tolist())
        first, second = np.sort(rng.integers(0, len(text) + 1, 2)).tolist()
        order = self.spm > rng.random()
        if "\ufffd" in text:
            return None
        prefix, middle, suffix = (self.encode(part) for part in (text[:first], text[first:second], text[second:]))
        pre, suf, mid = ([mark] for mark in self.marks)
        psm = [*pre, *prefix, *suf, *suffix, *mid, *middle]
        spm = [*pre, *suf, *suffix, *mid, *prefix, *middle]
        made = np.array([*lead.tolist(), *(spm if order else psm), self.end_id], dtype=np.int64)
        return made if len(made) <= len(ids) + SLACK else None

    def continuation(self, before: Ids, after: Ids) -> Example:
        """Left to right, as the texts that are not rearranged."""
        return Example(NOTHING, np.concatenate((before, after)), given=len(before))
