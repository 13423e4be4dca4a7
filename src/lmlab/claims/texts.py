"""Texts that a claim makes for itself, where its question asks for text of which everything is known."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lmlab.run import write_atomic

SYLLABLES = ["".join(pair) for pair in itertools.product("bdfghjklmnprstvwz", "aeiou")]
"""85 words of one token each, once a byte-level BPE of 512 has read some of such text."""


def copies(rng: np.random.Generator) -> str:
    """8 to 28 random words, then the same again: nothing but the first half predicts the second (2209.11895)."""
    words = rng.choice(SYLLABLES, int(rng.integers(8, 29))).tolist()
    return " ".join(words + words)


def noise(rng: np.random.Generator) -> str:
    """About 2,000 random bytes of ASCII: a broken record, of which nothing can be learnt but that it is one."""
    return bytes(rng.integers(33, 127, 2000, dtype=np.uint8)).decode("ascii")


MAKERS: dict[str, Callable[[np.random.Generator], str]] = {"copies": copies, "noise": noise}


def write(kind: str, documents: int, path: Path) -> None:
    """So many documents as JSON Lines, the same on every machine."""
    rng = np.random.Generator(np.random.Philox(key=[0, sum(kind.encode())]))
    lines = (json.dumps({"text": MAKERS[kind](rng)}) + "\n" for _ in range(documents))
    write_atomic(path, "".join(lines))
