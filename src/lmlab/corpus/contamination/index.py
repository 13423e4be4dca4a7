"""The n-grams of what is measured with: sorted hashes, and who holds each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lmlab.corpus.dedup.units import ngrams
from lmlab.run import folder_atomic

CHUNK = 512
ARRAYS = ("hashes", "starts", "owners", "sizes", "least", "smallest")


@dataclass(frozen=True)
class Index:
    """The distinct n-grams of some documents or items, and which of them hold each."""

    name: str
    ngram: int
    hashes: np.ndarray  # uint64 [n-grams], sorted
    starts: np.ndarray  # int64 [n-grams + 1]: where each n-gram's owners begin
    owners: np.ndarray  # int32 [owners]: positions in ids
    sizes: np.ndarray  # int64 [documents]: n-grams that each owns
    least: np.ndarray  # float64 [documents]: a training document that holds this share of it leaks it
    smallest: np.ndarray  # int64 [documents]: ... if it owns at least so many
    ids: list[str]
    folder: Path | None = None

    @property
    def shift(self) -> np.uint64:
        """Bits of a hash that the sieve does not look at."""
        return np.uint64(64 - max(8, (8 * len(self.hashes)).bit_length()))

    @cached_property
    def sieve(self) -> np.ndarray:
        """Which upper bits some hash has, bool: a look-up here spares most n-grams the search. 8 to 16 bytes each."""
        there = np.zeros(1 << (64 - int(self.shift)), bool)
        there[self.hashes >> self.shift] = True
        return there

    @property
    def identity(self) -> str:
        """What match files depend on."""
        found = hashlib.sha256(json.dumps([self.name, self.ngram, self.ids]).encode())
        for name in ARRAYS:
            found.update(getattr(self, name).tobytes())
        return found.hexdigest()

    def __reduce__(self) -> Any:
        """Another process opens the files of a saved index, and is not sent the arrays."""
        return (load, (self.folder,)) if self.folder else super().__reduce__()


def build(
    name: str, documents: Iterable[tuple[str, str]], ngram: int, *, least: float, smallest: int = 1, shared: bool = True
) -> Index:
    """Index (id, text) pairs. `shared`: an n-gram belongs to each document that holds it, else to the first only."""
    ids: list[str] = []
    hashes: list[np.ndarray] = [np.zeros(0, np.uint64)]
    owners: list[np.ndarray] = [np.zeros(0, np.int32)]
    held: list[tuple[str, str]] = []

    def add() -> None:
        found, rows, _, _ = ngrams(pa.array([text for _, text in held], pa.string()), ngram)
        owner = rows.astype(np.int32) + len(ids)
        order = np.lexsort((owner, found))
        found, owner = found[order], owner[order]
        new = np.ones(len(found), bool)
        new[1:] = (found[1:] != found[:-1]) | ((owner[1:] != owner[:-1]) if shared else False)
        hashes.append(found[new])
        owners.append(owner[new])
        ids.extend(each for each, _ in held)
        held.clear()

    for pair in documents:
        held.append(pair)
        if len(held) == CHUNK:
            add()
    add()
    every, owner = np.concatenate(hashes), np.concatenate(owners)
    order = np.lexsort((owner, every))
    every, owner = every[order], owner[order]
    first = np.ones(len(every), bool)
    first[1:] = every[1:] != every[:-1]
    if not shared:
        every, owner, first = every[first], owner[first], np.ones(int(first.sum()), bool)
    starts = np.append(np.flatnonzero(first), len(every)).astype(np.int64)
    sizes = np.bincount(owner, minlength=len(ids))
    full = np.full(len(ids), least), np.full(len(ids), smallest, np.int64)
    return Index(name, ngram, every[first], starts, owner, sizes, *full, ids)


def save(index: Index, folder: Path) -> Index:
    """Write an index, and return it as other processes will see it: memory-mapped."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder_atomic(folder) as temporary:
        for name in ARRAYS:
            np.save(temporary / f"{name}.npy", getattr(index, name), allow_pickle=False)
        about = {"name": index.name, "ngram": index.ngram, "ids": index.ids}
        (temporary / "index.json").write_text(json.dumps(about), encoding="utf-8")
    return load(folder)


def load(folder: Path) -> Index:
    about = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    return Index(**about, **arrays, folder=folder)
