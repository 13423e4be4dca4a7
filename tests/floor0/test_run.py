"""The run directory: done is skipped, cut off resumes, finished is never overwritten, one writer, arms share."""

import dataclasses
import json
import subprocess
import sys
import time

import pytest

from lmlab import recipe
from lmlab.errors import Failed, Refused
from lmlab.progress import Metrics, read_jsonl
from lmlab.run import RunDirectory, folder_atomic, write_atomic, write_json
from tests.floor0 import toy


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    kinds = {"make": toy.MAKE, "add": toy.ADD}
    monkeypatch.setattr(recipe, "KINDS", dict.fromkeys(kinds, "toy"))
    monkeypatch.setattr(recipe, "kind", kinds.__getitem__)


TEXT = "one: {use: make, number: 1}\ntwo: {use: make, number: 2}\nadd: {}\n"


def go(tmp_path, text=TEXT, overrides=(), **chosen):
    return recipe.run(recipe.loads(text, "toy", overrides), tmp_path / "run", **chosen)


def log(tmp_path):
    return (tmp_path / "run" / "log").read_text().split()


def test_stages_run_in_order_and_a_second_run_skips(tmp_path):
    out = go(tmp_path)
    assert (out / "add" / "total").read_text() == "3"
    before = (out / "run.json").read_text()
    go(tmp_path)
    assert log(tmp_path) == ["one", "two", "add"]
    assert json.loads((out / "run.json").read_text()) == json.loads(before)
    provenance = json.loads((out / "add" / "provenance.json").read_text())
    assert provenance["outputs"]["total"] and provenance["inputs"]["numbers"] == {"one": "one", "two": "two"}
    assert set(provenance) >= {"fingerprint", "config", "seed", "machine", "seconds", "identities"}


def test_changed_settings_never_overwrite_and_fresh_does(tmp_path):
    go(tmp_path)
    with pytest.raises(Refused, match=r"number: 1 then, 5 now.*--fresh"):
        go(tmp_path, overrides=["one.number=5"])
    go(tmp_path, overrides=["one.number=5"], fresh=True)
    assert (tmp_path / "run" / "add" / "total").read_text() == "7"


def test_what_says_how_the_work_is_done_is_no_part_of_identity(tmp_path):
    """Settings that are `apart`, here or inside others: finished stages are skipped, and arms share."""
    go(tmp_path)
    go(tmp_path, overrides=["one.note=other", "one.engine.workers=4"])
    assert log(tmp_path) == ["one", "two", "add"]
    with pytest.raises(Refused, match=r"\(engine: .*\"batch\": 8.* then, .*\"batch\": 9"):
        go(tmp_path, overrides=["one.engine.batch=9"])
    text = "one: {use: make}\ngrid: {one.engine.workers: [1, 2], one.note: [a, b]}\n"
    out = recipe.run(recipe.loads(text, "toy"), tmp_path / "grid")
    assert sum(len(place.read_text().split()) for place in out.glob("*/seed-0/log")) == 1


def test_settings_apart_are_left_out_wherever_they_are(tmp_path):
    config = toy.MakeConfig.model_validate({"note": "x", "engines": {"a": [{"workers": 3}, {"batch": 2}]}})
    essence = config.essence()
    assert essence == {
        "number": 1, "die": "", "fail": False, "engine": {"batch": 8}, "engines": {"a": [{"batch": 8}, {"batch": 2}]},
    }  # fmt: skip
    assert config.essence_of(config.model_dump(mode="json")) == essence


def test_what_the_machine_lacks_for_a_stage_is_said_before_any_work(tmp_path, monkeypatch):
    """Where the stage is to be made: not where it is finished, not asked for, or only read."""
    lacking = dataclasses.replace(toy.MAKE, here=lambda config: "needs a GPU" if config.number == 2 else None)
    kinds = {"make": lacking, "add": toy.ADD}
    monkeypatch.setattr(recipe, "kind", kinds.__getitem__)
    with pytest.raises(Refused, match="^toy: two: needs a GPU$"):
        go(tmp_path)
    assert not (tmp_path / "run").exists()
    go(tmp_path, until="one")
    with pytest.raises(Refused, match="^toy: two: needs a GPU$"):
        go(tmp_path, needs_of="add")
    monkeypatch.setattr(recipe, "kind", {"make": toy.MAKE, "add": toy.ADD}.__getitem__)
    go(tmp_path, until="two")  # on a machine that has it
    monkeypatch.setattr(recipe, "kind", kinds.__getitem__)
    go(tmp_path)
    assert log(tmp_path) == ["one", "two", "add"]
    with pytest.raises(Refused, match="needs a GPU"):
        go(tmp_path, fresh=True)


def test_a_stage_that_died_resumes_with_its_plan(tmp_path):
    switch = tmp_path / "die"
    switch.touch()
    text = TEXT.replace("number: 2", f"number: 2, die: {switch}")
    with pytest.raises(RuntimeError):
        go(tmp_path, text)
    entry = json.loads((tmp_path / "run" / "run.json").read_text())["stages"]["two"]
    assert entry["status"] == "failed" and not (tmp_path / "run" / "two" / "provenance.json").exists()
    switch.unlink()
    go(tmp_path, text)
    assert log(tmp_path) == ["one", "two", "two", "add"]
    assert json.loads((tmp_path / "run" / "two" / "results.json").read_text()) == {"attempt": 2}


def test_a_cut_off_stage_with_other_settings_starts_anew(tmp_path):
    switch = tmp_path / "die"
    switch.touch()
    with pytest.raises(RuntimeError):
        go(tmp_path, TEXT.replace("number: 2", f"number: 2, die: {switch}"))
    (tmp_path / "run" / "two" / "left-over").touch()
    go(tmp_path)
    assert not (tmp_path / "run" / "two" / "left-over").exists()


def test_until_and_only(tmp_path):
    go(tmp_path, until="one")
    assert log(tmp_path) == ["one"]
    with pytest.raises(Refused, match="not finished"):
        go(tmp_path, only="add")
    with pytest.raises(Refused, match="did you mean 'two'"):
        go(tmp_path, until="twoo")
    go(tmp_path, needs_of="add")
    assert log(tmp_path) == ["one", "two", "add"]


def test_a_grid_crosses_settings_and_arms_share_equal_stages(tmp_path):
    out = go(tmp_path, TEXT + "grid: {two.number: [2, 3]}\nseeds: [0, 1]\n")
    totals = {str(p.relative_to(out).parent.parent): p.read_text() for p in out.rglob("add/total")}
    assert totals == {
        "two.number=2/seed-0": "3",
        "two.number=2/seed-1": "5",
        "two.number=3/seed-0": "4",
        "two.number=3/seed-1": "6",
    }
    assert (out / "two.number=3/seed-0/one").is_symlink() and not (out / "two.number=3/seed-1/two").is_symlink()


def test_from_may_name_a_stage_of_another_run(tmp_path):
    other = go(tmp_path)
    text = f"sum: {{use: add, from: {{numbers: ['{other / 'one'}', '{other / 'two'}']}}}}"
    out = recipe.run(recipe.loads(text), tmp_path / "second")
    assert (out / "sum" / "total").read_text() == "3"
    with pytest.raises(Refused, match="no path called"):
        recipe.loads("sum: {use: add, from: {numbers: nowhere}}")
    with pytest.raises(Refused, match="no role 'nmbers'; did you mean 'numbers'"):
        recipe.loads(TEXT.replace("add: {}", "add: {from: {nmbers: one}}"))


def test_one_run_directory_has_one_writer(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from lmlab.run import RunDirectory\n"
        "with RunDirectory(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    with pytest.raises(Refused, match=f"process {other.pid}"):
        go(tmp_path)
    other.kill()
    other.wait()
    go(tmp_path)


def test_atomic_writes_leave_the_old_or_the_new(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, "old")
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file"]
    with pytest.raises(RuntimeError), folder_atomic(tmp_path / "folder") as temporary:
        (temporary / "half").touch()
        raise RuntimeError
    assert not (tmp_path / "folder").exists()
    with pytest.raises(Failed, match="could not be written"):
        write_atomic(tmp_path / ("x" * 300), "name too long")


def test_metrics_of_a_resumed_run_are_those_of_an_uninterrupted_one(tmp_path):
    metrics = Metrics(tmp_path)
    for step in range(5):
        metrics.log(step, {"loss": step})
    metrics.path.open("a").write('{"step": 5, "lo')
    metrics.rewind(3)
    for step in range(3, 6):
        metrics.log(step, {"loss": step})
    metrics.close()
    assert [row["step"] for row in read_jsonl(metrics.path)] == [0, 1, 2, 3, 4, 5]


def test_seconds_of_a_killed_attempt_count(tmp_path):
    with RunDirectory(tmp_path / "run") as directory:

        def slow(context):
            time.sleep(0.02)
            context.tick()
            raise RuntimeError

        spec = toy.StageKind(config=toy.MakeConfig, run=slow)
        for _ in range(2):
            with pytest.raises(RuntimeError):
                directory.execute("slow", "make", spec, toy.MakeConfig(), 0, {}, fresh=False)
        state = json.loads((tmp_path / "run" / "slow" / "state.json").read_text())
    assert state["seconds"] >= 0.04
