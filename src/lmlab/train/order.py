"""Which window of the tokens each row of a run is: a pure function of the row's number and the seed.

So any step follows from one integer, a killed run goes on at the exact token, and ranks that share a step's rows between
them read together what one process would.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np

from lmlab.corpus.mixture import Mixture, MixtureConfig, Size
from lmlab.corpus.shards import Shards
from lmlab.errors import Refused
from lmlab.train.ramp import Batches

Seen = dict[str, dict[str, float]]
"""{source: {"tokens", "epochs"}}: what was read."""


class Order(Protocol):
    """Where windows begin, by the numbers of a run's rows."""

    def places(self, numbers: np.ndarray) -> np.ndarray: ...

    def seen(self, rows: int) -> Seen: ...


def seen_in(order: Order, spans: Iterable[tuple[int, int]]) -> Seen:
    """What was read of the rows of some spans [first, end) of a run: all of them but those left out after a spike."""
    found: Seen = {}
    for first, end in spans:
        before = order.seen(first)
        for name, upto in order.seen(end).items():
            entry = found.setdefault(name, {**upto, "tokens": 0, "epochs": 0})
            for key in ("tokens", "epochs"):
                entry[key] += upto[key] - before[name][key]
    return found


class EpochOrder:
    """All windows of the concatenated documents, each once an epoch, in the order of a permutation that Philox(seed, epoch)
    draws. `beyond`: tokens that a window reads after its own."""

    def __init__(self, shard: Shards, length: int, seed: int, beyond: int) -> None:
        """Raises ValueError where there is less than one window."""
        self.shard, self.length, self.seed = shard, length, seed
        self.windows = (len(shard.tokens) - beyond) // length
        if self.windows < 1:
            raise ValueError(f"{len(shard.tokens)} training tokens are fewer than one window of {length}")
        self._orders: dict[int, np.ndarray] = {}

    def places(self, numbers: np.ndarray) -> np.ndarray:
        epochs, places = np.divmod(numbers, self.windows)
        return self.length * np.array([self._order(int(e))[p] for e, p in zip(epochs, places)], dtype=np.int64)

    def _order(self, epoch: int) -> np.ndarray:
        """An epoch's permutation; the last two are kept, since a step may touch two epochs."""
        if epoch not in self._orders:
            drawn = np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(self.windows)
            self._orders = {**dict(list(self._orders.items())[-1:]), epoch: drawn}
        return self._orders[epoch]

    def seen(self, rows: int) -> Seen:
        """Of the first `rows` rows; a window may hold two sources."""
        counts = np.full(self.windows, rows // self.windows, np.int64)
        rest = rows % self.windows
        if rest:
            counts[self._order(rows // self.windows)[:rest]] += 1
        read = np.concatenate([[0], np.cumsum(counts) * self.length])  # tokens read up to each window's edge
        found = {}
        for name, documents in self.shard.sources().items():
            low, high = (int(self.shard.starts[place]) for place in (documents.start, documents.stop))
            edges = np.interp([low, high], np.arange(self.windows + 1) * self.length, read)
            tokens = round(float(edges[1] - edges[0]))
            found[name] = {"tokens": tokens, "epochs": tokens / (high - low)}
        return found


class MixedOrder:
    """Windows that lie within one source's tokens, handed out by a mixture. Of each source the windows that are used are
    drawn once; where some are to be repeated, they are a part of those and take turns with the others."""

    def __init__(
        self, shard: Shards, length: int, seed: int, beyond: int, config: MixtureConfig, batches: Batches, steps: int
    ) -> None:
        """Raises Refused where the mixture and the sources do not fit together."""
        self.length, self.seed = length, seed
        self.sizes: dict[str, Size] = {}
        self._low: list[int] = []
        for name, documents in shard.sources().items():
            low, high = int(shard.starts[documents.start]), int(shard.starts[documents.stop])
            self.sizes[name] = Size(high - low, documents.stop - documents.start, (high - low - beyond) // length)
            self._low.append(low)
        rows = batches.before(steps)
        self.mixture = Mixture(config, self.sizes, rows, steps, batches.before)
        self._pools = [self._pool(config, place, rows) for place in range(len(self.sizes))]
        self._drawn: dict[tuple[int, int, int], np.ndarray] = {}

    def _pool(self, config: MixtureConfig, place: int, rows: int) -> _Pools:
        name = self.mixture.names[place]
        count, mine = self.mixture.windows[name], self.mixture.counts(rows)[place]
        if config.repeats is None or mine == 0:
            return _Pools(count, 0, 0.0)
        repeated = max(1, round(mine * config.repeats.share / config.repeats.times))
        if repeated >= count:
            raise Refused(
                f"mixture.repeats: {repeated:,} windows of the source '{name}' would be repeated, and it has {count:,}; "
                "expected a smaller share, more times or fewer steps"
            )
        return _Pools(count, repeated, config.repeats.share)

    def places(self, numbers: np.ndarray) -> np.ndarray:
        chosen = self.mixture.rows(numbers)
        windows = np.array([self._window(*each) for each in chosen], dtype=np.int64)
        low = np.array([self._low[source] for source, _ in chosen], dtype=np.int64)
        return low + windows * self.length

    def _window(self, source: int, row: int) -> int:
        """The window that is a source's `row`-th. A pool of windows is visited epoch by epoch."""
        pool, first, count, inside = self._pools[source].at(row)
        order = self._permutation(source, pool, inside // count, count)
        every = self.sizes[self.mixture.names[source]].windows
        return int(self._permutation(source, _USED, 0, every)[first + order[inside % count]])

    def _permutation(self, source: int, pool: int, epoch: int, count: int) -> np.ndarray:
        """Drawn by Philox from the seed, the source, the pool and the epoch; an epoch replaces the one before the last."""
        found = self._drawn.get((source, pool, epoch))
        if found is None:
            bits = np.random.Philox(key=[self.seed, epoch], counter=[0, 0, pool, 1 + source])
            found = np.random.Generator(bits).permutation(count)
            self._drawn.pop((source, pool, epoch - 2), None)
            self._drawn[(source, pool, epoch)] = found
        return found

    def seen(self, rows: int) -> Seen:
        """Of the first `rows` rows; epochs of the windows that are used. `repeated_windows` where some are, on purpose."""
        found: Seen = {}
        for place, (name, count) in enumerate(zip(self.sizes, self.mixture.counts(rows))):
            found[name] = {"tokens": count * self.length, "epochs": count / self.mixture.windows[name]}
            if self._pools[place].repeated:
                found[name]["repeated_windows"] = self._pools[place].repeated
        return found


_FRESH, _REPEATED, _USED = 0, 1, 2


class _Pools:
    """Rows of one source in turn from its fresh windows and from a few repeated ones."""

    def __init__(self, count: int, repeated: int, share: float) -> None:
        self.count, self.repeated, self.share = count, repeated, share

    def at(self, row: int) -> tuple[int, int, int, int]:
        """(pool, its first window, its windows, which of its rows) of the source's `row`-th row."""
        if not self.repeated:
            return _FRESH, 0, self.count, row
        before, after = int(row * self.share), int((row + 1) * self.share)
        if after > before:
            return _REPEATED, 0, self.repeated, before
        return _FRESH, self.repeated, self.count - self.repeated, row - before
