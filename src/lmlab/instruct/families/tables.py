"""Families over a small table that the prompt holds: lookup, and (combining skills) find and entry."""

from __future__ import annotations

import re

import numpy as np

from lmlab.instruct.families.base import Family, Item, between, pick, several
from lmlab.instruct.families.words import WORDS

_FORMS = ("{}: {}", "{} = {}", "{} {}")


def _table(rng: np.random.Generator) -> tuple[dict[str, str], str]:
    """Two to five names with different values, and the table as text, a line a name."""
    names = several(rng, WORDS, between(rng, 2, 5))
    values = several(rng, range(100), len(names))
    table = {name: str(value) for name, value in zip(names, values, strict=True)}
    form = pick(rng, _FORMS)
    return table, "\n".join(form.format(name, value) for name, value in table.items())


class Lookup(Family):
    """The value of a name."""

    name = "lookup"
    pattern = re.compile(r"\d+")
    wordings = ("{0}\nWhat is the value of {1}?", "Look up {1} in this table:\n{0}", "Table:\n{0}\nValue of {1}?")

    def sample(self, rng: np.random.Generator) -> Item:
        table, text = _table(rng)
        name = pick(rng, tuple(table))
        question = pick(rng, self.wordings).format(text, name)
        return Item(self.name, question, table[name], key=f"{name} in {table}")


class Find(Family):
    """The name that has a value: the look-up the other way round. Meant to be held out."""

    name = "find"
    pattern = re.compile(r"[A-Za-z]+")
    wordings = ("{0}\nWhich name has the value {1}?", "Table:\n{0}\nWhose value is {1}?")

    def sample(self, rng: np.random.Generator) -> Item:
        table, text = _table(rng)
        name = pick(rng, tuple(table))
        question = pick(rng, self.wordings).format(text, table[name])
        return Item(self.name, question, name, key=f"{table[name]} in {table}")


class Entry(Family):
    """The first, second or last value: picking by place, in a table. Meant to be held out. Who answers any value of the
    table is right three times in ten."""

    name = "entry"
    pattern = re.compile(r"\d+")
    wordings = ("{0}\nWhat is the {1} value?", "Table:\n{0}\nGive the {1} value.")

    def sample(self, rng: np.random.Generator) -> Item:
        table, text = _table(rng)
        ordinal, place = pick(rng, (("first", 0), ("second", 1), ("last", -1)))
        answer = list(table.values())[place]
        question = pick(rng, self.wordings).format(text, ordinal)
        return Item(self.name, question, answer, key=f"{ordinal} of {table}")
