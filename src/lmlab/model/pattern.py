"""Attention patterns: which keys a query sees beside what the architecture allows.

`full`, `local(W)`, `strided(l)` and `fixed(l, c)`; the last two are the union of the two heads of the Sparse Transformer
(1904.10509, section 4.3). Distances are absolute, so a prefix, which is read in both directions, is cut alike on both sides.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lmlab.errors import nearest

Sees = Callable[..., Any]
"""(i, j, *numbers) -> whether a query at i sees a key at j; on tensors of positions or on numbers."""


@dataclass(frozen=True)
class _Kind:
    numbers: tuple[str, ...]
    sees: Sees
    keys: Callable[..., float]
    """(T, *numbers) -> about how many of T keys a query sees."""


_KINDS: dict[str, _Kind] = {
    "full": _Kind((), lambda i, j: (i - j) == (i - j), lambda T: T),
    "local": _Kind(("W",), lambda i, j, W: abs(i - j) < W, min),
    "strided": _Kind(
        ("l",),
        lambda i, j, stride: (abs(i - j) <= stride) | ((i - j) % stride == 0),
        lambda T, stride: min(T, stride + T / stride),
    ),
    "fixed": _Kind(
        ("l", "c"),
        lambda i, j, block, columns: (i // block == j // block) | (j % block >= block - columns),
        lambda T, block, columns: min(T, block + T * columns / block),
    ),
}


@dataclass(frozen=True)
class Pattern:
    """A parsed pattern, such as local(256)."""

    kind: str
    numbers: tuple[int, ...] = ()

    def sees(self, i: Any, j: Any) -> Any:
        """Whether a query at position i sees a key at position j (broadcasts)."""
        return _KINDS[self.kind].sees(i, j, *self.numbers)

    def keys(self, length: int) -> float:
        """About how many of `length` keys a query sees, the cut by causality not counted."""
        return _KINDS[self.kind].keys(length, *self.numbers)

    @property
    def is_full(self) -> bool:
        return self.kind == "full"


FULL = Pattern("full")


def parse_pattern(text: str) -> Pattern:
    """`local(256)` -> Pattern. Raises ValueError naming what is known."""
    match = re.fullmatch(r"\s*([a-z]+)\s*(?:\(\s*([^()]*)\s*\))?\s*", text)
    known = [f"{name}({', '.join(kind.numbers)})" if kind.numbers else name for name, kind in _KINDS.items()]
    if match is None or match[1] not in _KINDS:
        raise ValueError(f"attention '{text}': unknown pattern{nearest(text.split('(', maxsplit=1)[0], known)}")
    name, inside = match[1], match[2] or ""
    wanted = _KINDS[name].numbers
    words = [word.strip() for word in inside.split(",")] if inside else []
    if len(words) != len(wanted) or not all(re.fullmatch(r"[1-9]\d*", word) for word in words):
        shape = f"{name}({', '.join(wanted)})" if wanted else name
        raise ValueError(f"attention '{text}': expected {shape} with whole numbers above 0")
    numbers = tuple(int(word) for word in words)
    if name == "fixed" and numbers[1] > numbers[0]:
        raise ValueError(f"attention '{text}': c {numbers[1]} is more than the block l {numbers[0]}")
    return Pattern(name, numbers)
