"""A batch of token sequences with named fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass
class Batch:
    """tokens (B, T); targets (B, T), meaningful where mask; mask (B, T) True where a position carries loss;
    segments and positions (B, T) where several documents share a row.
    """

    tokens_BT: Tensor
    targets_BT: Tensor
    mask_BT: Tensor
    segments_BT: Tensor | None = None
    positions_BT: Tensor | None = None


def pad_rows(rows: Sequence[tuple[Sequence[int], Sequence[bool]]], pad_id: int, multiple: int = 16) -> Batch:
    """Rows of (ids, trained) to one batch of next-token prediction, right-padded to a multiple of `multiple`.

    `trained[i]` says whether ids[i] is to be learnt; it is the target at position i - 1. Labels come from lengths, never
    from an id, so a pad that equals another token cannot mask it (DESIGN trap 1).
    """
    longest = max(len(ids) for ids, _ in rows) - 1
    length = max(multiple, -(-longest // multiple) * multiple)
    tokens = np.full((len(rows), length), pad_id, dtype=np.int64)
    targets = np.full((len(rows), length), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), length), dtype=bool)
    for row, (ids, trained) in enumerate(rows):
        n = len(ids) - 1
        tokens[row, :n], targets[row, :n], mask[row, :n] = ids[:-1], ids[1:], trained[1:]
    return Batch(torch.from_numpy(tokens), torch.from_numpy(targets), torch.from_numpy(mask))
