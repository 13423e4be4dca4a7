"""Judging outputs, and the exact match of many of them with its interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmlab import measure
from lmlab.instruct.families import Family, Item, Verdict


@dataclass(frozen=True)
class Judged:
    """An output and what it is worth."""

    item: Item
    output: str
    verdict: Verdict
    parsed: str | None

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.item.id, "family": self.item.family, "prompt": self.item.prompt, "answer": self.item.answer,
            "output": self.output, "parsed": self.parsed, "verdict": self.verdict,
        }  # fmt: skip


def judge(families: Mapping[str, Family], items: Sequence[Item], outputs: Sequence[str]) -> list[Judged]:
    """Judge each output by its item's family."""
    return [
        Judged(item, output, families[item.family].judge(item, output), families[item.family].parse(output))
        for item, output in zip(items, outputs, strict=True)
    ]


def exact_match(judged: Iterable[Judged]) -> measure.Score:
    """The share that is right, with Wilson's interval. What could not be parsed is not right; `verdicts` tells it
    apart from what is wrong."""
    rows = list(judged)
    return measure.proportion(sum(row.verdict == "right" for row in rows), len(rows))


def verdicts(judged: Iterable[Judged]) -> dict[str, int]:
    """How many are right, wrong, unparsed."""
    counted = Counter(row.verdict for row in judged)
    return {verdict: counted[verdict] for verdict in ("right", "wrong", "unparsed")}
