"""Keys and values of the requests under way, of fixed size and written in place."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lmlab.model.config import ModelConfig


class Cache:
    """(L, rows, 2, G, S, K): layer, row, keys or values, head, slot. A token's slot is its position in its sequence.

    Rows 0 to n - 1 belong to the n requests under way. The slots of a head lie one after another, because that is how
    attention reads them (measured: half the time of the layout with heads innermost, at 32 rows of 112 slots).
    """

    def __init__(self, config: ModelConfig, rows: int, size: int, device: torch.device) -> None:
        kv_heads, head_dim, _ = config.dims
        self.rows, self.size = rows, size
        # Zeros, not whatever the memory holds: a masked slot has weight 0, and 0 x NaN would be NaN.
        shape = (config.layers, rows, 2, kv_heads, size, head_dim)
        self.arrays: list[np.ndarray] = []
        if device.type == "cpu":
            # numpy asks the system for huge pages, torch does not: 13 to 25% of attention at 32 rows (measured).
            self.data = torch.from_numpy(np.zeros(shape, np.float32))
            self.arrays = list(self.data.numpy())
        else:
            self.data = torch.zeros(shape, device=device)

    @property
    def bytes(self) -> int:
        """Memory of keys and values."""
        return self.data.numel() * self.data.element_size()

    def write(self, layer: int, kv_N: Tensor, rows_N: Tensor, positions_N: Tensor) -> None:
        """Keys and values (N, 2 G K) of one layer to their rows and slots."""
        _, _, _, kv_heads, _, head_dim = self.data.shape
        self.data[layer][rows_N, :, :, positions_N] = kv_N.view(-1, 2, kv_heads, head_dim)

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Let a row hold what another does, up to `length` slots."""
        self.data[:, target, :, :, :length] = self.data[:, source, :, :, :length]

    def read_row(self, row: int, length: int) -> Tensor:
        """A copy of a row's first slots, (L, 2, G, length, K)."""
        return self.data[:, row, :, :, :length].clone()

    def write_row(self, row: int, content: Tensor) -> None:
        """Put what `read_row` gave into a row."""
        self.data[:, row, :, :, : content.shape[3]] = content

    def clear_row(self, row: int) -> None:
        """Forget a row whose numbers are no numbers, so that they cannot reach whoever has the row next."""
        self.data[:, row] = 0.0

    def grown(self, config: ModelConfig, rows: int, size: int) -> Cache:
        """A cache of at least so many rows and slots with what this one holds; itself where it is large enough."""
        if rows <= self.rows and size <= self.size:
            return self
        larger = Cache(config, max(rows, self.rows), max(size, self.size), self.data.device)
        larger.data[:, : self.rows, :, :, : self.size] = self.data
        return larger
