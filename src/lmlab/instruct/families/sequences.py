"""Families over lists of words and letters: copy, reverse, case, sort, pick, and (combining skills) swap."""

from __future__ import annotations

import re

import numpy as np

from lmlab.instruct.families.base import Family, Item, between, pick, several
from lmlab.instruct.families.words import LETTERS, SHORT_WORDS, WORDS

_WORDS = re.compile(r"[A-Za-z]+( [A-Za-z]+)*")
_WORD = re.compile(r"[A-Za-z]+")
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")


class Copy(Family):
    """Say the words again."""

    name = "copy"
    pattern = _WORDS
    wordings = ("Copy: {}", "Repeat these words: {}", "Say this again: {}", "Write the same words: {}")

    def sample(self, rng: np.random.Generator) -> Item:
        words = " ".join(several(rng, WORDS, between(rng, 2, 6)))
        return Item(self.name, pick(rng, self.wordings).format(words), words, key=words)


class Reverse(Family):
    """Words, or the letters of a spelled word, in reverse order."""

    name = "reverse"
    pattern = _WORDS
    wordings = ("Reverse: {}", "Reverse the order of this list: {}", "Say this backwards: {}")

    def sample(self, rng: np.random.Generator) -> Item:
        parts = several(rng, pick(rng, (WORDS, WORDS, LETTERS)), between(rng, 2, 5))
        text = " ".join(parts)
        return Item(self.name, pick(rng, self.wordings).format(text), " ".join(reversed(parts)), key=text)


class Case(Family):
    """Upper, lower or title case. Short words only: in capitals a word is several tokens, to be learnt by heart."""

    name = "case"
    pattern = _WORDS
    wordings = ("Write in {1} case: {0}", "Change to {1} case: {0}", "Make this {1} case: {0}")
    changes = {"upper": str.upper, "lower": str.lower, "title": str.title}  # noqa: RUF012

    def sample(self, rng: np.random.Generator) -> Item:
        material = pick(rng, (SHORT_WORDS, LETTERS))
        names = ("upper", "lower") if material is LETTERS else tuple(self.changes)  # a letter's title case is its upper
        name, other = several(rng, names, 2)
        given = self.changes[other]
        parts = several(rng, material, between(rng, 1, 3))
        text = given(" ".join(parts))
        question = pick(rng, self.wordings).format(text, name)
        return Item(self.name, question, self.changes[name](text), key=f"{name} {text}")


class Sort(Family):
    """Words or letters in alphabetical order. No two words begin with the same letter: one rule is enough."""

    name = "sort"
    pattern = _WORDS
    wordings = ("Sort alphabetically: {}", "Put in alphabetical order: {}", "Sort from a to z: {}")

    def sample(self, rng: np.random.Generator) -> Item:
        by_letter: dict[str, str] = {}
        for part in several(rng, pick(rng, (WORDS, LETTERS)), 12):
            by_letter.setdefault(part[0], part)
        parts = list(by_letter.values())[: between(rng, 2, 4)]
        text = " ".join(parts)
        return Item(self.name, pick(rng, self.wordings).format(text), " ".join(sorted(parts)), key=text)


class Pick(Family):
    """The first, last, second or third word."""

    name = "pick"
    pattern = _WORD
    wordings = ("What is the {1} word? {0}", "Give the {1} word of: {0}", "Which word is {1} here? {0}")

    def sample(self, rng: np.random.Generator) -> Item:
        words = several(rng, WORDS, between(rng, 3, 6))
        ordinal = pick(rng, ("first", "last", *_ORDINALS[1:3]))
        answer = words[-1] if ordinal == "last" else words[_ORDINALS.index(ordinal)]
        text = " ".join(words)
        return Item(self.name, pick(rng, self.wordings).format(text, ordinal), answer, key=f"{ordinal} {text}")


class Swap(Family):
    """First and last word exchanged, the others where they are: copying and reversing at once. Meant to be held out."""

    name = "swap"
    pattern = _WORDS
    wordings = ("Swap the first and last word: {}", "Reverse only the first and the last word: {}")

    def sample(self, rng: np.random.Generator) -> Item:
        words = several(rng, WORDS, between(rng, 2, 4))
        answer = [words[-1], *words[1:-1], words[0]]
        text = " ".join(words)
        return Item(self.name, pick(rng, self.wordings).format(text), " ".join(answer), key=text)
