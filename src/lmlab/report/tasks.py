"""Names of evaluation tasks taken apart, and scores pooled over families without counting an item twice.

A task is called `METRIC/FAMILY/option/option...`, such as `exact_match/arithmetic/shots=4/steps/vote=8`. Options that
this page knows: `shots=K`; `steps` or `direct` (the chain of steps written or not); `greedy` or `vote=K`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lmlab.measure import Score, difference, proportion, ratio
from lmlab.report.scores import number, score

DIRECT = {"direct", "no-steps", "nosteps", "no_steps", "answer", "answer-only", "plain", "steps=no", "steps=false"}
STEPS = {"steps", "chain", "cot", "steps=yes", "steps=true"}


FEWEST = 10
"""Items below which nothing is said of a paired change: a bootstrap over fewer is too sure of itself (our choice)."""

Items = Mapping[tuple[str, str], Mapping[str, float]]
"""(stage, task) -> item's id -> its score, out of an evaluation's items.jsonl."""


@dataclass(frozen=True)
class Task:
    """A task's name in parts. `shots` is None where the name says nothing of demonstrations."""

    name: str
    metric: str
    family: str
    shots: int | None
    steps: bool
    decoding: str
    rest: tuple[str, ...]

    @property
    def condition(self) -> str:
        """How the questions were put, without which family they came from."""
        shots = None if self.shots is None else f"{self.shots} shot{'' if self.shots == 1 else 's'}"
        return ", ".join(
            part for part in (shots, "steps" if self.steps else "direct", self.decoding, *self.rest) if part
        )


def parse(name: str) -> Task:
    """Take a task's name apart; parts it does not know are kept in `rest`."""
    metric, *parts = name.split("/")
    family, shots, steps, decoding, rest = "", None, False, "greedy", []
    for index, part in enumerate(parts):
        word = part.lower()
        if match := re.fullmatch(r"shots?=?(\d+)|(\d+)-?shots?", word):
            shots = int(match[1] or match[2])
        elif word in STEPS:
            steps = True
        elif word in DIRECT:
            steps = False
        elif word == "greedy" or re.fullmatch(r"votes?(=?\d+)?", word):
            votes = re.sub(r"\D", "", word)
            decoding = "greedy" if word == "greedy" else f"vote of {votes}" if votes else "vote"
        elif index == 0 and "=" not in word:
            family = part
        else:
            rest.append(part)
    return Task(name, metric, family, shots, steps, decoding, tuple(rest))


def tasks_of(stages: Mapping[str, Mapping[str, object]]) -> list[Task]:
    """Every task that any stage was scored on, in the order first met."""
    names = dict.fromkeys(name for scores in stages.values() if isinstance(scores, Mapping) for name in scores)
    return [parse(str(name)) for name in names]


def pool(scores: Mapping[str, object], tasks: Iterable[Task]) -> Score | None:
    """Exact match over several tasks, Wilson's interval over distinct items.

    A family's items are the same in each condition, so repeats of a family are averaged and its n counted once:
    repeats are taken to be wholly dependent, which can only widen the interval.
    """
    families: dict[str, list[Score]] = {}
    for task in tasks:
        found = score(scores.get(task.name))
        if found is not None and found.n > 0 and 0 <= found.value <= 1:
            families.setdefault(task.family, []).append(found)
    n = sum(max(each.n for each in group) for group in families.values())
    if n == 0:
        return None
    right = sum(max(s.n for s in group) * sum(s.value for s in group) / len(group) for group in families.values())
    return proportion(right, n)


def items_of(rows: Iterable[Mapping[str, object]]) -> dict[tuple[str, str], dict[str, float]]:
    """The scores in the rows of items.jsonl, of texts their bits; rows without item, stage or task are passed over."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        given = number(row.get("score" if row.get("bits") is None else "bits"))
        stage, task, each = row.get("stage"), row.get("task"), row.get("id")
        if given is not None and isinstance(stage, str) and isinstance(task, str) and each is not None:
            found.setdefault((stage, task), {})[str(each)] = given
    return found


def paired_change(items: Items, first: Iterable[tuple[str, Task]], second: Iterable[tuple[str, Task]]) -> Score | None:
    """Mean over items of (score under `first`) - (score under `second`); None where too few stand on both sides.

    An item that was asked in several conditions counts once, with its mean over them.
    """
    sides = [_by_item(items, side) for side in (first, second)]
    both = [key for key in sides[0] if key in sides[1]]
    if len(both) < FEWEST:
        return None
    after, before = ([math.fsum(side[key]) / len(side[key]) for key in both] for side in sides)
    return difference(after, before)


def paired_ratio(items: Items, first: tuple[str, str], second: tuple[str, str]) -> Score | None:
    """Sum over items of `first` / sum of `second`, over the items of both: of bits, the ratio of two bits per byte."""
    ours, others = items.get(first, {}), items.get(second, {})
    both = [key for key in ours if key in others]
    if len(both) < FEWEST or math.fsum(others[key] for key in both) <= 0:
        return None
    return ratio([ours[key] for key in both], [others[key] for key in both])


def _by_item(items: Items, asked: Iterable[tuple[str, Task]]) -> dict[tuple[str, str], list[float]]:
    found: dict[tuple[str, str], list[float]] = {}
    for stage, task in asked:
        for each, given in items.get((stage, task.name), {}).items():
            found.setdefault((task.family, each), []).append(given)
    return found


def paired(tasks: Iterable[Task], field: str, first: object, second: object) -> tuple[list[Task], list[Task]]:
    """The tasks with `field` equal to `first`, and those with `second`, that have a twin alike in all other parts."""

    def rest(task: Task) -> tuple[object, ...]:
        names = ("metric", "family", "shots", "steps", "decoding", "rest")
        return tuple(getattr(task, name) for name in names if name != field)

    sides = [{rest(t): t for t in tasks if getattr(t, field) == wanted} for wanted in (first, second)]
    both = [key for key in sides[0] if key in sides[1]]
    return [sides[0][key] for key in both], [sides[1][key] for key in both]
