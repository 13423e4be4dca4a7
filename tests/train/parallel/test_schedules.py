"""How a pipeline is cut, how long it waits and what it holds, against torch's own schedules played through."""

import itertools
import re
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.pipelining import ScheduleGPipe, ScheduleInterleaved1F1B
from toys import DEEP, MODELS

from lmlab.train.parallel import Layout, ParallelConfig, misfits
from lmlab.train.parallel.schedules import bubble_share, held, run, spans
from lmlab.train.parallel.stages import uses
from lmlab.train.pretrain_config import PretrainConfig


@given(st.integers(1, 200), st.integers(1, 40))
def test_stages_take_all_blocks_in_order_and_alike(blocks, stages):
    if stages > blocks:
        with pytest.raises(ValueError, match="cannot be cut into"):
            spans(blocks, stages)
        return
    found = spans(blocks, stages)
    assert [at for span in found for at in span] == list(range(blocks))
    sizes = [len(span) for span in found]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


KINDS = {"FORWARD": "F", "FULL_BACKWARD": "B"}


def orders(schedule: str, ranks: int, micro_batches: int, each: int) -> list[list[tuple[str, int, int]]]:
    """What each rank does one after another by torch's schedule: (F or B, stage, micro-batch)."""
    if schedule == "1f1b":
        return alternating(ranks, micro_batches)
    count = {"n_microbatches": micro_batches, "loss_fn": max}
    where = {stage: stage % ranks for stage in range(ranks * each)}
    stages = [
        SimpleNamespace(
            num_stages=ranks * each,
            stage_index=each_of * ranks,
            group_size=ranks,
            group_rank=0,
            stage_index_to_group_rank=where,
            has_backward=True,
            is_first=each_of == 0,
            is_last=False,
        )
        for each_of in range(each)
    ]
    pair = (ScheduleInterleaved1F1B, stages) if schedule == "interleaved-1f1b" else (ScheduleGPipe, stages[0])
    made: Any = pair[0](pair[1], **count)  # type: ignore[arg-type]
    acts = [
        [a for a in made.pipeline_order[rank] if a is not None and a.microbatch_index is not None]
        for rank in range(ranks)
    ]
    return [[(KINDS[a.computation_type.name], a.stage_index, a.microbatch_index) for a in row] for row in acts]


def alternating(ranks: int, micro_batches: int) -> list[list[tuple[str, int, int]]]:
    """The same of 1f1b by its definition (torch runs it so; the list that it shows of it is another one): as many forward
    passes as there are ranks from here on, then one backward and one forward in turn."""
    rows = []
    for rank in range(ranks):
        ahead = min(micro_batches, ranks - rank)
        row = [("F", rank, number) for number in range(ahead)]
        for number in range(micro_batches):
            row += [("B", rank, number), *([("F", rank, number + ahead)] if number + ahead < micro_batches else [])]
        rows.append(row)
    return rows


def played(rows: list[list[tuple[str, int, int]]], stages: int) -> tuple[float, list[int]]:
    """(the share of the time that ranks wait, stages' micro-batches held by each rank at most). A backward pass takes twice
    as long as a forward pass, messages take no time."""
    done: dict[tuple[str, int, int], float] = {}
    clock, place, work = [0.0] * len(rows), [0] * len(rows), 0.0
    while any(at < len(row) for at, row in zip(place, rows)):
        before = list(place)
        for rank, row in enumerate(rows):
            while place[rank] < len(row):
                kind, stage, number = row[place[rank]]
                needs = ("F", stage - 1, number) if kind == "F" else ("B", stage + 1, number)
                if kind == "B" and stage == stages - 1:
                    needs = ("F", stage, number)
                if 0 <= needs[1] < stages and needs not in done:
                    break
                took = 1.0 if kind == "F" else 2.0
                clock[rank] = max(clock[rank], done.get(needs, 0.0)) + took
                done[kind, stage, number], work = clock[rank], work + took
                place[rank] += 1
        assert place != before, "each waits for another"
    most = [max(itertools.accumulate(1 if kind == "F" else -1 for kind, _, _ in row)) for row in rows]
    return 1 - work / (len(rows) * max(clock)), most


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved-1f1b"])
@pytest.mark.parametrize(("ranks", "micro_batches"), [(2, 2), (2, 6), (4, 4), (4, 8), (4, 16)])
def test_the_bubble_and_what_is_held_are_those_of_torch_s_schedule(schedule, ranks, micro_batches):
    for each in (2, 3) if schedule == "interleaved-1f1b" else (1,):
        assert run(schedule, ranks, micro_batches) == micro_batches
        share, most = played(orders(schedule, ranks, micro_batches, each), ranks * each)
        assert share == pytest.approx(bubble_share(ranks, micro_batches, each))
        assert [n / each for n in most] == [held(schedule, ranks, micro_batches, rank, each) for rank in range(ranks)]


@given(st.sampled_from(["gpipe", "1f1b", "interleaved-1f1b"]), st.integers(1, 8), st.integers(1, 30))
def test_no_micro_batch_is_left_out(schedule, ranks, micro_batches):
    count = run(schedule, ranks, micro_batches)
    assert micro_batches <= count < micro_batches + ranks
    assert schedule == "gpipe" or count >= ranks


def test_what_stands_outside_of_blocks_goes_where_it_is_used():
    tied, untied = uses(DEEP["deep-dense"]), uses(DEEP["deep-experts"])
    assert (tied["embedding"], untied["embedding"], untied["head"], tied["final_norm"]) == ((0, 3), (0,), (3,), (3,))
    both = uses(DEEP["biased"])  # three blocks of the encoder, then two of the decoder
    assert (both["embedding"], both["encoder.final_norm"], both["final_norm"]) == ((0, 3, 4), (2,), (4,))
    assert (both["encoder.relative_bias"], both["relative_bias"]) == ((0, 1, 2), (3, 4))


@pytest.mark.parametrize(
    ("settings", "ranks", "message"),
    [
        ({"pipeline": 2}, 3, "pipeline 2 x data .the rest. x tensor 1 makes 2 processes, but 3"),
        ({"pipeline": 3}, 3, "3 stages cannot be made of 2 blocks"),
        ({"pipeline": 2, "schedule": "interleaved-1f1b"}, 2, "4 stages cannot be made of 2 blocks"),
        ({"pipeline": 2, "stages_per_rank": 2}, 2, "stages_per_rank 2 goes with schedule interleaved-1f1b, found 1f1b"),
        ({"pipeline": 2, "schedule": "interleaved-1f1b", "stages_per_rank": 1}, 2, "at least 2 stages_per_rank"),
    ],
)
def test_what_cannot_be_a_pipeline_is_refused(settings, ranks, message):
    config = ParallelConfig(**settings)
    found = list(misfits(config, ranks, MODELS["dense"]))
    assert any(re.search(message, problem) for problem in found), found


def test_a_recipe_must_fill_the_pipeline():
    with pytest.raises(
        ValueError, match="needs micro_batches of at least as many, better four times .* 16% .* found 1"
    ):
        PretrainConfig.model_validate({"parallel": {"pipeline": 4}})
    with pytest.raises(ValueError, match="not with parallel.tensor, pipeline or expert"):
        PretrainConfig.model_validate({"noise_scale_every": 2, "micro_batches": 2, "parallel": {"pipeline": 2}})
    assert Layout().along({"loss": 1.0}) == {"loss": 1.0}
