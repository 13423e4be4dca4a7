"""The texts of tasks, so that a corpus can be held against them (`decontamination.evaluation`, path `task:NAME`)."""

from __future__ import annotations

from collections.abc import Iterator

from lmlab.evaluate.tasks import family_tasks
from lmlab.instruct import families as kinds

ITEMS = 1000
"""Test items of a task that makes its own: of some tasks there are as many as one asks for."""


def texts(name: str, seed: int = 0) -> Iterator[tuple[str, str]]:
    """(id, question and answer) of each test item of a task. Raises Refused for an unknown name."""
    task = family_tasks(kinds.make([name]), kinds.HELD_OUT, seed)[name]
    for item in task.data.test(ITEMS):
        turns = task.view(item, (), False)
        yield item.id, "\n".join([*(turn["content"] for turn in turns), item.answer])
