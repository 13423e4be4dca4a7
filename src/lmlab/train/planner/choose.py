"""The layouts that are possible, what each needs and takes, and which is best: the fastest of those that fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lmlab.model.config import ModelConfig
from lmlab.train.optimizer import OptimizerConfig
from lmlab.train.parallel import ParallelConfig
from lmlab.train.parallel.layout import misfits
from lmlab.train.planner.hardware import Device
from lmlab.train.planner.memory import Degrees, Memory, memory_of
from lmlab.train.planner.time import Step, step_of

ROOM = 0.9
"""Share of a device's memory that may be planned with; the rest is for the allocator, libraries and pieces between (a
usual margin, not measured)."""


@dataclass(frozen=True)
class Work:
    """What is trained: the model, the batch in rows of `length` tokens, FLOPs a step, and how."""

    shape: ModelConfig
    rows: int
    length: int
    flops: float
    precision: str
    optimizer: OptimizerConfig
    ema: bool = False


@dataclass(frozen=True)
class Candidate:
    """One layout. `fits`: whether its peak stays within `ROOM` of the device's memory."""

    degrees: Degrees
    rows: int
    memory: Memory
    step: Step
    fits: bool


def consider(work: Work, device: Device, ranks: int, utilisation: float) -> list[Candidate]:
    """Layouts with their memory and time, the fastest first, then those that do not fit, the smallest first.

    Of each, the fewest micro-batches that fit (the most there can be, where none does); activations are only made again
    where nothing fits without, since that always takes longer.
    """
    found: list[Candidate] = []
    for data, tensor in _degrees(work, ranks, device.node):
        for recompute in ("none", "selective", "full"):
            kinds = [_best(work, device, ranks, utilisation, (data, tensor, zero, recompute)) for zero in _zeros(data)]
            found += [each for each in kinds if each is not None]
            if any(each is not None and each.fits for each in kinds):
                break
    return sorted(found, key=_rank)


def _rank(each: Candidate) -> tuple[bool, float, float]:
    """Faster first; within a thousandth the one with more room."""
    return not each.fits, float(f"{each.step.seconds:.3g}") if each.fits else 0.0, each.memory.total


def _degrees(work: Work, ranks: int, node: int) -> Iterator[tuple[int, int]]:
    """Tensor parallelism within a node, the rest data parallel, as far as rows can be shared evenly."""
    for tensor in _divisors(ranks):
        if tensor <= node and work.rows % (ranks // tensor) == 0:
            yield ranks // tensor, tensor


def _zeros(data: int) -> tuple[int, ...]:
    return (0, 1, 2, 3) if data > 1 else (0,)


def _best(work: Work, device: Device, ranks: int, utilisation: float, kind: Any) -> Candidate | None:
    data, tensor, zero, recompute = kind
    config = ParallelConfig(data=data, tensor=tensor, zero=zero, recompute=recompute)
    if any(misfits(config, ranks, work.shape)):
        return None
    best, share = None, work.rows // data
    for micro_batches in _divisors(share):
        degrees, rows = Degrees(data, tensor, zero, True, recompute, micro_batches), share // micro_batches
        more: dict[str, Any] = {"rows": rows, "length": work.length, "precision": work.precision}
        memory = memory_of(work.shape, degrees, work.optimizer, ema=work.ema, kernel="sdpa", **more)
        step = step_of(work.shape, degrees, device, flops=work.flops, utilisation=utilisation, **more)
        best = Candidate(degrees, rows, memory, step, memory.total <= ROOM * device.memory)
        if best.fits:
            break
    return best


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]
