"""Strategies: ways of asking that compose over any task. Demonstrations, a chain of steps, a vote of samples.

Their names stand in results and on the command line: `shots=4/steps/vote=8`. Left out, they are no demonstrations, no
steps, one greedy answer.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmlab.errors import Refused
from lmlab.evaluate.task import Messages, Task


@dataclass(frozen=True)
class Shots:
    """`count` demonstrations before the question (in-context learning; survey, section 6.1)."""

    count: int = 0


@dataclass(frozen=True)
class Cot:
    """Ask for the steps before the answer (chain of thought, 2201.11903); demonstrations then show theirs."""


@dataclass(frozen=True)
class Vote:
    """Self-consistency (2203.11171): `samples` outputs at a temperature, the answer that most of them give.

    Unparsed outputs have no vote. Of answers with equally many votes the one seen first wins, first meaning the lowest
    sample number, so the order of samples matters to ties and to nothing else.
    """

    samples: int
    temperature: float = 0.7

    def reduce(self, answers: Sequence[str | None]) -> int | None:
        """The number of the first sample that gives the winning answer, or None where none was parsed."""
        counts = Counter(answer for answer in answers if answer is not None)
        if not counts:
            return None
        return answers.index(counts.most_common(1)[0][0])  # most_common keeps the order first seen among equals


Part = Shots | Cot | Vote


@dataclass(frozen=True)
class Strategy:
    """A composition of at most one part of each kind; the order of parts does not matter."""

    shots: Shots = Shots()
    cot: Cot | None = None
    vote: Vote | None = None

    def name(self, task: Task) -> str:
        """`shots=K/steps|direct/greedy|vote=N`; whether there are steps is said only of tasks that can have them."""
        steps = [] if not task.has_steps else ["steps" if self.cot else "direct"]
        return "/".join([f"shots={self.shots.count}", *steps, f"vote={self.vote.samples}" if self.vote else "greedy"])

    def describe(self, task: Task) -> str:
        """The strategy in words."""
        count = self.shots.count
        words = [f"{count or 'no'} demonstration{'' if count == 1 else 's'}"]
        if task.has_steps:
            words.append("with the steps written" if self.cot else "the answer alone")
        vote = self.vote
        words.append(f"a vote of {vote.samples} samples at temperature {vote.temperature:g}" if vote else "greedy")
        return ", ".join(words)

    def ask(self, task: Task, item: Any, shots: int) -> Messages:
        """The conversation that puts `item` to a model, after `shots` demonstrations."""
        steps = self.cot is not None
        return task.view(item, task.data.shown(item, shots, steps) if shots else (), steps)


def compose(*parts: Part) -> Strategy:
    """A strategy of these parts. Raises Refused where two are of one kind."""
    found: dict[str, Any] = {}
    for part in parts:
        field = type(part).__name__.lower()
        if field in found:
            raise Refused(f"strategy: {field} stands twice: {found[field]} and {part}")
        found[field] = part
    return Strategy(**found)


def parse(words: Sequence[str], temperature: float = 0.7) -> Strategy:
    """The strategy of words such as `shots=4`, `steps`, `vote=8`. Raises Refused for any other word."""
    parts: list[Part] = []
    for word in words:
        if match := re.fullmatch(r"shots=(\d+)", word):
            parts.append(Shots(int(match[1])))
        elif match := re.fullmatch(r"vote=([1-9]\d*)", word):
            parts.append(Vote(int(match[1]), temperature))
        elif word == "steps":
            parts.append(Cot())
        elif word not in ("direct", "greedy"):
            raise Refused(f"strategy '{word}': expected shots=K, steps, direct, greedy or vote=N")
    if {"steps", "direct"} <= set(words) or ("greedy" in words and any(isinstance(part, Vote) for part in parts)):
        raise Refused(f"strategy '{'/'.join(words)}': names two that exclude each other")
    return compose(*parts)


def sample_seed(seed: int, item: str, sample: int) -> int:
    """The seed of one output: a function of the run's seed, the item's id and the sample's number alone, so that it is
    the same whatever else is asked, in whatever order."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{item}\n{sample}".encode()).digest()[:6], "big")
