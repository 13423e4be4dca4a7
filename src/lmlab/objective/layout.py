"""Examples to a batch: how each architecture is given a source and a target, several examples packed into a row.

causal decoder    source and target in one row, the target carries the loss
prefix decoder    the same, the source read in both directions
encoder-decoder   the source goes to the encoder; the decoder begins with a start token and writes the target

Examples of a row do not see each other, and each counts its positions from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lmlab.model.settings import Architecture
from lmlab.objective.batch import Batch
from lmlab.objective.example import Example, Ids


@dataclass(frozen=True)
class Layout:
    """Where examples go: the architecture, the decoder's and the encoder's room in tokens, the token that a decoder
    beside an encoder begins with, and the token that fills up. `blocks`: the model has GLM's two positions."""

    architecture: Architecture
    room: int
    encoder_room: int
    start_id: int
    pad_id: int
    blocks: bool = False

    @property
    def has_encoder(self) -> bool:
        return self.architecture == "encoder-decoder"

    def fits(self, example: Example) -> bool:
        """Whether an example fits into a row."""
        row = self._row(example)
        return len(row.tokens) <= self.room and len(row.encoder) <= self.encoder_room

    def batch(self, examples: Sequence[Example], multiple: int = 1) -> tuple[Batch, list[tuple[int, int]]]:
        """The batch, its rows rounded up to a multiple (few shapes, for the compiler), and (row, segment) of each
        example. An example goes to the first row that has room. Raises ValueError where one fits into no row."""
        rows = [self._row(example) for example in examples]
        free: list[tuple[int, int]] = []
        held: list[list[_Row]] = []
        places = []
        for row in rows:
            need = len(row.tokens), len(row.encoder)
            at = next((i for i, room in enumerate(free) if room[0] >= need[0] and room[1] >= need[1]), len(free))
            if at == len(free):
                free.append((self.room, self.encoder_room))
                held.append([])
            free[at] = free[at][0] - need[0], free[at][1] - need[1]
            if min(free[at]) < 0:
                raise ValueError(f"an example of {need} tokens does not fit into {self.room} and {self.encoder_room}")
            places.append((at, len(held[at])))
            held[at].append(row)
        return self._filled(held, -(-max(1, len(held)) // multiple) * multiple), places

    def _row(self, example: Example) -> _Row:
        source, target = example.source, example.target
        learnt = np.arange(len(target)) >= example.given
        if example.inputs is None and not self.has_encoder:
            # The source's last token predicts the target's first.
            whole = np.concatenate((source, target))
            learnt = np.concatenate((np.zeros(len(source), dtype=bool), learnt))
            return _Row(whole[:-1], whole[1:], learnt[1:], np.arange(len(whole) - 1), len(source), source[:0], example)
        inputs = example.inputs
        if inputs is None:
            inputs = np.concatenate(([self.start_id], target[:-1]))
        if self.has_encoder:
            return _Row(inputs, target, learnt, np.arange(len(inputs)), 0, source, example)
        tokens = np.concatenate((source, inputs))
        nothing = np.full(len(source), self.pad_id)
        targets = np.concatenate((nothing, target))
        learnt = np.concatenate((nothing < 0, learnt))
        positions = np.arange(len(tokens))
        if self.blocks and example.positions is not None:
            positions[len(source) :] = example.positions
        return _Row(tokens, targets, learnt, positions, len(source), source[:0], example)

    def _filled(self, held: list[list[_Row]], count: int) -> Batch:
        shape, encoder_shape = (count, self.room), (count, self.encoder_room)
        tokens, targets = (np.full(shape, self.pad_id, dtype=np.int64) for _ in range(2))
        mask = np.zeros(shape, dtype=bool)
        segments = np.full(shape, -1, dtype=np.int64)
        positions, prefix, blocks, parts = (np.zeros(shape, dtype=np.int64) for _ in range(4))
        encoder = np.full(encoder_shape, self.pad_id, dtype=np.int64)
        encoder_segments = np.full(encoder_shape, -1, dtype=np.int64)
        encoder_positions = np.zeros(encoder_shape, dtype=np.int64)
        for b, rows in enumerate(held):
            at = encoder_at = 0
            for number, row in enumerate(rows):
                here = slice(at, at + len(row.tokens))
                tokens[b, here], targets[b, here], mask[b, here] = row.tokens, row.targets, row.mask
                segments[b, here], positions[b, here], parts[b, here] = number, row.positions, row.example.part
                # A key's prefix: none for the target's tokens, whose position may lie inside the source (GLM).
                prefix[b, at : at + row.prefix] = row.prefix
                if row.example.block_positions is not None:
                    blocks[b, at + row.prefix : here.stop] = row.example.block_positions
                there = slice(encoder_at, encoder_at + len(row.encoder))
                encoder[b, there], encoder_segments[b, there] = row.encoder, number
                encoder_positions[b, there] = np.arange(len(row.encoder))
                at, encoder_at = here.stop, there.stop
        tensor = torch.from_numpy
        batch = Batch(
            tensor(tokens),
            tensor(targets),
            tensor(mask),
            segments_BT=tensor(segments),
            positions_BT=tensor(positions),
            padding_BT=tensor(segments < 0),
            parts_BT=tensor(parts),
        )
        if self.blocks:
            batch.block_positions_BT = tensor(blocks)
        if self.architecture == "prefix-decoder":
            batch.prefix_BT = tensor(prefix)
        if self.has_encoder:
            batch.encoder_tokens_BS = tensor(encoder)
            batch.encoder_segments_BS = tensor(encoder_segments)
            batch.encoder_positions_BS = tensor(encoder_positions)
            batch.encoder_padding_BS = tensor(encoder_segments < 0)
        return batch


@dataclass(frozen=True)
class _Row:
    """An example as one architecture takes it."""

    tokens: Ids
    targets: Ids
    mask: np.ndarray
    positions: Ids
    prefix: int
    encoder: Ids
    example: Example
