"""A family about Python functions: answers are found in a signature and the first sentence of its docstring.

The functions come from the corpus' docstrings where there is a corpus, and are made up of common words otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lmlab.instruct.families.base import Family, Item, between, pick, several
from lmlab.instruct.families.words import WORDS

# A line such as `def name(a, b=1) -> int:`, `class.name(a, *, b)` or `name(a)`; what stands on the lines after it is
# its docstring. One level of brackets inside the parameters.
_SIGNATURE = re.compile(
    r"^[ \t]*(?:async )?(?:def )?(?:[A-Za-z_]\w*\.)*(?P<name>[a-z_]\w*)\((?P<parameters>(?:[^()\n]|\([^()\n]*\))*)\)"
    r"(?: *->[^\n:]*)?:?[ \t]*$",
    re.MULTILINE,
)
_PARAMETER = re.compile(r"\*{0,2}([A-Za-z_]\w*)")
_SENTENCE = re.compile(r"[\s\"']*([A-Z][^\n.`]{8,58}[a-z])\.(?=\s|$|[\"'])")

MOST_RECORDS = 4000
"""Functions kept of a corpus: more add nothing for a task this small."""


@dataclass(frozen=True, order=True)
class Function:
    """A function as a question shows it."""

    name: str
    parameters: tuple[str, ...]
    summary: str

    @property
    def signature(self) -> str:
        return f"{self.name}({', '.join(self.parameters)})"


def functions(texts: Iterable[str]) -> Iterator[Function]:
    """The functions in documents that hold signatures followed by docstrings: short public ones, with one to four
    parameters (self and cls left out) and a short first sentence."""
    for text in texts:
        for found in _SIGNATURE.finditer(text):
            name, sentence = found["name"], _SENTENCE.match(text, found.end())
            if sentence is None or name.startswith("_") or len(name) > 20:
                continue
            names = [_PARAMETER.match(part.strip()) for part in _parts(found["parameters"])]
            parameters = tuple(n[1] for n in names if n and n[1] not in ("self", "cls"))
            if 1 <= len(parameters) <= 4 and len(set(parameters)) == len(parameters):
                yield Function(name, parameters, " ".join(sentence[1].split()))


def _parts(parameters: str) -> list[str]:
    """Split at the commas that stand outside brackets."""
    parts, depth = [""], 0
    for character in parameters:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


class FunctionFamily(Family):
    """First, last or number of the parameters; or which of two functions a sentence describes."""

    name = "function"
    pattern = re.compile(r"\w+")
    about_parameters = {  # noqa: RUF012
        "first": ("What is the first parameter of this function?", "Name its first parameter."),
        "last": ("What is the last parameter of this function?", "Name its last parameter."),
        "count": ("How many parameters does this function take?", "Count its parameters."),
    }
    about_purpose = ("Which function does this: {}?", "Which function is described by: {}?")

    def __init__(self, records: Sequence[Function] = ()) -> None:
        """`records` in any order; a name that stands twice is kept once. With fewer than 50 they are made up."""
        one_each = {record.name: record for record in sorted(set(records), reverse=True)}
        self.records = sorted(one_each.values())
        if len(self.records) > MOST_RECORDS:
            self.records = [self.records[i] for i in np.linspace(0, len(self.records) - 1, MOST_RECORDS).astype(int)]
        if len(self.records) < 50:
            self.records = []

    def _function(self, rng: np.random.Generator) -> Function:
        if self.records:
            return pick(rng, self.records)
        verb, thing, *parameters = several(rng, WORDS, 2 + between(rng, 1, 4))
        return Function(f"{verb}_{thing}", tuple(parameters), f"{verb.title()} the {thing} of the {parameters[0]}")

    def sample(self, rng: np.random.Generator) -> Item:
        one = self._function(rng)
        kind = pick(rng, ("first", "last", "count", "purpose"))
        if kind != "purpose":
            parameters = one.parameters
            answer = {"first": parameters[0], "last": parameters[-1], "count": str(len(parameters))}[kind]
            question = f"{one.signature}: {one.summary}.\n{pick(rng, self.about_parameters[kind])}"
            return Item(self.name, question, answer, key=f"{kind} {one.signature}")
        other = self._function(rng)
        while other.name == one.name or other.summary == one.summary:
            other = self._function(rng)
        shown = "\n".join(f"{each.signature}: {each.summary}." for each in several(rng, (one, other), 2))
        question = f"{shown}\n{pick(rng, self.about_purpose).format(one.summary)}"
        return Item(self.name, question, one.name, key=f"{kind} {one.signature} {other.signature}")
