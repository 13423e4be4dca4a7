"""The stage `corpus`: sources in; documents kept and dropped, statistics and rejects out.

Work goes on in `.work` beside the results and is kept there by shard until all is done; results.json is written last.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lmlab.corpus import contamination, dedup, engine, quality, readers, statistics, store
from lmlab.corpus.arrow import compute as pc
from lmlab.corpus.build import DecideStep, Decision, read_tasks
from lmlab.corpus.config import CorpusConfig
from lmlab.corpus.engine import Task
from lmlab.corpus.readers import hub
from lmlab.corpus.steps.keywords import word_lists
from lmlab.errors import Failed
from lmlab.progress import read_jsonl, say
from lmlab.run import Context, StageKind, write_atomic, write_json

Decisions = list[dict[str, Decision]]


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
        tasks = read_tasks(config, listings, work)
        _do(context, 0, "reading", tasks)
        rejected = _rejected(config, tasks, work, out)
        tasks = quality.passes(
            config.perplexity, config.classifier, tasks, out, work, lambda title, some: _do(context, 0, title, some)
        )
        decisions = _duplicates(context, tasks, work)
        _contamination(context, tasks, work, decisions)
        final = [
            Task(task.out, [DecideStep(chosen)], out / "documents" / task.out.name, task.key)
            for task, chosen in zip(tasks, decisions, strict=True)
        ]
        _do(context, 3, "writing", final)
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


def _do(context: Context, number: int, title: str, tasks: list[Task]) -> None:
    engine.run(tasks, threads=context.config.threads, title=title)
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


def _read(path: Path, columns: list[str] | None = None) -> pa.Table:
    return pq.read_table(path, columns=columns, partitioning=None)


def _duplicates(context: Context, tasks: list[Task], work: Path) -> Decisions:
    """Decide on duplicates over all shards; a decision for each document that goes."""
    config: CorpusConfig = context.config
    step = dedup.SignStep(config.near_duplicates)
    signing = [Task(task.out, [step], work / "keys" / task.out.name, task.key) for task in tasks]
    _do(context, 1, "comparing", signing)
    keys = [_read(task.out) for task in signing]
    found = dedup.find(pa.concat_tables(keys), config.near_duplicates, exact=config.exact_duplicates)
    starts = [0]
    for table in keys:
        starts.append(starts[-1] + len(table))
    ids: list[str] = []
    for task in tasks:
        ids += _read(task.out, ["id"])["id"].to_pylist()
    decisions: Decisions = []
    for start, end in itertools.pairwise(starts):
        chosen = {}
        for row in range(start, end):
            original = int(found.original[row])
            if original != row:
                which = ("exact_duplicates", "exact copy") if found.exact[row] else ("near_duplicates", "near copy")
                chosen[ids[row]] = Decision(*which, ids[original], round(float(found.similarity[row]), 4))
        decisions.append(chosen)
    return decisions


def _contamination(context: Context, tasks: list[Task], work: Path, decisions: Decisions) -> None:
    """Find training documents that repeat held-out ones; adds to `decisions` and writes contamination.jsonl."""
    config: CorpusConfig = context.config
    if not config.decontamination.enabled:
        write_atomic(context.out / "contamination.jsonl", "")
        return
    heldout = []
    for task, chosen in zip(tasks, decisions, strict=True):
        for table in _stream(task.out, ["id", "text", "split", "keep"]):
            rows = table.filter((pc.field("split") == "heldout") & pc.field("keep"))
            pairs = zip(rows["id"].to_pylist(), rows["text"].to_pylist(), strict=True)
            heldout += [(each, text) for each, text in pairs if each not in chosen]
    index = contamination.build(heldout, config.decontamination)
    step = contamination.MatchStep(index, config.decontamination, contamination.index_identity(index))
    matching = [
        Task(task.out, [DecideStep(chosen), step], work / "matches" / task.out.name, task.key)
        for task, chosen in zip(tasks, decisions, strict=True)
    ]
    _do(context, 2, "decontaminating", matching)
    overlaps = contamination.judge([_read(task.out) for task in matching], index, config.decontamination)
    by_id = {overlap.id: overlap for overlap in overlaps}
    lines = []
    for task, chosen in zip(tasks, decisions, strict=True):
        for table in _stream(task.out, ["id", "text"]):
            for each, text in zip(table["id"].to_pylist(), table["text"], strict=True):
                if (overlap := by_id.get(each)) is None:
                    continue
                reason = f"repeats held-out text ({config.decontamination.ngram}-grams)"
                drop = ("decontamination", reason) if overlap.drop else (None, None)
                chosen[each] = Decision(*drop, heldout_overlap=round(overlap.share, 4))
                lines.append(json.dumps(contamination.report(overlap, text.as_py()), ensure_ascii=False) + "\n")
    write_atomic(context.out / "contamination.jsonl", "".join(lines))


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
