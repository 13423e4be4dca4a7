"""Pretraining batches: documents one after another, cut into windows, in an order that is a pure function of the seed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lmlab.corpus.shards import Shard
from lmlab.objective.batch import Batch


class PackedWindows:
    """A source of batches. Windows of `length` tokens of the concatenated documents; an epoch visits each window once.

    With `separate` documents that share a window do not see each other (segment ids reach the attention mask), and the
    first token of a document is no target of the one before it.
    """

    def __init__(self, shard: Shard, length: int, rows: int, micro_batches: int, seed: int, separate: bool) -> None:
        self.tokens, self.length, self.rows, self.separate = shard.tokens, length, rows, separate
        self.micro_batches, self.seed = micro_batches, seed
        self.starts = shard.starts
        self.windows = (len(self.tokens) - 1) // length
        if self.windows < 1:
            raise ValueError(f"{len(self.tokens)} training tokens are fewer than one window of {length}")

    def indices(self, step: int) -> np.ndarray:
        """The windows of an optimizer step: a slice of the epochs' permutations, each drawn by Philox(seed, epoch)."""
        wanted = np.arange(step * self.rows, (step + 1) * self.rows)
        epochs, places = np.divmod(wanted, self.windows)
        orders = {
            e: np.random.Generator(np.random.Philox(key=[self.seed, e])).permutation(self.windows) for e in set(epochs)
        }
        return np.array([orders[e][p] for e, p in zip(epochs, places)])

    def __call__(self, step: int) -> list[Batch]:
        windows = self.indices(step)
        return [self._batch(part) for part in np.array_split(windows, self.micro_batches)]

    def _batch(self, windows: np.ndarray) -> Batch:
        at = windows[:, None] * self.length + np.arange(self.length + 1)
        ids = torch.from_numpy(self.tokens[at].astype(np.int64))
        segments = np.searchsorted(self.starts, at, side="right")
        inside = torch.from_numpy(segments[:, 1:] == segments[:, :-1])
        seen: Tensor | None = torch.from_numpy(segments[:, :-1]) if self.separate else None
        mask = inside if self.separate else torch.ones_like(inside)
        return Batch(ids[:, :-1], ids[:, 1:], mask, segments_BT=seen)
