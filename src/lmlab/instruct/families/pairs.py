"""Families over a pair of two-digit numbers: their sum, difference, larger one and smaller one, asked for in words.

They belong to the source `generated:arithmetic`, whose text states the same operations and holds out the same pairs: what is
tested here, no pretraining text has shown. Small enough for a model of some ten thousand parameters; only where named.
"""

from __future__ import annotations

import re
from typing import ClassVar

import numpy as np

from lmlab.corpus.arithmetic import Problem, pair_name
from lmlab.instruct.families.base import Family, Item, between, pick

WORDINGS = ("What is the {} of {} and {}?", "Give the {} of {} and {}.", "{1} and {2}: what is the {0}?")


class Pair(Family):
    """What a subclass's `name` says of two numbers."""

    name: ClassVar[str]
    pattern = re.compile(r"\d+")

    def sample(self, rng: np.random.Generator) -> Item:
        a, b = between(rng, 10, 99), between(rng, 10, 99)
        question = pick(rng, WORDINGS).format(self.name, a, b)
        key = f"{self.name} {a} {b}"
        return Item(self.name, question, Problem(a, b, self.name).answer, key=key, apart=pair_name(a, b))


class Sum(Pair):
    """The sum of two numbers of two digits."""

    name = "sum"


class Difference(Pair):
    """The difference of two numbers of two digits, never below zero."""

    name = "difference"


class Larger(Pair):
    """The larger of two numbers of two digits."""

    name = "larger"


class Smaller(Pair):
    """The smaller of two numbers of two digits."""

    name = "smaller"
