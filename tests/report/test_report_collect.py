"""What is read from a run directory, whole or not."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import ORDER, SECONDS, make_run, results, write_json

from lmlab.errors import Refused
from lmlab.report.collect import POINTS, collect, curves
from lmlab.report.scores import at, score


def test_every_contracted_number_is_there(tmp_path: Path) -> None:
    report = collect(make_run(tmp_path / "demo"))
    wanted = [("pretrain", "bits_per_byte", key) for key in ("before", "after", "xz", "ngram")]
    wanted += [("sft", "exact_match", part, side) for part in ("seen", "unseen") for side in ("before", "after")]
    wanted += [("reward", "pair_accuracy")]
    wanted += [("ppo", key, side) for key in ("reward", "rule_score", "kl") for side in ("before", "after")]
    for name, *path in wanted:
        assert score(at(report["stages"], name, *path)) is not None, (name, *path)
        assert at(report["stages"], name, *path) == at(results()[name], *path)
    assert {name: stage["seconds"] for name, stage in report["stages"].items()} == SECONDS
    assert list(report["stages"]) == list(ORDER)
    assert (report["run"], report["missing"], report["notes"]) == ("demo", [], [])
    assert report["machine"]["cores"] == 2
    assert all(set(claim) == {"stage", "claim", "holds", "evidence"} for claim in report["claims"])
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_stages_that_were_asked_for_and_have_not_run_are_named(tmp_path: Path) -> None:
    report = collect(make_run(tmp_path / "half", stages=("corpus", "tokenizer")))
    assert report["missing"] == list(ORDER[2:])
    assert report["stages"]["ppo"]["status"] == "missing"
    assert "ppo: has not run" in report["notes"]


def test_a_stage_that_was_cut_off_or_failed_is_said_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "cut")
    for name, status in (("sft", "running"), ("reward", "failed")):
        (run / name / "provenance.json").unlink()
        (run / name / "results.json").unlink()
        data = json.loads((run / "run.json").read_text())
        data["stages"][name] |= {"status": status, "headline": {"error": "no memory"} if status == "failed" else {}}
        write_json(run / "run.json", data)
    report = collect(run)
    assert [report["stages"][n]["status"] for n in ("sft", "reward", "ppo")] == ["running", "failed", "done"]
    assert "reward: is not finished (failed: no memory)" in report["notes"]
    assert report["stages"]["sft"]["curves"]["loss"]["value"], "what it logged so far is shown"


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "null", '"text"', "\x00\xff", "[" * 100_000])
@pytest.mark.parametrize(
    "name", ["run.json", "recipe.yaml", "ppo/results.json", "ppo/provenance.json", "ppo/metrics.jsonl"]
)
def test_a_damaged_file_is_no_end(tmp_path: Path, name: str, content: str) -> None:
    run = make_run(tmp_path / "run")
    (run / name).write_bytes(content.encode("latin-1"))
    report = collect(run)
    assert set(report["stages"]) == set(ORDER)
    json.dumps(report, allow_nan=False)


def test_results_cannot_overwrite_what_the_report_says_of_a_stage(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_json(run / "ppo" / "results.json", {"kind": "corpus", "seconds": -1, "status": "perfect", "extra": 7})
    stage = collect(run)["stages"]["ppo"]
    assert (stage["kind"], stage["seconds"], stage["status"], stage["extra"]) == ("ppo", SECONDS["ppo"], "done", 7)


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "ppo" / "results.json").write_text('{"a": NaN, "b": {"c": [Infinity, 1.5]}, "d": "\\ud800"}')
    stage = collect(run)["stages"]["ppo"]
    assert (stage["a"], stage["b"], stage["d"]) == (None, {"c": [None, 1.5]}, "?")


def test_the_report_stage_is_no_part_of_the_report(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    before = collect(run)
    write_json(run / "report" / "provenance.json", {"kind": "report", "seconds": 3.0})
    write_json(run / "again" / "provenance.json", {"kind": "report", "seconds": 3.0})
    assert collect(run) == before


def test_a_run_without_recipe_or_run_json_is_read_from_its_folders(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "recipe.yaml").unlink()
    (run / "run.json").unlink()
    assert sorted(collect(run)["stages"]) == sorted(ORDER)


def test_a_run_inside_a_grid_finds_the_recipe_of_the_grid(tmp_path: Path) -> None:
    run = make_run(tmp_path / "grid" / "arm" / "seed-0", recipe=False, stages=("corpus",))
    (tmp_path / "grid" / "recipe.yaml").write_text("corpus: {}\nbpe: {use: tokenizer}\n")
    report = collect(run)
    assert (report["run"], report["missing"]) == ("grid/arm/seed-0", ["bpe"])
    assert report["stages"]["bpe"]["kind"] == "tokenizer"


def test_statistics_stand_in_for_the_results_of_a_corpus(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    shutil.move(run / "corpus" / "results.json", run / "corpus" / "statistics.json")
    assert collect(run)["stages"]["corpus"]["sources"]["code"]["train"]["documents"] == 1198


def test_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no such run directory"):
        collect(tmp_path / "nowhere")
    with pytest.raises(Refused, match=r"expected run\.json"):
        collect(tmp_path)


def test_long_curves_are_thinned_to_means_of_stretches() -> None:
    rows: list[dict[str, Any]] = [{"step": step, "loss": float(step % 2), "name": "x"} for step in range(1000)]
    found = curves([*rows, {"step": 1000, "loss": math.nan}, {"step": 1001, "loss": math.inf}])
    assert set(found) == {"loss"}
    loss = found["loss"]
    assert len(loss["step"]) == len(loss["value"]) == POINTS
    assert loss["step"] == sorted(loss["step"])
    assert all(low <= value <= high for low, value, high in zip(loss["low"], loss["value"], loss["high"]))
    assert loss["not_finite"] == 2
    assert math.isclose(math.fsum(loss["value"]) / POINTS, 0.5, abs_tol=0.02)


def test_short_curves_are_kept_as_they_are() -> None:
    found = curves([{"step": 3, "kl": 0.25}, {"kl": 0.5}, {"step": 9, "kl": True}])
    assert found == {"kl": {"step": [3.0, 1], "value": [0.25, 0.5]}}
