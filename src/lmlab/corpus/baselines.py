"""What a language model's bits per byte stand beside, on the same held-out bytes: xz alone, xz primed with training
text, and an n-gram model of the training text.

A compressor codes one stream, so a document has no size of its own. It gets what it adds to the stream before it,
C(d_1 .. d_k) - C(d_1 .. d_{k-1}): the chain rule that also gives a language model its bits. These shares add up to the
whole exactly, and intervals come from resampling the documents, as for every other bits per byte here.
"""

from __future__ import annotations

import itertools
import lzma
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmlab.corpus.ngram import NgramModel
from lmlab.measure import Score, ratio

XZ_9E = 9 | lzma.PRESET_EXTREME
BUDGET = 6 << 20
"""Bytes compressed over all prefixes: about 4 s of one core at the 1.7 MB/s that was measured for -9e."""


@dataclass(frozen=True)
class Baseline:
    """Bits and bytes of each unit: a document, or a run of consecutive documents where single ones cost too much."""

    name: str
    bits: np.ndarray  # float64 [units]
    bytes: np.ndarray  # float64 [units]
    documents: np.ndarray  # int64 [units]: how many each holds

    @property
    def score(self) -> Score:
        """Bits per byte with its interval over units."""
        return ratio(self.bits, self.bytes)

    def excess(self, bits: Sequence[float] | np.ndarray) -> Score:
        """How many bits per byte a model needs more than this, unit by unit; `bits` are the model's, a document each.

        Below 0 the model is the better one. Documents differ far more from each other than two models on one document,
        so this interval decides where the two models' own intervals meet.
        """
        starts = np.concatenate([[0], np.cumsum(self.documents)[:-1]])
        theirs = np.add.reduceat(np.asarray(bits, dtype=np.float64), starts)
        return ratio(theirs - self.bits, self.bytes)

    def to_json(self) -> dict[str, Any]:
        """Everything, to be kept in a file; `from_json` reads it."""
        return {key: each.tolist() if isinstance(each, np.ndarray) else each for key, each in vars(self).items()}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Baseline:
        return cls(row["name"], *(np.asarray(row[key]) for key in ("bits", "bytes", "documents")))


def xz_size(content: bytes) -> int:
    """Bytes of `xz -9e` (its container included). The dictionary holds the last 64 MiB."""
    return len(lzma.compress(content, preset=XZ_9E))


def runs(sizes: Sequence[int], most: int) -> list[slice]:
    """Consecutive units in at most `most` runs of about equal bytes; every run holds at least one unit."""
    edges = np.cumsum(sizes)
    owner = np.minimum((edges - np.asarray(sizes) / 2) / max(edges[-1], 1) * most, most - 1).astype(int)
    starts = [0, *(np.flatnonzero(np.diff(owner)) + 1).tolist(), len(sizes)]
    return [slice(a, b) for a, b in itertools.pairwise(starts)]


def xz(texts: Sequence[str], *, budget: int = BUDGET) -> Baseline:
    """`xz -9e` of the held-out texts as one stream, nothing else known.

    All prefixes together compress about units/2 times the whole; with more text than `budget` allows, documents are
    taken together in runs, at least eight (or as many as there are documents): fewer give no honest interval.
    """
    contents = [text.encode("utf-8") for text in texts]
    total = sum(map(len, contents))
    affordable = int(2 * budget / max(total, 1)) - 1
    if len(contents) <= max(8, affordable):
        parts = [slice(i, i + 1) for i in range(len(contents))]
    else:
        parts = runs([len(c) for c in contents], max(8, affordable))
    ends = [b"".join(contents[: part.stop]) for part in parts]
    with ThreadPoolExecutor(2) as pool:  # lzma leaves the GIL
        sizes = np.array(list(pool.map(xz_size, ends)))
    held = np.array([part.stop - part.start for part in parts])
    bytes_ = np.diff([len(e) for e in ends], prepend=0).astype(float)
    return Baseline("xz -9e", 8.0 * np.diff(sizes, prepend=0), bytes_, held)


def xz_primed(texts: Sequence[str], training: Iterable[str], alone: Baseline, *, primer: int = 3 << 20) -> Baseline:
    """xz that has seen training text: C(primer + held-out) - C(primer).

    `primer`: bytes of training text, whole documents (the dictionary of -9e holds 64 MiB; more only costs time: 3 MiB
    take about 2 s). The whole is exact; its division over units is that of `alone`, scaled, because compressing the
    primer again for every prefix would take minutes: the interval is that approximation.
    """
    pieces: list[bytes] = []
    size = 0
    for text in training:
        pieces.append(text.encode("utf-8"))
        size += len(pieces[-1])
        if size >= primer:
            break
    before = b"".join(pieces)
    with ThreadPoolExecutor(2) as pool:
        after, base = pool.map(xz_size, [before + "".join(texts).encode("utf-8"), before])
    bits = alone.bits * (8.0 * (after - base) / alone.bits.sum())
    return Baseline("xz -9e, primed", bits, alone.bytes, alone.documents)


def ngram(texts: Sequence[str], training: Iterable[str], order: int = 5) -> Baseline:
    """The interpolated n-gram model of the training texts, each held-out document by itself."""
    bits = NgramModel.train(training, order).bits(texts)
    sizes = np.array([len(text.encode("utf-8")) for text in texts], float)
    return Baseline(f"{order}-gram", bits, sizes, np.ones(len(texts), np.int64))


def spread(texts: Sequence[str], size: int) -> list[str]:
    """About `size` bytes of texts, taken evenly over the sequence: a primer that holds something of every source."""
    total = sum(len(text.encode("utf-8")) for text in texts)
    if total <= size or not texts:
        return list(texts)
    chosen, taken, passed = [], 0, 0
    for text in texts:
        n = len(text.encode("utf-8"))
        if taken < size * (passed + n / 2) / total:
            chosen.append(text)
            taken += n
        passed += n
    return chosen


def measure(
    heldout: Sequence[str], training: Sequence[str], *, order: int = 5, primer: int = 3 << 20
) -> dict[str, Baseline]:
    """The three baselines: {"xz", "xz_primed", "ngram"}. About 10 s of one core for a corpus of
    10 MB with 250 kB held out."""
    alone = xz(heldout)
    return {
        "xz": alone,
        "xz_primed": xz_primed(heldout, spread(training, primer), alone, primer=primer),
        "ngram": ngram(heldout, training, order),
    }
