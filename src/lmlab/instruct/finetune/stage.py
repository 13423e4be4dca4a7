"""The stage `finetune`: supervised fine-tuning for one task, as GPT-1 did it (Radford et al. 2018).

The task's input becomes one sequence of tokens (text/task_inputs.py), a linear head reads its last one, and all weights are
trained on L_task + 0.5 L_lm. What it proves: accuracy on examples held out, beside that of always saying the commonest label.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from lmlab import measure
from lmlab.config import Config
from lmlab.errors import Refused
from lmlab.generate.classify import read
from lmlab.instruct.families import generator
from lmlab.instruct.finetune.batches import Encoded, TaskBatches, TaskObjective
from lmlab.instruct.finetune.data import DataConfig, Examples, majority, read_examples
from lmlab.instruct.finetune.made import MadeConfig, make_examples
from lmlab.model.classifier import Classifier, load_classifier, save_classifier
from lmlab.model.grow import with_tokens
from lmlab.model.store import load_model, resolve
from lmlab.progress import say
from lmlab.run import Context, Input, StageKind, folder_atomic, write_atomic, write_json
from lmlab.text.task_inputs import TASK_TOKENS, Example, Task, TaskInputs
from lmlab.text.tokenizer import Tokenizer, extended
from lmlab.train.float8 import lacking
from lmlab.train.optimizer import OptimizerConfig
from lmlab.train.parallel.world import CPU
from lmlab.train.schedule import ScheduleName, StepSchedule
from lmlab.train.train_config import TrainConfig
from lmlab.train.trainer import fit


class FinetuneOptimizer(OptimizerConfig):
    """As `OptimizerConfig`, with this stage's defaults. GPT-1's rate, for 117 million parameters, was 6.25e-5."""

    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)


class FinetuneSchedule(StepSchedule):
    """As `StepSchedule`, with GPT-1's: linear to 0 after a short warm-up."""

    name: ScheduleName = "linear"
    warmup: float = Field(default=0.002, ge=0)
    """Below 1 a share of the steps, else steps."""
    final: float = Field(default=0.0, ge=0, le=1)


class FinetuneTraining(TrainConfig):
    """As `TrainConfig`, with this stage's defaults."""

    optimizer: FinetuneOptimizer = FinetuneOptimizer()
    schedule: FinetuneSchedule = FinetuneSchedule()


class FinetuneConfig(Config):
    """Settings of the stage `finetune`."""

    task: Task = "classification"
    """What an example is: {text}, {premise, hypothesis}, {sentence1, sentence2} or {context, answers}, with its label."""
    data: DataConfig | None = None
    """Examples of your own; null makes them of the corpus (docs/objectives.md)."""
    made: MadeConfig = MadeConfig()
    lm_weight: float = Field(default=0.5, ge=0)
    """Weight of the language model's loss on the same sequences; 0 leaves it out."""
    epochs: float = Field(default=3, gt=0)
    batch: int = Field(default=32, ge=1)
    """Examples in an optimizer step."""
    micro_tokens: int = Field(default=4096, ge=1)
    """Positions of a forward pass; how many does not change what is learnt."""
    max_length: int = Field(default=512, ge=8)
    """Longest sequence in tokens; the model's context length where that is shorter. Longer ones are cut, and counted."""
    head_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Before the head, in training."""
    train: FinetuneTraining = FinetuneTraining()
    """How to train; `train.steps` follows from the examples and epochs, and is not read."""


def run(context: Context) -> Mapping[str, Any]:
    """Train and test. Cut off, it takes up the newest checkpoint. Leaves model/, results.json, items.jsonl, rejected.jsonl."""
    config: FinetuneConfig = context.config
    folder = resolve(context.inputs["model"])
    own = Tokenizer.load(folder)
    tokenizer, backbone = extended(own, TASK_TOKENS), load_model(folder)
    if backbone.config.has_encoder:
        raise Refused(f"{context.name}: {folder} is an encoder-decoder; the head reads the end of a decoder's sequence")
    new = [tokenizer.token_id(token) for token in TASK_TOKENS if own.find(token) is None]
    backbone = with_tokens(backbone, tokenizer.vocab_size, new, _seed(context, "new tokens"))
    examples = _examples(context)
    inputs = TaskInputs(tokenizer, min(config.max_length, backbone.config.context_length))
    choice = config.task == "multiple-choice"
    train, test = (_encoded(inputs, part, examples.labels) for part in (examples.train, examples.test))

    model = Classifier(backbone, len(examples.labels), config.head_dropout).initialise(_seed(context, "head")).eval()
    first = context.out / "before.json"
    if not first.exists():
        found = read(model, tokenizer, [each.rows for each in test], choice)
        write_json(first, [nats for _, nats in found])
    before = json.loads(first.read_text(encoding="utf-8"))
    source = TaskBatches(
        train, batch=config.batch, micro_tokens=config.micro_tokens, pad_id=tokenizer.pad_id, choice=choice,
        seed=_seed(context, "order"),
    )  # fmt: skip
    plan = context.plan(lambda: {"steps": source.steps(config.epochs)})
    training = config.train.model_copy(update={"steps": plan["steps"]})
    say(
        f"{context.name}: {config.task}, {len(train)} examples ({', '.join(examples.labels) if not choice else 'answers'}), "
        f"{len(test)} to test on; {training.steps} steps of {config.batch}, lm_weight {config.lm_weight:g}"
        + (f"; {inputs.cut} sequences cut to {inputs.length} tokens" if inputs.cut else "")
    )
    last = fit(
        model, TaskObjective(config.lm_weight), source, training, context, tokens=lambda batch: batch.tokens_BT.numel()
    )
    with folder_atomic(context.out / "model") as temporary:
        save_classifier(temporary, model, tokenizer, config.task, examples.labels)

    # The model as it is read back answers, so that the scores are those of what was written.
    found = read(load_classifier(context.out / "model")[0], tokenizer, [each.rows for each in test], choice)
    answered = [(int(logits_K.argmax()), logits_K.softmax(0).tolist()) for logits_K, _ in found]
    _write_items(context.out, examples, test, answered, choice)
    texts = [sum(i not in inputs.special for ids in each.rows for i in ids) for each in test]
    results: dict[str, Any] = {
        "task": config.task,
        "labels": examples.labels,
        **_accuracy(examples, test, [place for place, _ in answered], choice),
        "lm_nats_per_token": {
            "before": measure.ratio(before, texts).to_json(),
            "after": measure.ratio([nats for _, nats in found], texts).to_json(),
        },
        "counts": {
            "train": len(train), "test": len(test), "rejected": len(examples.rejected), "sequences_cut": inputs.cut,
        },
        "training": {"steps": training.steps, "loss": last.get("loss"), "task": last.get("task"), "lm": last.get("lm")},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }  # fmt: skip
    write_json(context.out / "results.json", results)
    return {"accuracy": results["accuracy"]["after"]["value"], "majority": results["accuracy"]["majority"]["value"]}


def _seed(context: Context, purpose: str) -> int:
    return int(generator(purpose, context.seed).integers(2**31))


def _examples(context: Context) -> Examples:
    config: FinetuneConfig = context.config
    if config.data is None:
        return make_examples(config.task, config.made, context.inputs["corpus"], context.seed)
    found = read_examples(config.data, config.task)
    write_atomic(context.out / "rejected.jsonl", _jsonl(found.rejected))
    if found.rejected:
        say(f"{context.name}: {len(found.rejected)} broken lines left out, see rejected.jsonl")
    return found


def _encoded(inputs: TaskInputs, examples: Sequence[Example], labels: Sequence[str]) -> list[Encoded]:
    places = {label: place for place, label in enumerate(labels)}
    return [
        Encoded(inputs.encode(each), each.label if isinstance(each.label, int) else places[str(each.label)])
        for each in examples
    ]


def _accuracy(examples: Examples, test: Sequence[Encoded], places: Sequence[int], choice: bool) -> dict[str, Any]:
    """The share of test examples answered rightly, beside that of always saying what most training examples have."""
    usual = majority(examples.train)
    commonest = int(usual) if choice else examples.labels.index(str(usual))
    right = np.array([place == each.label for place, each in zip(places, test, strict=True)], dtype=float)
    base = np.array([each.label == commonest for each in test], dtype=float)
    return {
        "accuracy": {
            "majority": measure.proportion(base.sum(), len(base)).to_json(),
            "after": measure.proportion(right.sum(), len(right)).to_json(),
        },
        "accuracy_over_majority": measure.difference(right, base).to_json(),
        "majority_label": usual,
    }


def _write_items(
    out: Path, examples: Examples, test: Sequence[Encoded], answered: Sequence[tuple[int, list[float]]], choice: bool
) -> None:
    """items.jsonl: each test example, its label, what was answered, and the probabilities."""

    def named(place: int) -> str | int:
        return place if choice else examples.labels[place]

    rows = [
        {
            "id": number, "sequences": each.sequences, "label": named(encoded.label), "answer": named(place),
            "right": place == encoded.label, "probabilities": shares,
        }
        for number, (each, encoded, (place, shares)) in enumerate(zip(examples.test, test, answered, strict=True))
    ]  # fmt: skip
    write_atomic(out / "items.jsonl", _jsonl(rows))


def _jsonl(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _check(config: FinetuneConfig, fillers: Mapping[str, Any]) -> str | None:
    """Examples of one's own are read when the recipe is: a broken file is refused before anything is pretrained for it."""
    if config.data is None:
        return (
            None if "corpus" in fillers else "needs data.train, or a stage of kind corpus before it to make examples of"
        )
    try:
        read_examples(config.data, config.task)
    except Refused as error:
        return str(error)
    return None


STAGE = StageKind(
    config=FinetuneConfig,
    run=run,
    here=lambda config: lacking(config.train.precision, CPU),
    inputs=(Input("model", ("pretrain", "sft"), model=True), Input("corpus", ("corpus",), required=False)),
    sources=lambda config: [] if config.data is None else config.data.files(),
    check=_check,
)
