"""Reading, comparing and writing scores; names of tasks; pooling."""

from __future__ import annotations

import math
from statistics import mean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.measure import Score
from lmlab.report.scores import (
    above,
    at,
    duration,
    find,
    interval,
    over_seeds,
    plain,
    score,
    student,
    tell,
    tell_change,
)
from lmlab.report.tasks import items_of, paired, paired_change, paired_ratio, parse, pool

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["value", "low", "high", "n", "a"]), inner)
    ),
    max_leaves=8,
)


@given(JSON)
def test_no_json_value_upsets_the_reading_of_scores(value: object) -> None:
    found = score(value)
    assert found is None or math.isfinite(found.value)
    for path, each in find(value):
        assert score(at(value, *path)) == each
        assert tell(each).count("[") == 1


def test_a_null_end_is_unbounded_and_a_null_value_is_no_score() -> None:
    assert score({"value": 1.0, "low": None, "high": 2.0, "n": 3}) == Score(1.0, -math.inf, 2.0, 3)
    assert score({"value": None, "low": 0, "high": 2.0, "n": 3}) is None
    assert score({"value": True, "low": 0, "high": 2.0, "n": 3}) is None


def test_above_is_undecided_where_intervals_meet() -> None:
    low, high, between = Score(1, 0.5, 1.5, 9), Score(3, 2.5, 3.5, 9), Score(2, 1.5, 2.5, 9)
    assert (above(high, low), above(low, high), above(between, low), above(high, between)) == (True, False, None, None)
    assert (above(high, 2.0), above(high, 4.0), above(high, 3.0)) == (True, False, None)
    assert above(Score(5, -math.inf, math.inf, 1), 0.0) is None


@pytest.mark.parametrize(
    ("freedom", "t"), [(1, 12.706), (4, 2.776), (10, 2.228), (11, 2.201), (30, 2.042), (120, 1.980)]
)
def test_student_agrees_with_the_table_of_the_distribution(freedom: int, t: float) -> None:
    assert student(freedom) == pytest.approx(t, abs=2e-3)


def test_over_seeds_is_the_mean_with_students_interval() -> None:
    values = [1.0, 1.2, 1.7]
    found = over_seeds(values)
    half = 4.3027 * stdev(values) / math.sqrt(3)
    assert (found.value, found.n) == (pytest.approx(mean(values)), 3)
    assert (found.low, found.high) == (pytest.approx(mean(values) - half), pytest.approx(mean(values) + half))
    assert over_seeds([2.0]) == Score(2.0, -math.inf, math.inf, 1)


def test_numbers_are_written_for_people() -> None:
    assert [plain(v) for v in (12345.0, 12345.6, 123.456, 1.23456, 0.00012345)] == [
        "12,345", "12,346", "123.5", "1.235", "0.000123",
    ]  # fmt: skip
    assert plain(0.1234, percent=True) == "12.3%"
    assert tell(Score(0.5, 0.4, 0.6, 1200), percent=True) == "50.0% [40.0 to 60.0%] (n = 1,200)"
    assert tell(None) == "not measured"
    assert tell_change(Score(0.05, -0.01, 0.11, 9), percent=True) == "+5.0 points [-1.0 to +11.0] (n = 9)"
    assert interval(Score(1, -math.inf, math.inf, 1)) == "no interval"
    assert [duration(s) for s in (None, 8.44, 252, 7500)] == ["unknown", "8.4 s", "4 min 12 s", "2 h 5 min"]


def test_names_of_tasks_are_taken_apart() -> None:
    task = parse("exact_match/arithmetic/shots=4/steps/vote=8")
    assert (task.metric, task.family, task.shots, task.steps, task.decoding) == (
        "exact_match", "arithmetic", 4, True, "vote of 8",
    )  # fmt: skip
    assert task.condition == "4 shots, steps, vote of 8"
    plainest = parse("exact_match/copy/shots=1/greedy")
    assert (plainest.condition, plainest.rest) == ("1 shot, direct, greedy", ())
    assert parse("bits_per_byte").family == ""
    assert parse("exact_match/copy/shots=0/tool").rest == ("tool",)


@given(st.text(alphabet="abc/=0123 shotvegry", max_size=40))
def test_any_name_of_a_task_can_be_taken_apart(name: str) -> None:
    assert parse(name).name == name


def test_pooling_counts_an_item_once_however_often_it_was_asked() -> None:
    def share(value: float) -> dict[str, float]:
        return {"value": value, "low": 0.0, "high": 1.0, "n": 40}

    names = ["exact_match/a/shots=0/greedy", "exact_match/a/shots=4/greedy", "exact_match/b/shots=0/greedy"]
    scores = dict(zip(names, map(share, (0.2, 0.6, 0.8))))
    found = pool(scores, [parse(name) for name in names])
    assert found is not None
    assert (found.n, found.value) == (80, pytest.approx((0.4 + 0.8) / 2))
    once = pool(scores, [parse(names[0]), parse(names[2])])
    assert once is not None and once.n == 80
    assert pool({}, [parse(names[0])]) is None


def test_only_twins_are_paired() -> None:
    names = ["m/a/shots=0/steps/greedy", "m/a/shots=0/direct/greedy", "m/b/shots=0/greedy", "m/a/shots=4/steps/greedy"]
    ours, others = paired([parse(name) for name in names], "steps", True, False)
    assert [t.name for t in ours] == [names[0]]
    assert [t.name for t in others] == [names[1]]


def test_paired_change_is_over_items_not_over_askings() -> None:
    tasks = [parse(f"exact_match/a/shots={k}/greedy") for k in (0, 4)]
    rows = [
        {"stage": stage, "task": task.name, "id": number, "score": float(stage == "late" and number % 2 == 0)}
        for stage in ("early", "late")
        for task in tasks
        for number in range(20)
    ]
    rows += [{"stage": "early"}, {"stage": "early", "task": "x", "id": 1, "score": None}]
    items = items_of(rows)
    change = paired_change(items, [("late", t) for t in tasks], [("early", t) for t in tasks])
    assert change is not None
    assert (change.value, change.n) == (pytest.approx(0.5), 20)
    assert change.low > 0
    assert paired_change(items, [("late", tasks[0])], [("nobody", tasks[0])]) is None
    few = {key: {item: each[item] for item in list(each)[:3]} for key, each in items.items()}
    assert paired_change(few, [("late", tasks[0])], [("early", tasks[0])]) is None


def test_the_ratio_of_bits_is_paired_by_document() -> None:
    rows = [
        {"stage": s, "task": "bits_per_byte", "id": d, "bits": f * (100 + 50 * d), "bytes": 99, "score": 1.0}
        for s, f in (("base", 1.0), ("tuned", 1.06))
        for d in range(30)
    ]
    ratio = paired_ratio(items_of(rows), ("tuned", "bits_per_byte"), ("base", "bits_per_byte"))
    assert ratio is not None
    assert (ratio.value, ratio.low, ratio.high) == (pytest.approx(1.06), pytest.approx(1.06), pytest.approx(1.06))
