"""Which checkpoints are kept: the newest, the best, every k-th for good, and those that a spike's policy may go back to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Keep:
    newest: int = 2
    best: int = 0
    """So many with the lowest score."""
    every: int | None = None
    """Those of a multiple of so many steps stay."""

    def spare(self, scores: Mapping[int, float | None], back: int | None = None) -> list[int]:
        """Of checkpoints, {step: score}, the steps of those that may go. `back`: the newest that is no later stays too, and
        whatever came after it; where there is none, all."""
        steps = sorted(scores)
        kept = set(steps[-self.newest :])
        scored = sorted((score, step) for step, score in scores.items() if score is not None)
        kept |= {step for _, step in scored[: self.best]}
        if self.every is not None:
            kept |= {step for step in steps if step % self.every == 0}
        if back is not None:
            reached = max((step for step in steps if step <= back), default=0)
            kept |= {step for step in steps if step >= reached}
        return [step for step in steps if step not in kept]
