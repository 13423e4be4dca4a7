"""Batches that grow (survey, section 4.3.1): linear as in GPT-3 and BLOOM, or in stages as in PaLM.

Small batches early give more steps where gradients still agree; large ones later, less noise.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from lmlab.config import Config


class RampConfig(Config):
    """How the batch grows to its full size (`batch_tokens` of the stage)."""

    start_tokens: int | None = Field(default=None, ge=1)
    """linear: tokens of the first batch (GPT-3: 32K)."""
    over_tokens: float | None = Field(default=None, gt=0)
    """linear: tokens seen when the full size is reached (GPT-3: 4 to 12 billion)."""
    increment_rows: int = Field(default=1, ge=1)
    """linear: sequences by which it grows at a time (BLOOM: 16)."""
    stages: tuple[tuple[int, int], ...] = ()
    """In stages: (from this step on, tokens of a batch), before the full size; the last entry's size is the full one
    (PaLM 540B: [[0, 1M], [50000, 2M], [115000, 4M]])."""
    learning_rate: Literal["same", "linear", "sqrt"] = "same"
    """The rate's answer: `same`, as GPT-3 and PaLM trained; `linear` or `sqrt` in the batch's share of its full size, which
    keeps the noise of a step (linear for SGD, 1706.02677; sqrt for Adam, 2205.10287)."""

    @model_validator(mode="after")
    def _one_kind(self) -> RampConfig:
        linear = self.start_tokens is not None or self.over_tokens is not None
        if linear == bool(self.stages):
            raise ValueError("a ramp is either start_tokens with over_tokens, or stages")
        if linear and (self.start_tokens is None or self.over_tokens is None):
            raise ValueError("a linear ramp needs both start_tokens and over_tokens")
        begins = [step for step, _ in self.stages]
        if begins and (begins[0] != 0 or begins != sorted(set(begins))):
            raise ValueError(f"stages must begin at step 0 and rise, found {begins}")
        return self


class Batches:
    """How many sequences each optimizer step has, and how many came before it: a pure function of the step."""

    def __init__(self, rows: int, length: int, ramp: RampConfig | None = None) -> None:
        self.full, self.length, self.ramp = rows, length, ramp

    @cached_property
    def _phases(self) -> list[tuple[int, int, int]]:
        """(first step, rows before it, rows a step), by first step."""
        sizes = _sizes(self.ramp, self.full, self.length)
        found, before = [], 0
        for place, (first, rows) in enumerate(sizes):
            found.append((first, before, rows))
            if place + 1 < len(sizes):
                before += rows * (sizes[place + 1][0] - first)
        return found

    def rows(self, step: int) -> int:
        """Sequences of a step."""
        return self._phase(step)[2]

    def before(self, step: int) -> int:
        """Sequences of all steps before this one."""
        first, before, rows = self._phase(step)
        return before + rows * (step - first)

    def numbers(self, step: int) -> np.ndarray:
        """The numbers of this step's sequences, counted through the run."""
        return self.before(step) + np.arange(self.rows(step))

    def tokens_before(self, step: int) -> int:
        return self.before(step) * self.length

    def share(self, step: int) -> float:
        """The rate's answer to the batch of this step: a factor of the rate."""
        if self.ramp is None or self.ramp.learning_rate == "same":
            return 1.0
        share = self.rows(step) / self.full
        return share if self.ramp.learning_rate == "linear" else math.sqrt(share)

    def _phase(self, step: int) -> tuple[int, int, int]:
        return self._phases[bisect.bisect_right(self._phases, step, key=lambda phase: phase[0]) - 1]


def _sizes(ramp: RampConfig | None, full: int, length: int) -> Sequence[tuple[int, int]]:
    """(first step, rows a step)."""
    if ramp is None:
        return [(0, full)]
    if ramp.stages:
        return [(step, max(1, tokens // length)) for step, tokens in ramp.stages]
    assert ramp.start_tokens is not None and ramp.over_tokens is not None
    rows = min(full, max(1, ramp.start_tokens // length))
    begin, sizes, step, seen = rows, [], 0, 0
    while rows < full:
        sizes.append((step, rows))
        # linear in tokens seen: the size grows by an increment each time its share of `over_tokens` has been seen
        following = min(full, rows + ramp.increment_rows)
        until = ramp.over_tokens * (following - begin) / (full - begin)
        steps = max(1, math.ceil((until - seen) / (rows * length)))
        step, seen, rows = step + steps, seen + steps * rows * length, following
    return [*sizes, (step, full)]
