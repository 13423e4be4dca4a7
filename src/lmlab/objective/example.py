"""An example: what a model is given to read and what it is to write. Tasks make them of text, layout.py lays them out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

Ids = np.ndarray
"""Token ids, int64, one dimension."""


@dataclass(frozen=True)
class Example:
    """`source`, read in both directions where the architecture can, and `target`, written from left to right.

    The first `given` tokens of the target are shown and carry no loss.
    """

    source: Ids
    target: Ids
    given: int = 0


class Task(Protocol):
    """An objective's way with a piece of text."""

    @property
    def plain(self) -> bool:
        """Whether each token is learnt from all before it, so that any text can be scored token after token."""
        ...

    def lengths(self, n: int) -> tuple[float, float]:
        """Tokens of source and target that a text of `n` tokens gives, on average."""
        ...

    def capacity(self, n: int) -> tuple[int, int]:
        """Tokens of source and target that a text of `n` tokens, or several of together `n`, give at most."""
        ...

    def example(self, ids: Ids, rng: np.random.Generator) -> Example | None:
        """An example of a piece of text; None where it is too short to hold one."""
        ...

    def continuation(self, before: Ids, after: Ids) -> Example:
        """The example, in the format that is trained, whose loss is that of `after` given `before`."""
        ...


def largest_text(task: Task, room: int, encoder: bool) -> int:
    """Tokens of the longest text whose source fits into `room` of an encoder, or source and target together into a
    decoder's. T5's windows are chosen so (568 tokens for 512, 1910.10683's code). Raises ValueError where none fits."""
    for n in range(2 * room, 1, -1):
        source, target = task.capacity(n) if encoder else task.lengths(n)
        if (max(source, target) if encoder else source + target) <= room:
            return n
    raise ValueError(f"a context of {room} tokens has no room for an example of this objective")
