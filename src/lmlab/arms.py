"""A recipe's variants: the arms that it names, and the crossing of its grid. Each is the recipe with some settings changed.

    arms: {relu: {pretrain.model.activation: relu, pretrain.model.d_ff: 384}, swiglu: {}}
    grid: {pretrain.steps: [100, 200]}

An arm that changes nothing is the recipe as it stands. With both there is every arm at every point of the grid.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator
from typing import Any

from lmlab.config import Document, parse_path
from lmlab.errors import Refused, nearest
from lmlab.run import digest

RESERVED = ("arms", "grid", "seeds", "description", "ladder")
"""Keys of a recipe that name no stage."""


def stages_of(document: Document) -> dict[str, Any]:
    """The part of a recipe that names stages."""
    return {key: value for key, value in document.data.items() if key not in RESERVED}


def arms_of(document: Document) -> Iterator[tuple[str, Document]]:
    """The stages of each arm: each of the named arms with every combination of the grid's values, named by what differs."""
    stages = stages_of(document)
    named, grid = _named(document), _grid(document)
    for path, origin in [
        *((p, ("arms", arm, p)) for arm in named for p in named[arm]),
        *((p, ("grid", p)) for p in grid),
    ]:
        if parse_path(path)[0] not in stages:
            raise Refused(
                f"{document.at(origin)}: {origin[0]}: no stage '{path}'{nearest(str(parse_path(path)[0]), stages)}"
            )
    for arm, changes in named.items():
        for choice in itertools.product(*(range(len(values)) for values in grid.values())):
            made = Document(copy.deepcopy(stages), dict(document.marks), document.source)
            made.overridden = dict(document.overridden)
            for path, value in changes.items():
                made.set(path, copy.deepcopy(value), ("arms", arm, path))
            crossed = list(zip(grid, choice, strict=True))
            for path, index in crossed:
                made.set(path, copy.deepcopy(grid[path][index]), ("grid", path, index))
            parts = [arm, *(f"{path}={_brief(grid[path][index])}" for path, index in crossed)]
            name = ",".join(part for part in parts if part).replace("/", "_")
            yield name if len(name) <= 200 else f"{name[:180]}-{digest(name)[:12]}", made


def _brief(value: Any) -> str:
    """A grid's value as a part of a directory's name: of a mapping its `name` and the other settings in brackets."""
    if isinstance(value, list):
        return "+".join(map(_brief, value))
    if not isinstance(value, dict):
        return str(value)
    rest = ",".join(f"{key}={_brief(each)}" for key, each in value.items() if key != "name")
    return f"{value.get('name', '')}{f'({rest})' if rest else ''}"


def _named(document: Document) -> dict[str, dict[str, Any]]:
    """The arms by name, each the settings that it changes; one called "" where there are none."""
    given = document.data.get("arms")
    if given is None:
        return {"": {}}
    example = "such as gelu: {pretrain.model.activation: gelu}"
    if not isinstance(given, dict) or not given:
        raise Refused(f"{document.at(('arms',))}: arms: expected NAME: {{setting: value, ...}}, {example}")
    for name, changes in given.items():
        place = document.at(("arms", name))
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.+-]*", name):
            raise Refused(
                f"{place}: arms: {name!r} is no name of an arm; expected letters, digits, '-', '_', '.' or '+'"
            )
        if not isinstance(changes, dict | None) or not all(isinstance(path, str) for path in changes or ()):
            raise Refused(f"{place}: arms.{name}: expected {{setting: value, ...}}, {example}; found {changes!r}")
    return {name: changes or {} for name, changes in given.items()}


def _grid(document: Document) -> dict[str, list[Any]]:
    """The settings to cross, each with its values."""
    grid = document.data.get("grid") or {}
    if not isinstance(grid, dict) or not all(isinstance(v, list) and v for v in grid.values()):
        raise Refused(
            f"{document.at(('grid',))}: grid: expected setting: [value, ...], such as pretrain.minutes: [1, 2]"
        )
    return grid
