"""Repetition inside one document: lines and paragraphs that stand twice, sentences made of repeated phrases."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from lmlab.config import Config
from lmlab.corpus.arrow import compute as pc
from lmlab.corpus.dedup import kernels
from lmlab.corpus.dedup.cut import cut
from lmlab.corpus.dedup.units import Unit, Units, units
from lmlab.corpus.steps.step import drop


class Repeats(Config):
    """What is cut out of a document because it stands in it already (survey, 4.1.2: sentences with repeated words and
    phrases are of low quality and bring repetition into a model). The first place stays. Off by default."""

    enabled: bool = False
    units: list[Literal["line", "paragraph", "sentence"]] = Field(default_factory=lambda: ["paragraph", "line"])
    """What goes when it stands a second time, compared by its words: case, layout and punctuation do not matter."""
    min_words: int = Field(default=4, ge=1)
    """Units of fewer words may repeat: a heading, a closing bracket. A guess."""
    phrase: int = Field(default=3, ge=1)
    """Words in a phrase, for `max_phrases`."""
    max_phrases: float | None = Field(default=0.5, ge=0, le=1)
    """A sentence goes if more than this share of its phrases repeats phrases before it in the sentence. A guess: by it,
    a sentence says at least half of what it says twice."""
    ngram: int | None = Field(default=None, ge=2)
    """Words in a row that may not stand twice in a document; the second place goes. Default: not asked."""
    min_words_left: int = Field(default=0, ge=0)
    """A document with fewer words left after cutting is dropped."""
    kinds: list[Literal["prose", "code"]] = Field(default_factory=lambda: ["prose"], min_length=1)


class RepeatsStep:
    """The step; adds `cuts`, what was cut out of each document."""

    name = "repeats"

    def __init__(self, config: Repeats) -> None:
        self.config = config
        self.identity = ["repeats", 1, config.model_dump()]

    def __call__(self, table: pa.Table) -> pa.Table:
        touched: set[int] = set()
        for unit in self.config.units:
            found = self._units(table, unit)
            again = later(found.hashes, found.documents) & (found.words >= self.config.min_words)
            table = self._cut(table, found, again, touched)
        if self.config.max_phrases is not None:
            found = self._units(table, "sentence")
            table = self._cut(table, found, self._repetitive(table, found), touched)
        if self.config.ngram is not None:
            found = self._units(table, "word")
            keys, first, where = kernels.windows(found.hashes, found.at, self.config.ngram)
            rows = np.repeat(np.arange(len(table)), np.diff(where))
            again = later(keys, rows)
            begin = first[again]
            ends = found.lasts[begin + self.config.ngram - 1]
            table = cut(table, self.name, found.firsts[begin], ends, rows[again])
            touched |= set(rows[again].tolist())
        least = max(1, self.config.min_words_left)
        reasons: list[str | None] = [None] * len(table)
        order = sorted(touched)
        if order:
            for row, n in zip(order, np.diff(units(table["text"].take(pa.array(order)), "word").at), strict=True):
                reasons[row] = f"repeats itself, fewer than {least} words left" if n < least else None
        return drop(table, self.name, reasons)

    def _units(self, table: pa.Table, unit: Unit) -> Units:
        live = pc.and_(table["keep"], pc.is_in(table["kind"], value_set=pa.array(self.config.kinds)))
        return units(pc.if_else(live, table["text"], pa.scalar("", pa.string())), unit)

    def _cut(self, table: pa.Table, found: Units, chosen: np.ndarray, touched: set[int]) -> pa.Table:
        rows = found.documents[chosen]
        touched |= set(rows.tolist())
        return cut(table, self.name, found.firsts[chosen], found.lasts[chosen], rows)

    def _repetitive(self, table: pa.Table, sentences: Units) -> np.ndarray:
        """Sentences of whose phrases more than `max_phrases` repeat earlier ones of the same sentence, bool."""
        words = self._units(table, "word")
        # A word belongs to the sentence that begins last before it.
        shift = words.documents * (1 << 40)
        owner = np.searchsorted(sentences.firsts + sentences.documents * (1 << 40), words.firsts + shift, "right") - 1
        at = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(sentences.hashes)))]).astype(np.int64)
        keys, _, where = kernels.windows(words.hashes, at, self.config.phrase)
        counts = np.diff(where)
        rows = np.repeat(np.arange(len(counts)), counts)
        repeated = np.bincount(rows, weights=later(keys, rows), minlength=len(counts))
        return repeated > (self.config.max_phrases or 0.0) * np.maximum(counts, 1)


def later(keys: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Which keys stood before in the same row, bool."""
    order = np.lexsort((np.arange(len(keys)), keys, rows))
    again = np.zeros(len(keys), bool)
    again[1:] = (keys[order][1:] == keys[order][:-1]) & (rows[order][1:] == rows[order][:-1])
    out = np.zeros(len(keys), bool)
    out[order] = again
    return out
