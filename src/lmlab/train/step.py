"""One optimizer step's forward and backward: what the objectives promise, and how micro-batches become one gradient."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lmlab.device import quiet_compiling
from lmlab.train.parallel.layout import Layout


class Objective(Protocol):
    """See `lmlab.objective`. `report(output, batch) -> {name: (sum, count)}` is optional; so is `loss_and_report`, which
    gives both where one is a part of the other."""

    weights: dict[str, float]

    def count(self, batch: Any) -> dict[str, int]: ...
    def inputs(self, batch: Any) -> dict[str, Any]: ...
    def loss(self, output: Any, batch: Any) -> dict[str, Tensor]: ...


Source = Callable[[int], list[Any]]
"""Micro-batches of an optimizer step, a pure function of the step. May have `boundary(step) -> bool` (whether a
checkpoint may be taken before this step) and `state() / restore(state)` (plain values kept with a checkpoint); and `ahead`,
true where nothing but the step decides, so that another thread may make the following step's beforehand."""


HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float8": torch.bfloat16}
"""The precisions that multiply in types of 16 bits; float8 what it does not multiply in 8 (parallel/eight_bits.py)."""


def autocast(name: str, device: str = "cpu") -> torch.autocast:
    """16-bit matrix products in the block, for those precisions; for the others nothing changes."""
    return torch.autocast(device, HALVES.get(name, torch.bfloat16), enabled=name in HALVES)


@contextlib.contextmanager
def matrix_library(name: str) -> Iterator[None]:
    """float32 matrix products of the block through oneDNN ("medium" to torch) for the precision float32-onednn."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if name == "float32-onednn" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def seed_step(seed: int, step: int, layout: Layout) -> None:
    """Of what draws from torch's generators in a step: the processor's and this rank's device's. (torch.manual_seed asks all
    backends, which takes half a millisecond in a run, measured.)"""
    own = (seed << 32) + step + (layout.stream << 24)
    torch.default_generator.manual_seed(own)
    if layout.world.device.type == "cuda":
        torch.cuda.manual_seed(own)


def accumulate(
    forward: Callable[[Any], tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]],
    objective: Objective,
    batches: list[Any],
    precision_name: str,
    after_each: Callable[[], None] | None = None,
    layout: Layout | None = None,
    scale: float = 1.0,
) -> dict[str, float]:
    """Backward of one optimizer step's micro-batches. Returns the terms' means and the reported numbers.
    `after_each` is called after each micro-batch's backward. On several ranks each has its part of every micro-batch, and
    the numbers are the whole step's; gradients are the whole's after `layout.finish`. `scale`: of the gradients (float16).

    A network's auxiliary losses (the balance of experts) are statistics of a micro-batch, not sums over it: they are
    averaged over the micro-batches, so cutting a step differently does change them.
    """
    return backward(forward, objective, batches, precision_name, after_each, layout, scale).numbers()


def backward(
    forward: Callable[[Any], tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]],
    objective: Objective,
    batches: list[Any],
    precision_name: str,
    after_each: Callable[[], None] | None = None,
    layout: Layout | None = None,
    scale: float = 1.0,
) -> Tally:
    """As `accumulate`; the numbers are left where they are, so that nothing waits for a value."""
    layout = layout or Layout()
    tally = Tally(objective, batches, layout)
    device = layout.world.device
    for batch in on_device(batches, layout):
        with autocast(precision_name, device.type):
            found = forward(batch)
        total = tally.take(*found)
        if isinstance(total, Tensor):
            (total if scale == 1.0 else total * scale).backward()
        if after_each is not None:
            after_each()
    return tally


class Tally:
    """What the micro-batches of a step add up to."""

    def __init__(self, objective: Objective, batches: list[Any], layout: Layout) -> None:
        """Counts the step's terms, of all ranks: the network need not have run."""
        self.objective, self.layout, self.micro_batches = objective, layout, len(batches)
        counts: dict[str, float] = {}
        for batch in batches:
            for term, n in objective.count(batch).items():
                counts[term] = counts.get(term, 0) + n
        self.counts = {term: round(n) for term, n in layout.sums(counts).items()}
        self.terms: dict[str, list[Tensor]] = {term: [] for term in counts}
        self.reported: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.averaged: dict[str, list[Tensor]] = {}

    def take(
        self, sums: dict[str, Tensor], extra: dict[str, tuple[Tensor, Tensor]], auxiliary: dict[str, Tensor]
    ) -> Tensor | float:
        """Remember a micro-batch. Returns its part of the loss, for the backward pass."""
        terms = {term: total / self.counts[term] for term, total in sums.items() if self.counts[term]}
        total: Tensor | float = sum(self.objective.weights[term] * value for term, value in terms.items())
        if PENALTY in auxiliary:
            total = total + auxiliary[PENALTY] / self.micro_batches
        for term, value in terms.items():
            self.terms[term].append(value.detach())
        for name, pair in extra.items():
            self.reported.setdefault(name, []).append(pair)
        for name, value in auxiliary.items():
            self.averaged.setdefault(name, []).append(value.detach())
        return total

    def numbers(self) -> dict[str, float]:
        """The loss, the terms' means and what was reported, over the whole step."""
        means = {term: sum(map(float, values)) for term, values in self.terms.items()}
        averaged = {n: sum(float(v) / self.micro_batches for v in values) for n, values in self.averaged.items()}
        reported = {n: [sum(float(p[k]) for p in pairs) for k in (0, 1)] for n, pairs in self.reported.items()}
        if self.layout.several:
            means, averaged, reported = _over_ranks(self.layout, means, averaged, reported)
        loss = averaged.pop(PENALTY, 0.0) + sum(self.objective.weights[term] * value for term, value in means.items())
        ratios = {name: top / bottom for name, (top, bottom) in reported.items() if bottom > 0}
        return {"loss": loss, **means, **averaged, **ratios}


def _over_ranks(
    layout: Layout, means: dict[str, float], averaged: dict[str, float], reported: dict[str, list[float]]
) -> tuple[dict[str, float], dict[str, float], dict[str, list[float]]]:
    """The numbers of a step, added up over ranks in one call; what all have alike stays."""
    parts = {("term", name): value for name, value in means.items()}
    parts |= {("averaged", name): value for name, value in averaged.items() if name != LOAD}
    for name, (top, bottom) in reported.items():
        parts |= {("top", name): top, ("bottom", name): bottom}
    found = layout.sums(parts)
    return (
        {name: found["term", name] for name in means},
        {name: value if name == LOAD else found["averaged", name] for name, value in averaged.items()},
        {name: [found["top", name], found["bottom", name]] for name in reported},
    )


def on_device(batches: list[Any], layout: Layout) -> list[Any]:
    """Batches (dataclasses with tensors in their fields) whose tensors are where a rank works."""
    device = layout.world.device
    return [_moved(batch, device) for batch in batches] if layout.several or device.type != "cpu" else batches


def pinned(batches: list[Any], device: torch.device) -> list[Any]:
    """Batches in memory that a GPU copies from beside its work; as they are for a CPU."""
    return [_each(batch, Tensor.pin_memory) for batch in batches] if device.type == "cuda" else batches


def _moved(batch: Any, device: torch.device) -> Any:
    return _each(batch, lambda tensor: tensor.to(device, non_blocking=True))


def _each(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    return dataclasses.replace(batch, **{n: change(value) for n, value in fields.items() if isinstance(value, Tensor)})


PENALTY, LOAD = "penalty", "largest_load"


def auxiliary_of(output: Any) -> dict[str, Tensor]:
    """Of a model with experts: its weighted auxiliary losses (`penalty`), and `balance`, `router_z` and `largest_load`
    (the largest share of a layer's assignments that one expert has) for the log. Else nothing."""
    penalty = getattr(output, "penalty", None)
    if penalty is None:
        return {}
    found = {name: output.auxiliary[name] for name in ("balance", "router_z")}
    return {PENALTY: penalty, **found, LOAD: output.auxiliary["expert_load"].max()}


def make_forward(network: nn.Module, objective: Objective, compiled: bool) -> Callable[[Any], Any]:
    """batch -> (sums of the terms, reported numbers, auxiliary statistics): the network, then the objective, as one
    function to compile."""

    def forward(batch: Any) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
        return judged(objective, network(**objective.inputs(batch)), batch)

    if not compiled:
        return forward
    quiet_compiling()
    return torch.compile(forward, dynamic=False)


def judged(
    objective: Objective, output: Any, batch: Any
) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Of a network's output: sums of the terms, reported numbers, auxiliary statistics."""
    both, report = getattr(objective, "loss_and_report", None), getattr(objective, "report", None)
    if both is not None:
        return *both(output, batch), auxiliary_of(output)
    extra = report(output, batch) if report else {}
    return objective.loss(output, batch), extra, auxiliary_of(output)


def make_step(
    network: nn.Module, objective: Objective, layout: Layout, precision_name: str = "float32", compiled: bool = False
) -> Callable[..., dict[str, float]]:
    """(a step's micro-batches, after_each or None, scale) -> as `accumulate`: of a network that `parallelize` has made a rank's."""
    if layout.pipeline > 1:
        from lmlab.train.parallel.pipeline import Pipeline

        return Pipeline(network, objective, layout, precision_name)
    forward = make_forward(network, objective, compiled and not layout.several)

    def step(batches: list[Any], after_each: Callable[[], None] | None = None, scale: float = 1.0) -> dict[str, float]:
        return accumulate(forward, objective, batches, precision_name, after_each, layout, scale)

    return step
