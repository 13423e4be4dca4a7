"""A report's numbers laid out for the template: rows, cells and blocks of text, nothing drawn or escaped yet."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmlab.measure import Score
from lmlab.report.collect import OWN
from lmlab.report.scores import at, find, interval, is_percent, is_score, number, plain, score, value_of
from lmlab.report.tasks import Task, pool, tasks_of
from lmlab.report.words import headlines, label_of

SAMPLES, LONGEST, ROWS = 8, 1200, 60
"""Samples, characters of a text and rows of a table that the page shows; report.json holds all."""

IMPORTANT = (
    "minutes", "seconds", "budget_seconds", "steps", "epochs", "batch", "batch_size", "rollouts", "prompts", "samples",
    "layers", "d_model", "heads", "kv_heads", "head_dim", "d_ff", "vocab_size", "context_length", "optimizer",
    "learning_rate", "matrix_learning_rate", "schedule", "warmup_steps", "weight_decay", "clip", "precision", "compile",
    "kl", "kl_coefficient", "clip_ratio", "gamma", "gae_lambda", "temperature", "max_new_tokens", "families", "heldout",
    "unseen", "shots", "votes", "items", "pairs", "parameters", "tokens", "sources",
)  # fmt: skip
TEXTS = ("prompt", "question", "text", "answer", "chosen", "rejected", "before", "after", "output")
SHOWN_ELSEWHERE = ("samples", "examples", "tasks")
HIDDEN = ("id", "text")
"""Of a sample: what names it for machines, and what is shown as its text."""
TEXT_LABELS = {"answer": "expected", "text": "the model writes", "output": "after"}


@dataclass(frozen=True)
class Cell:
    """What stands in one cell: the value, its interval under it, and how many units are behind it."""

    value: str = "–"
    interval: str = ""
    n: str = ""


@dataclass(frozen=True)
class Table:
    """A table with a row label first. `rows` are (label, cells)."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    note: str = ""


@dataclass(frozen=True)
class Sample:
    """One sample: short facts about it, and its texts (label, text, whether it came from the model after training)."""

    facts: Sequence[tuple[str, str]] = field(default_factory=list)
    texts: Sequence[tuple[str, str]] = field(default_factory=list)


def cell(it: Score | None, percent: bool = False) -> Cell:
    """A score as a cell; a dash where it is missing."""
    if it is None:
        return Cell()
    return Cell(value_of(it, percent), interval(it, percent), f"{it.n:,}")


def change(it: Score | None, percent: bool = False) -> Cell:
    """A difference as a cell: with its sign, of shares in points."""
    if it is None:
        return Cell()
    scale, digits = (100.0, 1) if percent else (1.0, 3)
    value, low, high = (f"{scale * end:+.{digits}f}" for end in (it.value, it.low, it.high))
    bounds = f"{low} to {high}" if math.isfinite(it.low) and math.isfinite(it.high) else "no interval"
    return Cell(value + (" points" if percent else ""), bounds, f"{it.n:,}")


def headline_table(report: Mapping[str, Any]) -> list[tuple[str, str, Cell, Cell, str]]:
    """Rows (stage, measure, before, after, n) of the numbers that matter most."""
    rows = []
    for name, path, before, after in headlines(report):
        percent, either = is_percent(path), after or before
        measure = label_of(".".join(path))
        rows.append((name, measure, cell(before, percent), cell(after, percent), f"{either.n:,}" if either else "–"))
    return rows


def score_tables(stage: Mapping[str, Any]) -> list[Table]:
    """Every score of a stage: pairs of before and after in one table, single scores in another."""
    if stage["kind"] == "evaluate":
        return []  # its scores are of stages by tasks: see `evaluation` and `shares`
    results = {k: v for k, v in stage.items() if k not in OWN}
    found = dict(find(results))
    pairs: dict[tuple[str, ...], None] = {}
    singles: list[tuple[tuple[str, ...], Score]] = []
    for path, it in found.items():
        if path[-1] in ("before", "after") and len(path) > 1:
            pairs[path[:-1]] = None
        elif path[-1] not in ("change", "difference") or path[:-1] not in pairs:
            singles.append((path, it))
    tables = []
    if pairs:
        rows = []
        for path in pairs:
            percent = is_percent(path)
            before, after = found.get((*path, "before")), found.get((*path, "after"))
            n = next(it for it in (after, before) if it is not None).n
            paired = found.get((*path, "change")) or found.get((*path, "difference"))
            cells = [cell(before, percent), cell(after, percent), Cell(f"{n:,}")]
            rows.append((label_of(".".join(path)), [*cells[:2], change(paired, percent), cells[2]]))
        changed = any(cells[2].value != "–" for _, cells in rows)
        columns = ["before", "after", *(["change"] if changed else []), "n"]
        rows = [(label, cells if changed else [*cells[:2], cells[3]]) for label, cells in rows]
        tables.append(_cut(Table("Before and after", columns, rows)))
    if singles:
        rows = [(label_of(".".join(p)), [c := cell(it, is_percent(p)), Cell(c.n)]) for p, it in singles]
        tables.append(_cut(Table("Measured", ["value", "n"], rows)))
    return tables


def count_tables(stage: Mapping[str, Any]) -> list[Table]:
    """Everything else that a stage's results hold: plain numbers and words, nested ones as tables of their own."""
    tables, loose = [], []
    for key, value in stage.items():
        if key in OWN or key in SHOWN_ELSEWHERE or (stage["kind"] == "evaluate" and key == "stages"):
            continue
        if key == "dropped" and isinstance(value, Mapping) and value:
            tables.append(_dropped(value))
            continue
        tables += _lists(key, value)
        leaves = list(_leaves(value))
        if isinstance(value, Mapping) and not is_score(value):
            if leaves:
                tables.append(_nested(key, leaves))
        else:
            loose += [(label_of(key), [Cell(text)]) for _, text in leaves]
    if loose:
        tables.insert(0, _cut(Table("Counts", [""], loose)))
    return tables


def _dropped(given: Mapping[str, Any]) -> Table:
    """What each step of the corpus dropped and why: {step: {reason: n}} or {step: {..., reasons: {reason: n}}}."""
    rows: list[tuple[str, list[Cell]]] = []
    for step, entry in given.items():
        reasons = at(entry, "reasons") or entry
        listed = reasons.items() if isinstance(reasons, Mapping) else [("", reasons)]
        for reason, count in listed:
            if not is_nest(count):
                rows.append((f"{label_of(str(step))}: {reason}".rstrip(": "), [Cell(_text(count))]))
    return _cut(Table("Dropped, by step and reason", ["documents"], rows))


def _lists(key: str, value: Any) -> Iterator[Table]:
    """Tables of the lists of records anywhere below a value, such as the bins of a calibration."""
    if isinstance(value, Mapping):
        for inner, item in value.items():
            yield from _lists(f"{key}.{inner}", item)
    elif isinstance(value, list) and value and len(_dicts(value)) == len(value):
        columns = list(dict.fromkeys(str(k) for row in value for k, v in row.items() if is_score(v) or not is_nest(v)))
        rows = []
        for place, row in enumerate(value):
            cells = [cell(score(v), is_percent((c,))) if is_score(v := row.get(c)) else Cell(_text(v)) for c in columns]
            rows.append((str(place + 1), cells))
        yield _cut(Table(label_of(key).capitalize(), [label_of(c) for c in columns], rows))


def _leaves(value: Any, path: tuple[str, ...] = (), *, exact: bool = False) -> Iterator[tuple[tuple[str, ...], str]]:
    """Plain values with their paths, as text (`exact`: numbers as they were set); long lists are left out."""
    if is_score(value):
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, (*path, str(key)), exact=exact)
    elif isinstance(value, list):
        if 0 < len(value) <= 12 and all(isinstance(v, (str, int, float)) for v in value):
            yield path, ", ".join(_text(v, exact) for v in value)
    elif value is not None:
        yield path, _text(value, exact)


def _text(value: Any, exact: bool = False) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    found = number(value)
    if found is not None and exact and abs(found) < 1000:
        return f"{found:.6g}"
    return plain(found) if found is not None else shorten(str(value), 160)


def _nested(key: str, leaves: Sequence[tuple[tuple[str, ...], str]]) -> Table:
    """Rows by columns where the innermost keys repeat, else one value a row."""
    columns = list(dict.fromkeys(path[-1] for path, _ in leaves))
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for path, text in leaves:
        rows.setdefault(path[:-1], {})[path[-1]] = text
    title = label_of(key).capitalize()
    if len(rows) > 1 and len(columns) <= 7 and 2 * len(leaves) >= len(rows) * len(columns):
        body = [(" / ".join(p) or "all", [Cell(r.get(c, "–")) for c in columns]) for p, r in rows.items()]
        return _cut(Table(title, [label_of(c) for c in columns], body))
    listed = [(" / ".join(label_of(part) for part in path), [Cell(text)]) for path, text in leaves]
    return _cut(Table(title, [""], listed))


def _cut(table: Table) -> Table:
    if len(table.rows) <= ROWS:
        return table
    note = f"The first {ROWS} of {len(table.rows)} rows; report.json holds all."
    return Table(table.title, table.columns, table.rows[:ROWS], note)


def settings(stage: Mapping[str, Any]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(the settings that matter, all settings): what was asked for and what the clock decided (`plan`)."""
    pools = (at(stage, "plan"), at(stage, "settings"))
    leaves = [leaf for each in pools if isinstance(each, Mapping) for leaf in _leaves(each, exact=True)]
    listed = dict.fromkeys((" / ".join(p).replace("_", " "), text, p[-1] if p else "") for p, text in leaves)
    every = [(label, text) for label, text, _ in listed]
    matter = [(label, shorten(text, 60)) for label, text, last in listed if last in IMPORTANT]
    return matter[:18], every


def samples(stage: Mapping[str, Any]) -> tuple[list[Sample], int]:
    """(the samples that are shown, how many there are)."""
    given = at(stage, "samples") or at(stage, "examples")
    if isinstance(given, Mapping):
        given = [{"of": key, **each} for key, v in given.items() for each in _dicts(v)]
    whole = _dicts(given)
    turns: dict[str, int] = {}
    order = []
    for place, each in enumerate(whole):  # one of each family first, then second ones
        family = str(each.get("family", ""))
        turns[family] = turns.get(family, 0) + 1
        order.append((turns[family], place))
    return [_sample(whole[place]) for _, place in sorted(order)[:SAMPLES]], len(whole)


def _dicts(given: Any) -> list[Mapping[str, Any]]:
    return [each for each in given if isinstance(each, Mapping)] if isinstance(given, list) else []


def _sample(given: Mapping[str, Any]) -> Sample:
    facts, texts = [], []
    for key in [k for k in TEXTS if k in given] + [k for k in given if k not in TEXTS]:
        value = given[key]
        if isinstance(value, Mapping):
            facts += [(f"{key}, {label_of(k)}", _text(v)) for k, v in value.items() if k != "text" and not is_nest(v)]
            value = value.get("text")
        if isinstance(value, list):
            texts += [
                (_facts_of(each), shorten(str(each["text"]), LONGEST)) for each in _dicts(value) if "text" in each
            ]
        elif isinstance(value, str) and (key in TEXTS or len(value) > 48 or "\n" in value):
            texts.append((TEXT_LABELS.get(key, label_of(key)), shorten(value, LONGEST)))
        elif value is not None and not is_nest(value) and key not in HIDDEN:
            facts.append((key.replace("_", " "), _text(value)))
    return Sample(facts, texts)


def _facts_of(given: Mapping[str, Any]) -> str:
    """`rank 1, reward 0.52`: what is known of one of several answers."""
    facts = [
        f"{k.replace('_', ' ')} {_text(v)}"
        for k, v in given.items()
        if k not in HIDDEN and v is not None and not is_nest(v)
    ]
    return ", ".join(facts) or "answer"


def is_nest(value: Any) -> bool:
    """Whether a JSON value holds others."""
    return isinstance(value, (Mapping, list))


def shorten(text: str, most: int) -> str:
    """At most so many characters, control characters made visible."""
    return visible(text if len(text) <= most else text[:most] + "…")


def visible(text: str) -> str:
    """Control characters become their pictures (U+2400...): a browser would swallow them, and HTML forbids most."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", lambda m: chr(0x2421 if m[0] == "\x7f" else 0x2400 + ord(m[0])), text)


def evaluation(stage: Mapping[str, Any]) -> tuple[Table | None, Table | None]:
    """(stages by ways of asking, families pooled; stages by every single task), or None where nothing was scored."""
    given = at(stage, "stages")
    scored = {str(k): v for k, v in given.items() if isinstance(v, Mapping)} if isinstance(given, Mapping) else {}
    tasks = tasks_of(scored)
    if not tasks:
        return None, None
    names = list(scored)
    rows: list[tuple[str, list[Cell]]] = []
    conditions = dict.fromkeys(t.condition for t in tasks if t.metric == "exact_match")
    for condition in conditions:
        alike = [t for t in tasks if t.metric == "exact_match" and t.condition == condition]
        rows.append((f"exact match, {condition}", [cell(pool(scored[s], alike), True) for s in names]))
    rows = [(t.name, _cells(t, scored)) for t in tasks if t.metric != "exact_match" and not t.family] + rows
    rows = [(label_of(label), cells) for label, cells in rows]
    note = "Exact match over all families that were asked so; n counts distinct questions, or documents."
    pooled = Table("Stages by ways of asking", names, rows, note)
    return pooled, Table("Stages by tasks", names, [(t.name, _cells(t, scored)) for t in tasks])


def _cells(task: Task, scored: Mapping[str, Mapping[str, Any]]) -> list[Cell]:
    return [cell(score(scores.get(task.name)), is_percent((task.name,))) for scores in scored.values()]


def shares(stage: Mapping[str, Any]) -> list[Table]:
    """What else an evaluation counts for each stage and task, such as the share of answers that could not be read."""
    tables = []
    for key, given in stage.items():
        if key in OWN or key == "stages" or not isinstance(given, Mapping):
            continue
        scored = {str(name): each for name, each in given.items() if isinstance(each, Mapping)}
        names = dict.fromkeys(str(task) for each in scored.values() for task, it in each.items() if is_score(it))
        if names:
            rows = [(task, [cell(score(each.get(task)), True) for each in scored.values()]) for task in names]
            tables.append(_cut(Table(label_of(key).capitalize(), list(scored), rows)))
    return tables


def descriptions(stage: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(task, what it asks), from a list of names, of {name, description}, or a mapping."""
    given = at(stage, "tasks")
    if isinstance(given, Mapping):
        return [(str(k), str(at(v, "description") or (v if isinstance(v, str) else ""))) for k, v in given.items()]
    found = []
    for each in given if isinstance(given, list) else ():
        if isinstance(each, Mapping):
            found.append((str(each.get("name", "")), str(each.get("description", ""))))
        elif isinstance(each, str):
            found.append((each, ""))
    return [(name, text) for name, text in found if text]
