"""The stage `evaluate`: every model of the run on one suite, and `evaluate_model`, the same for any one model.

What it leaves: run.json (settings, identities, versions, hashes of all prompts), items.jsonl (an answer a line),
results.json (scores by stage and task). Base models get the chat format that fine-tuned ones were trained in: their
scores say what a model does with it, not what it could do with a prompt made for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator

from lmlab import __version__
from lmlab.config import Config
from lmlab.corpus.store import documents
from lmlab.errors import Refused, nearest
from lmlab.evaluate.metrics import score, share, truncated, unparsed
from lmlab.evaluate.runner import VERSION, Limits, Row, Subject, Unit, prompts_hash, run_unit, subject
from lmlab.evaluate.strategy import Cot, Shots, Strategy, Vote, parse
from lmlab.evaluate.task import Task, Text
from lmlab.evaluate.tasks import BITS_PER_BYTE, family_tasks, held_out_text
from lmlab.generate.handle import load
from lmlab.instruct import families as kinds
from lmlab.progress import bar, say
from lmlab.run import Context, Input, StageKind, digest, machine, write_atomic, write_json


class VoteConfig(Config):
    """Self-consistency (2203.11171): asked of tasks that have a chain of steps, with the steps and without."""

    samples: int = Field(default=8, ge=0)
    """Outputs an item, of which the most frequent answer counts; 0 asks no votes."""
    temperature: float = Field(default=0.7, gt=0)
    """The paper's range is 0.5 to 0.7."""
    shots: tuple[int, ...] = (0,)
    """With so many demonstrations."""


class EvaluateConfig(Config):
    """Settings of the stage `evaluate`."""

    families: tuple[str, ...] = kinds.DEFAULT
    """Instruction families to ask."""
    heldout_families: tuple[str, ...] = kinds.HELD_OUT
    """Which of them fine-tuning never saw: they are scored apart."""
    items: int = Field(default=32, ge=1)
    """Test items a family."""
    shots: tuple[int, ...] = (0, 1, 4)
    """Demonstrations before each question, one greedy answer each."""
    steps: bool = True
    """Ask tasks that have a chain of steps both with it and without."""
    vote: VoteConfig = VoteConfig()
    max_new_tokens: int = Field(default=24, ge=1)
    """The longest answer, in tokens. What is longer is cut, and the share of cut outputs reported."""
    max_new_tokens_steps: int = Field(default=80, ge=1)
    """The longest answer with its steps."""
    text_bytes: int = Field(default=65536, ge=0)
    """Bytes of held-out text that bits per byte are measured on; 0 leaves them out."""
    document_bytes: int = Field(default=2048, ge=1)
    """At most so many of one document, its first."""
    stride: int = Field(default=128, ge=1)
    """Of a document longer than the context, tokens by which each window moves on."""
    seed: int = Field(default=0, ge=0)
    """Of the test items, the demonstrations and the samples. It is a setting, not the run's seed: every model of every
    run answers the same questions, so runs can be compared item by item."""

    @model_validator(mode="after")
    def _known(self) -> EvaluateConfig:
        for setting, names in (("families", self.families), ("heldout_families", self.heldout_families)):
            for name in names:
                if name not in kinds.FAMILIES:
                    raise ValueError(f"{setting}: there is no family '{name}'{nearest(name, kinds.FAMILIES)}")
        for setting, counts in (("shots", self.shots), ("vote.shots", self.vote.shots)):
            if any(count < 0 for count in counts) or len(set(counts)) < len(counts):
                raise ValueError(
                    f"{setting}: expected different numbers of demonstrations from 0, found {list(counts)}"
                )
        return self

    @property
    def limits(self) -> Limits:
        return Limits(self.max_new_tokens, self.max_new_tokens_steps, self.stride, self.seed)


def strategies(task: Task, config: EvaluateConfig) -> list[Strategy]:
    """What a task is asked with: every number of demonstrations greedily; with steps and without where there are any;
    a vote where there are steps."""
    ways: list[Cot | None] = [None, Cot()] if task.has_steps and config.steps else [None]
    found = [Strategy(Shots(count), cot) for cot in ways for count in config.shots]
    if config.vote.samples and task.has_steps:
        vote = Vote(config.vote.samples, config.vote.temperature)
        found += [Strategy(Shots(count), cot, vote) for cot in ways for count in config.vote.shots]
    return found


def suite(
    names: Sequence[str], config: EvaluateConfig, corpus: Path | None
) -> list[tuple[Task | Text, list[Strategy]]]:
    """The tasks of these names, each with its strategies. A name may carry its own strategy:
    `arithmetic/shots=4/steps`. Raises Refused for an unknown name, or for bits per byte without a corpus."""
    chosen: dict[str, list[Strategy]] = {}
    built: dict[str, Task | Text] = {}
    for name in names:
        task, *words = name.removeprefix("exact_match/").split("/")
        if task not in (BITS_PER_BYTE, *kinds.FAMILIES):
            raise Refused(f"task '{task}': there is none of that name{nearest(task, (BITS_PER_BYTE, *kinds.FAMILIES))}")
        if task not in built:
            built[task] = _text(config, corpus) if task == BITS_PER_BYTE else _task(task, config, corpus)
        made = built[task]
        if isinstance(made, Task):
            asked = [_named(made, words, config)] if words else strategies(made, config)
        elif words:
            raise Refused(f"task '{name}': {task} takes no strategy")
        else:
            asked = []
        chosen.setdefault(task, []).extend(one for one in asked if one not in chosen.get(task, []))
    return [(built[task], asked) for task, asked in chosen.items()]


def _named(task: Task, words: Sequence[str], config: EvaluateConfig) -> Strategy:
    strategy = parse(words, config.vote.temperature)
    if strategy.cot and not task.has_steps:
        raise Refused(f"task '{task.name}/{'/'.join(words)}': '{task.name}' has no chain of steps to ask for")
    return strategy


def _text(config: EvaluateConfig, corpus: Path | None) -> Text:
    if corpus is None:
        raise Refused(f"task '{BITS_PER_BYTE}': needs a corpus stage, whose held-out documents are predicted")
    text = held_out_text(documents(corpus, split="heldout"), config.text_bytes, config.document_bytes)
    if not text.passages:
        raise Refused(f"task '{BITS_PER_BYTE}': {corpus} holds no held-out text, or text_bytes is 0")
    return text


def _task(name: str, config: EvaluateConfig, corpus: Path | None) -> Task:
    """A family's task. Questions about functions are about those of held-out modules, or with too few of them of
    training modules (the questions are test items all the same), or with too few again about made-up ones."""
    family = kinds.make([name])[name]
    if corpus is not None and isinstance(family, kinds.FunctionFamily):
        for split in ("heldout", "train"):
            texts = [document["text"] for document in documents(corpus, split=split, source="docstrings")]
            family = kinds.FunctionFamily(list(kinds.functions(texts)))
            if family.records:
                break
    return family_tasks({name: family}, config.heldout_families, config.seed)[name]


def evaluate(
    subjects: Sequence[Subject],
    tasks: Sequence[tuple[Task | Text, Sequence[Strategy]]],
    config: EvaluateConfig,
    out: Path,
    context: Context | None = None,
) -> dict[str, Any]:
    """Ask every model everything; write run.json, items.jsonl and results.json into `out`; return the results.

    Units finished before, under `out`/parts, are not asked again where model, prompts and settings are the same.
    """
    items = {task.name: tuple(_items(task, config)) for task, _ in tasks}
    units = [
        Unit(model, task, strategy, items[task.name])
        for model in subjects
        for task, asked in tasks
        for strategy in (asked if isinstance(task, Task) else (None,))
        if isinstance(task, Task) or model.remote is None
    ]
    texts = [task.name for task, _ in tasks if isinstance(task, Text)]
    for model in subjects if texts else ():
        if model.remote is not None:
            say(f"{model.name}: {', '.join(texts)} left out: a server's tokens are not to be had")
    if not units:
        raise Refused(f"evaluate: nothing is left to ask {', '.join(one.name for one in subjects)}")
    found: list[tuple[Unit, list[Row]]] = []
    with bar("evaluate", len(units)) as advance:
        for unit in units:
            found.append((unit, run_unit(unit, config.limits, out / "parts")))
            advance(1, f"{unit.subject.name} {unit.name}")
            if context is not None:
                context.tick()
    for model in subjects:
        if model.remote is not None:
            say(f"{model.name}: {model.remote.usage}")
    results = summarise(found)
    lines = (json.dumps(row, ensure_ascii=True, allow_nan=False) + "\n" for _, rows in found for row in rows)
    write_atomic(out / "items.jsonl", "".join(lines))
    write_json(out / "run.json", _record(found, config))
    write_json(out / "results.json", results)
    return results


def _items(task: Task | Text, config: EvaluateConfig) -> Sequence[Any]:
    return task.data.test(config.items) if isinstance(task, Task) else task.passages


def summarise(found: Sequence[tuple[Unit, Sequence[Row]]]) -> dict[str, Any]:
    """Scores as JSON objects: `stages` {STAGE: {TASK: score}}; `pooled`, the same over the items of all tasks of a
    group asked with one strategy; `unparsed`, `truncated` and `fewer_shots` (items for which not all demonstrations
    had room; only tasks with any) as shares of items; `tasks`, what each is."""
    results: dict[str, Any] = {
        "stages": {}, "pooled": {}, "unparsed": {}, "truncated": {}, "fewer_shots": {}, "tasks": {},
    }  # fmt: skip
    groups: dict[str, dict[str, list[Row]]] = {}
    for unit, rows in found:
        stage, name, task = unit.subject.name, unit.name, unit.task
        results["tasks"][name] = _about(unit)
        results["stages"].setdefault(stage, {})[name] = score(rows).to_json()
        if not isinstance(task, Task) or unit.strategy is None:
            continue
        wanted = unit.strategy.shots.count
        results["unparsed"].setdefault(stage, {})[name] = unparsed(rows).to_json()
        results["truncated"].setdefault(stage, {})[name] = truncated(rows).to_json()
        fewer = [row["shots"] < wanted for row in rows]
        if any(fewer):
            results["fewer_shots"].setdefault(stage, {})[name] = share(fewer).to_json()
        if unit.strategy.vote is None and unit.strategy.cot is None:
            key = f"{task.metric.__name__}/{task.group}/shots={wanted}"
            groups.setdefault(stage, {}).setdefault(key, []).extend(rows)
    for stage, pools in groups.items():
        results["pooled"][stage] = {name: score(rows).to_json() for name, rows in pools.items()}
    return results


def _about(unit: Unit) -> str:
    words = unit.strategy.describe(unit.task) if isinstance(unit.task, Task) and unit.strategy else ""
    return f"{unit.task.description} Asked with {words}." if words else unit.task.description


def _record(found: Sequence[tuple[Unit, Sequence[Row]]], config: EvaluateConfig) -> dict[str, Any]:
    """Everything that the rows depend on. Nothing here tells one attempt at a run from another."""
    models: dict[str, Any] = {}
    for unit, rows in found:
        one = unit.subject
        entry = models.setdefault(one.name, {
            "weights": one.fingerprint,
            "tokenizer": one.tokenizer_fingerprint,
            "context_length": one.context or None,
            "batch": getattr(one.engine, "max_batch", None),
            "precision": getattr(one.engine, "precision", None),
            "prompts": {},
        })  # fmt: skip
        entry["prompts"][unit.name] = prompts_hash(rows)
    return {
        "settings": config.model_dump(mode="json"),
        "versions": {"lmlab": __version__, "runner": VERSION, **machine()["packages"]},
        "tasks": {unit.name: {"version": unit.task.version, "items": len(rows)} for unit, rows in found},
        "threads": torch.get_num_threads(),
        "vote": "most frequent parsed answer; unparsed outputs do not vote; of equals the lowest sample number",
        "format": "the chat format of fine-tuning, for base models too",
        "models": models,
        "fingerprint": digest([config.model_dump(mode="json"), models]),
    }


def all_tasks(config: EvaluateConfig, corpus: Path | None) -> list[str]:
    """Every task that can be asked: held-out text if the corpus has any, then the families."""
    has_text = corpus is not None and config.text_bytes and next(documents(corpus, split="heldout"), None) is not None
    return [*([BITS_PER_BYTE] if has_text else []), *dict.fromkeys(config.families)]


def evaluate_model(
    model: Any,
    tasks: Sequence[str],
    settings: EvaluateConfig,
    out: Path,
    *,
    corpus: Path | None = None,
    name: str = "model",
) -> dict[str, Any]:
    """Evaluate one loaded model (`lmlab.generate.handle.load`) on tasks by name, into the directory `out`. No tasks
    means all that can be asked. `name` is what results call it; `corpus` is a finished corpus stage."""
    listed = list(tasks) or all_tasks(settings, corpus)
    return evaluate([subject(name, model)], suite(listed, settings, corpus), settings, out)


def run(context: Context) -> Mapping[str, Any]:
    """Evaluate every model of the run. Cut off, it asks only what is not written yet."""
    config: EvaluateConfig = context.config
    corpus: Path | None = context.inputs.get("corpus")
    tasks = suite(all_tasks(config, corpus), config, corpus)
    subjects = [subject(name, load(folder)) for name, folder in context.inputs["models"].items()]
    asked = sum(len(ways) if isinstance(task, Task) else 1 for task, ways in tasks)
    say(f"{context.name}: {', '.join(one.name for one in subjects)} on {len(tasks)} tasks, {asked} ways of asking")
    results = evaluate(subjects, tasks, config, context.out, context)
    return {
        name: {key: scores[key] for key in (BITS_PER_BYTE,) if key in scores} | results["pooled"].get(name, {})
        for name, scores in results["stages"].items()
    }


STAGE = StageKind(
    config=EvaluateConfig,
    run=run,
    inputs=(
        Input("models", ("pretrain", "sft", "ppo"), several=True, model=True, addresses=True),
        Input("corpus", ("corpus",), required=False),
    ),
    seeded=False,
)
"""Not seeded: its randomness is the setting `seed`, the same for every arm and seed of a grid."""
