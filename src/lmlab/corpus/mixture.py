"""The mixture: how much of what is seen comes from each source (survey, section 4.1.3), and which window when.

Rows of a training run are handed to the sources like seats to parties, by the method of Sainte-Lague: the next row goes to the
source with the smallest (2 c + 1) / (2 w), c its rows so far, w its share. So each source has its share after any number
of rows, to within a row or two, and who gets row g follows from g alone. Within a source, rows visit its
windows in an order that Philox draws anew for each epoch; no window comes twice before all have come.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from lmlab.config import Config
from lmlab.corpus.mixtures import PRESETS
from lmlab.errors import Refused, nearest

SCALE = 1 << 32
"""Shares are whole numbers of this many, so that rows are handed out in exact arithmetic."""


class Change(Config):
    """Other weights from some step on."""

    at: float = Field(gt=0)
    """Below 1 a part of the run, from 1 on a step."""
    weights: dict[str, float]


class Repeats(Config):
    """Part of what is seen comes from few windows, each seen many times (the experiment of 2205.10487)."""

    share: float = Field(gt=0, lt=1)
    """Of all rows."""
    times: int = Field(ge=2)
    """How often each repeated window comes."""


class MixtureConfig(Config):
    """Weights of the sources. With nothing set, every source has its own size, and each is seen equally often."""

    weights: dict[str, float] = Field(default_factory=dict)
    """Source: weight; they need not add up to 1. Every source of the corpus is named; 0 leaves one out."""
    unit: Literal["tokens", "documents"] = "tokens"
    """What weights are shares of. By documents, a source's tokens count for its weight times its mean document."""
    temperature: float = Field(default=1.0, gt=0)
    """Shares are raised to 1 / temperature: above 1 small sources gain (mT5: 1 / 0.3, 2010.11934)."""
    epochs: dict[str, float] = Field(default_factory=dict)
    """Source: how often it is seen in the whole run; the weights share out what is left."""
    max_epochs: float | None = Field(default=None, gt=0)
    """No source is seen more often; what it would have had goes to the others by their weights."""
    preset: str | None = None
    """A published mixture instead of weights: gpt-3, palm, llama or the-pile."""
    components: dict[str, str | list[str] | None] = Field(default_factory=dict)
    """For a preset, its component: the source or sources that stand for it (by their sizes), null for none."""
    schedule: tuple[Change, ...] = ()
    """A curriculum: other weights from a step or a part of the run on."""
    use: float = Field(default=1.0, gt=0, le=1)
    """Only this part of each source's windows, chosen by the seed: less data, seen more often."""
    repeats: Repeats | None = None

    @model_validator(mode="after")
    def _possible(self) -> MixtureConfig:
        for table in (self.weights, self.epochs, *(change.weights for change in self.schedule)):
            for name, value in table.items():
                if not 0 <= value < float("inf"):
                    raise ValueError(f"the weight of '{name}' is {value}: expected a number of at least 0")
        if self.weights and not any(self.weights.values()):
            raise ValueError("weights: all are 0")
        if self.schedule and self.epochs:
            raise ValueError("epochs are of the whole run and exclude a schedule; give weights")
        places = [change.at for change in self.schedule]
        if any(at >= 1 and at != int(at) for at in places):
            raise ValueError("schedule: at is a part of the run below 1, or a whole step")
        return self

    @model_validator(mode="after")
    def _whole_preset(self) -> MixtureConfig:
        if self.preset is None and self.components:
            raise ValueError("components say what stands for a preset's parts; name the preset")
        if self.preset is None:
            return self
        if self.preset not in PRESETS:
            raise ValueError(f"preset '{self.preset}' is unknown{nearest(self.preset, PRESETS)}")
        if self.weights:
            raise ValueError("preset and weights exclude each other")
        known = PRESETS[self.preset]
        for name in self.components:
            if name not in known:
                raise ValueError(f"components: {self.preset} has no '{name}'{nearest(name, known)}")
        missing = [name for name in known if name not in self.components]
        if missing:
            raise ValueError(
                f"components: {self.preset} also has {', '.join(missing)}; give each a source, or null to leave it out"
            )
        return self


@dataclass(frozen=True)
class Size:
    """What a source has: tokens, documents, whole windows."""

    tokens: int
    documents: int
    windows: int


@dataclass(frozen=True)
class Phase:
    """From row `first` on, rows are handed out by `shares` (of SCALE, in the order of the sources); `before` is how many
    rows each source has had by then."""

    first: int
    shares: tuple[int, ...]
    before: tuple[int, ...]


class Mixture:
    """Which row of which source each row of a run is."""

    def __init__(
        self,
        config: MixtureConfig,
        sizes: Mapping[str, Size],
        rows: int,
        steps: int,
        row_of_step: Callable[[int], int],
    ) -> None:
        """`rows` and `steps` of the whole run. Raises Refused where the settings and the sources do not fit together."""
        self.names = tuple(sizes)
        self.windows = {name: max(1, round(config.use * size.windows)) for name, size in sizes.items()}
        for name, size in sizes.items():
            if size.windows < 1:
                raise Refused(f"mixture: the source '{name}' has {size.tokens:,} tokens, fewer than one window")
        self._limits = None
        if config.max_epochs is not None:
            self._limits = {name: config.max_epochs * count for name, count in self.windows.items()}
        self.phases: list[Phase] = []
        begins = [0, *(round(c.at * steps) if c.at < 1 else int(c.at) for c in config.schedule)]
        if any(after <= first for first, after in itertools.pairwise(begins)):
            raise Refused("mixture.schedule: expected changes in order, each at least a step after the one before")
        firsts = [min(row_of_step(step), rows) for step in begins]
        tables = [None, *(change.weights for change in config.schedule)]
        had = (0,) * len(sizes)
        for first, after, table in zip(firsts, [*firsts[1:], rows], tables, strict=True):
            wanted = _wanted(config, sizes, table, rows, self.windows)
            shares = _whole(self._within_limits(wanted, after - first, had))
            self.phases.append(Phase(first, shares, had))
            had = tuple(a + b for a, b in zip(had, seats(after - first, shares)))

    def _within_limits(self, wanted: Mapping[str, float], rows: int, had: Sequence[int]) -> dict[str, float]:
        """Shares of `rows` rows of which no source has more than is left to it."""
        if self._limits is None or rows == 0:
            return dict(wanted)
        left = {name: max(0.0, self._limits[name] - n) / rows for name, n in zip(self.names, had)}
        full: set[str] = set()
        while True:
            free = 1 - sum(left[name] for name in full)
            weight = sum(share for name, share in wanted.items() if name not in full)
            if weight <= 0 and free > 1e-9:
                total = round(sum(self._limits.values()))
                raise Refused(
                    f"mixture.max_epochs: allows {total:,} windows and the run wants more; train less or allow more"
                )
            found = {n: left[n] if n in full else share * free / weight for n, share in wanted.items()}
            over = {name for name in found if name not in full and found[name] > left[name] + 1e-12}
            if not over:
                return found
            full |= over

    def counts(self, row: int) -> tuple[int, ...]:
        """Rows that each source has had before this one."""
        phase = self._phase(row)
        return tuple(a + b for a, b in zip(phase.before, seats(row - phase.first, phase.shares)))

    def rows(self, numbers: np.ndarray) -> list[tuple[int, int]]:
        """(source, which of its rows) of each row by its number."""
        found: list[tuple[int, int]] = []
        count: list[int] = []
        before = None
        for number in numbers.tolist():
            if before is None or number != before + 1:
                count = list(self.counts(number))
            before = number
            phase = self._phase(number)
            chosen = _next([a - b for a, b in zip(count, phase.before)], phase.shares)
            found.append((chosen, count[chosen]))
            count[chosen] += 1
        return found

    def _phase(self, row: int) -> Phase:
        return next(phase for phase in reversed(self.phases) if phase.first <= row)


def _wanted(
    config: MixtureConfig,
    sizes: Mapping[str, Size],
    table: Mapping[str, float] | None,
    rows: int,
    windows: Mapping[str, int],
) -> dict[str, float]:
    """The shares of all rows that are asked for; they add up to 1."""
    table = table if table is not None else config.weights
    if config.preset is not None and table is config.weights:
        table = _of_preset(config, sizes)
    if table:
        for name in table:
            if name not in sizes:
                raise Refused(f"mixture: the corpus has no source '{name}'{nearest(name, sizes)}")
        missing = [name for name in sizes if name not in table and name not in config.epochs]
        if missing:
            raise Refused(f"mixture: no weight for {', '.join(missing)}; name every source, 0 leaves one out")
    shares = {name: float(table.get(name, 0)) if table else 1.0 for name in sizes}
    for name, size in sizes.items():
        if not table:
            shares[name] = size.tokens if config.unit == "tokens" else size.documents
    shares = {name: share ** (1 / config.temperature) if share else 0.0 for name, share in shares.items()}
    if config.unit == "documents":
        shares = {name: share * sizes[name].tokens / sizes[name].documents for name, share in shares.items()}
    fixed = {}
    for name, often in config.epochs.items():
        if name not in sizes:
            raise Refused(f"mixture.epochs: the corpus has no source '{name}'{nearest(name, sizes)}")
        fixed[name] = often * windows[name] / rows
        shares[name] = 0.0
    left, total = 1 - sum(fixed.values()), sum(shares.values())
    if left < -1e-9 or (left > 1e-9 and total <= 0):
        raise Refused(
            f"mixture.epochs: they ask for {sum(fixed.values()):.1%} of the run's rows, and the other sources have "
            f"{'weights' if total > 0 else 'none'}; train longer or shorter, or give fewer epochs"
        )
    return {name: fixed.get(name, share * max(0.0, left) / total if total else 0.0) for name, share in shares.items()}


def _of_preset(config: MixtureConfig, sizes: Mapping[str, Size]) -> dict[str, float]:
    weights = dict.fromkeys(sizes, 0.0)
    for component, given in config.components.items():
        sources = [given] if isinstance(given, str) else given or []
        for source in sources:
            if source not in sizes:
                raise Refused(
                    f"mixture.components.{component}: the corpus has no source '{source}'{nearest(source, sizes)}"
                )
        total = sum(sizes[source].tokens for source in sources)
        for source in sources:
            weights[source] += PRESETS[config.preset or ""][component] * sizes[source].tokens / total
    if not any(weights.values()):
        raise Refused("mixture.components: no component of the preset has a source")
    return weights


def _whole(shares: Mapping[str, float]) -> tuple[int, ...]:
    """Shares as whole numbers that add up to SCALE, the largest remainders rounded up."""
    exact = np.array(list(shares.values()), dtype=np.float64) * SCALE
    found = np.floor(exact).astype(np.int64)
    for place in np.argsort(found - exact, kind="stable")[: SCALE - int(found.sum())]:
        found[place] += 1
    return tuple(int(each) for each in found)


def _next(counts: Sequence[int], shares: Sequence[int]) -> int:
    """Who gets the next row: the smallest (2 c + 1) / w, the first of equals; exact, since Python's integers are."""
    best = -1
    for place, (count, share) in enumerate(zip(counts, shares)):
        if share and (best < 0 or (2 * count + 1) * shares[best] < (2 * counts[best] + 1) * share):
            best = place
    return best


def seats(rows: int, shares: Sequence[int]) -> tuple[int, ...]:
    """How many of the first `rows` rows each source has, without handing out all of them: whoever was due by row
    t = rows - (number of sources) is among the first `rows`, which leaves a few to hand out one by one."""
    early = max(0, rows - len(shares))
    counts = [(2 * early * share + SCALE) // (2 * SCALE) if early else 0 for share in shares]
    for _ in range(rows - sum(counts)):
        counts[_next(counts, shares)] += 1
    return tuple(counts)
