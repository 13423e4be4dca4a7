"""The stage `reward`: a reward model trained on pairs that written rules prefer (survey, section 5.2.2).

The model to be aligned answers prompts several times; the rules rank the answers; a copy of the network with a scalar
head learns to score a better answer above a worse one. What it proves: its accuracy on pairs of prompts held out whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from lmlab.align import agreement, feedback
from lmlab.align.feedback import Ranked
from lmlab.align.losses import Pairs, all_pairs, pairwise_sum
from lmlab.align.prompts import Prompts, derived, families_of
from lmlab.align.rules import RulesConfig
from lmlab.align.scalar import ScalarModel, at_last, pad, save_reward, score_rows
from lmlab.config import Config
from lmlab.errors import Failed, Refused, nearest
from lmlab.generate.engine import Engine
from lmlab.instruct.families import FAMILIES, SEEN, Split
from lmlab.model.store import load_model, resolve
from lmlab.progress import say
from lmlab.run import Context, Input, StageKind, folder_atomic, write_json
from lmlab.text.chat import Renderer
from lmlab.text.tokenizer import Tokenizer
from lmlab.train.float8 import lacking
from lmlab.train.optimizer import OptimizerConfig
from lmlab.train.parallel.world import CPU
from lmlab.train.schedule import ScheduleName, StepSchedule
from lmlab.train.train_config import TrainConfig
from lmlab.train.trainer import fit

FEWEST = 8
"""Prompts with an untied pair below which there is nothing to train on, or a quarter of it to test on."""


class RewardOptimizer(OptimizerConfig):
    """As `OptimizerConfig`, with this stage's own defaults."""

    learning_rate: float = Field(default=3e-4, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)


class RewardSchedule(StepSchedule):
    """As `StepSchedule`, with this stage's own defaults."""

    name: ScheduleName = "linear"
    warmup: float = Field(default=0.1, ge=0)
    final: float = Field(default=0.0, ge=0, le=1)


class RewardTraining(TrainConfig):
    """As `TrainConfig`, with this stage's own defaults, which stay where only some of them are set."""

    optimizer: RewardOptimizer = RewardOptimizer()
    schedule: RewardSchedule = RewardSchedule()


class RewardConfig(Config):
    """Settings of the stage `reward`."""

    families: tuple[str, ...] = SEEN
    """Task families whose prompts are answered."""
    rules: RulesConfig = RulesConfig()
    """What the answers are ranked by."""
    prompts: int = Field(default=288, ge=FEWEST)
    """Prompts to train on that have an untied pair."""
    test_prompts: int = Field(default=96, ge=2)
    """The same to test on; none asks what a training prompt asks."""
    samples: int = Field(default=4, ge=2)
    """Answers a prompt; every two of them are a pair."""
    attempts: float = Field(default=3, ge=1)
    """Ask at most so many times as many prompts as are wanted: where a model answers always right or always wrong, most
    prompts have no untied pair."""
    max_new_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling."""
    epochs: int = Field(default=1, ge=1)
    """More than one overfits at published sizes (2203.02155)."""
    batch_prompts: int = Field(default=8, ge=1)
    """Prompts in an optimizer step, each with all its answers."""
    train: RewardTraining = RewardTraining()
    """How to train; `train.steps` follows from the prompts and epochs, and is not read."""

    @field_validator("families")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in FAMILIES:
                raise ValueError(f"there is no family '{name}'{nearest(name, FAMILIES)}")
        if not names:
            raise ValueError("expected at least one family")
        return names


@dataclass
class RankedBatch:
    """Every answer of some prompts: tokens (R, T), the last real token of each row (R,), and the pairs among them."""

    tokens_RT: Tensor
    last_R: Tensor
    pairs: Pairs


class PairwiseObjective:
    """`pairwise_sum`, a mean over the prompts of the optimizer step. One term, `pairwise`."""

    def __init__(self) -> None:
        self.weights = {"pairwise": 1.0}

    def count(self, batch: RankedBatch) -> dict[str, int]:
        return {"pairwise": batch.pairs.prompts}

    def inputs(self, batch: RankedBatch) -> dict[str, Any]:
        return {"tokens_BT": batch.tokens_RT}

    def loss(self, output: Tensor, batch: RankedBatch) -> dict[str, Tensor]:
        return {"pairwise": pairwise_sum(at_last(output, batch.last_R), batch.pairs)}

    def report(self, output: Tensor, batch: RankedBatch) -> dict[str, tuple[Tensor, Tensor]]:
        """Accuracy on the pairs, and the mean margin, both weighted as in the loss."""
        with torch.no_grad():
            scores_R = at_last(output, batch.last_R)
            margins_P = scores_R[batch.pairs.winners_P] - scores_R[batch.pairs.losers_P]
            n = torch.tensor(float(batch.pairs.prompts))
            shares_P = batch.pairs.shares_P
            return {"accuracy": (((margins_P > 0) * shares_P).sum(), n), "margin": ((margins_P * shares_P).sum(), n)}


class RankedBatches:
    """Training batches: whole prompts, in an order drawn anew each epoch, a pure function of (seed, step)."""

    def __init__(self, rows: Sequence[Ranked], batch_prompts: int, pad_id: int, longest: int, seed: int) -> None:
        self.rows, self.batch, self.pad_id, self.longest, self.seed = rows, batch_prompts, pad_id, longest, seed

    def steps(self, epochs: int) -> int:
        """Optimizer steps that visit every prompt `epochs` times."""
        return -(-len(self.rows) * epochs // self.batch)

    def __call__(self, step: int) -> list[RankedBatch]:
        wanted = range(step * self.batch, (step + 1) * self.batch)
        chosen = [self.rows[self._order(n // len(self.rows))[n % len(self.rows)]] for n in wanted]
        ids = [answer.ids for row in chosen for answer in row.answers]
        tokens_RT, last_R = pad(ids, self.pad_id)
        pairs = all_pairs([[answer.rank for answer in row.answers] for row in chosen])
        return [RankedBatch(tokens_RT[:, : self.longest], last_R, pairs)]

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(len(self.rows))


def run(context: Context) -> Mapping[str, Any]:
    """Sample, rank, train, normalise, test. Cut off, it takes up the samples and the newest checkpoint."""
    config: RewardConfig = context.config
    folder = resolve(context.inputs["model"])
    network, tokenizer = load_model(folder), Tokenizer.load(folder)
    path = context.out / "samples.jsonl"
    if not path.exists():
        feedback.write(path, _gather(context, Engine(network, tokenizer), tokenizer, context.inputs.get("corpus")))
        context.tick()
    rows = feedback.read(path)
    useful = {split: [row for row in rows if row.split == split and row.pairs] for split in ("train", "test")}
    _enough(context, rows, useful)

    model = ScalarModel(network).initialise(derived(context.seed, "score head"))
    length = network.config.context_length
    source = RankedBatches(
        useful["train"], config.batch_prompts, tokenizer.pad_id, length, derived(context.seed, "order")
    )
    training = config.train.model_copy(update={"steps": source.steps(config.epochs)})
    say(f"{context.name}: {sum(len(row.pairs) for row in useful['train'])} pairs of {len(useful['train'])} prompts")
    fit(model, PairwiseObjective(), source, training, context, tokens=lambda batch: batch.tokens_RT.numel())

    # Normalised over the policy's samples for prompts that were not trained on, the tied ones too.
    untrained = [row for row in rows if row.split == "test"]
    raw_R = score_rows(model, [answer.ids for row in untrained for answer in row.answers], tokenizer.pad_id)
    model.mean, model.std = float(raw_R.mean()), max(float(raw_R.std()), 1e-6)
    with folder_atomic(context.out / "model") as temporary:
        save_reward(temporary, model, tokenizer, {"reward_samples": len(raw_R)})

    scores = {split: _scores(model, useful[split], tokenizer.pad_id) for split in useful}
    results = {
        **agreement.summary(useful["test"], scores["test"], model.std),
        "pair_accuracy_train": agreement.accuracy(useful["train"], scores["train"]).to_json(),
        "counts": _counts(rows, useful),
        "normalisation": {"mean": model.mean, "std": model.std, "samples": len(raw_R)},
        "training": {"steps": training.steps, "prompts": len(useful["train"])},
        "examples": agreement.examples(useful["test"], scores["test"]),
    }
    write_json(context.out / "results.json", results)
    return {"pair_accuracy": results["pair_accuracy"]}


def _gather(context: Context, engine: Engine, tokenizer: Tokenizer, corpus: Path | None) -> list[Ranked]:
    config: RewardConfig = context.config
    families = families_of(config.families, corpus)
    longest = engine.model.config.context_length - config.max_new_tokens - 1
    if longest < 1:
        raise Refused(
            f"{context.name}.max_new_tokens: {config.max_new_tokens} leaves no room for a prompt in the model's "
            f"context of {engine.model.config.context_length} tokens"
        )
    rows: list[Ranked] = []
    both: tuple[tuple[Split, int], ...] = (("train", config.prompts), ("test", config.test_prompts))
    for split, wanted in both:
        say(f"{context.name}: sampling {config.samples} answers a prompt until {wanted} {split} prompts have a pair")
        prompts = Prompts(Renderer(tokenizer), families, split, derived(context.seed, "feedback"), longest)
        rows += feedback.gather(
            engine, tokenizer, prompts, config.rules, wanted=wanted, most=round(wanted * config.attempts),
            samples=config.samples, max_new_tokens=config.max_new_tokens, temperature=config.temperature,
            seed=derived(context.seed, split),
        )  # fmt: skip
    return rows


def _enough(context: Context, rows: Sequence[Ranked], useful: Mapping[str, Sequence[Ranked]]) -> None:
    for split, fewest in (("train", FEWEST), ("test", FEWEST // 4)):
        if len(useful[split]) < fewest:
            asked = sum(row.split == split for row in rows)
            raise Failed(
                f"{context.name}: only {len(useful[split])} of {asked} {split} prompts have answers that the rules "
                f"tell apart, {fewest} are needed: raise temperature, samples or attempts, or choose other families"
            )


def _scores(model: ScalarModel, rows: Sequence[Ranked], pad_id: int) -> list[list[float]]:
    """Normalised scores of each prompt's answers."""
    flat = iter(score_rows(model, [answer.ids for row in rows for answer in row.answers], pad_id).tolist())
    return [[next(flat) for _ in row.answers] for row in rows]


def _counts(rows: Sequence[Ranked], useful: Mapping[str, Sequence[Ranked]]) -> dict[str, Any]:
    """Prompts asked, prompts with a pair, pairs, and pairs by the rule that tells them apart."""
    return {
        split: {
            "prompts_asked": sum(row.split == split for row in rows),
            "prompts": len(useful[split]),
            "answers": sum(len(row.answers) for row in useful[split]),
            "pairs": sum(len(row.pairs) for row in useful[split]),
            "kinds": agreement.kinds(useful[split]),
        }
        for split in useful
    }


STAGE = StageKind(
    config=RewardConfig,
    run=run,
    here=lambda config: lacking(config.train.precision, CPU),
    inputs=(Input("model", ("sft", "pretrain", "ppo"), model=True), Input("corpus", ("corpus",), required=False)),
)
