"""A batch of token sequences with named fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass
class Batch:
    """tokens (B, T); targets (B, T), meaningful where mask; mask (B, T) True where a position carries loss;
    segments and positions (B, T) where several documents share a row; padding (B, T) True where a row is filled up.

    Of a prefix decoder prefix (B, T), the length of each token's document's prefix. Of an encoder-decoder the source: a
    target's segment sees the source of the same number. `block_positions` (B, T) are glm-2d's second positions. See
    `Transformer.forward`, which takes these by the same names. `parts` (B, T): which objective of a mixture.
    """

    tokens_BT: Tensor
    targets_BT: Tensor
    mask_BT: Tensor
    segments_BT: Tensor | None = None
    positions_BT: Tensor | None = None
    padding_BT: Tensor | None = None
    prefix_BT: Tensor | None = None
    block_positions_BT: Tensor | None = None
    parts_BT: Tensor | None = None
    encoder_tokens_BS: Tensor | None = None
    encoder_segments_BS: Tensor | None = None
    encoder_positions_BS: Tensor | None = None
    encoder_padding_BS: Tensor | None = None

    @property
    def size(self) -> int:
        """Tokens that are no padding, the source's among them."""
        n = self.tokens_BT.numel() if self.padding_BT is None else int((~self.padding_BT).sum())
        return n if self.encoder_padding_BS is None else n + int((~self.encoder_padding_BS).sum())


def filled(batch: Batch, rows: int, kept: int | None = None) -> Batch:
    """`rows` rows: the batch's first `kept` (None: all that it has), then some that count for nothing."""
    kept = len(batch.tokens_BT) if kept is None else kept
    if kept == rows:
        return batch
    fields = {name: value for name, value in vars(batch).items() if value is not None}
    fields.setdefault("padding_BT", torch.zeros_like(batch.mask_BT))
    if batch.encoder_tokens_BS is not None:
        # Named segments, so that padding sees padding: a row of scores must not be empty.
        fields.setdefault("encoder_padding_BS", torch.zeros_like(batch.encoder_tokens_BS, dtype=torch.bool))
        fields.setdefault("segments_BT", torch.zeros_like(batch.tokens_BT))
        fields.setdefault("encoder_segments_BS", torch.zeros_like(batch.encoder_tokens_BS))
    for name, value in fields.items():
        fields[name] = torch.cat((value[:kept], value[:1].expand(rows - kept, *value.shape[1:])))
    for name, value in (("mask_BT", False), ("padding_BT", True), ("encoder_padding_BS", True)):
        if name in fields:
            fields[name][kept:] = value
    return dataclasses.replace(batch, **fields)


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
