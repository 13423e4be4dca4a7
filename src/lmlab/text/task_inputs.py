"""A task's input as one sequence of tokens, ordered so that a language model can read it (Radford et al. 2018, figure 1).

    classification    start text extract
    entailment        start premise delimiter hypothesis extract
    similarity        start sentence1 delimiter sentence2 extract, and in the other order: two sequences
    multiple-choice   start context delimiter answer extract, a sequence for each answer

What the last layer makes of `extract` is what a linear head reads. Training and use serialise here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lmlab.text.tokenizer import Tokenizer

START, DELIMITER, EXTRACT = "<|task_start|>", "<|task_delimiter|>", "<|task_extract|>"
TASK_TOKENS = (START, DELIMITER, EXTRACT)
"""New special tokens, whose embeddings fine-tuning learns."""

Task = Literal["classification", "entailment", "similarity", "multiple-choice"]
FIELDS: dict[Task, tuple[str, ...]] = {
    "classification": ("text",),
    "entailment": ("premise", "hypothesis"),
    "similarity": ("sentence1", "sentence2"),
    "multiple-choice": ("context", "answers"),
}
"""The fields of an example by task, beside `label`."""


@dataclass(frozen=True)
class Example:
    """The texts of each sequence (one, two, or one an answer), and the label where it is known: a class's name, or of
    multiple choice the place of the right answer."""

    sequences: tuple[tuple[str, ...], ...]
    label: str | int | None = None


_SEQUENCES: dict[Task, Callable[[Mapping[str, Any]], tuple[tuple[str, ...], ...]]] = {
    "classification": lambda r: ((r["text"],),),
    "entailment": lambda r: ((r["premise"], r["hypothesis"]),),
    "similarity": lambda r: ((r["sentence1"], r["sentence2"]), (r["sentence2"], r["sentence1"])),
    "multiple-choice": lambda r: tuple((r["context"], answer) for answer in r["answers"]),
}


def example(task: Task, record: Any, *, labelled: bool = True) -> Example:
    """An example of a record of the task's fields. Raises ValueError that names the field, what was found and what is
    expected. Without `labelled` no label is asked for, and none is read."""
    if not isinstance(record, Mapping):
        raise ValueError(f"expected an object, found {_shown(record)}")
    for name in FIELDS[task]:
        if name not in record:
            raise ValueError(f"{name}: is missing; a {task} example has {', '.join((*FIELDS[task], 'label'))}")
        if name == "answers":
            _check_answers(record[name])
        elif not isinstance(record[name], str) or not record[name].strip():
            raise ValueError(f"{name}: expected text, found {_shown(record[name])}")
    return Example(_SEQUENCES[task](record), _label(task, record) if labelled else None)


def _check_answers(answers: Any) -> None:
    if not isinstance(answers, list) or len(answers) < 2 or not all(isinstance(a, str) and a.strip() for a in answers):
        raise ValueError(f"answers: expected a list of at least two texts, found {_shown(answers)}")


def _label(task: Task, record: Mapping[str, Any]) -> str | int:
    if "label" not in record:
        raise ValueError("label: is missing")
    found = record["label"]
    if task == "multiple-choice":
        n = len(record["answers"])
        if type(found) is not int or not 0 <= found < n:
            raise ValueError(f"label: expected the place of the right answer, 0 to {n - 1}, found {_shown(found)}")
        return found
    if type(found) is int or (isinstance(found, str) and found.strip()):
        return str(found)
    raise ValueError(f"label: expected a class's name or a whole number, found {_shown(found)}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class TaskInputs:
    """From examples to ids, at most `length` of them a sequence. The tokenizer has TASK_TOKENS."""

    def __init__(self, tokenizer: Tokenizer, length: int) -> None:
        """Raises Refused where the tokenizer lacks a token."""
        self.tokenizer, self.length = tokenizer, length
        self.special = [tokenizer.token_id(token) for token in TASK_TOKENS]
        self.start, self.delimiter, self.extract = self.special
        self.cut = 0
        """Sequences so far that were too long and lost tokens."""

    def encode(self, found: Example) -> list[list[int]]:
        """The ids of each sequence. In one that is too long the longest text loses tokens: the first of several its
        first ones, so that what stands by the delimiter stays, any other its last."""
        return [self._sequence(self.tokenizer.encode_batch(list(texts))) for texts in found.sequences]

    def _sequence(self, texts: Sequence[list[int]]) -> list[int]:
        room = self.length - len(texts) - 1
        if sum(map(len, texts)) > room:
            self.cut += 1
            texts = _fitted(texts, room)
        ids = [self.start]
        for place, text in enumerate(texts):
            ids += [self.delimiter, *text] if place else text
        return [*ids, self.extract]


def _fitted(texts: Sequence[list[int]], room: int) -> list[list[int]]:
    lengths = [len(text) for text in texts]
    for _ in range(sum(lengths) - room):
        lengths[lengths.index(max(lengths))] -= 1
    return [
        text[len(text) - n :] if place == 0 and len(texts) > 1 else text[:n]
        for place, (text, n) in enumerate(zip(texts, lengths, strict=True))
    ]
