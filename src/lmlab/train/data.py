"""Pretraining batches: documents one after another, cut into windows, in an order that is a pure function of the seed.

So is what an objective draws in a window: the place of a cut, the spans that are taken out.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from lmlab.corpus.shards import Shard
from lmlab.objective.batch import Batch
from lmlab.objective.example import Example, Ids, Task
from lmlab.objective.layout import Layout
from lmlab.train.ramp import Batches


def window_order(numbers: np.ndarray, windows: int, seed: int) -> np.ndarray:
    """The windows that are the numbers-th of a run: those of the epochs' permutations, each drawn by Philox(seed, epoch)."""
    epochs, places = np.divmod(numbers, windows)
    orders = {e: np.random.Generator(np.random.Philox(key=[seed, e])).permutation(windows) for e in set(epochs)}
    return np.array([orders[e][p] for e, p in zip(epochs, places)])


class PackedWindows:
    """A source of batches. Windows of `length` tokens of the concatenated documents; an epoch visits each window once.

    With `separate` documents that share a window do not see each other (segment ids reach the attention mask), and the
    first token of a document is no target of the one before it.
    """

    def __init__(
        self, shard: Shard, length: int, batches: Batches | int, micro_batches: int, seed: int, separate: bool
    ) -> None:
        """`batches`: rows a step, or how they grow."""
        self.tokens, self.length, self.separate = shard.tokens, length, separate
        self.batches = Batches(batches, length) if isinstance(batches, int) else batches
        self.micro_batches, self.seed = micro_batches, seed
        self.starts = shard.starts
        self.windows = (len(self.tokens) - 1) // length
        if self.windows < 1:
            raise ValueError(f"{len(self.tokens)} training tokens are fewer than one window of {length}")

    def indices(self, step: int) -> np.ndarray:
        """The windows of an optimizer step."""
        return window_order(self.batches.numbers(step), self.windows, self.seed)

    def __call__(self, step: int) -> list[Batch]:
        windows = self.indices(step)
        return [self._batch(part) for part in np.array_split(windows, self.micro_batches) if len(part)]

    def _batch(self, windows: np.ndarray) -> Batch:
        at = windows[:, None] * self.length + np.arange(self.length + 1)
        ids = torch.from_numpy(self.tokens[at].astype(np.int64))
        segments = np.searchsorted(self.starts, at, side="right")
        inside = torch.from_numpy(segments[:, 1:] == segments[:, :-1])
        seen: Tensor | None = torch.from_numpy(segments[:, :-1]) if self.separate else None
        mask = inside if self.separate else torch.ones_like(inside)
        return Batch(ids[:, :-1], ids[:, 1:], mask, segments_BT=seen)


class ExampleWindows:
    """A source of batches for every other objective: windows of `length` tokens, an example of each (with `separate` of
    each document's piece of it), laid out for an architecture.

    What a task draws in the i-th window of the run comes from a generator of (seed, i): a resumed run draws the same, and
    another epoch draws anew. Rows vary with what fits together; they are rounded up to quarters of a step's.
    """

    def __init__(
        self,
        shard: Shard,
        task: Task,
        layout: Layout,
        length: int,
        batches: Batches | int,
        micro_batches: int,
        seed: int,
        separate: bool,
    ) -> None:
        self.tokens, self.starts, self.task, self.layout = shard.tokens, shard.starts, task, layout
        self.length, self.micro_batches = length, micro_batches
        self.batches = Batches(batches, length) if isinstance(batches, int) else batches
        self.seed, self.separate = seed, separate
        self.windows = len(self.tokens) // length
        if self.windows < 1:
            raise ValueError(f"{len(self.tokens)} training tokens are fewer than one window of {length}")

    def __call__(self, step: int) -> list[Batch]:
        numbers = self.batches.numbers(step)
        windows = window_order(numbers, self.windows, self.seed)
        parts = zip(np.array_split(windows, self.micro_batches), np.array_split(numbers, self.micro_batches))
        multiple = -(-len(numbers) // self.micro_batches // 4) or 1
        return [
            self.layout.batch([e for w, i in zip(*part) for e in self.examples(int(w), int(i))], multiple)[0]
            for part in parts
            if len(part[0])
        ]

    def examples(self, window: int, number: int) -> Iterator[Example]:
        """The examples of a window, drawn as the `number`-th of the run."""
        rng = np.random.default_rng([self.seed, number])
        for piece in self.pieces(window):
            example = self.task.example(piece, rng)
            if example is not None:
                yield example

    def pieces(self, window: int) -> list[Ids]:
        """A window's tokens, cut where a document begins."""
        begin = window * self.length
        ids = self.tokens[begin : begin + self.length].astype(np.int64)
        if not self.separate:
            return [ids]
        cuts = self.starts[(self.starts > begin) & (self.starts < begin + self.length)] - begin
        return np.split(ids, cuts)
