"""Keys and values of prompts' beginnings, kept for the requests that begin alike: few-shot demonstrations, system turns.

A beginning is kept in blocks of `attend.CHUNK` tokens, each known by the block before it and its own tokens (as in
vLLM's automatic prefix caching, after 2309.06180). What is taken from here is what would be computed again, to the last
bit: attention of a prompt is cut at the same places.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from lmlab.generate.attend import CHUNK
from lmlab.generate.cache import Cache, Row
from lmlab.model.config import ModelConfig

Key = tuple[int, tuple[int, ...]]
"""(number of the block before, 0 at the start; the block's tokens)."""


@dataclass(frozen=True)
class _Block:
    number: int
    held: Row

    @property
    def bytes(self) -> int:
        return self.held.bytes


def shareable(config: ModelConfig) -> bool:
    """Whether what sequences begin with in common may be computed once. Not where it is read in both directions, nor where
    an expert's places are counted over a whole sequence (`sequence_capacity`)."""
    counted = config.moe is not None and config.moe.sequence_capacity is not None
    return config.architecture == "causal-decoder" and not counted


class Prefixes:
    """At most `budget` bytes of blocks; the ones not asked for longest go first. A budget of 0 keeps nothing."""

    def __init__(self, budget: int) -> None:
        self.budget, self.bytes = budget, 0
        self._blocks: OrderedDict[Key, _Block] = OrderedDict()
        self._next = 1

    def clear(self) -> None:
        """Forget all: the weights have changed, or the memory is needed."""
        self._blocks.clear()
        self.bytes = 0

    def find(self, prompt: Sequence[int]) -> list[Row]:
        """The blocks that a prompt begins with, at most so many that a token is left to compute."""
        found = self._walk(prompt, (len(prompt) - 1) // CHUNK)
        for key, _ in reversed(found):  # a block is of no use without those before it: they are the last to go
            self._blocks.move_to_end(key)
        return [block.held for _, block in found]

    def missing(self, prompt: Sequence[int]) -> Key | None:
        """The first block of a prompt that is not here but would be kept if it were computed; None where all are."""
        most = (len(prompt) - 1) // CHUNK
        found = self._walk(prompt, most)
        if len(found) == most or not self.budget:
            return None
        before = found[-1][1].number if found else 0
        return before, _tokens(prompt, len(found))

    def holds(self, key: Key) -> bool:
        """Whether a block is here."""
        return key in self._blocks

    def keep(self, prompt: Sequence[int], cache: Cache, row: int) -> None:
        """Take over a prompt's whole blocks from its row of the cache, as far as the budget goes."""
        before = 0
        for index in range(len(prompt) // CHUNK):
            key = (before, _tokens(prompt, index))
            block = self._blocks.get(key)
            if block is None:
                size = cache.row_bytes(CHUNK)
                if size * (index + 1) > self.budget:
                    return
                block = _Block(self._next, cache.read_row(row, (index + 1) * CHUNK, index * CHUNK))
                self._next += 1
                self._blocks[key] = block
                self.bytes += block.bytes
                while self.bytes > self.budget:
                    _, old = self._blocks.popitem(last=False)
                    self.bytes -= old.bytes
            before = block.number

    def _walk(self, prompt: Sequence[int], most: int) -> list[tuple[Key, _Block]]:
        found: list[tuple[Key, _Block]] = []
        for index in range(most):
            key = (found[-1][1].number if found else 0, _tokens(prompt, index))
            block = self._blocks.get(key)
            if block is None:
                break
            found.append((key, block))
        return found


def _tokens(prompt: Sequence[int], index: int) -> tuple[int, ...]:
    return tuple(prompt[index * CHUNK : (index + 1) * CHUNK])
