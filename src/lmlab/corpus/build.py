"""The first tasks of a corpus build: reading, with the steps that look at one document at a time."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from lmlab.corpus import readers, split
from lmlab.corpus.config import CorpusConfig, SourceConfig
from lmlab.corpus.engine import Task
from lmlab.corpus.readers import File, Limits, Listing, Passed, Record, Reject
from lmlab.corpus.steps.c4 import C4Step
from lmlab.corpus.steps.fineweb import FineWebStep
from lmlab.corpus.steps.gopher import GopherStep
from lmlab.corpus.steps.keywords import KeywordsStep
from lmlab.corpus.steps.language import LanguageStep
from lmlab.corpus.steps.normalise import NormaliseStep
from lmlab.corpus.steps.redact import RedactStep
from lmlab.corpus.steps.repeats import RepeatsStep
from lmlab.corpus.steps.roots import RootsStep
from lmlab.corpus.steps.rules import RulesStep
from lmlab.corpus.steps.step import DOCUMENT, Step
from lmlab.errors import Failed
from lmlab.run import digest, write_json

RULE_SETS = {"gopher": GopherStep, "c4": C4Step, "fineweb": FineWebStep, "roots": RootsStep}
"""Published sets of rules, in the order in which they run."""

BATCH_BYTES = 4 << 20
BATCH_ROWS = 2000


def local_steps(config: CorpusConfig) -> list[Step]:
    """The steps that look at one document at a time."""
    return [
        NormaliseStep(config.normalise),
        *([RepeatsStep(config.repeats)] if config.repeats.enabled else []),
        LanguageStep(config.language),
        RulesStep(config.prose_rules, config.code_rules),
        *[RULE_SETS[name](getattr(config, name), config.spaceless) for name in RULE_SETS if name in config.rule_sets],
        *([KeywordsStep(config.keywords, config.spaceless)] if config.keywords.enabled else []),
        RedactStep(config.redact),
    ]


def limits(config: CorpusConfig, scratch: Path | None = None) -> Limits:
    return Limits(
        config.max_record_bytes, config.cut_bytes, config.max_expansion, config.max_window_bytes, scratch=scratch
    )  # fmt: skip


def heldout_limit(config: CorpusConfig, listings: Sequence[Listing]) -> float:
    """The position of the hash below which a unit is held out (see `split.threshold`)."""
    enough = 2 * math.ceil(config.heldout_minimum / config.heldout_fraction)
    units = {file.relative for found in listings for file in found.files if not file.by_row}
    for source, found in zip(config.sources, listings, strict=True):
        for unit in _row_units(source, found, limits(config)):
            if len(units) >= enough:
                break
            units.add(unit)
    return split.threshold(units, config.heldout_fraction, config.heldout_minimum, config.heldout_seed)


def _row_units(source: SourceConfig, found: Listing, bounds: Limits) -> Iterator[str]:
    """Names of rows, as many as are asked for. A dataset on the hub is taken to be large: nothing is downloaded."""
    for file in found.files:
        if file.by_row and file.remote is None:
            yield from readers.units(file, source, bounds)


def groups(found: Listing, source: SourceConfig, size: int) -> Iterator[list[File]]:
    """Consecutive files of about `size` bytes together; all of them in one group where the source has a limit."""
    group: list[File] = []
    weight = 0
    for file in found.files:
        if group and source.limit is None and weight + file.weight > size:
            yield group
            group, weight = [], 0
        group.append(file)
        weight += file.weight
    if group:
        yield group


@dataclass(frozen=True)
class Shard:
    """Some files of one source, read in one task."""

    source: SourceConfig
    files: list[File]
    config: CorpusConfig
    limit: float
    rejected: Path

    def tables(self) -> Iterator[pa.Table]:
        """Stream the documents as tables; what cannot be read goes to the `rejected` file, and how many records there
        were and what was passed over to the .json beside it. Both are whole when the last table has been asked for."""
        rows: list[dict[str, Any]] = []
        passed: Counter[str] = Counter()
        weight = count = rejects = 0
        self.rejected.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.rejected.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as aside:
            for item in self._items():
                if isinstance(item, Passed):
                    passed[item.reason] += 1
                    continue
                if isinstance(item, Reject):
                    rejects += 1
                    line = {"source": self.source.name, "file": item.file, "line": item.line, "reason": item.reason}
                    aside.write(json.dumps(line, ensure_ascii=False) + "\n")
                    if rejects > 10_000 and rejects > self.config.max_rejected * (count + rejects):
                        raise Failed(
                            f"source '{self.source.name}': {rejects:,} of {count + rejects:,} records so far are "
                            f"broken, more than max_rejected ({self.config.max_rejected:.1%}); the last: {line}"
                        )
                    continue
                row = self._row(item)
                rows.append(row)
                count += 1
                weight += row["bytes_read"]
                if weight >= BATCH_BYTES or len(rows) >= BATCH_ROWS:
                    yield _table(rows)
                    rows, weight = [], 0
                if count == self.source.limit:
                    break
        if rows:
            yield _table(rows)
        counts = {"source": self.source.name, "records": count, "passed": dict(sorted(passed.items()))}
        write_json(self.rejected.with_suffix(".json"), counts)
        temporary.replace(self.rejected)

    def _items(self) -> Iterator[Record | Reject | Passed]:
        for file in self.files:
            yield from readers.read(file, self.source, limits(self.config, self.rejected.parent))

    def _row(self, record: Record) -> dict[str, Any]:
        return {
            "id": f"{self.source.name}/{record.path}#{record.row}",
            "source": record.source or self.source.name,
            "path": record.path,
            "row": record.row,
            "split": split.side(record.unit, self.limit, self.config.heldout_seed),
            "kind": record.kind,
            "text": record.text,
            "bytes_read": len(record.text.encode("utf-8")),
            "keep": record.drop is None,
            "step": None if record.drop is None else "read",
            "reason": record.drop,
            "meta": json.dumps(record.meta, ensure_ascii=False, sort_keys=True) if record.meta else None,
        }

    @property
    def identity(self) -> str:
        files = [part for file in self.files for part in file.parts or (file,)]
        named = [(file.relative, file.reader, file.kind, file.weight, file.remote) for file in files]
        bounds = [*vars(limits(self.config)).values(), self.limit, self.config.heldout_seed]
        return digest([self.source.model_dump(), named, bounds])


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    """By column: twice as fast as `Table.from_pylist` (measured), which looks each value up in its row's schema."""
    return pa.Table.from_arrays(
        [pa.array([row[field.name] for row in rows], field.type) for field in DOCUMENT], schema=DOCUMENT
    )


def read_tasks(config: CorpusConfig, listings: Sequence[Listing], work: Path) -> list[Task]:
    """One task a shard: read, split, and every local step."""
    limit = heldout_limit(config, listings)
    steps = local_steps(config)
    tasks = []
    for source, found in zip(config.sources, listings, strict=True):
        for files in groups(found, source, config.shard_bytes):
            name = f"part-{len(tasks):05d}"
            shard = Shard(source, files, config, limit, work / "rejected" / f"{name}.jsonl")
            tasks.append(Task(shard.tables, steps, work / "local" / f"{name}.parquet", shard.identity))
    return tasks
