"""The stage `corpus`: sources in; documents kept and dropped, statistics and rejects out.

Work goes on in `.work` beside the results and is kept there by shard until all is done; results.json is written last.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lmlab.corpus import engine, quality, readers, statistics, store
from lmlab.corpus.build import read_tasks
from lmlab.corpus.config import CorpusConfig
from lmlab.corpus.contamination import sets
from lmlab.corpus.contamination.passes import contamination_pass
from lmlab.corpus.dedup.curve import curve
from lmlab.corpus.dedup.passes import documents_pass, spans_pass
from lmlab.corpus.dedup.shuffle import Part
from lmlab.corpus.engine import Task
from lmlab.corpus.readers import hub
from lmlab.corpus.steps.keywords import word_lists
from lmlab.errors import Failed
from lmlab.progress import read_jsonl, say
from lmlab.run import Context, StageKind, write_atomic, write_json


def sources(config: CorpusConfig) -> list[Path]:
    """The files that a corpus is made of, for its fingerprint; refuses a path that leads nowhere before any work."""
    found: dict[Path, None] = {}
    for place, source in enumerate(config.sources):
        if source.path.startswith("hf:"):
            hub.parse(source.path, f"sources[{place}]")
            continue
        for file in readers.listing(source, f"sources[{place}]").files:
            found |= dict.fromkeys(part.local for part in file.parts or (file,) if part.local is not None)
        found |= dict.fromkeys(readers.link_files(source, f"sources[{place}]"))
    for place, each in enumerate(config.decontamination.evaluation):
        found.update(dict.fromkeys(sets.check(each, f"decontamination.evaluation[{place}]")))
    found |= dict.fromkeys(quality.files(config.perplexity, config.classifier))
    found |= dict.fromkeys(word_lists(config.keywords, config.roots))
    return list(found)


def run(context: Context) -> dict[str, Any]:
    """Build the corpus. Raises Failed if too many records are broken or nothing is left of a split."""
    config: CorpusConfig = context.config
    out, work = context.out, context.out / ".work"
    if not (out / "results.json").exists():
        context.metrics.rewind(0)
        listings = _listings(context)
        try:
            size = math.inf if any(source.path.startswith("hf:") for source in config.sources) else 0
            size += sum(file.weight for found in listings for file in found.files)
            with engine.workers(config.engine, threads=config.threads, address=config.ray_address, size=size) as runner:
                tasks, rejected = _make(context, runner, listings, work)
        except OSError as error:  # of what is no task; a full disk, above all
            where = error.filename or out
            raise Failed(f"{where}: could not be written: {error.strerror or error}; finished shards stay") from error
        for stale in (out / "documents").glob(".*.tmp"):  # of an attempt that was killed
            stale.unlink(missing_ok=True)
        skipped = {source.name: found.skipped for source, found in zip(config.sources, listings, strict=True)}
        _summarise(config, out, rejected, _passed_over(skipped, tasks, work))
    shutil.rmtree(work, ignore_errors=True)
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    return {
        "documents": results["documents"]["train"],
        "bytes": results["bytes"]["train"],
        "heldout_documents": results["documents"]["heldout"],
        "heldout_bytes": results["bytes"]["heldout"],
        "dropped": sum(entry["documents"] for entry in results["dropped"].values()),
    }


def _make(
    context: Context, runner: Any, listings: list[readers.Listing], work: Path
) -> tuple[list[Task], dict[str, int]]:
    """Every task, in order. Returns those that read, and how many records of each source were rejected."""
    tasks = read_tasks(context.config, listings, work)
    _do(context, runner, 0, "reading", tasks)
    rejected = _rejected(context.config, tasks, work, context.out)
    config: CorpusConfig = context.config
    tasks = quality.passes(
        config.perplexity,
        config.classifier,
        tasks,
        context.out,
        work,
        lambda title, some: _do(context, runner, 0, title, some),
    )
    parts = _whole(context, runner, [Part(i, task.out, task.key) for i, task in enumerate(tasks)], work)
    final = [Task(part.final, [], context.out / "documents" / part.path.name, part.key) for part in parts]
    _do(context, runner, 3, "writing", final)
    return tasks, rejected


def _whole(context: Context, runner: Any, parts: list[Part], work: Path) -> list[Part]:
    """What only the whole corpus can decide, in order. Each pass adds a step to every part."""
    config: CorpusConfig = context.config

    def comparing(title: str, tasks: list[Task]) -> None:
        _do(context, runner, 1, title, tasks)

    def decontaminating(title: str, tasks: list[Task]) -> None:
        _do(context, runner, 2, title, tasks)

    parts = spans_pass("duplicate_sentences", parts, config.duplicate_sentences, work, comparing)
    parts = documents_pass(parts, config.near_duplicates, config.exact_duplicates, work, comparing)
    near = config.near_duplicates
    found = curve(near.bands, near.rows, near.hashes, near.threshold) if near.enabled else None
    write_json(context.out / "deduplication.json", {"near_duplicates": near.model_dump(mode="json"), "curve": found})
    parts = spans_pass("duplicate_substrings", parts, config.duplicate_substrings, work, comparing)
    return contamination_pass(parts, config.decontamination, context.out, work, decontaminating)


def _do(context: Context, runner: Any, number: int, title: str, tasks: list[Task]) -> None:
    engine.run(tasks, title=title, runner=runner)
    # Not how many shards were still to be made: that depends on where the stage was cut off, and the report shows it.
    context.metrics.log(number, {"phase": title, "shards": len(tasks), "seconds": round(context.seconds, 3)})
    if (context.out / "state.json").exists():
        context.tick()


def _listings(context: Context) -> list[readers.Listing]:
    """Every source's files. What the hub said is written down, so that a resumed build reads the same."""
    config: CorpusConfig = context.config
    remote = {s.path: f"sources[{i}]" for i, s in enumerate(config.sources) if s.path.startswith("hf:")}
    pinned = context.plan(lambda: {path: hub.files(path, where) for path, where in remote.items()})
    return [readers.listing(s, f"sources[{i}]", pinned.get(s.path)) for i, s in enumerate(config.sources)]


def _rejected(config: CorpusConfig, tasks: list[Task], work: Path, out: Path) -> dict[str, int]:
    """Gather the rejects into rejected.jsonl; fail where a source has too many. Returns how many a source has."""
    broken = {source.name: 0 for source in config.sources}
    whole = dict(broken)
    first: dict[str, str] = {}
    lines: list[str] = []
    for task in tasks:
        for reject in read_jsonl(work / "rejected" / f"{task.out.stem}.jsonl"):
            broken[reject["source"]] += 1
            first.setdefault(reject["source"], f"{reject['file']}:{reject['line']}: {reject['reason']}")
            lines.append(json.dumps(reject, ensure_ascii=False) + "\n")
        counts = json.loads((work / "rejected" / f"{task.out.stem}.json").read_text(encoding="utf-8"))
        whole[counts["source"]] += counts["records"]
    write_atomic(out / "rejected.jsonl", "".join(lines))
    for name, bad in broken.items():
        records = bad + whole[name]
        if bad > config.max_rejected * records:
            raise Failed(
                f"source '{name}': {bad:,} of {records:,} records ({bad / records:.1%}) are broken, "
                f"more than max_rejected ({config.max_rejected:.1%}); the first: {first[name]}; "
                f"all are in {out / 'rejected.jsonl'}"
            )
        if bad:
            say(f"source '{name}': {bad:,} of {records:,} records set aside, see rejected.jsonl")
    return broken


def _passed_over(skipped: dict[str, Counter[str]], tasks: list[Task], work: Path) -> dict[str, dict[str, int]]:
    """What was no document, by source and reason: files by their endings, and records by what their reader says."""
    found = {name: Counter(files) for name, files in skipped.items()}
    for task in tasks:
        counts = json.loads((work / "rejected" / f"{task.out.stem}.json").read_text(encoding="utf-8"))
        found[counts["source"]].update(counts["passed"])
    return {name: dict(counter) for name, counter in found.items()}


def _stream(path: Path, columns: list[str]) -> Iterator[pa.Table]:
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=columns)


def _summarise(config: CorpusConfig, out: Path, rejected: dict[str, int], skipped: dict[str, Any]) -> None:
    names = [source.name for source in config.sources]
    found = statistics.collect(store.tables(out, statistics.COLUMNS), names)
    results = statistics.summary(found, rejected)
    for split, count in results["documents"].items():
        if count == 0:
            reasons = {s: dict(list(e["reasons"].items())[:3]) for s, e in results["dropped"].items()}
            raise Failed(
                f"no document of the {split} split is left of {results['read']['documents']:,} read "
                f"(dropped: {reasons or 'none'}); "
                + ("raise heldout_fraction, or " if split == "heldout" else "")
                + "give more text, or loosen the step that dropped them"
            )
    found["rejected"], found["passed_over"] = rejected, skipped
    write_json(out / "statistics.json", found)
    quality.report(config.perplexity, config.classifier, out)
    write_json(out / "results.json", results)


STAGE = StageKind(config=CorpusConfig, run=run, version=1, seeded=False, sources=sources)
