"""How a pipeline is cut into stages and in which order they work: pure functions of numbers, for the trainer and for whoever
plans a run.

A pipeline of p ranks with v stages each has p v stages, and stage s lies on rank s mod p. m micro-batches pass through it:

gpipe               all forward, then all backward (1811.06965)
1f1b                each rank alternates, so that it holds few micro-batches at a time (2006.09503, PipeDream-Flush)
interleaved-1f1b    v > 1 stages a rank, each a v-th as long: a smaller bubble for more messages (2104.04473, section 2.2)
"""

from __future__ import annotations

from typing import Literal

Schedule = Literal["gpipe", "1f1b", "interleaved-1f1b"]


def spans(blocks: int, stages: int) -> list[range]:
    """The blocks of each stage, alike in number; the first stages have one more where that cannot be, because the last one
    has the head and the loss. Raises ValueError where there are more stages than blocks."""
    if stages > blocks:
        raise ValueError(f"{blocks} blocks cannot be cut into {stages} stages")
    size, more = divmod(blocks, stages)
    ends = [size * (stage + 1) + min(stage + 1, more) for stage in range(stages)]
    return [range(begin, end) for begin, end in zip([0, *ends], ends)]


def bubble_share(pipeline: int, micro_batches: int, stages_per_rank: int = 1) -> float:
    """The share of a step's time that a rank waits for the others, (p - 1) / (v m + p - 1), where all stages take equally
    long and messages take no time (2104.04473, section 2.2). gpipe and 1f1b, with v = 1, differ in memory alone."""
    return (pipeline - 1) / (stages_per_rank * micro_batches + pipeline - 1)


def run(schedule: Schedule, pipeline: int, micro_batches: int) -> int:
    """Micro-batches that a schedule runs for so many: what is missing is filled up with some that count for nothing.
    1f1b wants one a rank at least, interleaved-1f1b a multiple of the ranks."""
    if schedule == "gpipe":
        return micro_batches
    if schedule == "1f1b":
        return max(micro_batches, pipeline)
    return -(-micro_batches // pipeline) * pipeline


def held(schedule: Schedule, pipeline: int, micro_batches: int, rank: int = 0, stages_per_rank: int = 1) -> float:
    """Micro-batches whose activations a rank's blocks hold at one time at most. With several stages a rank each holds
    those of a part of its blocks, so that it need not be a whole number (2104.04473, section 2.2). Rank 0 holds most."""
    if schedule == "gpipe":
        return micro_batches
    if schedule == "1f1b":
        return min(micro_batches, pipeline - rank)
    warm_up = (stages_per_rank - 1) * pipeline + 2 * (pipeline - 1 - rank)
    return min(warm_up + 1, stages_per_rank * micro_batches) / stages_per_rank
