"""Quality that is judged with a model: passes over the whole corpus after the local steps and before deduplication.

What a pass needs to know of all documents (a classifier, an n-gram model, percentiles) is made first and written down;
then every part goes through its step.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lmlab.corpus import audit, classify
from lmlab.corpus.arrow import buffers
from lmlab.corpus.arrow import compute as pc
from lmlab.corpus.engine import Task
from lmlab.corpus.ngram import NgramModel
from lmlab.corpus.split import position
from lmlab.corpus.steps.classifier import Classifier, ClassifierStep
from lmlab.corpus.steps.perplexity import (
    BucketStep,
    NamedScorer,
    NgramScorer,
    Perplexity,
    PerplexityStep,
    cutoffs,
    saved_ngram,
)
from lmlab.corpus.tokens import tokens
from lmlab.errors import Refused
from lmlab.progress import say
from lmlab.run import digest, identity, write_json

Do = Callable[[str, list[Task]], None]


def files(perplexity: Perplexity, classifier: Classifier) -> list[Path]:
    """The saved models that the settings name, which belong to the stage's fingerprint. Raises Refused where a
    classifier or an n-gram model is named that is none, and for a scorer that cannot be imported."""
    found: list[Path] = []
    if classifier.model is not None:
        folder = Path(classifier.model).expanduser()
        classify.Quality.load(folder, "classifier.model")
        found += [folder / "classifier.json", folder / "model.safetensors"]
    if perplexity.enabled and not perplexity.train:
        saved = saved_ngram(perplexity)
        if saved or perplexity.scorer:
            NamedScorer(perplexity).open()
        place = saved or Path(perplexity.model or "nowhere").expanduser()
        found += [place] if saved or place.is_dir() else []
    return found


def passes(
    perplexity: Perplexity, classifier: Classifier, tasks: list[Task], out: Path, work: Path, do: Do
) -> list[Task]:
    """Do what the settings ask for; returns the tasks whose outputs stand in place of the given ones'.

    do: runs tasks under a title. Leaves `perplexity/` and `classifier/` in `out` where something was trained.
    """
    if perplexity.enabled:
        tasks = _perplexity(perplexity, tasks, out / "perplexity", work, do)
    if classifier.enabled:
        model, known = _classifier(classifier, tasks, out / "classifier")
        step = ClassifierStep(classifier, model, known)
        tasks = [Task(task.out, [step], work / "classified" / task.out.name, task.key) for task in tasks]
        do("classifying", tasks)
    return tasks


def report(perplexity: Perplexity, classifier: Classifier, out: Path) -> None:
    """Where a model judged: write audit.json, and say which slices it takes far more of."""
    exempt = {"perplexity": perplexity.train} if perplexity.enabled else {}
    if classifier.enabled:
        exempt["classifier"] = classifier.good
    if not exempt:
        return
    write_json(out / audit.EXEMPT, exempt)
    found = audit.audit(out)
    found["path"] = ""  # of the folder that it lies in, wherever that is
    write_json(out / "audit.json", found)
    for step in exempt:
        for warning in found["steps"].get(step, {"warnings": []})["warnings"]:
            say(f"warning: {warning}; see `lmlab corpus audit`")


def _tables(tasks: Sequence[Task], columns: list[str]) -> Iterator[pa.Table]:
    """Kept prose of all parts, a row group at a time."""
    for task in tasks:
        with pq.ParquetFile(task.out) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=[*columns, "keep", "kind"])
                yield table.filter(pc.and_(table["keep"], pc.equal(table["kind"], "prose")))


def _sample(tasks: Sequence[Task], wanted: Callable[[str], bool], many: int) -> dict[str, str]:
    """{id: text} of at most `many` training documents of the wanted sources, the first by a hash of their ids."""
    found: list[tuple[float, str]] = []
    for table in _tables(tasks, ["id", "source", "split"]):
        for each, source, split in zip(*(table[c].to_pylist() for c in ("id", "source", "split")), strict=True):
            if split == "train" and wanted(source):
                found.append((position(each, 0x5A3), each))
        found = heapq.nsmallest(many, found)
    ids = pa.array([each for _, each in found], pa.string())
    texts: dict[str, str] = {}
    for table in _tables(tasks, ["id", "text"]):
        chosen = table.filter(pc.is_in(table["id"], value_set=ids))
        texts.update(zip(chosen["id"].to_pylist(), chosen["text"].to_pylist(), strict=True))
    return {each: texts[each] for _, each in found}


def _classifier(config: Classifier, tasks: list[Task], folder: Path) -> tuple[classify.Quality, str]:
    """The classifier, trained or read, and its identity."""
    if config.model is not None:
        place = Path(config.model).expanduser()
        return classify.Quality.load(place, "classifier.model"), identity(place)
    wanted = digest([config.model_dump(), [task.key for task in tasks]])
    if (
        not (folder / "classifier.json").exists()
        or json.loads((folder / "classifier.json").read_text())["made"] != wanted
    ):
        good = _sample(tasks, lambda source: source in config.good, config.train_documents)
        rest = _sample(tasks, lambda source: _candidate(config, source), config.train_documents)
        for name, found in (("good", good), ("candidates", rest)):
            if len(found) < 20:
                raise Refused(
                    f"classifier.{name}: {len(found)} documents of {getattr(config, name) or 'the other sources'} are "
                    "there to train on, expected at least 20 (of kind prose, kept, in the training split)"
                )
        ids = [*good, *rest]
        found = tokens(*buffers(pa.array([*good.values(), *rest.values()], pa.large_string())), fold=True)
        labels = np.arange(len(ids)) < len(good)
        model, report = classify.train(ids, labels, found, config.settings)
        model.save(folder, {"made": wanted, "good": config.good, "candidates": config.candidates, **report})
    return classify.Quality.load(folder, "classifier"), wanted


def _candidate(config: Classifier, source: str) -> bool:
    return source in config.candidates if config.candidates else source not in config.good


def _perplexity(config: Perplexity, tasks: list[Task], folder: Path, work: Path, do: Do) -> list[Task]:
    known: Any = [config.scorer, config.model]
    if config.train:
        known = digest([config.model_dump(), [task.key for task in tasks]])
        path, made = folder / NgramModel.FILE, folder / "made.json"
        if not made.exists() or json.loads(made.read_text()) != known:
            NgramModel.train(_training(config, tasks), config.order).save(path)
            write_json(made, known)
        scorer = NgramScorer(NgramModel.load(path))
    else:
        scorer = NamedScorer(config)
        place = Path(config.model).expanduser() if config.model else None
        if place is not None and place.is_dir():
            known = [*known, identity(place)]
    scoring = [
        Task(task.out, [PerplexityStep(config, scorer, known)], work / "scored" / task.out.name, task.key)
        for task in tasks
    ]
    do("scoring", scoring)
    languages: list[str | None] = []
    values: list[float] = []
    for table in _tables(scoring, ["language", "perplexity", "source"]):
        mine = table.filter(pc.invert(pc.is_in(table["source"], value_set=pa.array(config.train, pa.string()))))
        languages += mine["language"].to_pylist()
        values += mine["perplexity"].to_pylist()
    cuts = cutoffs(languages, np.array(values, float), config.percentiles)
    write_json(folder / "cutoffs.json", {k: v for k, v in cuts.items() if np.isfinite(v).all()})
    step = BucketStep(config, cuts)
    buckets = [Task(task.out, [step], work / "buckets" / task.out.name, task.key) for task in scoring]
    do("bucketing", buckets)
    return buckets


def _training(config: Perplexity, tasks: list[Task]) -> list[str]:
    """Texts of the training sources, in the order of a hash of their ids, up to `train_bytes`."""
    texts, size = [], 0
    for text in _sample(tasks, lambda source: source in config.train, 1_000_000).values():
        if size >= config.train_bytes:
            break
        texts.append(text)
        size += len(text.encode())
    if not texts:
        raise Refused(f"perplexity.train: no document of {config.train} is there to train on (of kind prose, kept)")
    return texts
