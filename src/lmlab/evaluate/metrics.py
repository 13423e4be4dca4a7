"""Metrics of items, and of many items: a Score each, over items or documents as the independent units."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lmlab.measure import Score, mean, proportion, ratio

Row = Mapping[str, Any]


def exact_match(parsed: str, answer: str) -> float:
    """1.0 where the parsed answer is the right one, character by character."""
    return float(parsed == answer)


def share(flags: Iterable[bool]) -> Score:
    """The share of items that a flag holds for, with Wilson's interval."""
    listed = list(flags)
    return proportion(sum(listed), len(listed))


def score(rows: Sequence[Row]) -> Score:
    """The score of a unit's rows. Documents: total bits over total bytes, documents resampled. Items that are right or
    not: their share; unparsed ones are not right. Any other metric: the mean."""
    if rows and "bytes" in rows[0]:
        return ratio([row["bits"] for row in rows], [row["bytes"] for row in rows])
    values = [float(row["score"]) for row in rows]
    if all(value in (0.0, 1.0) for value in values):
        return proportion(sum(values), len(values))
    return mean(values)


def unparsed(rows: Sequence[Row]) -> Score:
    """The share of items whose output holds no answer of the right form (of a vote: none of whose samples does)."""
    return share(row["parsed"] is None for row in rows)


def truncated(rows: Sequence[Row]) -> Score:
    """The share of items with an output cut off at the token limit (of a vote: of all its samples; n counts items)."""
    cut = sum(sum(reason == "length" for reason in reasons(row)) / len(reasons(row)) for row in rows)
    return proportion(cut, len(rows))


def reasons(row: Row) -> list[str]:
    """How each of a row's outputs ended."""
    return [sample["finish_reason"] for sample in row.get("samples") or [row]]


def bits(nats: float) -> float:
    return nats / math.log(2)
