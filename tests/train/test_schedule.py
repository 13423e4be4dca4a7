"""Schedules and ramps: published forms, and the laws that every one obeys."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lmlab.config import parse
from lmlab.errors import Refused
from lmlab.recipe import check
from lmlab.train.ramp import Batches, RampConfig
from lmlab.train.schedule import ScheduleConfig, rate
from lmlab.train.train_config import TrainConfig

NAMES = st.sampled_from(["constant", "linear", "cosine", "inverse-sqrt", "wsd"])


@given(NAMES, st.floats(0, 0.5), st.floats(0, 1), st.integers(2, 400))
def test_no_schedule_leaves_its_bounds(name: str, warmup: float, final: float, steps: int) -> None:
    config = ScheduleConfig(name=name, warmup=warmup, final=final, offset=5)  # type: ignore[arg-type]
    rates = [rate(config, step, steps) for step in range(steps)]
    assert all(0 < each <= 1 for each in rates[:-1]) and 0 <= rates[-1] <= 1
    if name in ("linear", "cosine", "wsd"):
        assert rates[-1] == pytest.approx(final)


@given(st.sampled_from(["constant", "linear", "cosine", "wsd"]), st.integers(1, 64), st.integers(2, 200))
def test_counting_tokens_is_counting_steps_where_batches_are_equal(name: str, batch: int, steps: int) -> None:
    config = ScheduleConfig(name=name, warmup=0.1)  # type: ignore[arg-type]
    for step in range(steps):
        assert rate(config, step * batch, steps * batch, batch) == pytest.approx(rate(config, step, steps), abs=1e-9)


def test_gpt3_decays_over_less_than_the_run_and_then_stays() -> None:
    config = ScheduleConfig(unit="tokens", warmup=375e6, length=260e9, final=0.1)
    one = 3.2e6
    assert rate(config, 375e6, 300e9, one) == pytest.approx(1.0, abs=1e-6)
    halfway = rate(config, (375e6 + 260e9) / 2, 300e9, one)
    assert halfway == pytest.approx(0.55, abs=1e-4)
    assert rate(config, 260e9, 300e9, one) == pytest.approx(0.1) == rate(config, 299e9, 300e9, one)


def test_palm_holds_for_ten_thousand_steps_and_then_falls_as_the_root() -> None:
    config = ScheduleConfig(name="inverse-sqrt", warmup=0)
    assert rate(config, 0, 255_000) == rate(config, 9_999, 255_000) == 1.0
    assert 1e-2 * rate(config, 39_999, 255_000) == pytest.approx(1 / math.sqrt(40_000))
    assert rate(config, 1_999_999, 2_000_000) == config.final == 0.1, "the floor"


def test_by_hand() -> None:
    config = ScheduleConfig(name="manual", points=((0, 0.0), (10, 1.0), (20, 0.5)))
    assert [rate(config, step, 30) for step in (0, 5, 10, 15, 20, 29)] == [0.0, 0.5, 1.0, 0.75, 0.5, 0.5]
    with pytest.raises(ValidationError, match="must rise"):
        ScheduleConfig(name="manual", points=((10, 1.0), (5, 0.0)))
    with pytest.raises(ValidationError, match="needs points"):
        ScheduleConfig(name="manual")


@given(
    st.integers(1, 64),
    st.integers(1, 32),
    st.integers(1, 512),
    st.floats(1, 1e5),
    st.integers(1, 9),
    st.integers(1, 200),
)
def test_a_linear_ramp_rises_to_the_full_size_and_counts_what_came_before(
    full: int, length: int, start: int, over: float, increment: int, steps: int
) -> None:
    batches = Batches(full, length, RampConfig(start_tokens=start, over_tokens=over, increment_rows=increment))
    rows = [batches.rows(step) for step in range(steps)]
    assert rows == sorted(rows) and rows[0] == min(full, max(1, start // length)) and rows[-1] <= full
    assert [batches.before(step) for step in range(steps)] == [sum(rows[:step]) for step in range(steps)]
    past = next((step for step in range(steps) if batches.tokens_before(step) >= over + full * length * full), None)
    assert past is None or rows[past] == full


def test_gpt3s_ramp_is_linear_in_tokens() -> None:
    """32K to 3.2M tokens over the first 12 billion: halfway there, half the size."""
    batches = Batches(1600, 2048, RampConfig(start_tokens=32_768, over_tokens=12e9))
    halfway = next(step for step in range(100_000) if batches.tokens_before(step) >= 6e9)
    assert batches.rows(halfway) == pytest.approx((16 + 1600) / 2, rel=0.01)
    full = next(step for step in range(100_000) if batches.rows(step) == 1600)
    assert batches.tokens_before(full) == pytest.approx(12e9, rel=0.01)


def test_palms_stages_and_the_rates_answer() -> None:
    stages = ((0, 1 << 20), (50_000, 1 << 21), (115_000, 1 << 22))
    batches = Batches(2048, 2048, RampConfig(stages=stages, learning_rate="sqrt"))
    assert [batches.rows(step) for step in (0, 49_999, 50_000, 115_000)] == [512, 512, 1024, 2048]
    assert batches.tokens_before(115_000) == 50_000 * (1 << 20) + 65_000 * (1 << 21)
    assert batches.share(0) == pytest.approx(0.5) and batches.share(120_000) == 1.0


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({}, "either start_tokens with over_tokens, or stages"),
        ({"start_tokens": 5}, "needs both"),
        ({"stages": ((3, 100),)}, "must begin at step 0"),
        ({"stages": ((0, 100),), "start_tokens": 5, "over_tokens": 9.0}, "either"),
    ],
)
def test_a_ramp_that_cannot_be_is_refused(given_: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RampConfig(**given_)


STAGE = "corpus: {}\ntokenizer: {}\npretrain: {}\nsft: {}\nreward: {}\nppo: {}\nfinetune: {}\n"


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", "finetune"])
def test_every_stage_takes_every_schedule_and_optimizer_and_counts_steps(stage: str) -> None:
    def read(settings: str) -> TrainConfig:
        text = STAGE.replace(f"{stage}: {{}}", f"{stage}: {{train: {settings}}}")
        return next(step.config.train for step in check(parse(text, "r"), "r").arms[""] if step.name == stage)

    for name in ("constant", "linear", "cosine", "inverse-sqrt", "wsd"):
        assert read(f"{{schedule: {{name: {name}}}}}").schedule.name == name
    assert read("{schedule: {name: manual, points: [[0, 1], [9, 0.1]]}}").schedule.points == ((0, 1), (9, 0.1))
    for name in ("adam", "adamw", "adafactor", "lion", "muon"):
        assert read(f"{{optimizer: {{name: {name}}}}}").optimizer.name == name
    with pytest.raises(Refused, match=f"{stage}.train.schedule.unit: Input should be 'steps'; found 'tokens'"):
        read("{schedule: {unit: tokens}}")
