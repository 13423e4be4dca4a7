"""Pretraining batches by a mixture of sources: each row is a window of one source."""

from __future__ import annotations

import numpy as np

from lmlab.corpus.mixture import Mixture, MixtureConfig, Size
from lmlab.corpus.shards import Shards
from lmlab.errors import Refused
from lmlab.train.data import PackedWindows


class MixedWindows(PackedWindows):
    """As `PackedWindows`, but the windows of each source lie within its own tokens, and the mixture says whose turn it is.

    Any step follows from its number. Rank r of `world` takes its part of a step's rows: together the ranks read what one
    process would.
    """

    def __init__(
        self,
        shard: Shards,
        length: int,
        rows: int,
        micro_batches: int,
        seed: int,
        separate: bool,
        *,
        config: MixtureConfig,
        steps: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Raises Refused where the mixture and the shards' sources do not fit together."""
        super().__init__(shard, length, rows, micro_batches, seed, separate)
        self.rank, self.world, self.steps = rank, world, steps
        self._low: list[int] = []
        self._all: list[int] = []
        sizes: dict[str, Size] = {}
        for name, documents in shard.sources().items():
            low, high = int(self.starts[documents.start]), int(self.starts[documents.stop])
            sizes[name] = Size(high - low, documents.stop - documents.start, (high - low - 1) // length)
            self._low.append(low)
            self._all.append(sizes[name].windows)
        self.sizes = sizes
        self.mixture = Mixture(config, sizes, steps * rows, rows)
        self._pools = [_pools(config, self.mixture, place, steps * rows) for place in range(len(sizes))]
        self._drawn: dict[tuple[int, ...], np.ndarray] = {}

    def places(self, step: int) -> np.ndarray:
        """Where in the tokens this rank's windows of a step begin."""
        chosen = self.mixture.rows(step * self.rows, (step + 1) * self.rows)
        mine = np.array_split(np.arange(self.rows), self.world)[self.rank]
        return np.array([self._place(*chosen[row]) for row in mine], dtype=np.int64)

    def _place(self, source: int, row: int) -> int:
        return self._low[source] + self._window(source, row) * self.length

    def _window(self, source: int, row: int) -> int:
        """The window that a source's `row`-th row is. A pool of windows is visited epoch by epoch."""
        pool, first, count, inside = self._pools[source].at(row)
        order = self._permutation(source, pool, inside // count, count)
        return int(self._permutation(source, 2, 0, self._all[source])[first + order[inside % count]])

    def _permutation(self, source: int, pool: int, epoch: int, count: int) -> np.ndarray:
        """Drawn by Philox from the seed, the source, the pool and the epoch; an epoch replaces the one before."""
        key = (source, pool)
        found = self._drawn.get((*key, epoch))
        if found is None:
            bits = np.random.Philox(key=[self.seed, epoch], counter=[0, 0, pool, 1 + source])
            found = np.random.Generator(bits).permutation(count)
            stale = [each for each in self._drawn if each[:2] == key and each[2] < epoch - 1]
            for each in stale:
                del self._drawn[each]
            self._drawn[(*key, epoch)] = found
        return found

    def seen(self, steps: int) -> dict[str, dict[str, float]]:
        """What `steps` steps have read of each source: tokens, and epochs of the part that is used. Where windows are
        repeated on purpose, their number too."""
        found: dict[str, dict[str, float]] = {}
        for place, (name, rows) in enumerate(zip(self.sizes, self.mixture.counts(steps * self.rows))):
            found[name] = {"tokens": rows * self.length, "epochs": rows / self.mixture.windows[name]}
            if self._pools[place].repeated:
                found[name]["repeated_windows"] = self._pools[place].repeated
        return found


class _Pools:
    """Rows of one source in turn from its fresh windows and from a few repeated ones."""

    def __init__(self, count: int, repeated: int, share: float) -> None:
        self.count, self.repeated, self.share = count, repeated, share

    def at(self, row: int) -> tuple[int, int, int, int]:
        """(pool, its first window, its windows, which of its rows) of the source's `row`-th row."""
        if not self.repeated:
            return 0, 0, self.count, row
        before, after = int(row * self.share), int((row + 1) * self.share)
        if after > before:
            return 1, 0, self.repeated, before
        return 0, self.repeated, self.count - self.repeated, row - before


def _pools(config: MixtureConfig, mixture: Mixture, place: int, rows: int) -> _Pools:
    name = mixture.names[place]
    count, mine = mixture.windows[name], mixture.counts(rows)[place]
    if config.repeats is None or mine == 0:
        return _Pools(count, 0, 0.0)
    repeated = max(1, round(mine * config.repeats.share / config.repeats.times))
    if repeated >= count:
        raise Refused(
            f"mixture.repeats: {repeated:,} windows of the source '{name}' would be repeated, and it has {count:,}; "
            "expected a smaller share, more times or fewer steps"
        )
    return _Pools(count, repeated, config.repeats.share)
