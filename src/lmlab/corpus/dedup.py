"""Duplicate documents: exact by hash, near by MinHash and locality-sensitive hashing, clusters by union-find.

Which copy stays: in each cluster the first in this order: held-out before training, then the order of sources, of files
and of rows. So the held-out set stays as the split chose it (less its own duplicates), and training loses what
resembles it.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from lmlab.corpus.arrow import buffers
from lmlab.corpus.compiled import kernel
from lmlab.corpus.config import NearDuplicates
from lmlab.corpus.kernels import signatures


@kernel
def link(keys, order, signs, parent, threshold, window):
    """Join documents that share a band key and whose signatures agree: union-find in place over `parent`.

    keys, order: [n] the band's keys and what sorts them (stably). Each member of a bucket is compared with up to
    `window` members before it that are not joined with it yet. The smaller index is always the root.
    """
    n = len(order)
    begin = 0
    for i in range(n):
        if keys[order[i]] != keys[order[begin]]:
            begin = i
        for j in range(max(begin, i - window), i):
            a, b = order[i], order[j]
            while parent[a] != a:
                parent[a] = parent[parent[a]]
                a = parent[a]
            while parent[b] != b:
                parent[b] = parent[parent[b]]
                b = parent[b]
            if a == b:
                continue
            equal = 0
            for k in range(signs.shape[1]):
                equal += signs[order[i], k] == signs[order[j], k]
            if equal >= threshold * signs.shape[1]:
                if a < b:
                    parent[b] = a
                else:
                    parent[a] = b


def hash_family(config: NearDuplicates) -> tuple[np.ndarray, np.ndarray]:
    """(odd multipliers, increments) of the MinHash functions, uint64, drawn from the seed."""
    draw = np.random.Generator(np.random.Philox(key=config.seed))
    n = config.bands * config.rows
    multipliers = draw.integers(0, 2**64, n, dtype=np.uint64) | np.uint64(1)
    return multipliers, draw.integers(0, 2**64, n, dtype=np.uint64)


class SignStep:
    """Replaces a document by what comparison needs: its split, whether it is kept, a 128-bit hash and a signature."""

    name = "sign"

    def __init__(self, config: NearDuplicates) -> None:
        self.config = config
        self.identity = ["sign", 1, config.model_dump()]
        self._family = hash_family(config)

    def __call__(self, table: pa.Table) -> pa.Table:
        data, offsets = buffers(table["text"])
        view = memoryview(data.data)
        hashes = [hashlib.blake2b(view[a:b], digest_size=16).digest() for a, b in itertools.pairwise(offsets)]
        width = 4 * self.config.bands * self.config.rows
        signs = signatures(data, offsets, self.config.shingle, *self._family) if self.config.enabled else None
        rows = [signs[i].tobytes() for i in range(len(table))] if signs is not None else [b"\0" * width] * len(table)
        return pa.table(
            {
                "split": table["split"],
                "keep": table["keep"],
                "exact": pa.array(hashes, pa.binary(16)),
                "signature": pa.array(rows, pa.binary(width)),
            }
        )


@dataclass(frozen=True)
class Duplicates:
    """For each document, in corpus order: the document that it duplicates (itself if it stays) and how alike they are
    (the share of equal hashes; 1 for an exact copy), and whether the copy is exact."""

    original: np.ndarray  # int64 [documents]
    similarity: np.ndarray  # float32 [documents]
    exact: np.ndarray  # bool [documents]


def find(keys: pa.Table, config: NearDuplicates, *, exact: bool = True) -> Duplicates:
    """Decide over the whole corpus. `keys` holds the columns of `SignStep`, in corpus order.

    Memory: 4 x bands x rows + about 60 bytes a document, the signatures being the larger part.
    """
    n = len(keys)
    original = np.arange(n, dtype=np.int64)
    similarity, is_exact = np.zeros(n, np.float32), np.zeros(n, bool)
    kept = np.flatnonzero(keys["keep"].to_numpy())
    heldout = np.array(keys["split"].to_pylist(), dtype=object)[kept] == "heldout"
    ranked = kept[np.argsort(~heldout, kind="stable")]  # the order in which a copy is preferred
    if exact and len(ranked):
        raw = b"".join(keys["exact"].combine_chunks().to_pylist())
        digests = np.frombuffer(raw, dtype="V16")[ranked]
        _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
        firsts = ranked[first[inverse.ravel()]]
        is_exact[ranked] = firsts != ranked
        original[ranked] = firsts
        similarity[is_exact] = 1.0
        ranked = ranked[firsts == ranked]
    if config.enabled and len(ranked):
        raw = b"".join(keys["signature"].combine_chunks().to_pylist())
        signs = np.frombuffer(raw, dtype=np.uint32).reshape(n, config.bands * config.rows)[ranked]
        parents = cluster(signs, config)
        moved = parents != np.arange(len(ranked))
        original[ranked[moved]] = ranked[parents[moved]]
        similarity[ranked[moved]] = (signs[moved] == signs[parents[moved]]).mean(axis=1)
    # An exact copy of a document that is itself a near copy points to the one that stays.
    original = original[original]
    return Duplicates(original, similarity, is_exact)


def cluster(signs: np.ndarray, config: NearDuplicates, *, window: int = 256) -> np.ndarray:
    """The root (the first member) of each row's cluster. signs: uint32 [documents, bands x rows], best first.

    In a bucket of more than `window` documents each is compared with the `window` before it only: with more, the cost
    would grow with the square of the bucket.
    """
    parent = np.arange(len(signs), dtype=np.int64)
    for band in range(config.bands):
        part = np.ascontiguousarray(signs[:, band * config.rows : (band + 1) * config.rows])
        keys = np.zeros(len(signs), np.uint64)
        for column in range(config.rows):
            keys = (keys ^ part[:, column]) * np.uint64(0x9E3779B97F4A7C15)
            keys ^= keys >> np.uint64(29)
        link(keys, np.argsort(keys, kind="stable"), signs, parent, config.threshold, window)
    while not np.array_equal(parent, parent[parent]):
        parent = parent[parent]
    return parent
