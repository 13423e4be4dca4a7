"""The layouts that are possible, what each needs and takes, and which is best: the fastest of those that fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lmlab.device.hardware import Device
from lmlab.model.config import ModelConfig
from lmlab.train.optimizer import OptimizerConfig
from lmlab.train.parallel import ParallelConfig
from lmlab.train.parallel.layout import misfits
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

    Of each, the fewest micro-batches that fit (of a pipeline the fastest number, since more make its bubble smaller);
    activations are only made again where nothing fits without, since that always takes longer.
    """
    found: list[Candidate] = []
    for pipeline, data, tensor in _degrees(work, ranks, device.node):
        for recompute in ("none", "selective", "full"):
            given = (pipeline, data, tensor, recompute)
            kinds = [_best(work, device, ranks, utilisation, given, zero) for zero in _zeros(data)]
            found += [each for each in kinds if each is not None]
            if any(each is not None and each.fits for each in kinds):
                break
    return sorted(found, key=_rank)


def _rank(each: Candidate) -> tuple[bool, float, float]:
    """Faster first; within a thousandth the one with more room."""
    return not each.fits, float(f"{each.step.seconds:.3g}") if each.fits else 0.0, each.memory.total


def _degrees(work: Work, ranks: int, node: int) -> Iterator[tuple[int, int, int]]:
    """(pipeline, data, tensor): tensor parallelism within a node, a pipeline where one node does not do, and data parallel
    the rest, as far as rows can be shared evenly."""
    for tensor in _divisors(ranks):
        for pipeline in _divisors(ranks // tensor) if ranks > 1 and not work.shape.has_encoder else (1,):
            data = ranks // tensor // pipeline
            if tensor <= node and pipeline <= work.shape.sizes().layers and work.rows % data == 0:
                yield pipeline, data, tensor


def _zeros(data: int) -> tuple[int, ...]:
    return (0, 1, 2, 3) if data > 1 else (0,)


def _best(work: Work, device: Device, ranks: int, utilisation: float, given: Any, zero: int) -> Candidate | None:
    pipeline, data, tensor, recompute = given
    config = ParallelConfig(pipeline=pipeline, data=data, tensor=tensor, zero=zero, recompute=recompute)  # type: ignore[arg-type]
    if any(misfits(config, ranks, work.shape)):
        return None
    best, share = None, work.rows // data
    for micro_batches in _divisors(share):
        if micro_batches < pipeline:
            continue
        degrees = Degrees(data, tensor, zero, True, recompute, micro_batches, pipeline)
        rows = share // micro_batches
        more: dict[str, Any] = {"rows": rows, "length": work.length, "precision": work.precision}
        memory = memory_of(work.shape, degrees, work.optimizer, ema=work.ema, kernel="sdpa", **more)
        step = step_of(work.shape, degrees, device, flops=work.flops, utilisation=utilisation, **more)
        here = Candidate(degrees, rows, memory, step, memory.total <= ROOM * device.memory)
        best = here if best is None or _rank(here) < _rank(best) else best
        if best.fits and pipeline == 1:
            break
    return best


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]
