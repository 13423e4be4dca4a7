"""Labelled examples from JSON Lines, checked line by line before any work."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from lmlab.config import Config
from lmlab.errors import Refused
from lmlab.text.task_inputs import Example, Task, example


class DataConfig(Config):
    """Where the examples are: JSON Lines, an object a line with the task's fields and `label`."""

    train: str
    """File to train on."""
    test: str | None = None
    """File to test on; null takes a share of `train`, chosen by a hash of each example's texts, so that equal examples are on
    one side."""
    test_share: float = Field(default=0.2, gt=0, lt=1)
    max_rejected: float = Field(default=0.01, ge=0, le=1)
    """The recipe is refused if more than this share of a file's lines is broken; up to it they are left out, and listed in
    rejected.jsonl."""

    def files(self) -> list[Path]:
        """The files that are read."""
        return [Path(name) for name in (self.train, self.test) if name is not None]


@dataclass(frozen=True)
class Examples:
    """Training and test examples; the labels in the order of the head's rows; what was rejected, {file, line, reason}."""

    train: list[Example]
    test: list[Example]
    labels: list[str]
    rejected: list[dict[str, Any]]


def read_examples(config: DataConfig, task: Task) -> Examples:
    """Read and check the files. Raises Refused with file, line, field, what was found and what is expected."""
    rejected: list[dict[str, Any]] = []
    rows = {path: list(_lines(path, task, config.max_rejected, rejected)) for path in config.files()}
    found = list(rows.values())
    if config.test is None:
        train = [each for _, each in found[0] if not _tested(each, config.test_share)]
        test = [each for _, each in found[0] if _tested(each, config.test_share)]
    else:
        train, test = ([each for _, each in part] for part in (found[0], found[-1]))
    labels = ["answer"] if task == "multiple-choice" else sorted({str(each.label) for each in train})
    if task != "multiple-choice":
        if len(labels) < 2:
            raise Refused(f"{config.train}: expected examples of at least two labels, found {labels}")
        path = config.files()[-1]
        for line, each in rows[path]:
            if str(each.label) not in labels:
                raise Refused(f"{path}:{line}: label: {each.label!r} is no label of the training examples, {labels}")
    for name, part in (("train", train), ("test", test)):
        if not part:
            raise Refused(f"{config.train}: no example to {name} on")
    return Examples(train, test, labels, rejected)


def _lines(path: Path, task: Task, most: float, rejected: list[dict[str, Any]]) -> Iterator[tuple[int, Example]]:
    try:
        # Not splitlines(): a text may hold other signs that end lines.
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise Refused(f"{path}: cannot be read: {error.strerror}") from None
    count, bad = 0, []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        count += 1
        try:
            yield number, example(task, json.loads(line))
        except (ValueError, RecursionError) as error:  # not UTF-8 and not JSON are ValueErrors too
            reason = f"is not JSON: {error}" if isinstance(error, json.JSONDecodeError) else str(error)
            bad.append({"file": str(path), "line": number, "reason": reason})
    if len(bad) > most * count:
        first = bad[0]
        raise Refused(
            f"{path}:{first['line']}: {first['reason']} ({len(bad)} of {count} lines are broken, more than max_rejected, "
            f"{most:.1%})"
        )
    rejected += bad


def _tested(each: Example, share: float) -> bool:
    text = json.dumps(sorted(each.sequences), ensure_ascii=False)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8]) < share * 2**64


def majority(train: Sequence[Example]) -> str | int:
    """The label that most training examples have; of several the first in order."""
    labels = [each.label for each in train if each.label is not None]
    return max(sorted(set(labels), key=str), key=labels.count)
