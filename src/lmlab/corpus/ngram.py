"""An interpolated n-gram model over bytes: the yardstick that a network has to beat on the same held-out bytes.

Interpolated modified Kneser-Ney (Chen and Goodman 1999, equations 17 and 21 to 24). With h' the context h without its
first byte, and k = 1 the shortest order, over a uniform distribution of 256 bytes:

    p_k(w | h) = max(c(h w) - D(c(h w)), 0) / c(h)  +  gamma(h) p_{k-1}(w | h')
    gamma(h)   = (D1 N1(h) + D2 N2(h) + D3 N3+(h)) / c(h)

c is the plain count in the highest order and, below it, the number of different bytes that were seen before the n-gram.
An n-gram of up to eight bytes is one 64-bit number, so that counts are sorted arrays and a look-up is a binary search.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from lmlab.errors import Refused

CHUNK = 16 << 20


@dataclass(frozen=True)
class Level:
    """One order: sorted n-grams (context and byte in one number) with their discounted probabilities, and sorted
    contexts with the mass that they leave to the order below."""

    grams: np.ndarray  # uint64 [G]
    alpha: np.ndarray  # float32 [G]
    contexts: np.ndarray  # uint64 [C]
    gamma: np.ndarray  # float32 [C]


class NgramModel:
    """Train with `NgramModel.train(texts, order)`; `bits(texts)` measures."""

    FILE: ClassVar[str] = "ngram.safetensors"
    """What a saved model is called."""

    def __init__(self, levels: list[Level]) -> None:
        self.levels = levels

    @property
    def order(self) -> int:
        return len(self.levels)

    @classmethod
    def train(cls, texts: Iterable[str], order: int = 5) -> NgramModel:
        """Count the n-grams of the texts' UTF-8 bytes. Each text starts after order - 1 zero bytes, which normalised
        text does not hold. Memory: about 40 bytes a distinct n-gram, and 16 MiB of text at a time.

        Raises ValueError for an order outside 1..8 and for no text at all.
        """
        if not 1 <= order <= 8:
            raise ValueError(f"order {order}: expected 1 to 8 (an n-gram is one 64-bit number)")
        grams, counts = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        for content in _chunks(texts, order):
            some, n = np.unique(_pack(content, order)[_scored(content, order)], return_counts=True)
            grams, counts = _add(grams, counts, some, n)
        if not len(grams):
            raise ValueError("an n-gram model needs some text")
        levels = []
        for k in range(order, 0, -1):
            levels.append(_level(grams, counts))
            if k > 1:  # the number of different bytes before: each distinct n-gram counts once for its ending
                mask = np.uint64((1 << 8 * (k - 1)) - 1)
                grams, counts = np.unique(grams & mask, return_counts=True)
        return cls(levels[::-1])

    def save(self, path: Path) -> None:
        """Write the levels as tensors `K.grams`, `K.alpha`, `K.contexts`, `K.gamma` of each order K."""
        from safetensors.numpy import save

        from lmlab.run import write_atomic

        write_atomic(
            path,
            save({f"{k}.{name}": each for k, level in enumerate(self.levels, 1) for name, each in vars(level).items()}),
        )

    @classmethod
    def load(cls, path: Path) -> NgramModel:
        """Raises Refused where the file is no such model."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            found = load_file(path)
            names = ("grams", "alpha", "contexts", "gamma")
            return cls([Level(*(found[f"{k}.{name}"] for name in names)) for k in range(1, len(found) // 4 + 1)])
        except (OSError, KeyError, SafetensorError) as error:
            raise Refused(f"{path}: is no saved n-gram model: {error}") from None

    def probabilities(self, content: bytes) -> np.ndarray:
        """p(byte | bytes before it) of each byte of one document, float64 [bytes]."""
        padded = np.frombuffer(b"\0" * (self.order - 1) + content, np.uint8)
        p = np.full(len(content), 1 / 256)
        for k, level in enumerate(self.levels, start=1):
            grams = _pack(padded, k)[self.order - k :]
            context, known = _find(level.contexts, grams >> np.uint64(8))
            p = np.where(known, level.gamma[context].astype(np.float64) * p, p)
            gram, seen = _find(level.grams, grams)
            p += np.where(seen, level.alpha[gram].astype(np.float64), 0.0)
        return p

    def bits(self, texts: Iterable[str]) -> np.ndarray:
        """Bits that the model needs for each text's UTF-8 bytes, float64 [texts]."""
        return np.array([float(-np.log2(self.probabilities(text.encode("utf-8"))).sum()) for text in texts])


def _chunks(texts: Iterable[str], order: int) -> Iterable[np.ndarray]:
    """Texts as bytes, order - 1 zero bytes before each, in pieces of whole texts of about CHUNK bytes."""
    start = b"\0" * (order - 1)
    pieces: list[bytes] = []
    size = 0
    for text in texts:
        pieces += [start, text.encode("utf-8")]
        size += len(pieces[-1])
        if size >= CHUNK:
            yield np.frombuffer(b"".join(pieces), np.uint8)
            pieces, size = [], 0
    if size:
        yield np.frombuffer(b"".join(pieces), np.uint8)


def _pack(content: np.ndarray, k: int) -> np.ndarray:
    """Each run of k bytes as one number, the last byte lowest: uint64 [bytes - k + 1]."""
    n = len(content) - k + 1
    if n <= 0:
        return np.zeros(0, np.uint64)
    packed = np.zeros(n, np.uint64)
    for i in range(k):
        packed = (packed << np.uint64(8)) | content[i : i + n]
    return packed


def _scored(content: np.ndarray, order: int) -> np.ndarray:
    """Which n-grams end in a byte of text and not in the padding between texts."""
    return content[order - 1 :] != 0


def _add(grams: np.ndarray, counts: np.ndarray, more: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not len(grams):
        return more, n.astype(np.int64)
    merged, inverse = np.unique(np.concatenate([grams, more]), return_inverse=True)
    total = np.bincount(inverse, weights=np.concatenate([counts, n]), minlength=len(merged))
    return merged, total.astype(np.int64)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """[0, D1, D2, D3+] (equations 21 to 24). Orders so short that hardly any count is small give no estimate: there
    each discount is half of what it can be at most, a guess that hardly matters as such contexts are well counted."""
    n1, n2, n3, n4 = (int((counts == c).sum()) for c in (1, 2, 3, 4))
    if not (n1 and n2 and n3):
        return np.array([0.0, 0.5, 0.5, 0.5])
    y = n1 / (n1 + 2 * n2)
    estimates = np.array([1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return np.concatenate([[0.0], np.clip(estimates, 0.05, [0.95, 1.95, 2.95])])


def _level(grams: np.ndarray, counts: np.ndarray) -> Level:
    discounts = _discounts(counts)[np.minimum(counts, 3)]
    contexts, starts = np.unique(grams >> np.uint64(8), return_index=True)
    totals = np.add.reduceat(counts, starts).astype(np.float64)
    gamma = np.add.reduceat(discounts, starts) / totals
    sizes = np.diff(np.append(starts, len(grams)))
    alpha = (counts - discounts) / np.repeat(totals, sizes)
    return Level(grams, alpha.astype(np.float32), contexts, gamma.astype(np.float32))


def _find(table: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(places, found) of keys in a sorted table."""
    at = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return at, table[at] == keys
