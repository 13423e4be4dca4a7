"""Keys and values of the requests under way, of fixed size and written in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmlab.model.config import ModelConfig

Memory = list[tuple[Tensor, Tensor]]
"""A request's keys and values of the encoder's states, of each layer (S, G, K): computed once, read only, so that rows
with one source share them."""


@dataclass(frozen=True)
class Row:
    """What a row of a cache holds: keys and values (L, 2, G, length, K), and the encoder's."""

    content: Tensor
    memory: Memory | None = None


class Cache:
    """(L, rows, 2, G, S, K): layer, row, keys or values, head, slot. A token's slot is its position in its sequence.

    Rows 0 to n - 1 belong to the n requests under way. The slots of a head lie one after another, because that is how
    attention reads them (measured: half the time of the layout with heads innermost, at 32 rows of 112 slots).
    """

    def __init__(
        self, config: ModelConfig, rows: int, size: int, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        """`dtype` float32, or bfloat16 for half the memory and half the reading."""
        kv_heads, head_dim, _ = config.dims
        self.rows, self.size = rows, size
        self.memories: dict[int, Memory] = {}
        # Zeros, not whatever the memory holds: a masked slot has weight 0, and 0 x NaN would be NaN.
        shape = (config.layers, rows, 2, kv_heads, size, head_dim)
        self.arrays: list[np.ndarray] = []
        if device.type == "cpu":
            # numpy asks the system for huge pages, torch does not: 13 to 25% of attention at 32 rows (measured).
            # numpy has no bfloat16: compiled functions take its bits as int16.
            numbers = np.zeros(shape, np.float32 if dtype == torch.float32 else np.int16)
            self.data, self.arrays = torch.from_numpy(numbers).view(dtype), list(numbers)
        else:
            self.data = torch.zeros(shape, device=device, dtype=dtype)

    @property
    def bytes(self) -> int:
        """Memory of keys and values."""
        return self.data.numel() * self.data.element_size()

    def row_bytes(self, slots: int) -> int:
        """Memory of so many slots of one row."""
        return self.data[:, 0, :, :, 0].numel() * self.data.element_size() * slots

    def write(self, layer: int, kv_N: Tensor, rows_N: Tensor, positions_N: Tensor) -> None:
        """Keys and values (N, 2 G K) of one layer to their rows and slots."""
        _, _, _, kv_heads, _, head_dim = self.data.shape
        self.data[layer][rows_N, :, :, positions_N] = kv_N.view(-1, 2, kv_heads, head_dim).to(self.data.dtype)

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Let a row hold what another does, up to `length` slots."""
        self.data[:, target, :, :, :length] = self.data[:, source, :, :, :length]
        self._remember(target, self.memories.get(source))

    def choose_rows(self, sources: Sequence[int], length: int) -> None:
        """Let row i hold what row `sources[i]` does, for all at once, up to `length` slots."""
        moved = [target for target, source in enumerate(sources) if target != source]
        if not moved:
            return
        self.data[:, moved, :, :, :length] = self.data[:, [sources[i] for i in moved], :, :, :length]
        before = dict(self.memories)
        for target in moved:
            self._remember(target, before.get(sources[target]))

    def copy_slot(self, source: int, slot: int, rows: int) -> None:
        """Let the first rows hold in one slot what a row does."""
        self.data[:, :rows, :, :, slot] = self.data[:, source : source + 1, :, :, slot].clone()

    def read_row(self, row: int, length: int, start: int = 0) -> Row:
        """A copy of a row's slots from `start` to `length`."""
        return Row(self.data[:, row, :, :, start:length].clone(), self.memories.get(row))

    def write_row(self, row: int, held: Row, start: int = 0) -> None:
        """Put what `read_row` gave into a row, from slot `start` on."""
        self.data[:, row, :, :, start : start + held.content.shape[3]] = held.content
        self._remember(row, held.memory)

    def clear_row(self, row: int) -> None:
        """Forget a row whose numbers are no numbers, so that they cannot reach whoever has the row next."""
        self.data[:, row] = 0.0
        self.memories.pop(row, None)

    def _remember(self, row: int, memory: Memory | None) -> None:
        if memory is None:
            self.memories.pop(row, None)
        else:
            self.memories[row] = memory

    def grown(self, config: ModelConfig, rows: int, size: int) -> Cache:
        """A cache of at least so many rows and slots with what this one holds; itself where it is large enough."""
        if rows <= self.rows and size <= self.size:
            return self
        larger = Cache(config, max(rows, self.rows), max(size, self.size), self.data.device, self.data.dtype)
        larger.data[:, : self.rows, :, :, : self.size] = self.data
        larger.memories = dict(self.memories)
        return larger
