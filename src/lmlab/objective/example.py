"""An example: what a model is given to read and what it is to write. Tasks make them of text, layout.py lays them out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

Ids = np.ndarray
"""Token ids, int64, one dimension."""

NOTHING = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Example:
    """`source`, read in both directions where the architecture can, and `target`, written from left to right.

    The first `given` tokens of the target are shown and carry no loss. A target is predicted from itself, moved by one
    place, unless `inputs` (of its length) says what stands in the decoder. `positions` and `block_positions` are GLM's two,
    of the inputs. `part`: which objective of a mixture it comes from.
    """

    source: Ids
    target: Ids
    given: int = 0
    inputs: Ids | None = None
    positions: Ids | None = None
    block_positions: Ids | None = None
    part: int = 0


class Room(NamedTuple):
    """Tokens of a source, of a target, and of both together, at most."""

    source: int
    target: int
    both: int


class Task(Protocol):
    """An objective's way with a piece of text."""

    @property
    def plain(self) -> bool:
        """Whether each token is learnt from all before it, so that any text can be scored token after token."""
        ...

    def lengths(self, n: int) -> tuple[float, float]:
        """Tokens of source and target that a text of `n` tokens gives, on average."""
        ...

    def room(self, n: int) -> Room:
        """What a text of `n` tokens needs."""
        ...

    def example(self, ids: Ids, rng: np.random.Generator) -> Example | None:
        """An example of a piece of text; None where it is too short to hold one."""
        ...

    def continuation(self, before: Ids, after: Ids) -> Example:
        """The example, in the format that is trained, whose loss is that of `after` given `before`."""
        ...


def largest_text(task: Task, context: int, encoder: bool) -> int:
    """Tokens of the longest text whose source and target fit into a context, each where there is an encoder, together
    where there is none. T5's windows are chosen so (568 tokens for 512, 1910.10683's code). Raises ValueError where none
    fits."""
    for n in range(2 * context, 1, -1):
        need = task.room(n)
        if (max(need.source, need.target) if encoder else need.both) <= context:
            return n
    raise ValueError(f"a context of {context} tokens has no room for an example of this objective")


def with_mode(example: Example | None, mode: int | None) -> Example | None:
    """The example with a mode token before its source."""
    if example is None or mode is None:
        return example
    return dataclasses.replace(example, source=np.concatenate(([mode], example.source)))
