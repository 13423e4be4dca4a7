"""The layouts that are possible, what each needs and takes, and which is best: the fastest of those that fit."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from lmlab.device.hardware import Device
from lmlab.model.config import ModelConfig
from lmlab.train.optimizer import OptimizerConfig
from lmlab.train.parallel import ParallelConfig
from lmlab.train.parallel.layout import misfits
from lmlab.train.parallel.schedules import run
from lmlab.train.planner.memory import Degrees, Memory, least_of, memory_of
from lmlab.train.planner.time import Step, step_of

ROOM = 0.9
"""Share of a device's memory that may be planned with; the rest is for the allocator, libraries and pieces between (a
usual margin, not measured)."""


LEAST = 256
"""Tokens of a row that a rank has at least: of fewer, messages take longer than products (a guess, not measured)."""


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
    iteration: torch.dtype = torch.bfloat16
    """Of Muon."""


@dataclass(frozen=True)
class Candidate:
    """One layout. `fits`: whether its peak stays within `ROOM` of the device's memory. `traced`: whether activations are in
    its memory; they are not counted where it does not fit without them."""

    degrees: Degrees
    rows: int
    memory: Memory
    step: Step
    fits: bool
    traced: bool = True


def consider(work: Work, device: Device, ranks: int, utilisation: float) -> list[Candidate]:
    """Layouts with their memory and time, the fastest first, then those that do not fit, the smallest first.

    Rows are cut (context parallelism) where there are fewer of them than ranks, or nothing fits as long as they are whole:
    else it would only send more. Of each layout, the fewest micro-batches that fit (of a pipeline the fastest number, since
    more make its bubble smaller); activations are only made again where nothing fits without, since that always takes longer.
    """
    found = _considered(work, device, utilisation, _degrees(work, ranks, device.node))
    if work.rows < ranks or not any(each.fits for each in found):
        rows_cut = _degrees(work, ranks, device.node, contexts=True)
        found += _considered(work, device, utilisation, rows_cut)
    if not any(each.fits for each in found):
        found = _smallest_traced(work, device, utilisation, found)
    return sorted(found, key=_rank)


def _smallest_traced(work: Work, device: Device, utilisation: float, found: list[Candidate]) -> list[Candidate]:
    """Of layouts none of which fits, activations counted of as many as it takes to know the smallest."""
    heap = [(each.memory.total, place, each) for place, each in enumerate(found)]
    heapq.heapify(heap)
    while heap and not heap[0][2].traced:
        _, place, least = heap[0]
        whole = _best(work, device, utilisation, dataclasses.replace(least.degrees, recompute="full"), traced=True)
        assert whole is not None
        heapq.heapreplace(heap, (whole.memory.total, place, whole))
    return [each for _, _, each in heap]


def _considered(work: Work, device: Device, utilisation: float, layouts: Iterator[Degrees]) -> list[Candidate]:
    found: list[Candidate] = []
    for given in layouts:
        for recompute in ("none", "selective", "full"):
            bare = dataclasses.replace(given, recompute=recompute)
            kinds = [_best(work, device, utilisation, dataclasses.replace(bare, zero=zero)) for zero in _zeros(bare)]
            found += [each for each in kinds if each is not None]
            if any(each is not None and each.fits for each in kinds) or not any(each and each.traced for each in kinds):
                break  # with less kept it would only be slower; or too large whatever is kept
    return found


def _rank(each: Candidate) -> tuple[bool, float, float]:
    """Faster first; within a thousandth the one with more room."""
    return not each.fits, float(f"{each.step.seconds:.3g}") if each.fits else 0.0, each.memory.total


def _degrees(work: Work, ranks: int, node: int, contexts: bool = False) -> Iterator[Degrees]:
    """Tensor parallelism within a node; a pipeline where one node does not do, with stages that are alike; data parallel the
    rest, as far as rows can be shared evenly; with `contexts` rows themselves cut among some ranks. Experts
    divided among no ranks, those of a node, or as many as can be."""
    for tensor in _divisors(ranks):
        for pipeline in _divisors(ranks // tensor) if ranks > 1 and not work.shape.has_encoder else (1,):
            layers, shares = work.shape.sizes().layers, ranks // tensor // pipeline
            if tensor > node or pipeline > layers:
                continue
            interleaved = [v for v in (2, 4) if pipeline > 1 and layers % (pipeline * v) == 0]
            for context, method in _contexts(work, shares, tensor) if contexts else [(1, "gather")]:
                data = shares // context
                if work.rows % data:
                    continue
                for expert in _experts(work.shape, shares, max(1, node // tensor)):
                    for each in (1, *interleaved):
                        yield Degrees(
                            data,
                            tensor,
                            pipeline=pipeline,
                            context=context,
                            context_method=method,
                            expert=expert,
                            stages_per_rank=each,
                        )


def _contexts(work: Work, shares: int, tensor: int) -> Iterator[tuple[int, str]]:
    """Ranks that a row may be cut among, LEAST tokens for each at least, and how."""
    for context in _divisors(shares)[1:]:
        if work.length % (context * tensor) == 0 and work.length // context >= LEAST:
            yield context, "gather"
            yield context, "ulysses"


def _experts(shape: ModelConfig, shares: int, near: int) -> list[int]:
    if shape.moe is None:
        return [1]
    possible = [each for each in _divisors(shares) if shape.moe.experts % each == 0]
    return sorted({1, max(each for each in possible if each <= near), possible[-1]})


def _zeros(degrees: Degrees) -> tuple[int, ...]:
    return (0, 1, 2, 3) if degrees.shares > 1 else (0,)


def _best(work: Work, device: Device, utilisation: float, given: Degrees, traced: bool = False) -> Candidate | None:
    """Of a layout the best number of micro-batches; `traced`: counted whole even where it does not fit without activations."""
    config = ParallelConfig(data=given.data, **given.parallel())
    if any(misfits(config, given.ranks, work.shape)):
        return None
    best, share = None, work.rows // given.data
    least = least_of(work.shape, given, work.optimizer, ema=work.ema, iteration=work.iteration)
    traced = traced or least.total <= ROOM * device.memory
    for micro_batches in _divisors(share):
        if micro_batches < given.pipeline or run(given.schedule, given.pipeline, micro_batches) != micro_batches:
            continue
        degrees = dataclasses.replace(given, micro_batches=micro_batches)
        rows = share // micro_batches
        more: dict[str, Any] = {"rows": rows, "length": work.length, "precision": work.precision}
        kept: dict[str, Any] = {"ema": work.ema, "kernel": "sdpa", "iteration": work.iteration}
        memory = memory_of(work.shape, degrees, work.optimizer, **kept, **more) if traced else least
        step = step_of(work.shape, degrees, device, flops=work.flops, utilisation=utilisation, **more)
        here = Candidate(degrees, rows, memory, step, memory.total <= ROOM * device.memory, traced)
        best = here if best is None or _rank(here) < _rank(best) else best
        if best.fits and given.pipeline == 1:
            break
    return best


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]
