"""Grids: arms over seeds, with mean, spread and paired differences."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from statistics import mean, stdev

import pytest
from synthetic_run import make_grid, make_run, results

from lmlab.errors import Refused
from lmlab.report.grid import collect_grid, runs_of
from lmlab.report.summary import describe, summarise

PATH = "pretrain.bits_per_byte.after"


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_grid(tmp_path_factory.mktemp("runs") / "grid", arms=2, seeds=3)


def test_a_grid_is_told_from_a_run(grid: Path, tmp_path: Path) -> None:
    assert {arm: list(seeds) for arm, seeds in runs_of(grid).items()} == {
        "pretrain.layers=2": [0, 1, 2],
        "pretrain.layers=4": [0, 1, 2],
    }
    assert runs_of(make_run(tmp_path / "one", stages=("corpus",))) == {}
    with pytest.raises(Refused, match="ARM/seed-N"):
        collect_grid(tmp_path / "one")


def test_arms_have_mean_spread_and_n_over_seeds(grid: Path) -> None:
    report = collect_grid(grid)
    values = [results(seed)["pretrain"]["bits_per_byte"]["after"]["value"] for seed in range(3)]
    found = report["arms"]["pretrain.layers=2"]["scores"][PATH]
    assert (found["value"], found["spread"], found["n"]) == (
        pytest.approx(mean(values)),
        pytest.approx(stdev(values)),
        3,
    )
    assert found["low"] < min(values) and found["high"] > max(values)


def test_differences_are_paired_by_seed(grid: Path) -> None:
    arms = collect_grid(grid)["arms"]
    difference = arms["pretrain.layers=4"]["difference"][PATH]
    # The seeds' own spread cancels: every seed differs by 0.2 exactly.
    assert (difference["value"], difference["n"]) == (pytest.approx(-0.2), 3)
    assert difference["high"] - difference["low"] < 1e-9
    assert arms["pretrain.layers=2"]["difference"] == {}


def test_claims_are_counted_over_seeds(grid: Path) -> None:
    for arm in collect_grid(grid)["arms"].values():
        for claim in arm["claims"]:
            assert claim["held"] + claim["failed"] + claim["undecided"] == 3


def test_a_seed_that_lacks_a_stage_is_left_out_of_its_mean_and_named(tmp_path: Path) -> None:
    grid = make_grid(tmp_path / "grid", arms=2, seeds=2)
    (grid / "recipe.yaml").write_text("pretrain: {}\nsft: {}\n")
    shutil.rmtree(grid / "pretrain.layers=4" / "seed-1" / "pretrain")
    report = collect_grid(grid)
    arm = report["arms"]["pretrain.layers=4"]
    assert (arm["scores"][PATH]["n"], arm["scores"][PATH]["low"], arm["difference"][PATH]["n"]) == (1, None, 1)
    assert report["missing"] == ["pretrain.layers=4/seed-1/pretrain"]


def test_where_objectives_differ_the_arms_are_compared_as_each_was_trained(tmp_path: Path) -> None:
    grid = make_grid(tmp_path / "grid", arms=2, seeds=2)
    for place in grid.glob("*/seed-*/pretrain"):
        path = place / "results.json"
        data = json.loads(path.read_text(encoding="utf-8"))
        data["bits_per_byte"]["continuation"] = data["bits_per_byte"]["after"]
        path.write_text(json.dumps(data), encoding="utf-8")
    assert collect_grid(grid)["main"] == PATH
    for place in grid.glob("pretrain.layers=4/seed-*/pretrain"):
        path = place / "provenance.json"
        data = json.loads(path.read_text(encoding="utf-8"))
        data["config"]["objective"] = {"name": "prefix-lm"}
        path.write_text(json.dumps(data), encoding="utf-8")
    assert collect_grid(grid)["main"] == "pretrain.bits_per_byte.continuation"


def test_the_terminal_s_lines_have_mean_spread_and_paired_difference(grid: Path) -> None:
    found = summarise(grid)
    assert (found["main"], found["first"]) == (PATH, "pretrain.layers=2")
    lines = describe(found).splitlines()
    assert lines[0].strip().startswith("pretrain: bits per byte, mean over seeds")
    assert " ± " in lines[1] and lines[2].split("  ")[-1].startswith("-0.200 [-0.200 to -0.200] (n = 3)")
    assert describe({"main": None, "first": None, "summary": {}}) == ""


def test_arms_that_are_fine_tuned_for_a_task_are_compared_by_it() -> None:
    from lmlab.report.grid import _main

    bits, accuracy = "pretrain.bits_per_byte.after", "finetune.accuracy.after"
    arms = {"a": {"scores": {bits: {"values": [1.0, 2.0]}, accuracy: {"values": [0.5, 0.6]}}}}
    assert _main(arms, False) == accuracy
    arms["a"]["scores"].pop(accuracy)
    assert _main(arms, False) == bits
