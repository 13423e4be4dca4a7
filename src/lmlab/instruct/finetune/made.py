"""Labelled examples made of a corpus' own documents, for any corpus and without a network.

    classification    which source a passage comes from
    entailment        whether the second passage is what follows the first (`follows`), or comes from elsewhere (`other`)
    similarity        whether two passages come from one document (`same`) or from two (`different`)
    multiple-choice   which of some passages is what follows

Passages from elsewhere come from other documents of the same source. Training examples are made of the corpus' training
documents, test examples of its held-out ones. They say what a model makes of text, as published sets would, and no more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from lmlab.config import Config
from lmlab.corpus.store import Split, documents
from lmlab.errors import Refused
from lmlab.instruct.families.base import generator, pick, several
from lmlab.instruct.finetune.data import Examples
from lmlab.text.task_inputs import Example, Task, example

TEST_SEED = 0
"""Test examples do not depend on the run's seed."""


class MadeConfig(Config):
    """Examples made of the corpus, where there is no `data`."""

    examples: int = Field(default=2000, ge=2)
    test_examples: int = Field(default=500, ge=2)
    characters: int = Field(default=120, ge=16)
    """Of a passage, about: it begins and ends at white space."""
    answers: int = Field(default=4, ge=2)
    """Of multiple choice."""


def make_examples(task: Task, config: MadeConfig, corpus: Path, seed: int) -> Examples:
    """Examples of both splits, example i a pure function of (seed, i). Raises Refused where the corpus has too few documents
    that are long enough."""
    texts = _usable(task, config, corpus, "train")
    train = [_example(task, config, texts, generator("made", task, "train", seed, i)) for i in range(config.examples)]
    held = {name: each for name, each in _usable(task, config, corpus, "heldout").items() if name in texts}
    tests = range(config.test_examples)
    test = [_example(task, config, held, generator("made", task, "test", TEST_SEED, i)) for i in tests]
    labels = ["answer"] if task == "multiple-choice" else sorted({str(each.label) for each in train})
    return Examples(train, test, labels, [])


def _usable(task: Task, config: MadeConfig, corpus: Path, split: Split) -> dict[str, list[str]]:
    """The texts of each source that has enough of them."""
    least, fewest = 4 * config.characters, config.answers if task == "multiple-choice" else 2
    found: dict[str, list[str]] = {}
    for row in documents(corpus, split):
        if len(row["text"]) >= least:
            found.setdefault(row["source"], []).append(row["text"])
    usable = {name: texts for name, texts in found.items() if len(texts) >= fewest}
    needed = 2 if task == "classification" else 1
    if len(usable) < needed:
        raise Refused(
            f"{corpus}: {task} examples need {needed} source{'s' if needed > 1 else ''} with at least {fewest} {split} "
            f"documents of {least} characters, found { ({name: len(texts) for name, texts in found.items()}) }: give "
            "data.train, or lower made.characters"
        )
    return usable


@dataclass(frozen=True)
class _Draw:
    """What an example is made of: a source, a text of it, and other texts of the same source."""

    rng: np.random.Generator
    characters: int
    source: str
    own: str
    others: Sequence[str]

    def passage(self, text: str) -> str:
        """A passage from a random place."""
        return _cut(text, int(self.rng.integers(len(text) - self.characters)), self.characters)

    def neighbours(self) -> tuple[str, str]:
        """Two passages of the text, the second after the first."""
        at = int(self.rng.integers(len(self.own) - 3 * self.characters))
        middle = _white(self.own, at + self.characters)
        return _cut(self.own, at, middle - at), _cut(self.own, middle, self.characters)

    def coin(self) -> bool:
        return bool(self.rng.integers(2))


def _classified(draw: _Draw) -> dict[str, Any]:
    return {"text": draw.passage(draw.own), "label": draw.source}


def _entailed(draw: _Draw) -> dict[str, Any]:
    (premise, following), follows = draw.neighbours(), draw.coin()
    hypothesis = following if follows else draw.passage(draw.others[0])
    return {"premise": premise, "hypothesis": hypothesis, "label": "follows" if follows else "other"}


def _similar(draw: _Draw) -> dict[str, Any]:
    """One passage from a first half and one from a second half, so that two of one text never overlap."""
    same, first = draw.coin(), draw.coin()
    halves = [_half(draw.own, first), _half(draw.own if same else draw.others[0], not first)]
    one, other = (draw.passage(half) for half in halves)
    return {"sentence1": one, "sentence2": other, "label": "same" if same else "different"}


def _chosen(draw: _Draw) -> dict[str, Any]:
    context, following = draw.neighbours()
    answers = [draw.passage(text) for text in draw.others]
    place = int(draw.rng.integers(len(answers) + 1))
    return {"context": context, "answers": [*answers[:place], following, *answers[place:]], "label": place}


_RECORDS = {"classification": _classified, "entailment": _entailed, "similarity": _similar, "multiple-choice": _chosen}


def _example(task: Task, config: MadeConfig, texts: Mapping[str, Sequence[str]], rng: np.random.Generator) -> Example:
    source = pick(rng, sorted(texts))
    own, *others = several(rng, texts[source], config.answers if task == "multiple-choice" else 2)
    return example(task, _RECORDS[task](_Draw(rng, config.characters, source, own, others)))


def _half(text: str, first: bool) -> str:
    return text[: len(text) // 2] if first else text[len(text) // 2 :]


def _cut(text: str, at: int, characters: int) -> str:
    """About so many characters, from white space to white space where there is some near; never nothing."""
    found = text[_white(text, at) : _white(text, at + characters)]
    return found if found.strip() else text[at : at + characters].strip() or "(white space)"


def _white(text: str, at: int) -> int:
    """The first white space at or after a place, at most 40 characters on; else the place."""
    found = _WHITE.search(text, at, at + 40)
    return found.start() if found else at


_WHITE = re.compile(r"\s")
