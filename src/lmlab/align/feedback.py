"""Ranked samples of a model: drawn, marked by the rules, ranked, and kept in one file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmlab.align.episodes import Episode, sample
from lmlab.align.losses import untied_pairs
from lmlab.align.prompts import Prompts, derived
from lmlab.align.rules import Kind, Marks, RulesConfig, difference, mark, rank
from lmlab.generate.engine import Engine
from lmlab.instruct.families import Family
from lmlab.progress import read_jsonl
from lmlab.run import write_atomic
from lmlab.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Answer:
    """A sampled answer: `ids` are what a reward model reads, prompt and end-of-turn token included."""

    text: str
    ids: list[int]
    finished: bool
    marks: Marks
    rank: int


@dataclass(frozen=True)
class Ranked:
    """A prompt and its ranked answers."""

    id: str
    family: str
    split: str
    prompt: str
    answer: str
    answers: list[Answer]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(better, worse) of every two answers that are no tie."""
        return untied_pairs([answer.rank for answer in self.answers])

    def difference(self, pair: tuple[int, int]) -> Kind:
        """Which rule tells the two apart."""
        return difference(self.answers[pair[0]].marks, self.answers[pair[1]].marks)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Ranked:
        answers = [
            Answer(each["text"], each["ids"], each["finished"], Marks(**each["marks"]), each["rank"])
            for each in row["answers"]
        ]
        return cls(row["id"], row["family"], row["split"], row["prompt"], row["answer"], answers)


def gather(
    engine: Engine, tokenizer: Tokenizer, prompts: Prompts, rules: RulesConfig, *, wanted: int, most: int,
    samples: int, max_new_tokens: int, temperature: float, seed: int,
) -> list[Ranked]:  # fmt: skip
    """Sample `samples` answers a prompt until `wanted` prompts have an untied pair or `most` prompts were asked.

    Later rounds ask as many prompts as the share of useful ones so far calls for. Every prompt asked is returned,
    useful or not; a pure function of the weights and the arguments.
    """
    found: list[Ranked] = []
    asked: set[str] = set()
    number = useful = 0
    while useful < wanted and number < most:
        share = max(useful / number, 0.1) if number else 1.0
        count = min(math.ceil((wanted - useful) / share), most - number)
        fresh = []
        for prompt in prompts.take(number, count):
            if prompt.item.id not in asked:
                asked.add(prompt.item.id)
                fresh.append(prompt)
        each = [prompt for prompt in fresh for _ in range(samples)]
        keys = [derived(seed, prompt.item.id, k) for prompt in fresh for k in range(samples)]
        episodes = sample(engine, tokenizer, each, keys, max_new_tokens, temperature)
        for index, prompt in enumerate(fresh):
            own = episodes[index * samples : (index + 1) * samples]
            found.append(_ranked(own, prompts.families[prompt.item.family], rules, tokenizer))
            useful += bool(found[-1].pairs)
        number += count
    return found


def _ranked(episodes: Sequence[Episode], family: Family, rules: RulesConfig, tokenizer: Tokenizer) -> Ranked:
    item = episodes[0].prompt.item
    marks = [mark(rules, family, item, each.text, each.ended) for each in episodes]
    ranks = rank([each.score for each in marks], rules.resolution)
    answers = [
        Answer(each.text, each.judged(tokenizer), each.ended, marked, place)
        for each, marked, place in zip(episodes, marks, ranks, strict=True)
    ]
    return Ranked(item.id, item.family, item.split, item.prompt, item.answer, answers)


def write(path: Path, rows: Sequence[Ranked]) -> None:
    """The whole file or none."""
    write_atomic(path, "".join(json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in rows))


def read(path: Path) -> list[Ranked]:
    """The rows of a file that `write` made."""
    return [Ranked.from_json(row) for row in read_jsonl(path)]
