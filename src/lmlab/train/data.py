"""Pretraining batches: documents one after another, cut into windows, in an order that is a pure function of the seed.

So is what an objective draws in a window: the place of a cut, the spans that are taken out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from lmlab.corpus.shards import Shards
from lmlab.objective.batch import Batch
from lmlab.objective.example import Example, Ids, Task
from lmlab.objective.layout import Layout
from lmlab.train.order import EpochOrder, Order
from lmlab.train.ramp import Batches

Share = tuple[int, int]
"""(this rank's place, how many ranks divide a batch's rows); (0, 1): all of them."""


def own(rows: np.ndarray, share: Share) -> np.ndarray:
    """A rank's part of a micro-batch's rows; it may be empty. The union over ranks is what one process would take."""
    return np.array_split(rows, share[1])[share[0]]


class PackedWindows:
    """A source of batches. Windows of `length` tokens of the concatenated documents; an epoch visits each window once.

    With `separate` documents that share a window do not see each other (segment ids reach the attention mask), and the
    first token of a document is no target of the one before it.
    """

    ahead = True

    def __init__(
        self,
        shard: Shards,
        length: int,
        batches: Batches | int,
        micro_batches: int,
        seed: int,
        separate: bool,
        order: Order | None = None,
        share: Share = (0, 1),
    ) -> None:
        """`batches`: rows a step, or how they grow. `order`: which window is whose turn; None for all, epoch by epoch."""
        self.tokens, self.starts, self.length, self.separate = shard.tokens, shard.starts, length, separate
        self.share = share
        self.batches = Batches(batches, length) if isinstance(batches, int) else batches
        self.micro_batches, self.seed = micro_batches, seed
        self.order = order or EpochOrder(shard, length, seed, beyond=1)

    def __call__(self, step: int) -> list[Batch]:
        places = self.order.places(self.batches.numbers(step))
        return [self._own(part) for part in np.array_split(places, self.micro_batches) if len(part)]

    def _own(self, places: np.ndarray) -> Batch:
        """This rank's rows. Where there are fewer rows than ranks, one that counts for nothing: all must take part."""
        rows = own(places, self.share)
        if len(rows):
            return self._batch(rows)
        batch = self._batch(places[:1])
        nothing = torch.zeros_like(batch.mask_BT)
        return dataclasses.replace(batch, mask_BT=nothing, padding_BT=~nothing)

    def _batch(self, places: np.ndarray) -> Batch:
        at = places[:, None] + np.arange(self.length + 1)
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

    ahead = True

    def __init__(
        self,
        shard: Shards,
        task: Task,
        layout: Layout,
        length: int,
        batches: Batches | int,
        micro_batches: int,
        seed: int,
        separate: bool,
        order: Order | None = None,
        share: Share = (0, 1),
    ) -> None:
        self.share = share
        self.tokens, self.starts, self.task, self.layout = shard.tokens, shard.starts, task, layout
        self.length, self.micro_batches = length, micro_batches
        self.batches = Batches(batches, length) if isinstance(batches, int) else batches
        self.seed, self.separate = seed, separate
        self.order = order or EpochOrder(shard, length, seed, beyond=0)

    def __call__(self, step: int) -> list[Batch]:
        numbers = self.batches.numbers(step)
        places = self.order.places(numbers)
        parts = zip(np.array_split(places, self.micro_batches), np.array_split(numbers, self.micro_batches))
        multiple = -(-len(numbers) // self.micro_batches // self.share[1] // 4) or 1
        return [self._batch(own(at, self.share), own(which, self.share), multiple) for at, which in parts if len(at)]

    def _batch(self, places: np.ndarray, numbers: np.ndarray, multiple: int) -> Batch:
        examples = [example for w, i in zip(places, numbers) for example in self.examples(int(w), int(i))]
        return self.layout.batch(examples, multiple)[0]

    def examples(self, place: int, number: int) -> Iterator[Example]:
        """The examples of the window that begins at a place in the tokens, drawn as the `number`-th of the run."""
        rng = np.random.default_rng([self.seed, number])
        for piece in self.pieces(place):
            example = self.task.example(piece, rng)
            if example is not None:
                yield example

    def pieces(self, begin: int) -> list[Ids]:
        """A window's tokens, cut where a document begins."""
        ids = self.tokens[begin : begin + self.length].astype(np.int64)
        if not self.separate:
            return [ids]
        cuts = self.starts[(self.starts > begin) & (self.starts < begin + self.length)] - begin
        return np.split(ids, cuts)
