"""Learning-rate schedules (survey, section 4.3.1): warm-up, then constant, linear, cosine, inverse square root, WSD, by hand.

A schedule is a function of how far training has come, counted in optimizer steps or in tokens.
"""

from __future__ import annotations

import bisect
import math
from typing import Literal

from pydantic import Field, model_validator

from lmlab.config import Config

ScheduleName = Literal["constant", "linear", "cosine", "inverse-sqrt", "wsd", "manual"]


class ScheduleConfig(Config):
    """The rate as a fraction of its peak over a run."""

    name: ScheduleName = "cosine"
    """wsd: constant after warm-up, then linear over the last `decay_fraction` (2404.06395). inverse-sqrt: the peak until
    `offset`, then sqrt(offset / n), never below `final` (T5, PaLM: offset 10,000 steps, no warm-up). manual: by `points`
    alone."""
    unit: Literal["steps", "tokens"] = "steps"
    """What progress, warm-up, `offset`, `length` and `points` count. They differ where the batch grows."""
    warmup: float = Field(default=0.01, ge=0)
    """Linear from 0. Below 1 a share of the run, else steps or tokens."""
    length: float | None = Field(default=None, gt=0)
    """Where the decay ends, in steps or tokens, and the rate stays at its floor (GPT-3: 260e9 of 300e9 tokens); null: at the
    end of the run."""
    final: float = Field(default=0.1, ge=0, le=1)
    """The floor: the rate as a fraction of the peak where the decay has ended; of inverse-sqrt the least."""
    decay_fraction: float = Field(default=0.5, gt=0, le=1)
    """wsd only."""
    offset: float = Field(default=10_000, gt=0)
    """inverse-sqrt only."""
    points: tuple[tuple[float, float], ...] = ()
    """manual only: (progress, fraction of the peak), in order; straight lines between, constant outside."""

    @model_validator(mode="after")
    def _points_in_order(self) -> ScheduleConfig:
        if self.name == "manual" and not self.points:
            raise ValueError("a manual schedule needs points: [[progress, fraction], ...]")
        places = [place for place, _ in self.points]
        if places != sorted(set(places)):
            raise ValueError(f"points must rise in progress, found {places}")
        if any(not fraction >= 0 for _, fraction in self.points):
            raise ValueError("points: fractions must be at least 0")
        return self


class StepSchedule(ScheduleConfig):
    """Of a stage that knows how many steps it takes before it knows how many tokens they have."""

    unit: Literal["steps"] = "steps"
    """What progress, warm-up, `offset`, `length` and `points` count."""


def rate(config: ScheduleConfig, done: float, total: float, one: float = 1.0) -> float:
    """Fraction of the peak rate for the step that begins when `done` of `total` are done, in the schedule's unit.

    `one` is what this step adds: the last step of a run stands at its end. In steps: `rate(config, step, steps)`.
    """
    warmup = config.warmup * total if config.warmup < 1 else config.warmup
    if config.name == "manual":
        return _between(config.points, done)
    if done < warmup:
        return (done + one) / (warmup + one)
    if config.name == "constant":
        return 1.0
    if config.name == "inverse-sqrt":
        return max(config.final, math.sqrt(config.offset / max(done + one, config.offset)))
    end = total if config.length is None else min(total, config.length)
    if config.name == "wsd":
        warmup = max(warmup, end * (1 - config.decay_fraction))
    passed = min(1.0, max(0.0, (done + one - warmup) / max(one, end - warmup)))
    shape = (1 - math.cos(math.pi * passed)) / 2 if config.name == "cosine" else passed
    return 1 - (1 - config.final) * shape


def _between(points: tuple[tuple[float, float], ...], place: float) -> float:
    after = bisect.bisect_right([each for each, _ in points], place)
    if after == 0:
        return points[0][1]
    if after == len(points):
        return points[-1][1]
    (x0, y0), (x1, y1) = points[after - 1], points[after]
    return y0 + (y1 - y0) * (place - x0) / (x1 - x0)
