"""Task families: each makes items with verifiable answers that a model of a few million parameters can learn.

A family is one small class; whoever adds one adds it to `FAMILIES`. Items are pure functions of (family, split, seed,
index), and train and test items are apart by construction: the split is a hash of what an item asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from lmlab.errors import Refused, nearest
from lmlab.instruct.families.base import (
    ANSWER_ONLY,
    SHOW_STEPS,
    Family,
    Item,
    Split,
    Verdict,
    draw,
    draw_distinct,
    generator,
)
from lmlab.instruct.families.functions import FunctionFamily, functions
from lmlab.instruct.families.numbers import Arithmetic, Compare, Count
from lmlab.instruct.families.pairs import Difference, Larger, Smaller, Sum
from lmlab.instruct.families.sequences import Case, Copy, Pick, Reverse, Sort, Swap
from lmlab.instruct.families.tables import Entry, Find, Lookup

FAMILIES: dict[str, Callable[[], Family]] = {
    family.name: family
    for family in (
        Copy,
        Reverse,
        Case,
        Count,
        Lookup,
        Arithmetic,
        Sort,
        Pick,
        Compare,
        FunctionFamily,
        Swap,
        Find,
        Entry,
        Sum,
        Difference,
        Larger,
        Smaller,
    )
}
"""Every family by name. Swap, find and entry combine skills of the others, and are held out by default; the last four are
only asked where a recipe names them."""

PAIRS = ("sum", "difference", "larger", "smaller")
DEFAULT = tuple(name for name in FAMILIES if name not in PAIRS)
HELD_OUT = ("swap", "find", "entry")
SEEN = tuple(name for name in DEFAULT if name not in HELD_OUT)


def make(names: Sequence[str] = tuple(FAMILIES), docstrings: Iterable[str] = ()) -> dict[str, Family]:
    """The families of these names in this order. `docstrings` are documents of a corpus that show functions with their
    docstrings. Raises Refused for an unknown name."""
    made: dict[str, Family] = {}
    for name in names:
        if name not in FAMILIES:
            raise Refused(f"family '{name}': there is none of that name{nearest(name, FAMILIES)}")
        made[name] = FunctionFamily(list(functions(docstrings))) if name == "function" else FAMILIES[name]()
    return made


__all__ = [
    "ANSWER_ONLY",
    "DEFAULT",
    "FAMILIES",
    "HELD_OUT",
    "PAIRS",
    "SEEN",
    "SHOW_STEPS",
    "Family",
    "Item",
    "Split",
    "Verdict",
    "draw",
    "draw_distinct",
    "generator",
    "make",
]
