"""The stage `ppo`: reinforcement learning from a reward model (survey, section 5.2.3; 1707.06347, 2203.02155).

Policy gradient with a clipped ratio, a value function of its own weights that starts as the reward model, and a KL
penalty to the model that it started from. What it proves: mean reward, the rules' own score (never trained on), KL and
entropy on fixed prompts, before and after, and an alarm where the reward rose while the rule score fell.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator

from lmlab.align import outcome
from lmlab.align.actor_critic import ActorCritic, PPOObjective
from lmlab.align.episodes import Episode
from lmlab.align.prompts import Prompts, derived, families_of
from lmlab.align.rollout import Rollouts, RolloutSettings
from lmlab.align.rules import RulesConfig, mark
from lmlab.align.scalar import ScalarModel, load_reward, score_rows
from lmlab.config import Config
from lmlab.errors import Refused, nearest
from lmlab.generate.engine import Engine
from lmlab.instruct.families import FAMILIES, SEEN
from lmlab.model.store import load_model, resolve, save_model
from lmlab.model.transformer import Transformer
from lmlab.progress import say
from lmlab.run import Context, Input, StageKind, folder_atomic, write_json
from lmlab.text.chat import Renderer
from lmlab.text.tokenizer import Tokenizer
from lmlab.train.float8 import lacking
from lmlab.train.optimizer import OptimizerConfig
from lmlab.train.parallel.world import CPU
from lmlab.train.schedule import ScheduleName, StepSchedule
from lmlab.train.step import accumulate, make_forward, matrix_library
from lmlab.train.train_config import TrainConfig
from lmlab.train.trainer import fit

RATIO_TOLERANCE = {"float32": 1e-5, "float32-onednn": 0.05, "bfloat16": 0.05, "float16": 0.05}
"""How far the first ratio may be from 1 on average: rounding in float32; about two digits in bfloat16, which oneDNN multiplies
float32 in where the processor has amx_bf16, while the sampler works in float32 (guessed, not measured)."""

FEWEST_ITERATIONS = 2


class PPOOptimizer(OptimizerConfig):
    """As `OptimizerConfig`, with PPO's own defaults (1909.08593, its code: eps 1e-5, no decay)."""

    learning_rate: float = Field(default=1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-5, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)


class PPOSchedule(StepSchedule):
    """As `StepSchedule`, with PPO's own defaults."""

    name: ScheduleName = "linear"
    warmup: float = Field(default=0.05, ge=0)


class PPOTraining(TrainConfig):
    """As `TrainConfig`, with PPO's own defaults, which stay where only some of them are set."""

    optimizer: PPOOptimizer = PPOOptimizer()
    schedule: PPOSchedule = PPOSchedule()


class PPOConfig(Config):
    """Settings of the stage `ppo`."""

    families: tuple[str, ...] = SEEN
    """Task families whose prompts are answered."""
    minutes: float | None = Field(default=None, gt=0)
    """Train for about so many minutes on this machine: sets `iterations`, decided once and written to plan.json."""
    iterations: int = Field(default=16, ge=1)
    """Rollouts, each followed by `epochs` x `minibatches` updates."""
    episodes: int = Field(default=64, ge=2)
    """Prompts answered in a rollout, once each."""
    epochs: int = Field(default=2, ge=1)
    """Times that a rollout is learnt from."""
    minibatches: int = Field(default=2, ge=1)
    """Optimizer steps in an epoch."""
    micro_episodes: int = Field(default=16, ge=1)
    """Episodes in a forward pass, of like length; how many does not change what is learnt."""
    max_new_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling; probabilities in the loss are of logits divided by it too."""
    kl_coefficient: float = Field(default=0.05, ge=0)
    """Penalty on each response token's log(policy / start), in units of the reward's standard deviation a nat."""
    kl_target: float | None = Field(default=None, gt=0)
    """Nats an episode that the coefficient is steered to (1909.08593, section 2.2); without it, it is fixed."""
    kl_horizon: float = Field(default=10_000, gt=0)
    """Episodes over which it is steered."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount of later rewards."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """Lambda of the advantages (1506.02438)."""
    clip: float = Field(default=0.2, gt=0)
    """Of the probability ratio."""
    value_clip: float = Field(default=0.2, gt=0)
    """Of the value's change since the rollout."""
    value_weight: float = Field(default=0.1, ge=0)
    """Of the value loss beside the policy loss. They share no weights, but their gradients are clipped together."""
    missing_end_penalty: float = Field(default=1.0, ge=0)
    """Taken off the score of an answer that does not end its turn."""
    rules: RulesConfig = RulesConfig()
    """For the rule score, which is written down and never trained on; the weights should be the reward stage's."""
    test_prompts: int = Field(default=128, ge=2)
    """Fixed prompts answered before and after, none of which is trained on."""
    shown: int = Field(default=12, ge=0)
    """Of these, how many results.json shows."""
    train: PPOTraining = PPOTraining()
    """How to train; `train.steps` follows from the iterations, and is not read."""

    @model_validator(mode="after")
    def _possible(self) -> PPOConfig:
        for name in self.families:
            if name not in FAMILIES:
                raise ValueError(f"families: there is no family '{name}'{nearest(name, FAMILIES)}")
        if not self.families:
            raise ValueError("families: expected at least one")
        if self.minibatches > self.episodes:
            raise ValueError(f"{self.minibatches} minibatches cannot be made of {self.episodes} episodes")
        return self

    def rollout(self, seed: int) -> RolloutSettings:
        """What `Rollouts` needs of these settings."""
        names = set(RolloutSettings.__dataclass_fields__) - {"precision", "tolerance", "seed"}
        precision = self.train.precision
        return RolloutSettings(
            **{name: getattr(self, name) for name in names},
            precision=precision, tolerance=RATIO_TOLERANCE[precision], seed=seed,
        )  # fmt: skip


@dataclass
class Judge:
    """What an episode is worth: by the reward model, which is trained on, and by the rules, which are not."""

    reward: ScalarModel
    tokenizer: Tokenizer
    rules: RulesConfig
    families: Mapping[str, Any]

    def score(self, episodes: Sequence[Episode]) -> torch.Tensor:
        """Normalised rewards (B,), read at the end-of-turn token."""
        rows = [episode.judged(self.tokenizer) for episode in episodes]
        return score_rows(self.reward, rows, self.tokenizer.pad_id)

    def marks(self, episode: Episode) -> Any:
        """By the rules."""
        item = episode.prompt.item
        return mark(self.rules, self.families[item.family], item, episode.text, episode.ended)

    def rule_score(self, episode: Episode) -> float:
        return self.marks(episode).score


def run(context: Context) -> Mapping[str, Any]:
    """Train, then answer the fixed prompts with the model before and after. Cut off, it resumes between iterations."""
    config: PPOConfig = context.config
    folder, reward_folder = resolve(context.inputs["model"]), resolve(context.inputs["reward"])
    reference, tokenizer, reward = load_model(folder), Tokenizer.load(folder), load_reward(reward_folder)
    _fitting(context, reference, tokenizer, reward, reward_folder)
    families = families_of(config.families, context.inputs.get("corpus"))
    judge = Judge(reward, tokenizer, config.rules, families)
    renderer, longest = Renderer(tokenizer), reference.config.context_length - config.max_new_tokens - 1
    prompts = Prompts(renderer, families, "train", derived(context.seed, "ppo"), longest)
    for frozen in (reference, reward):
        frozen.requires_grad_(False)

    network = _network(reference, reward, config.temperature)
    objective = PPOObjective(
        config.clip, config.value_clip, config.value_weight, RATIO_TOLERANCE[config.train.precision]
    )
    settings = config.rollout(context.seed)
    rollouts = Rollouts(
        network, reference, Engine(network.policy, tokenizer), tokenizer, prompts, settings, judge.score,
        judge.rule_score, context.metrics,
    )  # fmt: skip
    plan = context.plan(lambda: _plan(config, network, objective, rollouts))
    say(f"{context.name}: {plan['iterations']} iterations: {config.episodes} episodes, {settings.updates} updates each")
    training = config.train.model_copy(update={"steps": plan["iterations"] * settings.updates})
    fit(network, objective, rollouts, training, context, tokens=lambda batch: batch.tokens_BT.numel())
    with folder_atomic(context.out / "model") as temporary:
        save_model(temporary, network.policy, tokenizer)

    say(f"{context.name}: answering {config.test_prompts} fixed prompts as it was before and as it is after")
    fixed = Prompts(renderer, families, "test", outcome.TEST_SEED, longest).distinct(config.test_prompts)
    trained = load_model(context.out / "model")
    before, after = (
        outcome.answers(
            model, reference, tokenizer, fixed, judge,
            max_new_tokens=config.max_new_tokens, temperature=config.temperature,
        )
        for model in (reference, trained)
    )  # fmt: skip
    results = {
        **outcome.compare(before, after),
        "samples": outcome.samples(before, after, config.shown),
        "training": {
            "iterations": plan["iterations"], "episodes": plan["iterations"] * config.episodes, "steps": training.steps,
            "kl_coefficient": rollouts.beta,
        },
    }  # fmt: skip
    write_json(context.out / "results.json", results)
    return {name: results[name] for name in ("reward", "rule_score", "kl")}


def _network(policy: Transformer, reward: ScalarModel, temperature: float) -> ActorCritic:
    """Copies to train: of the model, and of the reward model as the value function."""
    network = ActorCritic(copy.deepcopy(policy), copy.deepcopy(reward), temperature).requires_grad_(True)
    if network.value.backbone.head is not None:
        network.value.backbone.head.requires_grad_(False)
    return network


def _fitting(
    context: Context, model: Transformer, tokenizer: Tokenizer, reward: ScalarModel, reward_folder: Path
) -> None:
    config: PPOConfig = context.config
    theirs = Tokenizer.load(reward_folder)
    if theirs.fingerprint != tokenizer.fingerprint:
        raise Refused(
            f"{reward_folder}: its tokenizer differs from the model's; PPO gives the reward model the policy's own "
            "tokens, so both need one tokenizer: train the reward model from a model of the same run"
        )
    length = min(model.config.context_length, reward.backbone.config.context_length)
    if length < model.config.context_length:
        raise Refused(
            f"{reward_folder}: its context of {length} tokens is shorter than the model's {model.config.context_length}"
        )
    if config.max_new_tokens + 2 > length:
        raise Refused(
            f"{context.name}.max_new_tokens: {config.max_new_tokens} leaves no room for a prompt in the model's "
            f"context of {length} tokens"
        )


def _plan(config: PPOConfig, network: ActorCritic, objective: PPOObjective, rollouts: Rollouts) -> dict[str, Any]:
    """How many iterations: as set, or as many as fit the minutes, timed by one whose gradients are thrown away."""
    if config.minutes is None:
        return {"iterations": config.iterations}
    forward = make_forward(network, objective, config.train.compile)
    seconds = 0.0
    with matrix_library(config.train.precision):
        for _ in range(2):  # the first warms up
            begun = time.perf_counter()
            batch, _ = rollouts.collect(0)
            rolled = time.perf_counter()
            accumulate(forward, objective, rollouts.minibatch(batch, 0, 0), config.train.precision)
            updated = time.perf_counter()
            network.zero_grad(set_to_none=True)
            seconds = rolled - begun + rollouts.settings.updates * (updated - rolled)
    rollouts.restore({"beta": config.kl_coefficient})
    iterations = max(FEWEST_ITERATIONS, int(60 * config.minutes / seconds))
    return {"iterations": iterations, "seconds_an_iteration": seconds, "minutes": config.minutes}


STAGE = StageKind(
    config=PPOConfig,
    run=run,
    here=lambda config: lacking(config.train.precision, CPU),
    inputs=(
        Input("model", ("sft", "pretrain"), model=True),
        Input("reward", ("reward",)),
        Input("corpus", ("corpus",), required=False),
    ),
)
