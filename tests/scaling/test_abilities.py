"""Abilities: the metrics against cases worked by hand, what is asked, the table, and a tiny ladder from end to end."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from lmlab import recipe as recipes
from lmlab.cli import app
from lmlab.corpus.arithmetic import OPERATIONS, Problem, generator, held_out
from lmlab.errors import Refused
from lmlab.scaling import ladder
from lmlab.scaling.abilities import (
    AbilitiesConfig,
    ask,
    brier,
    edit_distance,
    item_rows,
    measure,
    other_answers,
    problems,
)
from lmlab.scaling.command import emergence_of_ladder
from lmlab.scaling.emergence import gains, read


def test_edit_distance_by_hand() -> None:
    assert edit_distance("kitten", "sitting") == 3, "two replacements and an insertion"
    assert edit_distance("", "72") == edit_distance("72", "") == 2
    assert edit_distance([7, 2], [7, 2]) == 0 and edit_distance("72", "27") == 2 and edit_distance("172", "72") == 1


@given(st.text("ab", max_size=6), st.text("ab", max_size=6), st.text("ab", max_size=6))
def test_edit_distance_is_a_distance(a: str, b: str, c: str) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) and (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))


def test_brier_by_hand() -> None:
    assert brier([-1.0] * 4) == pytest.approx(0.75**2 + 3 * 0.25**2), "all alike"
    assert brier([math.log(0.5), math.log(0.25), math.log(0.25)]) == pytest.approx(0.25 + 2 * 0.0625)
    assert brier([math.log(0.05), math.log(0.025), math.log(0.025)]) == pytest.approx(0.375), "scaled to add up to 1"
    assert brier([0.0, -900.0, -900.0, -900.0]) == 0.0 and brier([-900.0, 0.0, -900.0, -900.0]) == 2.0


def test_items_are_held_out_and_different_and_the_operations_take_turns() -> None:
    config = AbilitiesConfig(items=60)
    found = problems(config, "symbol", 2, list(OPERATIONS))
    assert len({frozenset((each.a, each.b)) for each in found}) == 60
    assert all(held_out(each.a, each.b) for each in found)
    assert Counter(each.operation for each in found) == dict.fromkeys(OPERATIONS, 15)
    assert found == problems(config, "symbol", 2, list(OPERATIONS)) != problems(config, "sum", 2, list(OPERATIONS))
    with pytest.raises(Refused, match="abilities.items: 5000: there are only about"):
        problems(AbilitiesConfig(items=5000), "sum", 2, ["sum"])


@given(
    a=st.integers(10, 999), b=st.integers(10, 999), operation=st.sampled_from(list(OPERATIONS)), seed=st.integers(0, 99)
)
def test_the_other_choices_are_three_and_wrong(a: int, b: int, operation: str, seed: int) -> None:
    problem = Problem(a, b, operation)
    for way in ("plain", "symbol"):
        others = other_answers(problem, way, generator(seed))
        assert len(set(others)) == 3 and problem.answer not in others and all(each.isdigit() for each in others)
    if operation in ("larger", "smaller") and a != b:
        assert {str(a + b), str(max(a, b) if operation == "smaller" else min(a, b))} <= set(others)


class Reader:
    """A tokenizer of characters, and an engine that answers each question rightly or with the first wrong choice."""

    eos_id = 0

    def __init__(self, wrong: bool) -> None:
        self.wrong, self.tokenizer, self.engine, self.network = wrong, self, self, self
        self.config = type("Config", (), {"context_length": 256})

    def encode(self, text: str) -> list[int]:
        return [ord(each) for each in text]

    def generate(self, prompts, sampling):
        lines = ["".join(map(chr, ids[1:])).split("\n")[-1] for ids in prompts]
        done = []
        for line in lines:
            a, b = map(int, line.rstrip("=:").replace("-", "+").split("+"))
            answer = str(a - b if "-" in line else a + b)
            steps = "1+1=2;" if line.endswith(":") else ""
            done.append(type("Completion", (), {"text": f"{steps}{'9' if self.wrong else ''}{answer}\nmore"}))
        return done

    def score(self, pairs):
        places = [place % 4 for place in range(len(pairs))]
        return [type("Scored", (), {"logprob": -1.0 if (place == 0) != self.wrong else -3.0}) for place in places]


def test_metrics_of_a_model_that_is_right_and_of_one_that_puts_a_nine_before() -> None:
    config = AbilitiesConfig(items=12, shots=3)
    todo = problems(config, "sum", 2, ["sum", "difference"])
    right, wrong = Reader(False), Reader(True)
    asked = ask(right, config, todo, "plain", config.shots)
    lines = "".join(map(chr, asked[0].context[1:])).split("\n")
    assert len(lines) == 4 and all(eval(line.replace("=", "==")) for line in lines[:-1])
    assert not any(held_out(*map(int, line.split("=")[0].replace("-", "+").split("+"))) for line in lines[:-1])
    good, bad = measure(right, asked), measure(wrong, asked)
    assert set(good["exact"]) == {1.0} and set(good["edits"]) == {0.0} and set(good["logp"]) == {-1.0}
    assert set(bad["exact"]) == {0.0} and set(bad["edits"]) == {1.0} and set(bad["logp"]) == {-3.0}
    p = 1 / (1 + 3 * math.exp(-2))
    assert good["brier"] == pytest.approx([(1 - p) ** 2 + (1 - p) ** 2 / 3] * 12)
    steps = measure(right, ask(right, config, todo, "steps"))
    assert set(steps["exact"]) == {1.0}, "what follows the last step is the answer"


def test_a_question_that_does_not_fit_is_refused() -> None:
    reader = Reader(False)
    reader.config.context_length = 30
    config = AbilitiesConfig(items=8, shots=4)
    with pytest.raises(Refused, match="set abilities.shots lower"):
        measure(reader, ask(reader, config, problems(config, "sum", 3, ["sum"]), "plain", config.shots))


def test_rows_leave_a_gain_blank_that_a_task_has_not(tmp_path: Path) -> None:
    metrics = {name: [0.25, 1.0] for name in ("exact", "edits", "logp", "brier")}
    rows = item_rows({"one": metrics | {"few": [1.0, 1.0]}, "two": metrics})
    assert [(row["item"], row["few"], row["tuned"]) for row in rows] == [
        ("one 0", "1", ""), ("one 1", "1", ""), ("two 0", "", ""), ("two 1", "", ""),
    ]  # fmt: skip
    path = tmp_path / "table.csv"
    lines = [f"{scale},{','.join(row.values())}" for scale in range(1, 7) for row in rows]
    path.write_text("\n".join([f"scale,{','.join(rows[0])}", *lines]))
    tables = read(path, "scale", ["exact", "few"], unit="item", by=["task"], blank=["few"])
    assert [row["value"] for row in gains(tables["one",], "few", "exact")] == [0.375] * 6
    assert gains(tables["two",], "few", "exact") == []
    with pytest.raises(Refused, match="few: '' is no number"):
        read(path, "scale", ["exact", "few"], unit="item", by=["task"])


def test_what_a_recipe_cannot_ask_is_refused() -> None:
    recipe = recipes.load("emergence")
    assert [step.kind for step in recipe.arms[""]] == ["corpus", "tokenizer", "pretrain", "sft", "abilities"]
    assert not recipe.arms[""][0].config.normalise.enabled, "it would take the line end of each document"
    with pytest.raises(Refused, match="'product' is no operation"):
        recipes.load("emergence", ["abilities.instruction=product"])
    with pytest.raises(Refused, match="'larger' is trained on by the fine-tuning"):
        recipes.load("emergence", ["abilities.instruction=larger"])


def test_the_shipped_ladder_has_rungs_enough_for_a_verdict() -> None:
    found = ladder.load("emergence")
    assert len(found.rungs) >= 6 and len({rung.d_model for rung in found.rungs}) == len(found.rungs)


TINY = [
    "corpus.sources[0].arithmetic.documents=4000", "ladder.budgets=[2e8,4e8,8e8,1.6e9,3.2e9,6.4e9]", "ladder.max_epochs=50",
    "pretrain.model.layers=1", "pretrain.batch_tokens=256", "sft.train.steps=4", "sft.rows=4", "sft.test_items=8",
    "abilities.items=12", "seeds=[0]",
]  # fmt: skip


@pytest.mark.slow
def test_a_tiny_ladder_from_text_to_verdicts(tmp_path: Path) -> None:
    out = tmp_path / "ladder"
    ladder.run(ladder.load("emergence", TINY), out)
    with (out / "abilities.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = ["addition-2", "subtraction-2", "addition-3", "subtraction-3", "symbol", "symbol, shown"]
    names += ["instruction", "instruction, tuned"]
    assert Counter((row["rung"], row["task"]) for row in rows) == {
        (f"rung-{rung}", task): 12 for rung in range(1, 7) for task in names
    }
    for row in rows:
        assert row["exact"] in ("0", "1") and (row["exact"] == "1") == (row["edits"] == "0")
        assert float(row["logp"]) < 0 <= float(row["brier"]) <= 2
    found = emergence_of_ladder(out, "compute")
    assert [each["task"] for each in found] == names
    assert {tuple(each["gains"]) for each in found} == {
        ("few-shot", "chain-of-thought"),
        ("few-shot",),
        ("instruction",),
        (),
    }
    logp = [each["mean"] for each in found[0]["metrics"]["logp"]["means"]]
    assert logp[-1] > logp[0], "a larger model finds right answers likelier"

    page = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["scale", "emergence", str(out), "--page", str(page), "--json"])
    assert result.exit_code == 0 and [each["task"] for each in json.loads(result.stdout)] == names
    assert all(name in page.read_text() for name in (*names, "few-shot gain", "brier"))
    with pytest.raises(Refused, match="leave --hard"):
        CliRunner().invoke(app, ["scale", "emergence", str(out), "--hard", "exact"], catch_exceptions=False)
    with pytest.raises(Refused, match="needs --hard COLUMN"):
        CliRunner().invoke(app, ["scale", "emergence", str(out / "abilities.csv")], catch_exceptions=False)
    with pytest.raises(Refused, match=r"holds no abilities\.csv"):
        emergence_of_ladder(tmp_path, "compute")
