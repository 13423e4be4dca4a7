"""The stage `sft`: supervised fine-tuning on instructions with verifiable answers, the loss on the answers only.

What it proves: exact match before and after, on the families that were trained and on those that were held out.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from lmlab.config import Config
from lmlab.corpus.store import documents
from lmlab.errors import nearest
from lmlab.generate.engine import Engine, Sampling
from lmlab.instruct.answers import Judged, exact_match, judge, verdicts
from lmlab.instruct.data import InstructionBatches, InstructionObjective, InstructionRows, TextRows
from lmlab.instruct.families import DEFAULT, FAMILIES, HELD_OUT, Family, Item, draw_distinct, make
from lmlab.instruct.formatting import messages
from lmlab.model.store import load_model, resolve, save_model
from lmlab.model.transformer import Transformer
from lmlab.progress import say
from lmlab.run import Context, Input, StageKind, folder_atomic, write_json
from lmlab.text.chat import Renderer
from lmlab.text.tokenizer import Tokenizer
from lmlab.train.fastest import PRECISIONS
from lmlab.train.float8 import lacking
from lmlab.train.optimizer import OptimizerConfig, OptimizerName, make_optimizers
from lmlab.train.parallel.world import CPU
from lmlab.train.schedule import ScheduleName, StepSchedule
from lmlab.train.step import accumulate, make_forward, matrix_library
from lmlab.train.train_config import TrainConfig
from lmlab.train.trainer import fit

TEST_SEED = 0
"""Test items do not depend on the run's seed: every model answers the same questions."""

ROOM = 16
"""Tokens that an answer may be longer than the right one before it is cut: enough to see that it is another."""

CALIBRATION_STEPS = 5
"""Timed for each precision before the plan is written; the first two warm up and are not counted."""


class SftOptimizer(OptimizerConfig):
    """As `OptimizerConfig`, with this stage's defaults, which stay where only some of them are set.

    Measured once, a model of 1.9 million parameters, one seed, 200 steps of 64 rows, 300 seen test items: exact match
    0.13 with these rates of Muon, 0.04 with AdamW at 1e-3. No other rates were tried.
    """

    name: OptimizerName = "muon"
    learning_rate: float = Field(default=3e-3, gt=0)
    matrix_learning_rate: float = Field(default=0.01, gt=0)
    """Muon's."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of matrices; gains, biases and embeddings are not decayed."""


class SftSchedule(StepSchedule):
    """As `StepSchedule`, with this stage's defaults."""

    name: ScheduleName = "linear"
    warmup: float = Field(default=0.05, ge=0)
    """Below 1 a share of the steps, else steps."""
    final: float = Field(default=0.0, ge=0, le=1)
    """The last step's rate as a fraction of the peak."""


class SftTraining(TrainConfig):
    """As `TrainConfig`, with this stage's defaults."""

    steps: int = Field(default=400, ge=0)
    """Optimizer steps, where no minutes are set."""
    optimizer: SftOptimizer = SftOptimizer()
    schedule: SftSchedule = SftSchedule()


class SftConfig(Config):
    """Settings of the stage `sft`."""

    families: tuple[str, ...] = DEFAULT
    """Task families to train on, less those that are held out."""
    heldout_families: tuple[str, ...] = HELD_OUT
    """Families that are only tested."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Share of a family in the mixture, relative to the others; 1 where none is given."""
    examples: int = Field(default=0, ge=0)
    """Different training rows, repeated; 0 makes new ones at every step."""
    demonstration_share: float = Field(default=0.2, ge=0, le=1)
    """Share of the rows that show solved items of the same family first, so that few-shot prompts are understood."""
    max_demonstrations: int = Field(default=4, ge=1)
    """Such a row shows one to this many."""
    text_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of all rows that are plain text of the corpus, against forgetting (the survey's section 5.1.2)."""
    text_weight: float = Field(default=0.1, ge=0)
    """Weight of the plain text's loss beside that of the answers; each is a mean over its own tokens."""
    rows: int = Field(default=64, ge=1)
    """Conversations in an optimizer step."""
    micro_tokens: int = Field(default=1024, ge=1)
    """Positions of a forward pass, which takes rows of like length; how many does not change what is learnt."""
    max_length: int = Field(default=256, ge=32)
    """Longest row in tokens; the model's context length where that is shorter."""
    minutes: float | None = Field(default=None, gt=0)
    """Train for about so many minutes on this machine: sets `train.steps`, decided once and written to plan.json."""
    test_items: int = Field(default=50, ge=1)
    """Test items a family, before and after."""
    samples: int = Field(default=3, ge=0)
    """Outputs a family that results.json shows."""
    measure_precision: bool = True
    """Time a few steps in each precision and take the fastest; otherwise `train.precision` is taken."""
    train: SftTraining = SftTraining()
    """How to train."""

    @model_validator(mode="after")
    def _known(self) -> SftConfig:
        for setting, names in (("families", self.families), ("heldout_families", self.heldout_families)):
            for name in names:
                if name not in FAMILIES:
                    raise ValueError(f"{setting}: there is no family '{name}'{nearest(name, FAMILIES)}")
        for name in self.weights:
            if name not in self.trained:
                raise ValueError(f"weights: '{name}' is not trained{nearest(name, self.trained)}")
        if not self.trained or not sum(self.weights.get(name, 1.0) for name in self.trained) > 0:
            raise ValueError("families: none is left to train on")
        if min(self.weights.values(), default=0.0) < 0:
            raise ValueError("weights: a share of the mixture cannot be negative")
        return self

    @property
    def trained(self) -> tuple[str, ...]:
        """The families that are trained on."""
        return tuple(name for name in self.families if name not in self.heldout_families)

    @property
    def tested(self) -> tuple[str, ...]:
        """The families that are tested: those trained on, then those held out."""
        return (*self.trained, *dict.fromkeys(self.heldout_families))


def run(context: Context) -> Mapping[str, Any]:
    """Test, train, test again. Cut off, it takes up the scores from before and the newest checkpoint."""
    config: SftConfig = context.config
    folder = resolve(context.inputs["model"])
    network, tokenizer = load_model(folder), Tokenizer.load(folder)
    renderer = Renderer(tokenizer)
    corpus: Path | None = context.inputs.get("corpus")
    families = make(config.tested, _docstrings(corpus, config.tested))
    items = [
        item for family in families.values() for item in draw_distinct(family, "test", TEST_SEED, config.test_items)
    ]

    before_file = context.out / "before.json"
    if not before_file.exists():
        say(f"{context.name}: {len(items)} test items of {len(families)} families, before training")
        write_json(before_file, answer(network, renderer, items))
        context.tick()
    before = judge(families, items, json.loads(before_file.read_text(encoding="utf-8")))

    trained = {name: families[name] for name in config.trained}
    source = _source(context, renderer, trained, network.config.context_length)
    objective = InstructionObjective(config.text_weight)
    plan = context.plan(lambda: _plan(config, network, objective, source))
    say(
        f"{context.name}: {plan['steps']} steps of {config.rows} conversations in {plan['precision']}; "
        f"families {', '.join(config.trained)}; held out {', '.join(config.heldout_families) or 'none'}"
    )
    training = config.train.model_copy(update={"steps": plan["steps"], "precision": plan["precision"]})
    last = fit(network, objective, source, training, context, tokens=lambda batch: batch.tokens_BT.numel())
    with folder_atomic(context.out / "model") as temporary:
        save_model(temporary, network, tokenizer)

    # The model as it is read back answers, so that the scores are those of what was written.
    after = judge(families, items, answer(load_model(context.out / "model"), renderer, items))
    results = {
        "exact_match": _scores(config, before, after),
        "verdicts": {
            name: {"before": verdicts(_of(before, [name])), "after": verdicts(_of(after, [name]))} for name in families
        },
        "samples": _samples(before, after, config.samples),
        "training": {"steps": plan["steps"], "rows": plan["steps"] * config.rows, "loss": last.get("loss")},
    }
    write_json(context.out / "results.json", results)
    scores = results["exact_match"]
    return {f"exact_match_{part}": scores[part]["after"]["value"] for part in ("seen", "unseen")}


def answer(network: Transformer, renderer: Renderer, items: Sequence[Item]) -> list[str]:
    """Greedy answers of a model to items, without demonstrations, cut `ROOM` tokens past the right one's length."""
    engine = Engine(network, renderer.tokenizer)
    prompts = [renderer.encode(messages(item), add_generation_prompt=True) for item in items]
    context = network.config.context_length
    wanted = [len(renderer.tokenizer.encode(item.target)) + ROOM for item in items]
    limits = [max(1, min(limit, context - len(prompt))) for limit, prompt in zip(wanted, prompts, strict=True)]
    done = engine.generate(prompts, [Sampling(max_new_tokens=limit) for limit in limits])
    return [completion.text for completion in done]


def _docstrings(corpus: Path | None, names: Sequence[str]) -> list[str]:
    """The corpus' training documents that show functions, where there are such and a family asks for them."""
    if corpus is None or "function" not in names:
        return []
    return [document["text"] for document in documents(corpus, split="train", source="docstrings")]


def _source(
    context: Context, renderer: Renderer, families: Mapping[str, Family], context_length: int
) -> InstructionBatches:
    config, seed, corpus = context.config, context.seed, context.inputs.get("corpus")
    length = min(config.max_length, context_length)
    rows = InstructionRows(
        renderer,
        families,
        seed=seed,
        weights=config.weights,
        demonstration_share=config.demonstration_share,
        max_demonstrations=config.max_demonstrations,
        examples=config.examples,
        max_length=length,
    )
    text_rows = round(config.rows * config.text_share)
    if not text_rows:
        return InstructionBatches(rows, rows=config.rows, micro_tokens=config.micro_tokens)
    texts = [document["text"] for document in documents(corpus, split="train")] if corpus else []
    text = TextRows(renderer.tokenizer, texts, seed=seed, length=length)
    return InstructionBatches(
        rows, rows=max(1, config.rows - text_rows), micro_tokens=config.micro_tokens, text=text, text_rows=text_rows
    )


def _plan(
    config: SftConfig, network: Transformer, objective: InstructionObjective, source: InstructionBatches
) -> dict[str, Any]:
    """The precision and how many steps: as set, or timed on copies of the network. Reads the clock."""
    precisions = PRECISIONS if config.measure_precision else (config.train.precision,)
    if config.minutes is None and len(precisions) == 1:
        return {"steps": config.train.steps, "precision": precisions[0]}
    timed = {precision: _seconds(config, network, objective, source, precision) for precision in precisions}
    fastest = min(timed, key=lambda precision: timed[precision])
    steps = config.train.steps if config.minutes is None else max(1, int(60 * config.minutes / timed[fastest]))
    return {"steps": steps, "precision": fastest, "minutes": config.minutes, "seconds_a_step": timed}


def _seconds(
    config: SftConfig,
    network: Transformer,
    objective: InstructionObjective,
    source: InstructionBatches,
    precision: str,
) -> float:
    """Mean seconds of an optimizer step, making its batch included."""
    trial = copy.deepcopy(network).train()
    optimizers = make_optimizers(trial, config.train.optimizer)
    forward = make_forward(trial, objective, config.train.compile)
    seconds = []
    with matrix_library(precision):
        for step in range(CALIBRATION_STEPS):
            begun = time.perf_counter()
            accumulate(forward, objective, source(step), precision)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            seconds.append(time.perf_counter() - begun)
    return sum(seconds[2:]) / len(seconds[2:])


def _of(judged: Sequence[Judged], names: Sequence[str]) -> list[Judged]:
    return [row for row in judged if row.item.family in names]


def _scores(config: SftConfig, before: Sequence[Judged], after: Sequence[Judged]) -> dict[str, Any]:
    """Exact match before and after: of all trained families, of all held-out ones, of each."""

    def pair(names: Sequence[str]) -> dict[str, Any]:
        return {
            "before": exact_match(_of(before, names)).to_json(), "after": exact_match(_of(after, names)).to_json(),
        }  # fmt: skip

    unseen = [name for name in config.tested if name not in config.trained]
    return {
        "seen": pair(config.trained),
        "unseen": pair(unseen),
        "families": {name: pair([name]) for name in config.tested},
    }


def _samples(before: Sequence[Judged], after: Sequence[Judged], count: int) -> list[dict[str, Any]]:
    """The first items of each family with what was said before and after."""
    shown: dict[str, int] = {}
    rows = []
    for old, new in zip(before, after, strict=True):
        name = new.item.family
        shown[name] = shown.get(name, 0) + 1
        if shown[name] <= count:
            rows.append({**new.to_json(), "before": old.output, "verdict_before": old.verdict})
    return rows


STAGE = StageKind(
    config=SftConfig,
    run=run,
    here=lambda config: lacking(config.train.precision, CPU),
    inputs=(Input("model", ("pretrain", "sft", "ppo"), model=True), Input("corpus", ("corpus",), required=False)),
)
