"""Several objectives, each text given to one of them by weight."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from lmlab.objective.example import Example, Ids, Room, Task


class MixtureTask:
    """Draws a task for each text. Continuations are asked of the first task that learns plain text or a text's rest, else
    of the first."""

    def __init__(self, tasks: Sequence[Task], weights: Sequence[float], asked: int) -> None:
        self.tasks = tasks
        self.shares = np.array(weights, dtype=np.float64) / sum(weights)
        self.asked = tasks[asked]

    @property
    def plain(self) -> bool:
        return self.asked.plain

    def lengths(self, n: int) -> tuple[float, float]:
        source, target = self.shares @ np.array([task.lengths(n) for task in self.tasks])
        return float(source), float(target)

    def room(self, n: int) -> Room:
        return Room(*(max(each) for each in zip(*(task.room(n) for task in self.tasks))))

    def example(self, ids: Ids, rng: np.random.Generator) -> Example | None:
        part = int(rng.choice(len(self.tasks), p=self.shares))
        example = self.tasks[part].example(ids, rng)
        return None if example is None else dataclasses.replace(example, part=part)

    def continuation(self, before: Ids, after: Ids) -> Example:
        return self.asked.continuation(before, after)
