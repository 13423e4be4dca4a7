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


def layouts(work: Work, ranks: int, node: int) -> Iterator[tuple[Degrees, int]]:
    """Every layout of so many ranks that the trainer takes, with its rows a micro-batch and rank: tensor parallelism within a
    node, as few micro-batches as there can be and each number of them beyond."""
    for tensor in _divisors(ranks):
        if tensor > node or ranks % tensor:
            continue
        data = ranks // tensor
        if work.rows % data:
            continue
        for recompute in ("none", "selective", "full"):
            for zero in (0, 1, 2, 3) if data > 1 else (0,):
                config = ParallelConfig(data=data, tensor=tensor, zero=zero, recompute=recompute)  # type: ignore[arg-type]
                if any(misfits(config, ranks, work.shape)):
                    continue
                share = work.rows // data
                for micro_batches in _divisors(share):
                    yield Degrees(data, tensor, zero, True, recompute, micro_batches), share // micro_batches


def consider(work: Work, device: Device, ranks: int, utilisation: float) -> list[Candidate]:
    """Every layout with its memory and time, the fastest first; of each kind only the largest micro-batch that fits (the
    smallest, where none does)."""
    found: list[Candidate] = []
    for kind in _kinds(work, ranks, device.node):
        best = None
        for degrees, rows in kind:
            memory = memory_of(
                work.shape, degrees, work.optimizer, rows, work.length, work.precision, ema=work.ema, kernel="sdpa"
            )
            step = step_of(
                work.shape,
                degrees,
                device,
                flops=work.flops,
                rows=rows,
                length=work.length,
                precision=work.precision,
                utilisation=utilisation,
            )
            best = Candidate(degrees, rows, memory, step, memory.total <= ROOM * device.memory)
            if best.fits:
                break
        if best is not None:
            found.append(best)
    return sorted(found, key=lambda each: (not each.fits, each.step.seconds if each.fits else each.memory.total))


def _kinds(work: Work, ranks: int, node: int) -> Iterator[list[tuple[Degrees, int]]]:
    by: dict[Any, list[tuple[Degrees, int]]] = {}
    for degrees, rows in layouts(work, ranks, node):
        key = (degrees.data, degrees.tensor, degrees.zero, degrees.recompute)
        by.setdefault(key, []).append((degrees, rows))
    yield from by.values()


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]
