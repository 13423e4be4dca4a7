"""Keys and values of the requests under way, of fixed size and written in place; of local layers the window alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmlab.generate.infill import Blank
from lmlab.model.config import ModelConfig

Memory = list[tuple[Tensor, Tensor]]
"""A request's keys and values of the encoder's states, of each layer (S, G, K): computed once, read only, so that rows
with one source share them."""

Beside = Memory | Blank
"""What a row has beside its keys and values: the encoder's, or where its blank is."""


@dataclass(frozen=True)
class Row:
    """What a row of a cache holds: keys and values (layers, 2, G, slots, K) of each group of layers, and what it has beside."""

    parts: tuple[Tensor, ...]
    memory: Beside | None = None

    @property
    def bytes(self) -> int:
        """Memory of its own keys and values."""
        return sum(part.numel() * part.element_size() for part in self.parts)


@dataclass
class _Group:
    """Layers with slots of one number: all of a sequence's, or a window's."""

    window: int | None
    layers: list[int]
    data: Tensor

    @property
    def slots(self) -> int:
        return self.data.shape[4]


class Cache:
    """(layers, rows, 2, G, S, K): layer, row, keys or values, head, slot. A token's slot is its position in its sequence.

    Rows 0 to n - 1 belong to the n requests under way. The slots of a head lie one after another, because that is how
    attention reads them (measured: half the time of the layout with heads innermost, at 32 rows of 112 slots).

    With a `slack` a layer of pattern local(W) has W + slack slots at most, and position p stands in slot p modulo their
    number: only the last W tokens are ever read, and `slack` of them may be taken back (speculative decoding). `arrays`
    and `layers` are (rows, 2, G, S, K) of each layer; `data` is all of them where all layers have all slots.
    """

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        size: int,
        device: torch.device,
        slack: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`dtype` float32, or bfloat16 for half the memory and half the reading."""
        self.kv_heads, self.head_dim, _ = config.dims
        self.rows, self.size, self.slack, self.dtype = rows, size, slack, dtype
        self.memories: dict[int, Beside] = {}
        self.windows = [None if slack is None else _window(config, layer) for layer in range(config.layers)]
        self.groups: list[_Group] = []
        self.layers: list[Tensor] = [torch.empty(0)] * config.layers
        arrays: dict[int, np.ndarray] = {}
        for window in dict.fromkeys(self.windows):
            layers = [layer for layer, each in enumerate(self.windows) if each == window]
            slots = size if window is None else min(size, window + (slack or 0))
            # Zeros, not whatever the memory holds: a masked slot has weight 0, and 0 x NaN would be NaN.
            shape = (len(layers), rows, 2, self.kv_heads, slots, self.head_dim)
            # numpy asks the system for huge pages, torch does not: 13 to 25% of attention at 32 rows (measured).
            if device.type == "cpu":
                # numpy has no bfloat16: compiled functions take its bits as int16.
                numbers = np.zeros(shape, np.float32 if dtype == torch.float32 else np.int16)
                data = torch.from_numpy(numbers).view(dtype)
                arrays |= dict(zip(layers, numbers))
            else:
                data = torch.zeros(shape, device=device, dtype=dtype)
            self.groups.append(_Group(window, layers, data))
            for layer, each in zip(layers, data):
                self.layers[layer] = each
        self.arrays = [arrays[layer] for layer in sorted(arrays)]
        self.data = self.groups[0].data
        at = {layer: (i, j) for i, group in enumerate(self.groups) for j, layer in enumerate(group.layers)}
        self.places = tuple(at[layer] for layer in range(config.layers))
        """(group, place in it) of each layer."""

    @property
    def bytes(self) -> int:
        """Memory of keys and values."""
        return sum(group.data.numel() * group.data.element_size() for group in self.groups)

    @property
    def is_windowed(self) -> bool:
        """Whether some layer has fewer slots than a sequence may have tokens."""
        return any(group.slots < self.size for group in self.groups)

    def row_bytes(self, slots: int) -> int:
        """Memory of so many slots of one row, of all layers."""
        return sum(group.data[:, 0, :, :, 0].numel() * group.data.element_size() for group in self.groups) * slots

    def write(self, layer: int, kv_N: Tensor, rows_N: Tensor, positions_N: Tensor) -> None:
        """Keys and values (N, 2 G K) of one layer to their rows and slots."""
        data, slots = self.layers[layer], self.layers[layer].shape[3]
        kv_N = kv_N.view(-1, 2, self.kv_heads, self.head_dim).to(self.dtype)
        if slots < self.size:
            # Of positions that share a slot the last is what stays; writes of one call have no order.
            none = torch.full((self.rows,), -1, device=rows_N.device)
            last = none.scatter_reduce(0, rows_N, positions_N, "amax")
            kept = positions_N > last[rows_N] - slots
            kv_N, rows_N, positions_N = kv_N[kept], rows_N[kept], positions_N[kept] % slots
        data[rows_N, :, :, positions_N] = kv_N

    def first(self, layer: int, position: int) -> int:
        """The first position that is there for a query of a layer at `position`."""
        window = self.windows[layer]
        return 0 if window is None else max(0, position - window + 1)

    def read(self, layer: int, row: int, begin: int, end: int) -> Tensor:
        """Keys and values (2, G, end - begin, K) of a row's positions; a view where that can be."""
        data, slots = self.layers[layer][row], self.layers[layer].shape[3]
        if end <= slots:
            return data[:, :, begin:end]
        return data[:, :, torch.arange(begin, end, device=data.device) % slots]

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Let a row hold what another does, up to `length` positions."""
        for group in self.groups:
            group.data[:, target, :, :, :length] = group.data[:, source, :, :, :length]
        self._remember(target, self.memories.get(source))

    def choose_rows(self, sources: Sequence[int], length: int) -> None:
        """Let row i hold what row `sources[i]` does, for all at once, up to `length` positions."""
        moved = [target for target, source in enumerate(sources) if target != source]
        if not moved:
            return
        for group in self.groups:
            group.data[:, moved, :, :, :length] = group.data[:, [sources[i] for i in moved], :, :, :length]
        before = dict(self.memories)
        for target in moved:
            self._remember(target, before.get(sources[target]))

    def copy_slot(self, source: int, position: int, rows: Sequence[int]) -> None:
        """Let rows hold at one position what a row does."""
        for group in self.groups:
            slot = position % group.slots
            group.data[:, list(rows), :, :, slot] = group.data[:, source : source + 1, :, :, slot].clone()

    def read_row(self, row: int, length: int, start: int = 0) -> Row:
        """A copy of a row's positions from `start` to `length`; of a windowed layer what it has of them, from 0 on."""
        assert start == 0 or not self.is_windowed
        parts = tuple(group.data[:, row, :, :, start:length].clone() for group in self.groups)
        return Row(parts, self.memories.get(row))

    def write_row(self, row: int, held: Row, start: int = 0) -> None:
        """Put what `read_row` of a cache with the same windows gave into a row, from position `start` on."""
        assert start == 0 or not self.is_windowed
        for group, part in zip(self.groups, held.parts, strict=True):
            group.data[:, row, :, :, start : start + part.shape[3]] = part
        self._remember(row, held.memory)

    def adopt(self, row: int, other: Cache, source: int, length: int) -> None:
        """Take over the first `length` positions of a row of a cache that has all slots: windows keep their last ones."""
        for group in self.groups:
            positions = torch.arange(max(0, length - group.slots), length, device=group.data.device)
            for layer in group.layers:
                self.layers[layer][row, :, :, positions % group.slots] = other.layers[layer][source, :, :, positions]
        self._remember(row, other.memories.get(source))

    def clear_row(self, row: int) -> None:
        """Forget a row whose numbers are no numbers, so that they cannot reach whoever has the row next."""
        for group in self.groups:
            group.data[:, row] = 0.0
        self.memories.pop(row, None)

    def _remember(self, row: int, memory: Beside | None) -> None:
        if memory is None:
            self.memories.pop(row, None)
        else:
            self.memories[row] = memory

    def grown(self, config: ModelConfig, rows: int, size: int) -> Cache:
        """A cache of at least so many rows and slots with what this one holds; itself where it is large enough."""
        if rows <= self.rows and size <= self.size:
            return self
        larger = Cache(config, max(rows, self.rows), max(size, self.size), self.data.device, self.slack, self.dtype)
        # A window that gets more slots had one for every position until now, so that a position's slot stays the same.
        for new, old in zip(larger.groups, self.groups, strict=True):
            new.data[:, : self.rows, :, :, : old.slots] = old.data
        larger.memories = dict(self.memories)
        return larger


def _window(config: ModelConfig, layer: int) -> int | None:
    pattern = config.pattern(layer)
    return pattern.numbers[0] if pattern.kind == "local" else None
