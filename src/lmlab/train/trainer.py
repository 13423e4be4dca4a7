"""The one trainer. Every learning stage gives it batches and an objective; it minimises

    sum over terms of  weight x (the term's sum over the optimizer step) / (its count over the optimizer step)

so that accumulation, packing and layout cannot change what is learnt.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from lmlab.config import Config
from lmlab.errors import Failed
from lmlab.progress import bar
from lmlab.run import Context
from lmlab.train import checkpoint
from lmlab.train.optimizer import OptimizerConfig, clip, make_optimizers, set_rate
from lmlab.train.schedule import ScheduleConfig, rate


class TrainConfig(Config):
    """How to train; what to train and on what is the stage's."""

    steps: int = Field(default=100, ge=0)
    """Optimizer steps."""
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    clip: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 does not clip."""
    precision: Literal["float32", "float32-onednn", "bfloat16"] = "float32"
    """bfloat16: matrix products in bfloat16, weights and sums in float32 (autocast). float32-onednn: float32 products
    through oneDNN, the faster library on some processors."""
    compile: bool = False
    """Compile the step with torch.compile (needs a C++ compiler; shapes must not change)."""
    checkpoint_seconds: float = Field(default=60, gt=0)
    checkpoint_steps: int | None = Field(default=None, ge=1)
    """Also every so many steps."""
    keep: int = Field(default=2, ge=1)
    """Checkpoints kept, the newest."""


class Objective(Protocol):
    """See `lmlab.objective`. `report(output, batch) -> {name: (sum, count)}` is optional; so is `loss_and_report`, which
    gives both where one is a part of the other."""

    weights: dict[str, float]

    def count(self, batch: Any) -> dict[str, int]: ...
    def inputs(self, batch: Any) -> dict[str, Any]: ...
    def loss(self, output: Any, batch: Any) -> dict[str, Tensor]: ...


Source = Callable[[int], list[Any]]
"""Micro-batches of an optimizer step, a pure function of the step. May have `boundary(step) -> bool` (whether a
checkpoint may be taken before this step) and `state() / restore(state)` (plain values kept with a checkpoint)."""


def autocast(name: str, device: str = "cpu") -> torch.autocast:
    """bfloat16 matrix products in the block, for that precision; for the others nothing changes."""
    return torch.autocast(device, torch.bfloat16, enabled=name == "bfloat16")


@contextlib.contextmanager
def matrix_library(name: str) -> Iterator[None]:
    """float32 matrix products of the block through oneDNN ("medium" to torch) for the precision float32-onednn."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if name == "float32-onednn" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def accumulate(
    forward: Callable[[Any], tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]],
    objective: Objective,
    batches: list[Any],
    precision_name: str,
) -> dict[str, float]:
    """Backward of one optimizer step's micro-batches. Returns the terms' means and the reported numbers.

    A network's auxiliary losses (the balance of experts) are statistics of a micro-batch, not sums over it: they are
    averaged over the micro-batches, so cutting a step differently does change them.
    """
    counts: dict[str, int] = {}
    for batch in batches:
        for term, n in objective.count(batch).items():
            counts[term] = counts.get(term, 0) + n
    means = dict.fromkeys(counts, 0.0)
    reported: dict[str, list[float]] = {}
    averaged: dict[str, float] = {}
    for batch in batches:
        with autocast(precision_name):
            sums, extra, auxiliary = forward(batch)
        terms = {term: total / counts[term] for term, total in sums.items() if counts[term]}
        total = sum(objective.weights[term] * value for term, value in terms.items())
        if PENALTY in auxiliary:
            total = total + auxiliary[PENALTY] / len(batches)
        if isinstance(total, Tensor):
            total.backward()
        for term, value in terms.items():
            means[term] += float(value.detach())
        for name, (top, bottom) in extra.items():
            pair = reported.setdefault(name, [0.0, 0.0])
            pair[0] += float(top)
            pair[1] += float(bottom)
        for name, value in auxiliary.items():
            averaged[name] = averaged.get(name, 0.0) + float(value.detach()) / len(batches)
    loss = averaged.pop(PENALTY, 0.0) + sum(objective.weights[term] * value for term, value in means.items())
    ratios = {name: top / bottom for name, (top, bottom) in reported.items() if bottom > 0}
    return {"loss": loss, **means, **averaged, **ratios}


PENALTY = "penalty"


def auxiliary_of(output: Any) -> dict[str, Tensor]:
    """Of a model with experts: its weighted auxiliary losses (`penalty`), and `balance`, `router_z` and `largest_load`
    (the largest share of a layer's assignments that one expert has) for the log. Else nothing."""
    penalty = getattr(output, "penalty", None)
    if penalty is None:
        return {}
    found = {name: output.auxiliary[name] for name in ("balance", "router_z")}
    return {PENALTY: penalty, **found, "largest_load": output.auxiliary["expert_load"].max()}


def make_forward(network: nn.Module, objective: Objective, compiled: bool) -> Callable[[Any], Any]:
    """batch -> (sums of the terms, reported numbers, auxiliary statistics): the network, then the objective, as one
    function to compile."""
    report = getattr(objective, "report", None)
    both = getattr(objective, "loss_and_report", None)

    def forward(batch: Any) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
        output = network(**objective.inputs(batch))
        if both is not None:
            return *both(output, batch), auxiliary_of(output)
        extra = report(output, batch) if report else {}
        return objective.loss(output, batch), extra, auxiliary_of(output)

    return torch.compile(forward, dynamic=False) if compiled else forward


def fit(
    network: nn.Module,
    objective: Objective,
    source: Source,
    config: TrainConfig,
    context: Context,
    *,
    tokens: Callable[[Any], int] | None = None,
    on_step: Callable[[int, Mapping[str, float]], None] | None = None,
    folder: Path | None = None,
) -> dict[str, float]:
    """Train for `config.steps` steps, from the newest good checkpoint if there is one. Returns the last step's metrics.

    Dropout and whatever else draws from torch's generator is seeded by (seed, step), so a resumed run draws what an
    uninterrupted one would. Raises Failed when the loss is not a number, before the weights are touched.
    """
    folder = folder or context.out / "checkpoints"
    optimizers = make_optimizers(network, config.optimizer)
    state = checkpoint.restore(folder, network, optimizers)
    start = int(state["step"]) if state else 0
    if state and hasattr(source, "restore"):
        source.restore(state.get("source"))  # type: ignore[attr-defined]
    context.metrics.rewind(start)
    metrics: dict[str, float] = dict(state.get("metrics", {})) if state else {}
    forward = make_forward(network, objective, config.compile)
    trained = [p for p in network.parameters() if p.requires_grad]
    saved = time.monotonic()

    def save(step: int) -> None:
        extra = source.state() if hasattr(source, "state") else None  # type: ignore[attr-defined]
        checkpoint.save(folder, step, network, optimizers, {"metrics": metrics, "source": extra}, config.keep)
        context.tick()

    network.train()
    with matrix_library(config.precision), bar(context.name, config.steps, start) as advance:
        for step in range(start, config.steps):
            begun = time.monotonic()
            torch.manual_seed((context.seed << 32) + step)
            if step > start and _due(source, config, step, saved):
                save(step)
                saved = time.monotonic()
            batches = source(step)
            network.train()
            metrics = accumulate(forward, objective, batches, config.precision)
            if not math.isfinite(metrics["loss"]):
                raise Failed(f"{context.name}: the loss is {metrics['loss']} at step {step}; the weights are untouched")
            metrics["grad_norm"] = clip(trained, config.clip)
            if not math.isfinite(metrics["grad_norm"]):
                raise Failed(f"{context.name}: the gradient is not finite at step {step}; the weights are untouched")
            metrics["lr"] = set_rate(optimizers, rate(config.schedule, step, config.steps))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            seconds = time.monotonic() - begun
            if tokens is not None:
                metrics["tokens"] = sum(tokens(batch) for batch in batches)
                metrics["tokens_per_second"] = metrics["tokens"] / seconds
            metrics["seconds"] = round(context.seconds, 3)
            context.metrics.log(step, metrics)
            advance(1, f"loss {metrics['loss']:.3f}")
            if on_step is not None:
                on_step(step, metrics)
    if config.steps > start:
        save(config.steps)
    network.eval()
    return metrics


def _due(source: Source, config: TrainConfig, step: int, saved: float) -> bool:
    boundary = getattr(source, "boundary", None)
    if boundary is not None and not boundary(step):
        return False
    if config.checkpoint_steps and step % config.checkpoint_steps == 0:
        return True
    return time.monotonic() - saved >= config.checkpoint_seconds
