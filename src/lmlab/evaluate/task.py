"""What a task is: data, a view that puts a question, a rule that reads an answer, a metric. Strategies come on top."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lmlab.evaluate.metrics import exact_match

Messages = list[dict[str, str]]


class Item(Protocol):
    """One question. `id` names it in files and is the same in every run; `answer` is the right one."""

    @property
    def id(self) -> str: ...
    @property
    def answer(self) -> str: ...


class Data(Protocol):
    """Where the questions come from. Both are pure functions; data never formats a prompt."""

    def test(self, count: int) -> Sequence[Any]:
        """`count` items to be asked, fewer only where there are fewer."""
        ...

    def shown(self, item: Any, count: int, steps: bool) -> Sequence[Any]:
        """`count` items to show before `item`: a function of the item alone, never the item itself nor any test
        item."""
        ...


View = Callable[[Any, Sequence[Any], bool], Messages]
"""(item, items shown before it, whether the steps are asked for) -> the conversation up to the assistant's answer."""


@dataclass(frozen=True)
class Task:
    """Questions with one right answer each. `version` changes whenever a prompt or a verdict would."""

    name: str
    description: str
    data: Data
    view: View
    parse: Callable[[str], str | None]
    """The answer in an output, None where there is none: that is "unparsed", which is not "wrong"."""
    metric: Callable[[str, str], float] = exact_match
    """(parsed answer, right answer) -> score of the item, from 0 to 1."""
    version: int = 1
    has_steps: bool = False
    """Whether there is a chain of steps to ask for."""
    group: str = "seen"
    """Tasks of one group are also scored together."""

    def key(self, strategy: str) -> str:
        """The name under which results stand: METRIC/TASK/STRATEGY."""
        return f"{self.metric.__name__}/{self.name}/{strategy}"


@dataclass(frozen=True)
class Passage:
    """A stretch of held-out text, the beginning of the document `id`."""

    id: str
    text: str

    @property
    def bytes(self) -> int:
        return len(self.text.encode("utf-8"))


@dataclass(frozen=True)
class Text:
    """Held-out text to predict: bits per byte, each passage by itself."""

    name: str
    description: str
    passages: tuple[Passage, ...]
    version: int = 1

    def key(self) -> str:
        return self.name


def text_hash(text: str) -> str:
    """Identity of a prompt or passage in files: two runs are compared only where these agree."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
