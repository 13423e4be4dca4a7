"""What a query may see, and what is added to its scores: built in one place, for all kernels and all architectures.

A `Sight` is turned into a dense boolean mask (kernels math and sdpa) or into a function of indices (kernel flex), and so is a
bias. In both, distances are between positions where these are given, between indices otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lmlab.model.pattern import FULL, Pattern
from lmlab.model.position import relative_bucket
from lmlab.model.wide import wide_type

PADDING = -1
"""The segment of padding: it sees itself and nothing else, so that no row of scores is empty."""


@dataclass(frozen=True)
class Sight:
    """`causal`: keys after the query are hidden, but for those in the prefix of a document. Segments (B, T) and (B, S):
    queries see keys of their own segment. `prefix_BS`: length of the prefix of each key's document. Positions default to
    0, 1, 2, ... `first`: the first query's place among the keys, where the queries are a part of a row.
    """

    causal: bool
    queries: int
    keys: int
    device: torch.device
    query_positions_BT: Tensor | None = None
    key_positions_BS: Tensor | None = None
    query_segments_BT: Tensor | None = None
    key_segments_BS: Tensor | None = None
    prefix_BS: Tensor | None = None
    first: int = 0

    def distance(self) -> Tensor:
        """Query position minus key position, (B or 1, T, S)."""
        return self._query_positions()[:, :, None] - self._key_positions()[:, None, :]

    def _query_positions(self) -> Tensor:
        if self.query_positions_BT is not None:
            return self.query_positions_BT
        return torch.arange(self.queries, device=self.device)[None]

    def _key_positions(self) -> Tensor:
        if self.key_positions_BS is not None:
            return self.key_positions_BS
        return torch.arange(self.keys, device=self.device)[None]

    def is_plain(self, pattern: Pattern) -> bool:
        """Whether `causal` says it all."""
        square = not self.causal or self.queries == self.keys
        return square and pattern == FULL and self.query_segments_BT is None and self.prefix_BS is None

    def dense(self, pattern: Pattern = FULL) -> Tensor | None:
        """(B or 1, T, S), True where the query sees the key; None where `causal` says it all."""
        if self.is_plain(pattern):
            return None
        seen: Tensor | None = None
        if self.causal:
            seen = torch.ones(self.queries, self.keys, dtype=torch.bool, device=self.device).tril(self.first)
            if self.prefix_BS is not None:
                seen = seen | (self._key_positions() < self.prefix_BS)[:, None, :]
        if self.query_segments_BT is not None and self.key_segments_BS is not None:
            query = self.query_segments_BT[:, :, None]
            same = query == self.key_segments_BS[:, None, :]
            if not self.causal:
                same = same | (query == PADDING)  # cross-attention of padding: what it finds has no meaning
            seen = same if seen is None else seen & same
        if pattern != FULL:
            near = pattern.sees(self._query_positions()[:, :, None], self._key_positions()[:, None, :])
            seen = near if seen is None else seen & near
        return seen if seen is None or seen.dim() == 3 else seen[None]

    def function(self, pattern: Pattern = FULL) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """The same as a function of (batch, head, query index, key index), for FlexAttention."""

        def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            seen = i >= 0
            key = look(self.key_positions_BS, b, j)
            if self.causal:
                seen = j <= i + self.first
                if self.prefix_BS is not None:
                    seen = seen | (key < look(self.prefix_BS, b, j))
            if self.query_segments_BT is not None and self.key_segments_BS is not None:
                query = look(self.query_segments_BT, b, i)
                same = query == look(self.key_segments_BS, b, j)
                seen = seen & (same if self.causal else same | (query == PADDING))
            if pattern != FULL:
                seen = seen & pattern.sees(look(self.query_positions_BT, b, i), key)
            return seen

        return sees

    def _rows(self) -> int:
        known = (self.query_positions_BT, self.query_segments_BT, self.prefix_BS, self.key_segments_BS)
        return max((len(each) for each in known if each is not None), default=1)

    @property
    def varies_by_row(self) -> bool:
        return self._rows() > 1


def look(table: Tensor | None, b: Tensor, i: Tensor) -> Tensor:
    """Entry i of row b of a table (B or 1, T), or i itself where there is none."""
    if table is None:
        return i
    return table[b, i] if len(table) > 1 else table[0, i]


class Bias(Protocol):
    """A term added to the scaled scores, a function of head and distance."""

    def of(self, distance: Tensor, head: Tensor) -> Tensor:
        """The bias of a head at a distance (query minus key); both broadcast."""
        ...

    def dense(self, distance_BTS: Tensor) -> Tensor:
        """(B or 1, H, T, S), float32."""
        ...


class Alibi:
    """-slope x |distance| (2108.12409). The paper's is for causal models; a prefix is penalised alike on both sides."""

    def __init__(self, slopes_H: Tensor) -> None:
        self.slopes_H = slopes_H

    def of(self, distance: Tensor, head: Tensor) -> Tensor:
        return -self.slopes_H[head] * distance.abs()

    def dense(self, distance_BTS: Tensor) -> Tensor:
        return -self.slopes_H[:, None, None] * distance_BTS.abs()[:, None].float()


class Buckets:
    """T5's learned scalar of each head and bucket of distances; the table (buckets, H) serves every layer of a stack."""

    def __init__(self, table_NH: Tensor, longest: int, bidirectional: bool) -> None:
        self.table_NH, self.longest, self.bidirectional = table_NH, longest, bidirectional

    def _bucket(self, distance: Tensor) -> Tensor:
        return relative_bucket(distance, self.table_NH.shape[0], self.longest, self.bidirectional)

    def of(self, distance: Tensor, head: Tensor) -> Tensor:
        return self.table_NH[self._bucket(distance), head]

    def dense(self, distance_BTS: Tensor) -> Tensor:
        return self.table_NH[self._bucket(distance_BTS)].permute(0, 3, 1, 2).to(wide_type(self.table_NH))


def with_padding(
    positions: Tensor | None, segments: Tensor | None, padding: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Padding as a segment of its own and out of the count of positions; and which of all tokens are real, (N,)."""
    if padding is None:
        return positions, segments, None
    real = ~padding.bool()
    if positions is None:
        positions = (real.long().cumsum(1) - 1).clamp_min(0)
    segments = torch.zeros_like(real, dtype=torch.long) if segments is None else segments
    return positions, torch.where(real, segments, PADDING), real.flatten()
