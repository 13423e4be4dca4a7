"""A span of text that identifies or unlocks, and how overlapping claims are settled."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

KINDS = ("email", "ip_address", "key", "phone", "card", "account", "handle", "name", "address")
"""What a span can be, by the names that statistics use. `account` is a bank account or a bank's routing number."""


@dataclass(frozen=True, order=True)
class Span:
    """text[start:end] is of a kind of `KINDS`."""

    start: int
    end: int
    kind: str


Detector = Callable[[str], Iterator[Span]]


def settle(claims: Iterable[Span]) -> list[Span]:
    """Spans in order of the text, none overlapping: of two that overlap the one claimed first stays."""
    taken: list[Span] = []
    for claim in claims:
        place = bisect.bisect(taken, claim)
        free_before = place == 0 or taken[place - 1].end <= claim.start
        if free_before and (place == len(taken) or claim.end <= taken[place].start):
            taken.insert(place, claim)
    return taken
