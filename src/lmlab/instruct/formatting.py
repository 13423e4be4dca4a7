"""From items to conversations, for training and evaluation alike (survey, section 5.1.1: a description of the task,
demonstrations where wanted, the input; target outputs with or without a chain of steps)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from lmlab.errors import Failed
from lmlab.instruct.families import Family, Item, draw
from lmlab.instruct.families.base import ATTEMPTS

Style = Literal["turns", "inline"]
"""Demonstrations as earlier turns of the conversation, or as text inside the user's turn."""

STYLES: tuple[Style, ...] = ("turns", "inline")


def messages(item: Item, demonstrations: Sequence[Item] = (), style: Style = "turns") -> list[dict[str, str]]:
    """The conversation up to where the assistant answers `item`: each demonstration a user and an assistant turn
    ("turns"), or all of them in the one user turn ("inline")."""
    if style == "inline" and demonstrations:
        shown = "\n\n".join(f"{each.prompt}\n{each.target}" for each in demonstrations)
        return [_turn("user", f"{shown}\n\n{item.prompt}")]
    turns = []
    for each in demonstrations:
        turns += [_turn("user", each.prompt), _turn("assistant", each.target)]
    return [*turns, _turn("user", item.prompt)]


def conversation(item: Item, demonstrations: Sequence[Item] = (), style: Style = "turns") -> list[dict[str, str]]:
    """As `messages`, with the answer as the last turn: what is trained on."""
    return [*messages(item, demonstrations, style), _turn("assistant", item.target)]


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def demonstrations(family: Family, item: Item, count: int, seed: int, index: int) -> list[Item]:
    """`count` training items of the item's family, different from it and from each other, answered in the way that it
    asks for. A pure function of its arguments; test items are never shown."""
    found: list[Item] = []
    keys = {item.key}
    for attempt in range(ATTEMPTS):
        if len(found) == count:
            return found
        each = draw(family, "train", seed, index * ATTEMPTS + attempt, show_steps=item.show_steps)
        if each.key not in keys:
            keys.add(each.key)
            found.append(each)
    raise Failed(f"family '{family.name}': has no {count} different items to show beside '{item.key}'")


def shares(weights: Mapping[str, float], families: Sequence[str]) -> np.ndarray:
    """The share of each family in the mixture (F,): its weight (1 if none is given) over the sum of weights."""
    values = np.array([weights.get(name, 1.0) for name in families], dtype=np.float64)
    return values / values.sum()
