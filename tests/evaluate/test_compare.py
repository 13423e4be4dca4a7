"""Two runs are compared item by item, or not at all."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.errors import Refused
from lmlab.evaluate.compare import compare, compare_places, describe_comparison, read_items, sign_test


def rows(scores, stage="sft", task="exact_match/copy/shots=0/greedy", **extra):
    return [
        {"id": f"item{i}", "stage": stage, "task": task, "prompt_hash": f"h{i}", "score": float(score), **extra}
        for i, score in enumerate(scores)
    ]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=30), st.randoms())
def test_pairing_does_not_depend_on_the_order_of_rows(pairs, random):
    a, b = rows([x for x, _ in pairs]), rows([y for _, y in pairs])
    shuffled = list(b)
    random.shuffle(shuffled)
    unit = compare(a, b)["stages"]["sft"]["exact_match/copy/shots=0/greedy"]
    assert unit == compare(a, shuffled)["stages"]["sft"]["exact_match/copy/shots=0/greedy"]
    gained = [f"item{i}" for i, (x, y) in enumerate(pairs) if y > x]
    lost = [f"item{i}" for i, (x, y) in enumerate(pairs) if y < x]
    assert (unit["gained"], unit["lost"]) == (gained, lost)
    assert math.isclose(unit["difference"]["value"], (len(gained) - len(lost)) / len(pairs), abs_tol=1e-12)
    back = compare(b, a)["stages"]["sft"]["exact_match/copy/shots=0/greedy"]
    assert (back["gained"], back["lost"], back["p"]) == (lost, gained, unit["p"])


def test_exact_p_values():
    # By hand: of 5 that differ all rose, 2 / 2^5; of 6, 5 rose, 2 (1 + 6) / 2^6; none differ, 1.
    assert sign_test(5, 0) == 2 / 32
    assert sign_test(5, 1) == 14 / 64
    assert sign_test(0, 0) == sign_test(1, 1) == 1.0


def test_holm_counts_every_test():
    a = rows([0] * 10, task="x") + rows([0] * 10, task="y") + rows([0] * 10, task="z")
    b = rows([1] * 10, task="x") + rows([1] * 6 + [0] * 4, task="y") + rows([0] * 10, task="z")
    found = compare(a, b)["stages"]["sft"]
    assert found["x"]["p"] == 2 / 1024
    assert found["x"]["p_holm"] == 6 / 1024
    assert found["y"]["p_holm"] == pytest.approx(2 * 2 / 64)
    assert found["z"]["p_holm"] == 1.0


def test_unlike_runs_are_refused():
    a = rows([0, 1, 1])
    with pytest.raises(Refused, match="items differ"):
        compare(a, a[:2])
    with pytest.raises(Refused, match="prompts differ"):
        compare(a, [*a[:2], {**a[2], "prompt_hash": "other"}])
    with pytest.raises(Refused, match="tasks differ"):
        compare(a, rows([0, 1, 1], task="exact_match/sort/shots=0/greedy"))
    with pytest.raises(Refused, match="stages differ"):
        compare([*a, *rows([0], stage="ppo")], a)
    with pytest.raises(Refused, match="stands twice"):
        compare([*a, a[0]], a)
    with pytest.raises(Refused, match="no items"):
        compare([], a)


def test_two_stages_of_one_run_and_bits():
    a = rows([2.0, 1.0], stage="pretrain", task="bits_per_byte", bytes=10, bits=20.0)
    b = [{**row, "stage": "sft", "bits": row["bits"] - 5, "score": row["score"] - 0.5} for row in a]
    found = compare(a, b)
    unit = found["stages"]["pretrain against sft"]["bits_per_byte"]
    assert unit["a"]["value"] == 2.0
    assert unit["difference"]["value"] == -0.5
    assert unit["lost"] == ["item0", "item1"]
    assert "pretrain against sft" in describe_comparison(found)


def test_items_are_found_in_a_run(tmp_path):
    with pytest.raises(Refused, match="no evaluation"):
        read_items(tmp_path)
    (tmp_path / "evaluate").mkdir()
    (tmp_path / "evaluate/items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows([1, 0])))
    (tmp_path / "run.json").write_text(
        json.dumps({"stages": {"evaluate": {"kind": "evaluate"}, "sft": {"kind": "sft"}}})
    )
    assert read_items(tmp_path) == read_items(tmp_path / "evaluate") == rows([1, 0])
    assert read_items(tmp_path, "sft") == rows([1, 0])
    assert compare_places(tmp_path, tmp_path / "evaluate", "sft")["tests"] == 1
    with pytest.raises(Refused, match="did you mean 'sft'"):
        read_items(tmp_path, "sfx")
