"""The stage: one suite for every model, resumed to equal bytes, and the report's contract."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from lmlab.errors import Refused
from lmlab.evaluate.compare import compare, read_items
from lmlab.evaluate.stage import EvaluateConfig, evaluate, strategies, suite, summarise
from lmlab.progress import read_jsonl
from lmlab.report.tasks import parse as parse_name

CONFIG = EvaluateConfig(families=("copy", "arithmetic", "swap"), items=5, shots=(0, 1), vote={"samples": 3})


class Killed(BaseException):
    pass


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_results_have_a_score_for_each_stage_and_task(make_subject, tmp_path):
    tasks = suite(CONFIG.families, CONFIG, None)
    subjects = [make_subject("pretrain", lambda ids, sampling: "?"), make_subject("sft", fingerprint="b")]
    results = evaluate(subjects, tasks, CONFIG, tmp_path)
    assert results == json.loads((tmp_path / "results.json").read_text())
    assert list(results["stages"]) == ["pretrain", "sft"]
    # copy and swap: 2 numbers of demonstrations; arithmetic: 2 x 2, and a vote with steps and one without.
    assert len(results["tasks"]) == len(results["stages"]["sft"]) == 2 + 2 + 6
    for stage in results["stages"].values():
        assert all(score.keys() == {"value", "low", "high", "n"} and score["n"] == 5 for score in stage.values())
    assert all(score["value"] == 1.0 for score in results["unparsed"]["pretrain"].values())
    assert results["pooled"]["sft"]["exact_match/seen/shots=0"]["n"] == 10
    assert results["pooled"]["sft"]["exact_match/unseen/shots=1"]["n"] == 5
    rows = read_jsonl(tmp_path / "items.jsonl")
    assert len(rows) == 2 * 10 * 5
    wanted = {
        "id",
        "stage",
        "task",
        "strategy",
        "prompt",
        "output",
        "parsed",
        "score",
        "tokens",
        "finish_reason",
        "seed",
    }
    assert all(wanted <= row.keys() for row in rows)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["models"]["sft"]["weights"] == "b"
    assert run["models"]["sft"]["prompts"].keys() == results["tasks"].keys()
    assert compare(read_items(tmp_path, "pretrain"), read_items(tmp_path, "sft"))["tests"] == 10


def test_unparsed_is_reported_apart(make_subject, tmp_path):
    def answer(ids, sampling):
        return "-3" if len(ids) % 2 else "no number here"

    tasks = suite(["arithmetic/shots=0"], CONFIG, None)
    results = evaluate([make_subject(answer=answer)], tasks, CONFIG, tmp_path)
    rows = read_jsonl(tmp_path / "items.jsonl")
    name = "exact_match/arithmetic/shots=0/direct/greedy"
    wrong = sum(row["parsed"] is not None and row["score"] == 0 for row in rows)
    assert 0 < wrong < 5
    assert results["unparsed"]["sft"][name]["value"] == pytest.approx(1 - wrong / 5)
    assert results["stages"]["sft"][name]["value"] == 0.0


def test_demonstrations_without_room_are_reported(make_subject, tmp_path):
    tasks = suite(["copy/shots=4", "copy/shots=0"], CONFIG, None)
    results = evaluate([make_subject(context=150)], tasks, CONFIG, tmp_path)
    name = "exact_match/copy/shots=4/greedy"
    fewer = [row["shots"] < 4 for row in read_jsonl(tmp_path / "items.jsonl") if row["task"] == name]
    assert any(fewer)
    assert list(results["fewer_shots"]["sft"]) == [name]
    assert results["fewer_shots"]["sft"][name]["value"] == sum(fewer) / 5
    assert "4 demonstrations, greedy" in results["tasks"][name]


@pytest.mark.parametrize("at", [0, 1, 7, 12])
def test_a_killed_run_resumed_leaves_equal_bytes(make_subject, tmp_path, at):
    tasks = suite(CONFIG.families, CONFIG, None)
    subjects = [make_subject("pretrain"), make_subject("sft", fingerprint="b")]
    evaluate(subjects, tasks, CONFIG, tmp_path / "whole")
    broken = [make_subject("pretrain"), make_subject("sft", fingerprint="b")]
    calls = 0
    for one in broken:
        generate = one.engine.generate

        def dying(prompts, samplings, generate=generate):
            nonlocal calls
            calls += 1
            if calls > at:
                raise Killed
            return generate(prompts, samplings)

        one.engine.generate = dying
    with pytest.raises(Killed):
        evaluate(broken, tasks, CONFIG, tmp_path / "cut")
    assert not (tmp_path / "cut/results.json").exists()
    again = [make_subject("pretrain"), make_subject("sft", fingerprint="b")]
    evaluate(again, tasks, CONFIG, tmp_path / "cut")
    assert sum(len(one.engine.calls) for one in again) == 20 - at
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_names_are_those_the_report_reads():
    ((task, asked),) = suite(["arithmetic"], EvaluateConfig(), None)
    read = [parse_name(task.key(strategy.name(task))) for strategy in asked]
    assert {(one.family, one.metric) for one in read} == {("arithmetic", "exact_match")}
    assert {(one.shots, one.steps, one.decoding) for one in read} == {
        *((shots, steps, "greedy") for shots in (0, 1, 4) for steps in (True, False)),
        (0, True, "vote of 8"),
        (0, False, "vote of 8"),
    }
    assert not any(one.rest for one in read)


def test_suite_takes_names_with_strategies():
    config = EvaluateConfig()
    found = dict((task.name, asked) for task, asked in suite(["copy", "arithmetic/steps/vote=4", "copy"], config, None))
    assert len(found["copy"]) == 3
    assert [strategy.vote.samples for strategy in found["arithmetic"]] == [4]
    for names, match in (
        (["arithmetik"], "did you mean 'arithmetic'"),
        (["bits_per_byte"], "needs a corpus"),
        (["copy/steps"], "no chain of steps"),
        (["copy/shots=one"], "expected shots=K"),
    ):
        with pytest.raises(Refused, match=match):
            suite(names, config, None)


def test_settings_are_checked():
    for wrong in (
        {"families": ["kopy"]},
        {"shots": [1, 1]},
        {"shots": [-1]},
        {"items": 0},
        {"vote": {"temperature": 0}},
    ):
        with pytest.raises(ValidationError):
            EvaluateConfig(**wrong)
    (entry,) = suite(["arithmetic"], EvaluateConfig(steps=False, vote={"samples": 0}), None)
    assert [strategy.name(entry[0]) for strategy in entry[1]] == [f"shots={k}/direct/greedy" for k in (0, 1, 4)]
    assert strategies(entry[0], EvaluateConfig(steps=False, vote={"samples": 0})) == entry[1]


def test_nothing_asked_is_no_score():
    assert summarise([])["stages"] == {}
