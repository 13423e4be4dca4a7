"""Rule-based feedback (survey, section 5.2.2): what an answer to a verifiable instruction is worth by written rules.

Three rules, in the order of their weight: a correct answer before a wrong one; no forbidden words; short before long.
Each gives a mark in [0, 1], and the rule score is their weighted mean, so it is in [0, 1] too. Where each weight is more
than the sum of those after it (as by default), the order is lexicographic: no brevity makes up for a wrong answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from lmlab.config import Config
from lmlab.instruct.families import Family, Item

Kind = Literal["correctness", "forbidden", "length"]

KINDS: tuple[Kind, ...] = ("correctness", "forbidden", "length")
"""The rules, the weightiest first; also the kinds of difference between two answers."""

FORBIDDEN = ("error", "escape", "exit", "fail", "kill", "none", "null", "remove", "sorry", "unknown")
"""Stand-ins for a house style. Some are words that the task families use, so that the rule is broken at times."""

_WORD = re.compile(r"[^\W\d_]+")


class RulesConfig(Config):
    """Weights of the rules, and their words."""

    correctness: float = Field(default=0.6, ge=0)
    forbidden: float = Field(default=0.25, ge=0)
    length: float = Field(default=0.15, ge=0)
    words: tuple[str, ...] = FORBIDDEN
    """Words that an answer must not use, whatever their case, unless the right answer holds them."""
    resolution: float = Field(default=0.02, gt=0, le=1)
    """Scores are compared in steps of this size: answers within one step are tied."""

    @model_validator(mode="after")
    def _possible(self) -> RulesConfig:
        if self.correctness + self.forbidden + self.length <= 0:
            raise ValueError("at least one rule needs a weight above 0")
        return self


@dataclass(frozen=True)
class Marks:
    """What each rule gives an answer, and the rule score, all in [0, 1]."""

    correctness: float
    forbidden: float
    length: float
    score: float


def mark(config: RulesConfig, family: Family, item: Item, output: str, finished: bool = True) -> Marks:
    """Judge an answer. `finished` is False for one that was cut off at the length limit: it is not correct.

    correctness 1 or 0, by the family; forbidden 1 without forbidden words, else 0; length the share of the answer's
    characters that the right answer needs, at most 1: to be shorter than the right answer earns nothing.
    """
    right = set(_words(item.target))
    used = {word.lower() for word in config.words} & set(_words(output)) - right
    marks = {
        "correctness": float(finished and family.correct(item, output)),
        "forbidden": float(not used),
        "length": min(1.0, max(1, len(item.target)) / max(1, len(output.strip()))),
    }
    weights = {"correctness": config.correctness, "forbidden": config.forbidden, "length": config.length}
    score = sum(weights[kind] * marks[kind] for kind in KINDS) / sum(weights.values())
    return Marks(marks["correctness"], marks["forbidden"], marks["length"], score)


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def rank(scores: Sequence[float], resolution: float) -> list[int]:
    """Ranks from 1, the best. Scores equal in steps of `resolution` share a rank, and the next rank follows at once."""
    steps = [round(score / resolution) for score in scores]
    places = {step: place for place, step in enumerate(sorted(set(steps), reverse=True), start=1)}
    return [places[step] for step in steps]


def difference(better: Marks, worse: Marks) -> Kind:
    """Which rule tells two answers apart: the weightiest one whose marks differ."""
    for kind in KINDS:
        if getattr(better, kind) != getattr(worse, kind):
            return kind
    raise ValueError("two answers of equal marks are not told apart by any rule")
