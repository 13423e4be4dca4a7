"""All detectors that a recipe asks for, as one function of the text."""

from __future__ import annotations

from collections.abc import Iterator

from lmlab.corpus.privacy import network, people
from lmlab.corpus.privacy.config import Redact
from lmlab.corpus.privacy.keys import keys
from lmlab.corpus.privacy.numbers import Phones, accounts, cards
from lmlab.corpus.privacy.span import Detector, Span, settle


def detectors(config: Redact) -> list[Detector]:
    """In order of precedence: where two claim the same text, the earlier has it.

    Raises Refused if a library or a recogniser is asked for that is not installed.
    """
    chosen: list[Detector] = []
    if config.keys:
        chosen.append(keys)
    if config.emails:
        chosen.append(network.emails)
    if config.addresses:
        chosen.append(network.addresses)
    if config.accounts:
        chosen.append(accounts)
    if config.cards:
        chosen.append(cards)
    if config.phones:
        chosen.append(Phones(config.regions))
    if config.handles:
        chosen.append(network.handles)
    if config.recogniser is not None:
        chosen.append(people.people(people.load(config.recogniser)))
    return chosen


def find(text: str, chosen: list[Detector]) -> list[Span]:
    """The spans of `text` that identify or unlock, in order, none overlapping. Offsets count characters."""

    def claims() -> Iterator[Span]:
        for detect in chosen:
            yield from detect(text)

    return settle(claims())
