"""Families over numbers: count, arithmetic with a written chain of steps, compare."""

from __future__ import annotations

import re

import numpy as np

from lmlab.corpus.arithmetic import Column, addition, subtraction
from lmlab.instruct.families.base import Family, Item, between, pick, several
from lmlab.instruct.families.words import LETTERS, WORDS

_NUMBER = re.compile(r"-?\d+")


class Count(Family):
    """How many words, or letters of a spelled word, or times that a letter stands among others."""

    name = "count"
    pattern = _NUMBER
    wordings = ("How many {1} are here? {0}", "Count the {1}: {0}", "Number of {1} in: {0}")

    def sample(self, rng: np.random.Generator) -> Item:
        if rng.integers(3):
            kind, material = pick(rng, (("words", WORDS), ("letters", LETTERS)))
            parts = [pick(rng, material) for _ in range(between(rng, 1, 9))]
            answer = len(parts)
        else:
            letter, other = several(rng, LETTERS, 2)
            parts = [pick(rng, (letter, other)) for _ in range(between(rng, 2, 8))]
            kind, answer = f"letters {letter}", parts.count(letter)
        text = " ".join(parts)
        question = pick(rng, self.wordings).format(text, kind)
        return Item(self.name, question, str(answer), key=f"{kind}: {text}")


class Arithmetic(Family):
    """Addition, and subtraction of the smaller from the larger, of numbers below 1,000, digit by digit from the right
    as on paper: each step needs two digits and a carry, and the answer is read off the steps."""

    name = "arithmetic"
    pattern = _NUMBER
    wordings = ("What is {}?", "Compute {}.", "{} = ?")

    def sample(self, rng: np.random.Generator) -> Item:
        digits = pick(rng, (1, 2, 2, 3))
        a, b = between(rng, 0, 10**digits - 1), between(rng, 0, 10 ** between(rng, 1, digits) - 1)
        if rng.integers(2):
            answer, steps, sign = a + b, addition_steps(a, b), "+"
        else:
            a, b = max(a, b), min(a, b)
            answer, steps, sign = a - b, subtraction_steps(a, b), "-"
        text = f"{a} {sign} {b}"
        return Item(self.name, pick(rng, self.wordings).format(text), str(answer), steps, key=text)


def addition_steps(a: int, b: int) -> str:
    """47 + 25 -> '7 + 5 = 12, carry 1. 4 + 2 + 1 = 7.' The last step's carry is part of its sum."""
    return " ".join(_step(column, "+", "carry") for column in addition(a, b))


def subtraction_steps(a: int, b: int) -> str:
    """52 - 37 (a >= b) -> '12 - 7 = 5, borrow 1. 5 - 3 - 1 = 1.'"""
    return " ".join(_step(column, "-", "borrow") for column in subtraction(a, b))


def _step(column: Column, sign: str, over: str) -> str:
    left = f"{column.x} {sign} {column.y}" + (f" {sign} 1" if column.carried else "")
    return f"{left} = {column.value}" + (f", {over} 1." if column.carries else ".")


class Compare(Family):
    """The largest or smallest of two or three numbers."""

    name = "compare"
    pattern = _NUMBER
    wordings = ("Which is {1}: {0}?", "Give the {1} number: {0}", "Find the {1} of these numbers: {0}")

    def sample(self, rng: np.random.Generator) -> Item:
        limit = pick(rng, (10, 100, 100, 1000))
        numbers = several(rng, range(limit), between(rng, 2, 3))
        name, chosen = pick(rng, (("largest", max(numbers)), ("smallest", min(numbers))))
        text = ", ".join(map(str, numbers))
        question = pick(rng, self.wordings).format(text, name)
        return Item(self.name, question, str(chosen), key=f"{name} {text}")
