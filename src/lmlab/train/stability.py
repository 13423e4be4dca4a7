"""Spikes of the loss: seen against a running window, and what is done about one (survey, section 4.3.1).

PaLM (2204.02311, section 5.1) went back about 100 steps and skipped 200 to 500 batches: the same batches from another
checkpoint did no harm, so that a spike is made by some data meeting some state. OPT (2205.01068) went back and lowered the
rate. Gradient norms rise some steps before the loss does (GLM-130B, 2210.02414).
"""

from __future__ import annotations

import json
import math
import statistics
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from lmlab.config import Config


class SpikeConfig(Config):
    """When a step counts as a spike, and the policy. A loss or gradient that is not a number always counts."""

    policy: Literal["none", "skip", "rewind", "lower"] = "none"
    """none: only numbers that are none stop the run. skip: the step's update is left out. rewind: back to a checkpoint at
    least `back` steps before, and the next `skip` batches are left out (PaLM). lower: back, with the rate times `factor` from
    there on (OPT)."""
    window: int = Field(default=64, ge=4)
    """Steps that the running statistics look back on."""
    loss_deviations: float = Field(default=6.0, gt=0)
    """A loss above the window's median by so many deviations (1.4826 x the median absolute deviation, so that earlier spikes
    do not blind it)."""
    gradient_ratio: float = Field(default=8.0, gt=1)
    """A gradient norm above the window's median by this factor, before clipping."""
    patience: int = Field(default=1, ge=1)
    """So many steps in a row must be spikes. `skip` acts on each by itself."""
    back: int = Field(default=100, ge=1)
    """rewind and lower: steps to go back at least."""
    skip: int = Field(default=200, ge=1)
    """rewind: batches left out, counted from the checkpoint's."""
    factor: float = Field(default=0.66, gt=0, lt=1)
    """lower: of the rate."""
    most: int = Field(default=20, ge=1)
    """After so many interventions the run stops: something else is wrong."""


class Detector:
    """Says whether a step is a spike, and remembers the quiet ones. Its state goes into checkpoints."""

    def __init__(self, config: SpikeConfig) -> None:
        self.config = config
        self.losses: deque[float] = deque(maxlen=config.window)
        self.norms: deque[float] = deque(maxlen=config.window)
        self.in_a_row = 0

    def reason(self, loss: float, norm: float) -> str | None:
        """Why (loss, gradient norm) is a spike, or None. Quiet steps enter the window, spikes do not."""
        found = self._judge(loss, norm)
        self.in_a_row = 0 if found is None else self.in_a_row + 1
        if found is None:
            self.losses.append(loss)
            self.norms.append(norm)
        return found

    def _judge(self, loss: float, norm: float) -> str | None:
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm):
            return f"the gradient norm is {norm}"
        if len(self.losses) < self.config.window // 2:
            return None
        middle = statistics.median(self.losses)
        spread = 1.4826 * statistics.median(abs(each - middle) for each in self.losses)
        least = max(spread, 1e-3 * abs(middle))  # a window without noise must not make every step a spike
        if loss > middle + self.config.loss_deviations * least:
            return f"loss {loss:.4g} against a median of {middle:.4g} ({(loss - middle) / least:.1f} deviations)"
        usual = statistics.median(self.norms)
        if norm > self.config.gradient_ratio * usual:
            return f"gradient norm {norm:.4g} against a median of {usual:.4g}"
        return None

    def state(self) -> dict[str, Any]:
        return {"losses": list(self.losses), "norms": list(self.norms), "in_a_row": self.in_a_row}

    def restore(self, saved: Mapping[str, Any] | None) -> None:
        """Take back `state`; None forgets all."""
        given = saved or {}
        self.losses = deque(given.get("losses", ()), self.config.window)
        self.norms = deque(given.get("norms", ()), self.config.window)
        self.in_a_row = given.get("in_a_row", 0)


INTERVENTIONS = "interventions.json"
"""A stage's journal, beside its checkpoints."""


class Journal:
    """What was done about spikes: which batches are never seen, and where the rate was lowered.

    It is written to disk before the weights go back, so that a run that is killed in between does the same again.
    """

    def __init__(self, entries: list[dict[str, Any]] | None = None) -> None:
        self.entries = entries or []

    @classmethod
    def read(cls, folder: Path) -> Journal:
        """That of a stage, empty where nothing was done."""
        path = folder / INTERVENTIONS
        return cls(json.loads(path.read_text(encoding="utf-8")) if path.exists() else None)

    def data_step(self, step: int) -> int:
        """Which batch optimizer step `step` takes: the step-th of those that are not left out."""
        place = step
        for first, last in self._left_out():
            if place >= first:
                place += last - first + 1
        return place

    def seen(self, steps: int) -> list[tuple[int, int]]:
        """[first, end) of the batches that the first `steps` optimizer steps take, in order."""
        found, begin, left = [], 0, steps
        for first, last in self._left_out():
            count = min(left, first - begin)
            found.append((begin, begin + count))
            begin, left = last + 1, left - count
        found.append((begin, begin + left))
        return [(first, end) for first, end in found if first < end]

    def _left_out(self) -> list[list[int]]:
        """[first, last] of the batches left out, in order, none touching another."""
        merged: list[list[int]] = []
        for first, last in sorted(entry["batches"] for entry in self.entries if "batches" in entry):
            if merged and first <= merged[-1][1] + 1:
                merged[-1][1] = max(merged[-1][1], last)
            else:
                merged.append([first, last])
        return merged

    def answered(self, step: int) -> bool:
        """Was the rate lowered for a spike at this step? Then it is taken as it comes, by the lower rate."""
        return any("factor" in entry and entry["from"] <= step <= entry["until"] for entry in self.entries)

    def outdated(self, step: int, interventions: int) -> bool:
        """Is a checkpoint of `step`, taken when there had been so many interventions, one that a later one went back behind?"""
        return any(step > entry["from"] for entry in self.entries[interventions:])

    def factor(self, step: int) -> float:
        """Of the rate at a step."""
        return math.prod(entry["factor"] for entry in self.entries if "factor" in entry and entry["from"] <= step)

    def add(self, step: int, resumed: int, reason: str, config: SpikeConfig) -> dict[str, Any]:
        """Remember an intervention at `step` that goes back to `resumed`. A step that is left out again after a kill is
        remembered once."""
        entry: dict[str, Any] = {"step": step, "from": resumed, "reason": reason, "policy": config.policy}
        if config.policy == "rewind":
            first = self.data_step(resumed)
            last = first + config.skip - 1
            for begin, end in self._left_out():
                last += end - begin + 1 if first <= begin <= last else 0
            entry["batches"] = [first, last]
        elif config.policy == "lower":
            entry |= {"factor": config.factor, "until": step + config.window}
        if entry not in self.entries:
            self.entries.append(entry)
        return entry
