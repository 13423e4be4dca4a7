"""Tables of runs: columns found by name, bad rows set aside with their line, numbers such as 7B read."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from lmlab.errors import Refused, nearest
from lmlab.scaling.laws import flops

UNITS = {
    "params": "parameters", "tokens": "tokens", "compute": "FLOPs", "steps": "optimizer steps", "batch": "tokens",
    "loss": "as in the table (nats a token, usually)",
}  # fmt: skip
SCALES = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}


def number(text: str, what: str) -> float:
    """7B, 1.5T, 300M, 1e21, 70,000 -> a positive finite number; else Refused."""
    found = re.fullmatch(r"\s*([0-9][0-9_,]*\.?[0-9]*(?:[eE][+-]?[0-9]+)?)\s*([KMBGT]?)\s*", text, flags=re.I)
    value = float(re.sub("[_,]", "", found[1])) * SCALES[found[2].upper()] if found else math.nan
    if not (math.isfinite(value) and value > 0):
        raise Refused(f"{what}: '{text}' is no positive number; write 7B, 1.5T, 300M or 1e21")
    return value


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the same keys, at least one, as CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class Lines:
    """The objects of a JSON Lines file as csv.DictReader has rows: texts, and None for what a line has not."""

    def __init__(self, file: TextIO):
        self.rows, self.line_num = [json.loads(line) for line in file if line.strip()], 0
        if not all(isinstance(row, dict) for row in self.rows):
            raise ValueError("a line is no object")
        self.fieldnames = list(dict.fromkeys(name for row in self.rows for name in row))

    def __iter__(self) -> Iterator[dict[str, str | None]]:
        for row in self.rows:
            self.line_num += 1
            yield {name: str(row[name]) if name in row else None for name in self.fieldnames}


@contextlib.contextmanager
def table(path: Path, what: str) -> Generator[tuple[csv.DictReader[str] | Lines, list[str]], None, None]:
    """The rows of a CSV file, or of a JSON Lines file such as a run's metrics.jsonl, and the names of its columns; Refused
    where it is none, `what` says what was expected."""
    if not path.is_file():
        raise Refused(f"{path}: {'a folder' if path.is_dir() else 'no such file'}; expected {what}")
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            reader = Lines(file) if path.suffix == ".jsonl" else csv.DictReader(file)
            header = list(reader.fieldnames or [])
            if not header:
                raise Refused(f"{path}: is empty; expected {what}")
            yield reader, header
        except (ValueError, csv.Error) as error:
            kind = "JSON Lines" if path.suffix == ".jsonl" else "CSV"
            raise Refused(f"{path}: is no {kind} file in UTF-8 ({error}); expected {what}") from None


def check_columns(path: Path, header: Sequence[str], wanted: Sequence[str]) -> None:
    """Refused where a column is missing, or stands there twice: which of the two is meant nobody knows."""
    for column in wanted:
        if column not in header:
            raise Refused(f"{path}: no column '{column}'{nearest(column, header)}")
        if header.count(column) > 1:
            raise Refused(f"{path}: {header.count(column)} columns '{column}'; expected one")


@dataclass(frozen=True)
class Runs:
    """`values` has one array a quantity and `loss`; `group` and `line` (in the file) one entry a run."""

    values: Mapping[str, np.ndarray]
    group: list[str]
    line: list[int]
    set_aside: list[dict[str, str | int]]

    def features(self, names: Sequence[str]) -> np.ndarray:
        """(n, F)."""
        return np.stack([self.values[name] for name in names], 1)

    def of(self, group: str) -> Runs:
        """The runs of one group."""
        keep = [i for i, each in enumerate(self.group) if each == group]
        return Runs(
            {name: column[keep] for name, column in self.values.items()},
            [group] * len(keep),
            [self.line[i] for i in keep],
            [],
        )


def read(
    path: Path,
    needed: Sequence[str],
    columns: Mapping[str, str],
    loss: str,
    group: str | None = None,
    max_warmup: float | None = None,
    sequence_length: int = 2048,
    discount_warmup: bool = False,
) -> Runs:
    """The runs of a CSV or JSON Lines file.

    `needed` are quantities (params, tokens, compute, steps, batch), `columns` their columns. Without a column for compute it is
    6 N D. A row with a missing, non-numeric or non-positive value is set aside with its line and the reason.
    `max_warmup` sets aside runs whose warm-up (column `warmup`, in steps) is a larger share of their steps: tokens over
    `global_bs` sequences of `sequence_length`. `discount_warmup` counts tokens by their rate over a linear warm-up
    (`by_rate`); compute stays what was spent.
    """
    warms = discount_warmup or max_warmup is not None
    with table(path, "a CSV file with a header, one run a row") as (reader, header):
        wanted = dict.fromkeys(needed)
        derive = "compute" in wanted and columns.get("compute", "compute") not in header
        if derive:
            wanted = dict.fromkeys([*(each for each in needed if each != "compute"), "params", "tokens"])
        elif {"params", "tokens"} <= {name for name in ("params", "tokens") if columns.get(name, name) in header}:
            wanted |= dict.fromkeys(("params", "tokens"))
        if warms:
            wanted |= {"tokens": None}
        source = {name: columns.get(name, name) for name in wanted} | {"loss": loss}
        extra = ["warmup", "global_bs"] if warms else []
        check_columns(path, header, [*source.values(), *([group] if group else []), *extra])
        rows: list[list[float]] = []
        groups, lines, aside, warmups = [], [], [], []
        for row in reader:
            try:
                values = [_positive(row[column], column) for column in source.values()]
                if group and not row[group]:
                    raise ValueError(f"{group} is empty")
                warmup = 0.0
                if warms:
                    batch = _positive(row["global_bs"], "global_bs") * sequence_length
                    warmup = _not_negative(row["warmup"], "warmup") * batch
                    share = warmup / _positive(row[source["tokens"]], source["tokens"])
                    if max_warmup is not None and share > max_warmup:
                        raise ValueError(f"warm-up is {share:.0%} of its steps")
            except ValueError as error:
                aside.append({"line": reader.line_num, "reason": str(error)})
                continue
            rows.append(values)
            warmups.append(warmup)
            groups.append(row[group] if group else "all")
            lines.append(reader.line_num)
    if not rows:
        why = f"; line {aside[0]['line']}: {aside[0]['reason']}" if aside else ""
        raise Refused(f"{path}: no run can be used{why}")
    found = dict(zip(source, np.array(rows).T))
    if "params" in found and "tokens" in found and "compute" not in found:
        found["compute"] = np.asarray(flops(found["params"], found["tokens"]))
    if discount_warmup:
        found["tokens"] = by_rate(found["tokens"], np.array(warmups))
    return Runs(found, groups, lines, aside)


def by_rate(tokens: np.ndarray, warmup: np.ndarray) -> np.ndarray:
    """Tokens of runs whose rate rises in a straight line over the first `warmup` tokens, each counted by its share of the peak:
    half of the warm-up's; of a run that ends in it tokens^2 / (2 warmup)."""
    inside = np.minimum(tokens, warmup)
    return tokens - inside + inside**2 / (2 * np.maximum(warmup, 1.0))


def _number(text: str | None, column: str) -> float:
    try:
        return float(text or "")
    except ValueError:
        raise ValueError(f"{column} is '{text or ''}', not a number") from None


def _not_negative(text: str | None, column: str) -> float:
    value = _number(text, column)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{column} is {text}, not 0 or more")
    return value


def _positive(text: str | None, column: str) -> float:
    value = _number(text, column)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{column} is {text}, not positive")
    return value
