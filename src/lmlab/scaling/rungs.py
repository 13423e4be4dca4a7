"""The rungs of a ladder: a budget of FLOPs to a width, steps, a batch and a rate, by one dial and three rules."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import Field, field_validator

from lmlab.config import Config
from lmlab.errors import Refused
from lmlab.model.config import ModelConfig
from lmlab.objective.settings import CausalLM
from lmlab.scaling.few import Law
from lmlab.scaling.table import number
from lmlab.train.plan import Shape, shape_of_width
from lmlab.train.pretrain_config import PretrainConfig

FEWEST = 3
"""Rungs, the one that is predicted among them."""
LAST_STEP = 2.0
"""The last rung has at least so many times the compute of the one before: less is no prediction."""
WIDEST = 1 << 16


class LadderConfig(Config):
    """How `lmlab scale ladder` cuts a recipe into rungs: the recipe's `ladder:`."""

    budgets: tuple[float, ...] = ()
    """Training FLOPs of each rung, growing; the last is predicted before it is trained. Numbers or texts such as 3e10."""
    tokens_per_parameter: float = Field(default=20.0, gt=0)
    """The rule that turns a budget into a size: the width whose tokens a parameter come nearest to this. (About 20 is
    compute-optimal for large models, 2203.15556; for small ones on a small corpus fewer are.)"""
    width_step: int = Field(default=8, ge=1)
    """Widths are multiples of this. What else follows from a width is the dial's rule, where the recipe is silent."""
    batch_exponent: float = Field(default=0.0, ge=0, le=1)
    """batch_tokens grows as (budget / first budget) to this power from the recipe's, in whole windows. (DeepSeek LLM found
    0.327, 2401.02954.)"""
    rate_exponent: float = Field(default=0.0, ge=-1, le=1)
    """Learning rates likewise: 0 where muP carries them over (2203.03466). (DeepSeek LLM found -0.125.)"""
    law: Law = "power-above"
    """The loss of a rung over its compute C, L = c + a C^-b: power-above, c of at least 0; power, c = 0; power-any, any c."""
    max_epochs: float = Field(default=4.0, gt=0)
    """A ladder whose last rung reads the text more often is refused; up to about four times it is worth as much as new
    text (2305.16264)."""

    @field_validator("budgets", mode="before")
    @classmethod
    def _read(cls, budgets: Any) -> Any:
        if not isinstance(budgets, (list, tuple)):
            raise ValueError(f"expected a list such as [1e10, 2e10, 8e10], found {budgets!r}")
        try:
            return tuple(number(str(each), "budgets") for each in budgets)
        except Refused as error:
            raise ValueError(str(error)) from None


@dataclass(frozen=True)
class Rung:
    """One model of a ladder. `flops` is what its whole steps come to, close to `budget`."""

    name: str
    budget: float
    d_model: int
    layers: int
    params: int
    params_no_embed: int
    steps: int
    batch_tokens: int
    tokens: int
    flops: float
    rate: float
    """Factor on the recipe's learning rates."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check_budgets(budgets: Sequence[float], where: str) -> None:
    """Refused where they do not grow, are fewer than three, or the last is under twice the one before."""
    shown = ", ".join(f"{each:g}" for each in budgets)
    if len(budgets) < FEWEST:
        raise Refused(
            f"{where}: {len(budgets)} budgets ({shown or 'none'}); expected at least {FEWEST}: those that the law is fitted to, "
            "and the one that it predicts, such as 3e10,6e10,1.2e11,1e12"
        )
    for before, after in itertools.pairwise(budgets):
        if after <= before:
            raise Refused(f"{where}: {after:g} after {before:g}; expected budgets that grow, found {shown}")
    if budgets[-1] < LAST_STEP * budgets[-2]:
        raise Refused(
            f"{where}: the last, {budgets[-1]:g}, is {budgets[-1] / budgets[-2]:.2f} times the one before; expected at least "
            f"{LAST_STEP:g} times: what lies between the runs is no prediction"
        )


def check_recipe(config: PretrainConfig, where: str) -> None:
    """Refuse what a ladder cannot count the compute of, or would have to change."""
    if not isinstance(config.objective, CausalLM) or config.model.architecture == "encoder-decoder":
        raise Refused(
            f"{where}: a ladder counts the FLOPs of causal-lm in a decoder alone; found {config.objective.name} in a "
            f"{config.model.architecture}"
        )
    if config.batch_ramp is not None:
        raise Refused(f"{where}: a ladder's batch is of one size within a rung; found batch_ramp: leave it out")


def rungs(config: PretrainConfig, ladder: LadderConfig, vocab_size: int) -> list[Rung]:
    """The rungs of a ladder's budgets, smallest first. Raises Refused where two have the same model, or too few steps."""
    found = [_rung(place, budget, config, ladder, vocab_size) for place, budget in enumerate(ladder.budgets)]
    for before, after in itertools.pairwise(found):
        if after.d_model <= before.d_model and after.steps <= before.steps:
            raise Refused(
                f"budgets: {before.budget:g} and {after.budget:g} come to one and the same run (d_model {after.d_model}, "
                f"{after.steps} steps); expected budgets further apart"
            )
    return found


def _rung(place: int, budget: float, config: PretrainConfig, ladder: LadderConfig, vocab_size: int) -> Rung:
    length, growth = config.model.context_length, budget / ladder.budgets[0]
    shape = _nearest(budget, config.model, ladder, vocab_size)
    per_token = shape.flops_per_token(length)
    rows = max(1, round(config.batch_tokens * growth**ladder.batch_exponent / length))
    batch = rows * length
    steps = round(budget / (per_token * batch))
    if steps < 10:
        raise Refused(
            f"budgets: {budget:g} FLOPs are {steps} steps of {batch:,} tokens at d_model {shape.d_model}; expected at least 10: "
            "a larger budget, or a smaller pretrain.batch_tokens"
        )
    parts = shape.parameters()
    return Rung(
        name=f"rung-{place + 1}",
        budget=budget,
        d_model=shape.d_model,
        layers=shape.layers,
        params=parts["active"],
        params_no_embed=parts["active"] - parts["embedding"] - parts["head"],
        steps=steps,
        batch_tokens=batch,
        tokens=steps * batch,
        flops=steps * batch * per_token,
        rate=growth**ladder.rate_exponent,
    )


def _nearest(budget: float, given: Shape, ladder: LadderConfig, vocab_size: int) -> ModelConfig:
    """The model whose tokens a parameter at this budget are nearest to the rule, as a ratio."""
    best, distance = None, float("inf")
    for shape in _shapes(given, ladder.width_step, vocab_size):
        tokens = budget / shape.flops_per_token(given.context_length)
        ratio = tokens / shape.parameters()["active"] / ladder.tokens_per_parameter
        if max(ratio, 1 / ratio) < distance:
            best, distance = shape, max(ratio, 1 / ratio)
        if ratio < 1:  # wider ones are further off
            break
    if best is None:
        raise Refused(
            f"ladder: no width in steps of {ladder.width_step} goes with the model of this recipe; expected a width_step that is a "
            "multiple of twice its heads"
        )
    return best


def _shapes(given: Shape, step: int, vocab_size: int) -> Iterator[ModelConfig]:
    """The models of each width that can be, narrowest first."""
    for width in range(max(step, 8), WIDEST, step):
        try:
            yield shape_of_width(given.model_copy(update={"d_model": None}), width, vocab_size)
        except ValueError:
            continue


def changes(rung: Rung, stage: str, config: PretrainConfig) -> dict[str, Any]:
    """The rung as an arm of the recipe: the settings of its pretraining stage that it changes."""
    rates = config.optimizer
    return {
        f"{stage}.minutes": None,
        f"{stage}.steps": rung.steps,
        f"{stage}.batch_tokens": rung.batch_tokens,
        f"{stage}.model.d_model": rung.d_model,
        f"{stage}.optimizer.learning_rate": rates.learning_rate * rung.rate,
        f"{stage}.optimizer.matrix_learning_rate": rates.matrix_learning_rate * rung.rate,
    }
