"""Ladders: the law of few runs, the rungs, and a whole ladder of three rungs, killed and resumed."""

from __future__ import annotations

import csv
import json
import shutil
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from lmlab import recipe as recipes
from lmlab.cli import app
from lmlab.errors import Failed, Refused
from lmlab.provenance import digest_file
from lmlab.scaling import ladder
from lmlab.scaling.few import posterior, rehearsal_errors, rehearse
from lmlab.scaling.table import read

RECIPE = """
corpus:
  heldout_fraction: 0.2
  sources: [{name: library, path: "TEXT"}]
tokenizer: {vocab_size: 300}
pretrain:
  minutes: null
  batch_tokens: 64
  precision: float32
  kernel: sdpa
  compile: false
  before: false
  baselines: false
  prompts: []
  optimizer: {name: adamw, learning_rate: 1e-2}
  model: {layers: 1, heads: 2, context_length: 16, initialisation: mup, mup_base_width: 8}
ladder: {budgets: [4e7, 8e7, 3.2e8], tokens_per_parameter: 1, batch_exponent: 0.5, max_epochs: 50}
"""


def curve(compute, noise=0.0, seed=0):
    generator = np.random.default_rng(seed)
    return (1.0 + 2.4 * compute**-0.22) * np.exp(noise * generator.standard_normal(len(compute)))


@pytest.mark.parametrize("law", ["power-above", "power"])
def test_a_curve_without_noise_comes_back(law):
    compute = np.geomspace(1e10, 1e12, 8)
    truth = 1.2 * (law == "power-above") + 3 * (np.array([*compute, 1e13]) / 1e10) ** -0.3
    drawn = posterior(compute, truth[:-1], law, 4000)
    found = drawn.predict(1e13)
    assert found["predicted"] == pytest.approx(truth[-1], rel=0.005)
    assert drawn.constants()["b"]["value"] == pytest.approx(0.3, abs=0.03)
    assert (drawn.c >= 0).all() and (drawn.top > drawn.c).all()


def test_the_interval_covers_what_comes_and_widens_with_reach():
    compute, inside, widths = np.geomspace(1, 27, 8), [], []
    for seed in range(40):
        loss = curve(np.array([*compute, 216.0]), 0.004, seed)
        drawn = posterior(compute, loss[:-1], count=1000, seed=seed)
        near, far = drawn.predict(54.0), drawn.predict(216.0)
        inside.append(far["low"] <= loss[-1] <= far["high"])
        widths.append((far["high"] - far["low"]) / (near["high"] - near["low"]))
    assert np.mean(inside) >= 0.8, f"n = {len(inside)} ladders of 8 rungs"
    assert np.median(widths) > 1.3


def test_a_law_that_is_wrong_is_seen_in_rehearsal():
    compute = np.geomspace(1, 64, 10)
    above = rehearse(compute, curve(compute), "power-above")
    plain = rehearse(compute, 1.9 + 1.5 * compute**-0.7, "power")
    assert [row["fitted"] for row in above] == [3, 4, 5, 6, 7, 8]
    assert all(row["inside"] for row in above) and all(abs(row["relative_error"]) < 0.01 for row in above[1:])
    assert not any(row["inside"] for row in plain) and plain[-1]["relative_error"] < -0.05


def test_a_curve_that_still_bends_down_needs_a_law_that_may():
    compute = np.geomspace(1, 32, 10)
    for slope in (0.25, 0.4):
        loss, last = 4.3 - slope * np.log(compute), 4.3 - slope * np.log(256)
        errors = rehearsal_errors(compute, loss)
        assert errors["power"]["mean"] > 0.004 and errors["power-above"]["mean"] > 0.004, "above what comes"
        any_c, above = (posterior(compute, loss, law, 4000) for law in ("power-any", "power-above"))
        assert any_c.predict(256.0)["predicted"] == pytest.approx(last, rel=0.02) and np.median(any_c.c) < 0
        assert above.predict(256.0)["predicted"] > last * 1.02 and (above.c >= 0).all()


def test_losses_that_rise_are_no_ladder():
    with pytest.raises(Failed, match="no curve that falls"):
        posterior(np.geomspace(1, 8, 4), np.array([2.0, 2.3, 2.6, 3.0]))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ladder")
    library = Path(sysconfig.get_paths()["stdlib"])
    (folder / "text").mkdir()
    for name in sorted(p.name for p in library.glob("[a-c]*.py"))[:12]:
        shutil.copy(library / name, folder / "text" / name)
    (folder / "tiny.yaml").write_text(RECIPE.replace("TEXT", str(folder / "text")))
    return folder / "tiny.yaml"


def test_rungs_follow_the_rules(recipe):
    found = ladder.load(str(recipe), [], [4e7, 8e7, 3.2e8, 1.28e9]).rungs
    widths = [rung.d_model for rung in found]
    assert widths == sorted(widths) and widths[-1] > widths[0]
    for rung in found:
        assert rung.flops == pytest.approx(rung.budget, rel=0.06)
        assert 0.4 < rung.tokens / rung.params < 2.5, "the rule is one token a parameter"
    assert [rung.batch_tokens for rung in found] == [64, 96, 176, 368], (
        "64 times the root of the growth, in windows of 16"
    )
    rates = [rung.rate for rung in ladder.load(str(recipe), ["ladder.rate_exponent=-0.5"]).rungs]
    assert rates == pytest.approx([1.0, 2**-0.5, 8**-0.5])


@pytest.mark.parametrize(
    "budgets, overrides, message",
    [
        ([4e7, 3e7, 3e8], [], "expected budgets that grow"),
        ([4e7, 4e8], [], "expected at least 3"),
        ([4e7, 8e7, 1e8], [], "1.25 times the one before"),
        ([1e5, 8e7, 4e8], [], "expected at least 10"),
        ([], ["ladder.budget=[1e7]"], "did you mean 'budgets'"),
        ([], ["arms={a: {}}"], "a ladder's arms are its rungs"),
        ([], ["pretrain.objective=prefix-lm"], "causal-lm in a decoder alone"),
        ([], ["pretrain.batch_ramp={start: 16, over: 100}"], "batch_ramp"),
        ([], ["ladder.width_step=3", "pretrain.model.heads=64"], "no width in steps of 3|head"),
    ],
)
def test_refusals(recipe, budgets, overrides, message):
    with pytest.raises(Refused, match=message):
        ladder.load(str(recipe), overrides, budgets)


def test_too_little_text_is_refused_before_a_rung_is_trained(recipe, tmp_path):
    made = ladder.load(str(recipe), ["ladder.max_epochs=0.01"])
    with pytest.raises(Refused, match="epochs of a text of"):
        ladder.run(made, tmp_path / "out")
    assert not list((tmp_path / "out").glob("rung-*/seed-*/pretrain"))


def events(out: Path) -> list[tuple[str, str]]:
    lines = (out / "ladder.jsonl").read_text().splitlines()
    return [(each["event"], each.get("rung", "")) for each in map(json.loads, lines)]


def test_a_ladder_killed_in_its_last_rung_goes_on_and_keeps_its_prediction(recipe, tmp_path, monkeypatch):
    out, real, calls = tmp_path / "out", recipes.kind("pretrain").run.__globals__["fit"], []

    def killed(*args, **kwargs):
        calls.append(len(calls))
        if len(calls) == 3:
            assert (out / "predictions/seed-0.json").exists(), "predicted before the training begins"
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr("lmlab.train.pretrain.fit", killed)
    with pytest.raises(KeyboardInterrupt):
        ladder.run(ladder.load(str(recipe)), out)
    prediction = out / "predictions/seed-0.json"
    before = digest_file(prediction)
    assert events(out)[-2:] == [("predicted", "rung-3"), ("training", "rung-3")]
    assert not (out / "rung-3/seed-0/pretrain/provenance.json").exists()

    result = CliRunner().invoke(app, ["scale", "ladder", str(recipe), "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert len(calls) == 4, "two fitted rungs, the killed one, and that one again"
    assert digest_file(prediction) == before
    assert [e for e, rung in events(out) if rung == "rung-3"] == ["predicted", "training", "measured"]
    (row,) = found["predictions"]
    with (out / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["rung"] for r in rows] == ["rung-1", "rung-2", "rung-3"] and [r["fitted"] for r in rows] == [
        "1",
        "1",
        "0",
    ]
    assert row["measured"] == pytest.approx(float(rows[-1]["loss"]))
    assert row["inside"] == (row["low"] <= row["measured"] <= row["high"]) and found["inside"]["n"] == 1
    assert 2 < row["measured"] < np.log(300) * 1.1, "nats a token"
    assert read(out / "runs.csv", ("params", "tokens", "compute"), {}, "loss").line == [2, 3, 4], "what scale fit reads"

    again = CliRunner().invoke(app, ["scale", "ladder", str(recipe), "--out", str(out)])
    assert again.exit_code == 0 and len(calls) == 4 and "inside in" in again.stdout
    other = CliRunner().invoke(app, ["scale", "ladder", str(recipe), "--out", str(out), "--budgets", "4e7,8e7,4e8"])
    assert other.exit_code != 0 and isinstance(other.exception, Refused) and "another ladder" in str(other.exception)
    prediction.write_text(prediction.read_text().replace('"predicted"', '"Predicted"'))
    with pytest.raises(Exception, match="never made twice"):
        ladder.run(ladder.load(str(recipe)), out)
