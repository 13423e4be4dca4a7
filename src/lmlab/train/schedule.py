"""Learning-rate schedules (survey, section 4.3.1): linear warm-up, then constant, linear, cosine or WSD decay."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from lmlab.config import Config


class ScheduleConfig(Config):
    """The rate as a fraction of its peak over the steps of a run."""

    name: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    """wsd: constant after warm-up, then linear over the last `decay_fraction` of the steps (2404.06395)."""
    warmup: float = Field(default=0.01, ge=0)
    """Below 1 a share of the steps, else steps."""
    final: float = Field(default=0.1, ge=0, le=1)
    """The last step's rate as a fraction of the peak."""
    decay_fraction: float = Field(default=0.5, gt=0, le=1)
    """wsd only."""


def rate(config: ScheduleConfig, step: int, steps: int) -> float:
    """Fraction of the peak rate at `step` (0-based) of `steps`."""
    warmup = config.warmup * steps if config.warmup < 1 else config.warmup
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.name == "constant":
        return 1.0
    if config.name == "wsd":
        begin = max(warmup, steps * (1 - config.decay_fraction))
        done = min(1.0, max(0.0, (step + 1 - begin) / max(1.0, steps - begin)))
        return 1 - (1 - config.final) * done
    done = min(1.0, (step + 1 - warmup) / max(1.0, steps - warmup))
    shape = done if config.name == "linear" else (1 - math.cos(math.pi * done)) / 2
    return 1 - (1 - config.final) * shape
