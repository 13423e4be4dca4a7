"""Steps of large layouts, as one of their ranks takes them: that they can be built, what they hold, what was planned."""

from __future__ import annotations

import math

import pytest

from lmlab.model.config import ModelConfig
from lmlab.model.settings import MoEConfig
from lmlab.train.optimizer import OptimizerConfig
from lmlab.train.parallel import ParallelConfig
from lmlab.train.planner.memory import Degrees, memory_of
from lmlab.train.planner.pretended import pretended
from lmlab.train.planner.rehearse import rehearse

SHAPE = {"layers": 8, "d_model": 256, "heads": 8, "vocab_size": 2048, "context_length": 512}
DENSE = ModelConfig(**SHAPE, tie_embeddings=False)
EXPERTS = ModelConfig(**SHAPE, tie_embeddings=False, moe=MoEConfig(experts=16, top_k=2, every=2))
ROWS = 2


def of(shape: ModelConfig, degrees: Degrees, rank: int, optimizer: str = "adamw"):
    config = ParallelConfig(data=degrees.data, **degrees.parallel())
    given = {"rows": ROWS, "length": 512, "micro_batches": degrees.micro_batches}
    return rehearse(shape, config, degrees.ranks, rank, OptimizerConfig(name=optimizer), **given)


LAYOUTS = {
    "8 x 8": (DENSE, Degrees(data=8, tensor=8, zero=1)),
    "64 x 8 in parts": (DENSE, Degrees(data=64, tensor=8, zero=3)),
    "pipeline 8 x data 8": (DENSE, Degrees(data=8, pipeline=8, micro_batches=8)),
    "pipeline 4 x data 4 x tensor 4, interleaved": (
        DENSE,
        Degrees(data=4, tensor=4, pipeline=4, stages_per_rank=2, zero=3, micro_batches=4),
    ),
    "context 8 x data 8": (DENSE, Degrees(data=8, context=8, zero=2)),
    "ulysses 8 x data 8": (DENSE, Degrees(data=8, context=8, context_method="ulysses", zero=3)),
    "expert 16 of data 64": (EXPERTS, Degrees(data=64, expert=16, zero=1, micro_batches=2)),
    "all at once, 512": (
        EXPERTS,
        Degrees(
            data=8,
            context=4,
            tensor=4,
            pipeline=4,
            stages_per_rank=2,
            expert=8,
            zero=3,
            micro_batches=4,
            recompute="full",
        ),
    ),
}

AS_PLANNED = ("pipeline 8 x data 8", "expert 16 of data 64")
"""Those whose peak was found to be the planned one."""


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_large_layout_can_be_built(name):
    shape, degrees = LAYOUTS[name]
    found = [of(shape, degrees, rank) for rank in sorted({0, degrees.ranks - 1})]
    assert [each.place for each in found] == sorted({0, degrees.pipeline - 1}) or degrees.pipeline == 1
    assert {each.blocks for each in found} == {8 // degrees.pipeline}
    if name in AS_PLANNED:
        planned = memory_of(shape, degrees, OptimizerConfig(), ROWS, 512, "float32", kernel="sdpa")
        assert planned.total == pytest.approx(max(each.peak for each in found), rel=0.1)


@pytest.mark.slow
def test_the_places_of_a_pipeline_hold_the_whole_model():
    degrees = Degrees(pipeline=4, stages_per_rank=2, data=2, zero=3, micro_batches=4)
    found = [of(DENSE, degrees, rank) for rank in range(8)]
    assert [each.place for each in found] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert sum(each.parameters for each in found) == DENSE.parameters()["total"]
    assert sum(each.state for each in found) >= 2 * DENSE.parameters()["total"]  # and counts of steps


def test_zero_1_gives_each_rank_some_of_the_states():
    found = [of(DENSE, Degrees(data=16, zero=1), rank) for rank in (0, 15)]
    whole = DENSE.parameters()["total"]
    assert all(each.parameters == whole for each in found)
    assert all(math.isclose(each.state, 2 * whole / 16, rel_tol=0.5) for each in found)


def test_what_cannot_be_laid_out_is_refused():
    with pytest.raises(ValueError, match="heads 8 cannot be divided"):
        rehearse(DENSE, ParallelConfig(tensor=16), 16, 0, OptimizerConfig(), rows=1, length=512)
    with pretended(0, 2), pytest.raises(RuntimeError, match="one of several already"):
        rehearse(DENSE, ParallelConfig(), 2, 0, OptimizerConfig(), rows=1, length=512)
    with pytest.raises(RuntimeError, match=r"rank 1 of 2 failed: .*513"):
        rehearse(DENSE, ParallelConfig(), 2, 1, OptimizerConfig(), rows=1, length=513)
