"""Spans that stand in more than one place of the corpus: C4's three sentences, and exact substrings of n tokens.

Both are windows of `length` units. A window is a record (its hash and its place), a range finds the windows that stand
twice, and every place but the first is cut out. A corpus has as many windows as units, which is few for sentences. For
words, bytes and tokens only windows that can repeat are sent: winnowing (Schleimer, Wilkerson and Aiken 2003) picks a
short gram out of every window, by what stands in the window alone, so that a repeated window has picked a gram that
stands twice. A first shuffle finds those grams, a second one the windows. What is found is what a suffix array finds
(Lee et al. 2107.06499), but for collisions of 64-bit hashes, and no range holds more than its own records.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from lmlab.config import Config
from lmlab.corpus.arrow import compute as pc
from lmlab.corpus.dedup import kernels
from lmlab.corpus.dedup.cut import cut, merge
from lmlab.corpus.dedup.shuffle import PLACE, Answers, Part, Records, batch, gather, runs
from lmlab.corpus.dedup.units import Units, units
from lmlab.corpus.steps.step import drop

COLUMNS = ("id", "source", "split", "kind", "text", "keep", "step", "reason")
WINDOWS: Records = {"key": np.zeros(0, np.uint64), PLACE: np.zeros(0, np.int64), "unit": np.zeros(0, np.uint32)}
WINDOW_BYTES = 20


class Spans(Config):
    """What the two settings of repeated spans share."""

    enabled: bool = False
    keep: Literal["first", "none"] = "first"
    """`first`: the first place of a span stays (held-out before training, then the order of the corpus). `none`: a span
    that stands in two places goes from all."""
    least: int = Field(default=2, ge=2)
    """A span goes only if it stands in at least so many places."""
    action: Literal["cut", "drop"] = "cut"
    """Cut the spans out, or drop each document of which they are more than `share`."""
    share: float = Field(default=0.5, ge=0, le=1)
    """For `action: drop`: share of the document's bytes."""
    min_words_left: int = Field(default=0, ge=0)
    """A document with fewer words left after cutting is dropped."""
    kinds: list[Literal["prose", "code"]] = Field(default_factory=lambda: ["prose"], min_length=1)
    """Which documents take part: lines of code repeat honestly."""


class DuplicateSentences(Spans):
    """Spans of whole lines, paragraphs or sentences. The defaults are C4's rule (Raffel et al. 1910.10683): of any three
    sentences in a row that occur more than once in the data set, all but one occurrence goes."""

    unit: Literal["line", "paragraph", "sentence"] = "sentence"
    length: int = Field(default=3, ge=1)
    """Units in a span (C4: 3 sentences; for lines and paragraphs, 1 removes each repeated one)."""
    min_words: int = Field(default=1, ge=1)
    """A span of fewer words is left alone: "Read more" is no copy of a text."""
    min_words_left: int = Field(default=50, ge=0)
    """datatrove's C4 pipeline: 50."""


class DuplicateSubstrings(Spans):
    """Exact substrings over the whole corpus (Lee et al. 2107.06499: 50 tokens, which are 100 bytes in their arrays of
    uint16 tokens)."""

    unit: Literal["word", "byte", "token"] = "word"
    length: int = Field(default=50, ge=2)
    """Units in a substring."""
    tokenizer: str | None = None
    """For `unit: token`: a tokenizer.json."""

    @model_validator(mode="after")
    def _tokenized(self) -> DuplicateSubstrings:
        if self.unit == "token" and self.tokenizer is None:
            raise ValueError("unit: token needs tokenizer, the path of a tokenizer.json")
        return self


AnySpans = DuplicateSentences | DuplicateSubstrings


def cut_into(table: pa.Table, config: AnySpans) -> Units:
    """Units of the documents that take part; the others have none."""
    live = pc.and_(table["keep"], pc.is_in(table["kind"], value_set=pa.array(config.kinds)))
    text = pc.if_else(live, table["text"], pa.scalar("", pa.string()))
    return units(text, config.unit, getattr(config, "tokenizer", None))


def gram(length: int) -> int:
    """Units in a gram that winnowing picks: half a window, so that about 1 of `length` / 4 is picked."""
    return max(1, length // 2)


@dataclass(frozen=True)
class Picked:
    """Winnowing: for each window of a column of texts, the gram that it picks."""

    keys: np.ndarray  # uint64 [grams]
    first: np.ndarray  # int64 [grams]: the first unit of each
    least: np.ndarray  # int64 [windows]: the gram that each window picks


def pick(found: Units, length: int) -> Picked:
    size = gram(length)
    keys, first, where = kernels.windows(found.hashes, found.at, size)
    return Picked(keys, first, kernels.leftmost_least(keys, where, length - size + 1))


def _records(table: pa.Table, found: Units, keys: np.ndarray, firsts: np.ndarray) -> Records:
    documents = np.searchsorted(found.at, firsts, side="right") - 1
    inside = (firsts - found.at[documents]).astype(np.uint32)
    return {"key": keys, PLACE: table[PLACE].to_numpy()[documents], "unit": inside}


@dataclass(frozen=True)
class GramKeys:
    """Maps a part to the grams that its windows pick."""

    part: Part
    config: DuplicateSubstrings
    count: int

    def tables(self) -> Iterator[pa.RecordBatch]:
        yield from runs(self._each(), self.count, WINDOWS)

    def _each(self) -> Iterator[Records]:
        for table in self.part.tables(COLUMNS):
            found = cut_into(table, self.config)
            picked = pick(found, self.config.length)
            chosen = np.unique(picked.least)
            yield _records(table, found, picked.keys[chosen], picked.first[chosen])


@dataclass(frozen=True)
class WindowKeys:
    """Maps a part to its windows; with `grams`, to those that pick a gram which stands twice."""

    part: Part
    config: AnySpans
    count: int
    grams: Answers | None = None

    def tables(self) -> Iterator[pa.RecordBatch]:
        yield from runs(self._each(), self.count, WINDOWS)

    def _each(self) -> Iterator[Records]:
        length = self.config.length
        for table in self.part.tables(COLUMNS):
            found = cut_into(table, self.config)
            keys, firsts, _ = kernels.windows(found.hashes, found.at, length)
            if self.grams is not None:
                picked = pick(found, length)
                twice = self.grams.of(table[PLACE].to_numpy())
                units_of = found.at[twice["row"]] + twice["unit"]
                hot = np.zeros(len(picked.keys), bool)
                hot[np.searchsorted(picked.first, units_of)] = True
                chosen = hot[picked.least]
                keys, firsts = keys[chosen], firsts[chosen]
            elif isinstance(self.config, DuplicateSentences) and self.config.min_words > 1:
                total = np.concatenate([[0], np.cumsum(found.words)])
                chosen = total[firsts + length] - total[firsts] >= self.config.min_words
                keys, firsts = keys[chosen], firsts[chosen]
            yield _records(table, found, keys, firsts)


@dataclass(frozen=True)
class Repeats:
    """Reduces a range to the records whose key occurs at least `least` times; without the first of each, if asked."""

    files: Sequence
    number: int
    count: int
    least: int
    without_first: bool

    def tables(self) -> Iterator[pa.RecordBatch]:
        found = gather(self.files, self.number, self.count)
        order = np.lexsort((found["unit"], found[PLACE], found["key"]))
        key = found["key"][order]
        new = np.ones(len(key), bool)
        new[1:] = key[1:] != key[:-1]
        group = np.cumsum(new) - 1
        wanted = np.bincount(group)[group] >= self.least if len(key) else new
        if self.without_first:
            wanted &= ~new
        order = order[wanted]
        order = order[np.lexsort((found["unit"][order], found[PLACE][order]))]
        yield batch({PLACE: found[PLACE][order], "unit": found["unit"][order]})


class SpansStep:
    """Cuts repeated spans out of a part's documents, or drops the documents that are made of them."""

    def __init__(self, name: str, config: AnySpans, answers: Answers, key: str) -> None:
        self.name, self.config, self.answers = name, config, answers
        self.identity = [name, 1, config.model_dump(), key]

    def __call__(self, table: pa.Table) -> pa.Table:
        found = cut_into(table, self.config)
        marked = self.answers.of(table[PLACE].to_numpy())
        begin = found.at[marked["row"]] + marked["unit"]
        firsts, lasts = found.firsts[begin], found.lasts[begin + self.config.length - 1]
        if self.config.action == "drop":
            return self._drop(table, firsts, lasts, marked["row"])
        table = cut(table, self.name, firsts, lasts, marked["row"])
        touched = np.unique(marked["row"])
        reasons: list[str | None] = [None] * len(table)
        if len(touched):
            left = np.diff(units(table["text"].take(pa.array(touched)), "word").at)
            for row, words in zip(touched.tolist(), left.tolist(), strict=True):
                if words < max(1, self.config.min_words_left):
                    reasons[row] = f"{self._what}, fewer than {max(1, self.config.min_words_left)} words left"
        return drop(table, self.name, reasons)

    @property
    def _what(self) -> str:
        unit = self.config.unit + ("s" if self.config.length > 1 else "")
        return f"{self.config.length} {unit} that stand elsewhere"

    def _drop(self, table: pa.Table, firsts: np.ndarray, lasts: np.ndarray, rows: np.ndarray) -> pa.Table:
        firsts, lasts, rows = merge(firsts, lasts, rows)
        covered = np.bincount(rows, weights=lasts - firsts, minlength=len(table))
        sizes = np.array(pc.binary_length(table["text"]).to_pylist())
        reasons = [
            f"{self._what}: more than {self.config.share:.0%} of it" if c > self.config.share * s else None
            for c, s in zip(covered.tolist(), sizes.tolist(), strict=True)
        ]
        return drop(table, self.name, reasons)
