"""Which files and rows are held out: by a hash of their names, before anything is read out of them."""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Iterable


def position(unit: str, seed: int = 0) -> float:
    """Where a unit (a relative path, or `path#row`) falls in [0, 1): uniform, and the same on every machine."""
    key = hashlib.blake2b(unit.encode("utf-8", "surrogateescape"), digest_size=8, salt=seed.to_bytes(8, "little"))
    return int.from_bytes(key.digest(), "little") / 2**64


def threshold(units: Iterable[str], fraction: float, minimum: int, seed: int = 0) -> float:
    """The position below which a unit is held out: `fraction`, or more where that would hold out fewer than `minimum`
    of the known units (but never more than a quarter of them, and at least one of two).
    """
    positions = sorted(position(unit, seed) for unit in set(units))
    wanted = min(minimum, max(len(positions) // 4, 1 if len(positions) > 1 else 0))
    if wanted == 0:
        return fraction
    last = heapq.nsmallest(wanted, positions)[-1]
    return max(fraction, math.nextafter(last, 1.0))


def side(unit: str, limit: float, seed: int = 0) -> str:
    """`heldout` or `train`."""
    return "heldout" if position(unit, seed) < limit else "train"
