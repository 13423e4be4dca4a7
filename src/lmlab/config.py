"""Typed settings read from YAML, with errors that name the line, what was found and what is expected.

YAML here is PyYAML's with three mendings: `3e-4` is a number (YAML 1.1 reads a string), duplicate keys are refused,
and `on`/`off`/`yes`/`no` stay words.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from lmlab.errors import Refused, nearest

Location = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)


class Config(BaseModel):
    """Base of every settings class: frozen, unknown keys refused, the docstring under a field is its help."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True)

    apart: ClassVar[frozenset[str]] = frozenset()
    """Settings that say how the work is done and not what it makes: no part of a stage's identity. A class names its own;
    those of the settings inside it are theirs."""

    def essence(self) -> dict[str, Any]:
        """The settings as plain JSON values without those that are `apart`, here and inside: what identity is made of."""
        return self.essence_of(self.model_dump(mode="json"))

    def essence_of(self, plain: Mapping[str, Any]) -> dict[str, Any]:
        """Plain values of this class's settings, such as those of an earlier run, without those that are `apart`."""
        return {k: _essence(getattr(self, k, None), value) for k, value in plain.items() if k not in self.apart}


def _essence(setting: Any, plain: Any) -> Any:
    """As `Config.essence_of`, for whatever a setting may be. Where the two are not of one form, the plain one as it is."""
    if isinstance(setting, Config) and isinstance(plain, dict):
        return setting.essence_of(plain)
    if isinstance(setting, Mapping) and isinstance(plain, dict):
        named = {str(key): each for key, each in setting.items()}
        return {key: _essence(named.get(key), each) for key, each in plain.items()}
    if isinstance(setting, (list, tuple)) and isinstance(plain, list) and len(setting) == len(plain):
        return [_essence(one, other) for one, other in zip(setting, plain)]
    return plain


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads numbers as people write them."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, expression) for tag, expression in rules if tag not in ("tag:yaml.org,2002:bool",)]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\d+(?:\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def _walk(node: yaml.Node, where: Location, source: str, marks: dict[Location, tuple[int, int]]) -> None:
    """Record the line and column of every key and item; refuse duplicate keys."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = key.value
            line, column = key.start_mark.line + 1, key.start_mark.column + 1
            if name in seen:
                raise Refused(f"{source}:{line}:{column}: the key '{name}' stands twice in this mapping")
            seen.add(name)
            marks[(*where, name)] = (line, column)
            _walk(value, (*where, name), source, marks)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            marks[(*where, index)] = (item.start_mark.line + 1, item.start_mark.column + 1)
            _walk(item, (*where, index), source, marks)


class Document:
    """A parsed YAML file or text: plain `data`, the position of each key, and the overrides that were applied."""

    def __init__(self, data: dict[str, Any], marks: dict[Location, tuple[int, int]], source: str) -> None:
        self.data, self.marks, self.source = data, marks, source
        self.overridden: dict[Location, str] = {}

    def at(self, location: Location) -> str:
        """`file:line:column` of a setting, or of the nearest setting around it, or the override that set it."""
        for length in range(len(location), 0, -1):
            if location[:length] in self.overridden:
                return f"override '{self.overridden[location[:length]]}'"
        for length in range(len(location), 0, -1):
            if location[:length] in self.marks:
                line, column = self.marks[location[:length]]
                return f"{self.source}:{line}:{column}"
        return self.source

    def override(self, assignments: Sequence[str]) -> None:
        """Apply `a.b[0].c=value` assignments; the value is read as YAML."""
        for text in assignments:
            path, separator, raw = text.partition("=")
            if not separator or not path:
                raise Refused(f"override '{text}': expected key=value, such as pretrain.minutes=2")
            location = parse_path(path)
            value, _ = _load(raw, f"override '{text}'")
            _assign(self.data, location, value, text)
            self.overridden[location] = text

    def set(self, path: str, value: Any, origin: Location) -> None:
        """Set `a.b[0].c` to a value that stands elsewhere in this document, at `origin`: messages name that place."""
        location = parse_path(path)
        _assign(self.data, location, value, path)
        for table in (self.marks, self.overridden):
            for mark in [mark for mark in table if mark[: len(location)] == location]:
                del table[mark]
            for mark, place in list(table.items()):
                if mark[: len(origin)] == origin:
                    table[(*location, *mark[len(origin) :])] = place  # type: ignore[index, assignment]
        above = next((self.overridden[origin[:n]] for n in range(len(origin)) if origin[:n] in self.overridden), None)
        if above is not None:
            self.overridden[location] = above


def _load(text: str, source: str) -> tuple[Any, dict[Location, tuple[int, int]]]:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        marks: dict[Location, tuple[int, int]] = {}
        if node is None:
            return None, marks
        _walk(node, (), source, marks)
        return loader.construct_document(node), marks
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        raise Refused(f"{place}: this is not YAML: {getattr(error, 'problem', None) or error}") from None
    finally:
        loader.dispose()


def parse(text: str, source: str) -> Document:
    """Parse YAML text whose top is a mapping. Raises Refused with the line otherwise."""
    data, marks = _load(text, source)
    if not isinstance(data, dict):
        found = "nothing" if data is None else type(data).__name__
        raise Refused(f"{source}: expected a mapping of names to settings, found {found}")
    return Document(data, marks, source)


def read(path: Path) -> Document:
    """Parse a YAML file. Raises Refused if it cannot be read."""
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{path}: cannot be read: {error}") from None


def parse_path(path: str) -> Location:
    """`a.b[0].c` -> ('a', 'b', 0, 'c')."""
    parts: list[str | int] = []
    for piece in path.split("."):
        match = re.fullmatch(r"([^\[\]]+)((?:\[\d+\])*)", piece)
        if not match:
            raise Refused(f"override '{path}': expected a path such as corpus.sources[0].path")
        parts.append(match[1])
        parts.extend(int(index) for index in re.findall(r"\[(\d+)\]", match[2]))
    return tuple(parts)


def _assign(top: dict[str, Any], location: Location, value: Any, text: str) -> None:
    data: Any = top
    for key, following in itertools.pairwise(location):
        if isinstance(key, int):
            if not isinstance(data, list) or key > len(data):
                raise Refused(f"override '{text}': there is no item [{key}] to set")
            if key == len(data):
                data.append({})
            data = data[key]
        else:
            if data.get(key) is None:
                data[key] = [] if isinstance(following, int) else {}
            data = data[key]
        wanted: type = list if isinstance(following, int) else dict
        if type(data) is not wanted:
            raise Refused(f"override '{text}': '{key}' holds {type(data).__name__}, it has no '{following}'")
    last = location[-1]
    if isinstance(last, int):
        if last > len(data):
            raise Refused(f"override '{text}': the list has {len(data)} items, there is no item [{last}] to set")
        data[last : last + 1] = [value]
    else:
        data[last] = value


def _fields(model: Any, location: Location) -> Iterator[str]:
    """The known field names of the (possibly nested) model at `location`."""
    for key in location:
        if isinstance(model, type) and issubclass(model, BaseModel):
            if key not in model.model_fields:
                continue  # the tag of a union stands in pydantic's location, not in the file
            model = model.model_fields[key].annotation
        candidates = [a for a in get_args(model) if a is not type(None)] if get_origin(model) else [model]
        nested = [a for a in _flatten(candidates) if isinstance(a, type) and issubclass(a, BaseModel)]
        if nested:
            model = nested[0] if len(nested) == 1 else nested
            if isinstance(model, list):
                for each in model:
                    yield from each.model_fields
                return
    if isinstance(model, type) and issubclass(model, BaseModel):
        yield from model.model_fields


def _flatten(annotations: Sequence[Any]) -> Iterator[Any]:
    for annotation in annotations:
        if get_args(annotation) and not isinstance(annotation, type):
            yield from _flatten(get_args(annotation))
        else:
            yield annotation


def validate(model: type[Model], data: Mapping[str, Any], document: Document, prefix: Location = ()) -> Model:
    """Build `model` from `data`; every problem is gathered into one Refused, a line each.

    `prefix` is where `data` stands in the document, so that messages carry its line.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise Refused("\n".join(_messages(model, error, document, prefix))) from None


def _messages(model: type[BaseModel], error: ValidationError, document: Document, prefix: Location) -> list[str]:
    lines = []
    for problem in error.errors(include_url=False):
        location = tuple(problem["loc"])
        full = (*prefix, *location)
        name = ".".join(str(part) for part in full) or "settings"
        place = document.at(full)
        if problem["type"] == "extra_forbidden":
            lines.append(f"{place}: {name}: unknown key{nearest(str(location[-1]), _fields(model, location[:-1]))}")
        elif problem["type"] == "missing":
            lines.append(f"{place}: {name}: is missing")
        elif problem["type"] == "value_error":
            lines.append(f"{place}: {name}: {problem['ctx']['error']}")
        else:
            lines.append(f"{place}: {name}: {problem['msg']}; found {problem['input']!r}")
    return lines


def dump(data: Mapping[str, Any]) -> str:
    """YAML text of plain data, keys in their given order."""
    return yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True, width=110)


def under(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, with what it leaves out taken from `defaults`; mappings inside are merged likewise."""
    merged = {**defaults, **given}
    for key, value in defaults.items():
        if isinstance(value, Mapping) and isinstance(given.get(key), Mapping):
            merged[key] = under(value, given[key])
    return merged
