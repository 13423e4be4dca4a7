"""What a task family is: a generator of items whose answers can be checked, and one rule that reads an answer."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np

from lmlab.errors import Failed

Split = Literal["train", "test"]
Verdict = Literal["right", "wrong", "unparsed"]
Choice = TypeVar("Choice")

TEST_SHARE = 8
"""One in so many of the possible items belongs to the test split."""

ATTEMPTS = 10_000
"""Draws before a family counts as too small for what is asked of it."""

ANSWER = "Answer:"
STEPS = "Steps:"
SHOW_STEPS, ANSWER_ONLY = "Show your steps.", "Answer only."


@dataclass(frozen=True)
class Item:
    """One question with its right answer. `show_steps` says which of the two ways of answering is asked for, where the
    family has a chain of steps at all.
    """

    family: str
    question: str
    answer: str
    steps: str | None = None
    key: str = ""
    """What is asked, free of its wording: decides the split, so no wording of a test item is ever trained on."""
    show_steps: bool = False
    meta: dict[str, Any] = field(default_factory=dict)
    apart: str = ""
    """What decides the split instead of family and key, where several families (or a corpus) hold out the same things."""

    @property
    def prompt(self) -> str:
        """What the user says."""
        if self.steps is None:
            return self.question
        return f"{self.question} {SHOW_STEPS if self.show_steps else ANSWER_ONLY}"

    @property
    def target(self) -> str:
        """What the assistant should say: the answer, after the steps if they are asked for."""
        if self.steps is None or not self.show_steps:
            return self.answer
        return f"{STEPS} {self.steps}\n{ANSWER} {self.answer}"

    def asked(self, show_steps: bool) -> Item:
        """The same item with or without its steps; without a chain of steps there is one way only."""
        return self if self.steps is None else replace(self, show_steps=show_steps)

    @property
    def id(self) -> str:
        """Names the item in files: the family and a hash of what is asked, whatever the wording."""
        return f"{self.family}-{hashlib.sha256(self.key.encode()).hexdigest()[:12]}"

    @property
    def split(self) -> Split:
        """Which split this item belongs to, by a hash of its family and key alone, or of `apart`."""
        first = hashlib.sha256((self.apart or f"{self.family}\n{self.key}").encode()).digest()[0]
        return "test" if first % TEST_SHARE == 0 else "train"


class Family(ABC):
    """A task family. A subclass gives `name`, `pattern` (what an answer must look like to be one) and `sample`."""

    name: ClassVar[str]
    pattern: ClassVar[re.Pattern[str]]

    @abstractmethod
    def sample(self, rng: np.random.Generator) -> Item:
        """A random item of either split; equal generators give equal items."""

    def parse(self, output: str) -> str | None:
        """The answer in an output, or None if there is none: the first line of what follows the last "Answer:" (of the
        whole output where that word is missing), without spaces around it and without one full stop at its end; it must
        then match the family's pattern as a whole.
        """
        text = output.rpartition(ANSWER)[2].strip()
        line = text.split("\n", 1)[0].strip().removesuffix(".")
        return line if self.pattern.fullmatch(line) else None

    def judge(self, item: Item, output: str) -> Verdict:
        """Right, wrong, or unparsed: no answer of the right form is not the same as a wrong one."""
        found = self.parse(output)
        if found is None:
            return "unparsed"
        return "right" if found == item.answer else "wrong"

    def correct(self, item: Item, output: str) -> bool:
        """Whether an output answers the item rightly."""
        return self.judge(item, output) == "right"


def generator(*words: object) -> np.random.Generator:
    """A random generator that is a pure function of the words (seed, purpose, index): Philox keyed by their hash."""
    key = hashlib.sha256("\n".join(map(str, words)).encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key, dtype=np.uint64)))


def draw(family: Family, split: Split, seed: int, index: int, *, show_steps: bool | None = None) -> Item:
    """Item number `index` of a split: the first random item that belongs to it. Where the family has steps, half of the
    items ask for them, unless `show_steps` says.
    """
    rng = generator("item", family.name, split, seed, index)
    wanted = bool(rng.integers(2))
    for _ in range(ATTEMPTS):
        item = family.sample(rng)
        if item.split == split:
            return item.asked(wanted if show_steps is None else show_steps)
    raise Failed(f"family '{family.name}': no {split} item in {ATTEMPTS} draws; it has too few different items")


def draw_distinct(
    family: Family,
    split: Split,
    seed: int,
    count: int,
    *,
    show_steps: bool | None = None,
    apart_from: Sequence[Item] = (),
) -> list[Item]:
    """`count` items of a split that all ask different things, none of what `apart_from` asks."""
    found: list[Item] = []
    keys = {item.key for item in apart_from if item.family == family.name}
    for item in _stream(family, split, seed, show_steps):
        if len(found) == count:
            return found
        if item.key not in keys:
            keys.add(item.key)
            found.append(item)
    raise Failed(f"family '{family.name}': only {len(found)} different {split} items were found, {count} are asked for")


def _stream(family: Family, split: Split, seed: int, show_steps: bool | None) -> Iterator[Item]:
    for index in range(ATTEMPTS):
        yield draw(family, split, seed, index, show_steps=show_steps)


def pick(rng: np.random.Generator, choices: Sequence[Choice]) -> Choice:
    """One of the choices, each as likely."""
    return choices[int(rng.integers(len(choices)))]


def several(rng: np.random.Generator, choices: Sequence[Choice], count: int) -> list[Choice]:
    """`count` different ones in random order."""
    return [choices[int(i)] for i in rng.permutation(len(choices))[:count]]


def between(rng: np.random.Generator, low: int, high: int) -> int:
    """A whole number from low to high, both included."""
    return int(rng.integers(low, high + 1))
