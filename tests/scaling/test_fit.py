"""Fits: known constants come back, intervals cover, bad tables are refused, the open_lm runs."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from lmlab.cli import app
from lmlab.errors import Refused
from lmlab.scaling.approaches import allocate
from lmlab.scaling.command import fit_file
from lmlab.scaling.fit import bootstrap, fit, interval, load, predict
from lmlab.scaling.forms import FORMS
from lmlab.scaling.laws import CHINCHILLA, Chinchilla, Kaplan, flops
from lmlab.scaling.solve import best, minimise
from lmlab.scaling.table import Runs, by_rate, read

TRUTH = CHINCHILLA["besiroglu"]


def runs_of(law: Chinchilla, n: int, noise: float, seed: int) -> Runs:
    generator = np.random.default_rng(seed)
    params, tokens = 10 ** generator.uniform(7, 10, n), 10 ** generator.uniform(9, 11.5, n)
    loss = law.loss(params, tokens) * np.exp(noise * generator.standard_normal(n))
    values = {"params": params, "tokens": tokens, "compute": flops(params, tokens), "loss": loss}
    return Runs(values, ["all"] * n, list(range(2, n + 2)), [])


@pytest.fixture
def few_starts(monkeypatch):
    """122 of Chinchilla's 4,500 starts. (Every 37th: a multiple of 25 would take one value of the two exponents only.)"""
    form = FORMS["chinchilla"]
    monkeypatch.setitem(FORMS, "chinchilla", dataclasses.replace(form, starts=form.starts[::37]))


@pytest.mark.parametrize("name", FORMS)
def test_derivatives_are_those_of_the_form(name):
    form = FORMS[name]
    generator = np.random.default_rng(0)
    theta = form.starts[generator.integers(0, len(form.starts), 6)] + 0.05
    x = 10 ** generator.uniform(7, 11, (5, len(form.features)))
    value, jacobian = form.predict(theta, x)
    for k in range(theta.shape[1]):
        shift = np.zeros(theta.shape[1])
        shift[k] = 1e-6
        slope = (form.predict(theta + shift, x)[0] - form.predict(theta - shift, x)[0]) / 2e-6
        np.testing.assert_allclose(jacobian[..., k], slope, rtol=1e-4, atol=1e-5)
    assert value.shape == (6, 5)


@pytest.mark.usefixtures("few_starts")
def test_known_constants_come_back_from_runs_without_noise():
    found = fit(runs_of(TRUTH, 60, 0.0, 1), "chinchilla", columns={}, loss="loss", group=None, bootstraps=20)
    constants = {key: each["value"] for key, each in found["groups"]["all"]["constants"].items()}
    for name in ("E", "A", "B", "alpha", "beta"):
        assert constants[name] == pytest.approx(getattr(TRUTH, name), rel=1e-3)
    assert found["groups"]["all"]["held_out"]["relative_error"]["median"] < 1e-4
    json.dumps(found, allow_nan=False)


@pytest.mark.slow
def test_bootstrap_intervals_cover_new_runs():
    form, inside = FORMS["chinchilla"], []
    for seed in range(8):
        mine, new = runs_of(TRUTH, 50, 0.01, seed), runs_of(TRUTH, 40, 0.01, 100 + seed)
        x, log_loss, at = mine.features(form.features), np.log(mine.values["loss"]), new.features(form.features)
        thetas, sums = minimise(form, x, log_loss, form.starts[::203])
        best = thetas[sums.argmin()]
        residuals = log_loss - form.predict(best[None], x)[0][0]
        low, high = interval(form, at, bootstrap(form, x, log_loss, best, 60, seed), residuals, seed)
        inside += ((low <= new.values["loss"]) & (new.values["loss"] <= high)).tolist()
    assert 0.82 <= np.mean(inside) <= 0.97, f"n = {len(inside)}, 8 seeds"


@pytest.mark.usefixtures("few_starts")
def test_warns_where_the_data_cannot_decide():
    mine = runs_of(TRUTH, 8, 0.02, 3)
    tokens = 20 * mine.values["params"]
    values = {**mine.values, "tokens": tokens, "loss": TRUTH.loss(mine.values["params"], tokens)}
    found = fit(Runs(values, mine.group, mine.line, []), "chinchilla", columns={}, loss="l", group=None, bootstraps=30)
    warnings = " ".join(found["groups"]["all"]["warnings"])
    assert "rise together" in warnings and "8 runs for 5 parameters" in warnings


def test_a_law_that_cannot_be_is_said_to_be_none():
    """The loss rises with tokens, and A goes past what a float can hold: a warning, and a law file that JSON can say."""
    line = np.arange(1.0, 9.0)
    values = {"params": line * 1e6, "tokens": (10 - line) * 1e9, "loss": 3 + 0.1 * (9 - line)}
    runs = Runs({**values, "compute": flops(values["params"], values["tokens"])}, ["all"] * 8, list(range(8)), [])
    found = fit(runs, "power-tokens", columns={}, loss="loss", group=None, bootstraps=20)
    json.dumps(found, allow_nan=False)
    assert any("exponent" in each and "not positive" in each for each in found["groups"]["all"]["warnings"])
    for name, form in FORMS.items():
        natural = form.natural(np.full((1, len(form.names)), 1e4))
        assert all(np.isfinite(each).all() for each in natural.values()), name


@pytest.mark.parametrize("law", ["kaplan", "kaplan-steps"])
def test_kaplans_laws_come_back_from_runs_without_noise(law):
    generator = np.random.default_rng(0)
    params, other = (
        10 ** generator.uniform(6, 9, 60),
        10 ** generator.uniform(*((8, 10.5) if law == "kaplan" else (3, 5.5)), 60),
    )
    loss = Kaplan.joint(params, other) if law == "kaplan" else Kaplan.of_steps(params, other)
    x = {"params": params, FORMS[law].features[1]: other, "loss": loss, "compute": params * other}
    found = fit(Runs(x, ["all"] * 60, list(range(60)), []), law, columns={}, loss="loss", group=None, bootstraps=20)
    constants = {key: each["value"] for key, each in found["groups"]["all"]["constants"].items()}
    truth = {"N_c": Kaplan.N_c, "D_c": Kaplan.D_c, "a_N": Kaplan.a_N, "a_D": Kaplan.a_D}
    if law == "kaplan-steps":
        truth = {"N_c": Kaplan.steps_N_c, "S_c": Kaplan.steps_S_c, "a_N": Kaplan.steps_a_N, "a_S": Kaplan.steps_a_S}
    assert constants == pytest.approx(truth, rel=1e-2)


def test_laws_are_fitted_to_a_runs_own_log(tmp_path):
    """metrics.jsonl: the learning curve in steps, and the critical batch out of the gradient noise scale, logged each 10 steps."""
    rows = []
    for step in range(1, 400):
        loss = 40 * step**-0.6 + 2.0
        noise = {"noise_scale": float(Kaplan.critical_batch(loss))} if step % 10 == 0 else {}
        rows.append({"step": step, "loss": loss, **noise})
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run, law = CliRunner().invoke, tmp_path / "law.json"
    asked = ["scale", "fit", str(log), "--loss", "loss", "--out", str(law), "--bootstraps", "20", "--json"]
    curve = json.loads(run(app, [*asked, "--law", "steps", "--steps", "step"]).stdout)["groups"]["all"]["constants"]
    assert (curve["a"]["value"], curve["b"]["value"], curve["c"]["value"]) == pytest.approx((40, -0.6, 2.0), rel=1e-3)
    found = json.loads(run(app, [*asked, "--law", "critical-batch", "--batch", "noise_scale"]).stdout)
    group = found["groups"]["all"]
    assert group["runs"] == 39 and len(found["set_aside"]) == 360 and found["units"]["batch"] == "tokens"
    constants = {name: each["value"] for name, each in group["constants"].items()}
    assert constants == pytest.approx({"B_star": Kaplan.batch_star, "a_B": Kaplan.a_B}, rel=1e-4)
    assert group["held_out"]["relative_error"]["max"] < 1e-4
    predicted = json.loads(
        run(app, ["scale", "predict", str(law), "--runs", str(log), "--loss", "loss", "--json"]).stdout
    )
    assert predicted["relative_error"]["max"] < 1e-4 and predicted["rows"][0]["measured"] == rows[9]["noise_scale"]
    log.write_text('{"step": 1}\n[1]\n')
    assert "is no JSON Lines file" in str(run(app, [*asked, "--law", "steps"]).exception)


def test_isoflop_and_envelope_find_the_exponent():
    rows = [(c, n) for c in (1e18, 1e19, 1e20, 1e21) for n in TRUTH.allocation(c)[0] * 2 ** np.linspace(-2, 2, 7)]
    compute, params = np.array(rows).T
    loss = TRUTH.loss(params, compute / 6 / params)
    runs = Runs({"compute": compute, "params": params, "loss": loss}, ["all"] * len(rows), [0] * len(rows), [])
    a = TRUTH.exponents[0]
    assert allocate(runs, "isoflop", bootstraps=50)["groups"]["all"]["constants"]["a"]["value"] == pytest.approx(
        a, abs=0.01
    )
    grid = [(c, n) for n in np.geomspace(1e8, 1e10, 9) for c in np.geomspace(1e18, 1e23, 60)]
    compute, params = np.array(grid).T
    loss = TRUTH.loss(params, compute / 6 / params)
    runs = Runs({"compute": compute, "params": params, "loss": loss}, ["all"] * len(grid), [0] * len(grid), [])
    found = allocate(runs, "envelope", bootstraps=50)["groups"]["all"]["constants"]["a"]["value"]
    assert found == pytest.approx(a, abs=0.03)


def table(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.usefixtures("few_starts")
def test_the_commands_fit_predict_and_plan(tmp_path):
    mine = runs_of(TRUTH, 40, 0.005, 5)
    rows = [
        dict(zip(("N", "tokens", "val"), row))
        for row in zip(*(mine.values[k].tolist() for k in ("params", "tokens", "loss")))
    ]
    small = table(
        tmp_path / "small.csv",
        [{**row, "set": "x"} for row in [*rows[:30], {**rows[0], "val": ""}, {**rows[0], "N": -1}]],
    )
    large, law = table(tmp_path / "large.csv", [{**row, "set": "x"} for row in rows[30:]]), tmp_path / "law.json"
    run = CliRunner().invoke
    args = ["--loss", "val", "--params", "N", "--group", "set", "--law", "chinchilla", "--out", str(law), "--json"]
    plot = tmp_path / "residuals.svg"
    result = run(app, ["scale", "fit", str(small), *args, "--bootstraps", "100", "--plot", str(plot)])
    assert result.exit_code == 0, result.output
    assert [row["line"] for row in json.loads(law.read_text())["set_aside"]] == [32, 33]
    assert plot.read_text().startswith("<svg") and "FLOPs (6 N D)" in plot.read_text()
    asked = ["scale", "predict", str(law), "--runs", str(large), "--loss", "val"]
    found = json.loads(run(app, [*asked, "--plot", str(plot), "--json"]).output)
    assert "above the prediction" in plot.read_text()
    other = table(tmp_path / "other.csv", [{**row, "set": "y"} for row in rows[30:]])
    refused = run(app, ["scale", "predict", str(law), "--runs", str(other), "--loss", "val"]).exception
    assert str(refused) == "group 'y' was not fitted (known: x)"
    refused = run(app, ["scale", "fit", str(small), *args[:-1], "--law", "isoflop", "--plot", str(plot)]).exception
    assert "no residuals" in str(refused)
    assert found["relative_error"]["median"] < 0.01 and len(found["rows"]) == 10 and 0 <= found["coverage90"] <= 1
    planned = json.loads(
        run(app, ["scale", "plan", "--params", "7B", "--law", str(law), "--price", "2.5", "--json"]).output
    )
    mine = planned["rows"][-1]
    assert mine["law"] == "fitted: x" and mine["low"]["compute"] <= mine["compute"] <= mine["high"]["compute"]
    assert "90%:" in run(app, ["scale", "plan", "--compute", "1e21", "--law", str(law)]).output


def test_bad_tables_are_refused(tmp_path):
    path = table(tmp_path / "runs.csv", [{"params": 1e6, "tokens": 1e9, "loss_val": 3.0}])
    with pytest.raises(Refused, match="did you mean 'loss_val'"):
        read(path, ("params", "tokens"), {}, "los_val")
    runs = read(path, ("params", "tokens"), {}, "loss_val")
    with pytest.raises(Refused, match="1 runs in group 'all'"):
        fit(runs, "chinchilla", columns={}, loss="loss_val", group=None)
    with pytest.raises(Refused, match="no law file"):
        load(path)
    with pytest.raises(Refused, match="no such file"):
        read(tmp_path / "none.csv", ("params",), {}, "loss")
    with pytest.raises(Refused, match="no column 'tokens'"):
        read(table(tmp_path / "few.csv", [{"params": 1, "loss": 1}]), ("params",), {}, "loss", max_warmup=0.5)
    with pytest.raises(Refused, match="a folder"):
        read(tmp_path, ("params",), {}, "loss")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is empty"),
        (b"params,tokens,loss\n", "no run can be used"),
        (b"params;tokens;loss\n1e6;1e9;3\n", "no column 'params'"),
        (b"params,tokens,loss,loss\n1e6,1e9,3,4\n", "2 columns 'loss'; expected one"),
        (b"params,tokens,loss\n1e6,1e9,nan\n", "line 2: loss is nan, not positive"),
        (b"params,tokens,loss\n1e6,1e9,-2\n", "line 2: loss is -2, not positive"),
        (b"params,tokens,loss\n1e6,1e9\n", "line 2: loss is '', not a number"),
        (b"params,tokens,loss\n1e6,1e9,x\n", "line 2: loss is 'x', not a number"),
        (b"\x89PNG\xff\xfe\n", "is no CSV file in UTF-8"),
    ],
)
def test_each_bad_table_is_refused_in_one_message(tmp_path, text, message):
    (tmp_path / "runs.csv").write_bytes(text)
    done = CliRunner().invoke(
        app, ["scale", "fit", str(tmp_path / "runs.csv"), "--loss", "loss", "--out", str(tmp_path / "l")]
    )
    assert isinstance(done.exception, Refused) and message in str(done.exception) and not (tmp_path / "l").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": {}}, "no law file"),
        ({"groups": {"all": {}}}, "no law file"),
        ({"groups": {"all": {"theta": [1.0], "bootstrap": [[1.0]], "residuals": [0.0]}}}, "no law file"),
        ({"columns": None}, "no law file"),
        ({"law": "isoflop"}, "gives the best size and no loss"),
        ({"law": "chinchila"}, "is not known; expected one of chinchilla"),
    ],
)
def test_a_law_file_that_is_not_whole_is_refused(tmp_path, change, message):
    group = {"theta": [20.0, 0.1], "bootstrap": [[20.0, 0.1]], "residuals": [0.0, 0.1]}
    whole = {"law": "power-params", "columns": {}, "group": None, "seed": 0, "groups": {"all": group}}
    (tmp_path / "law.json").write_text(json.dumps(whole))
    assert load(tmp_path / "law.json") == whole
    (tmp_path / "law.json").write_text(json.dumps(whole | change))
    with pytest.raises(Refused, match=message):
        load(tmp_path / "law.json")


def test_the_solver_sums_and_goes_to_the_end():
    runs = runs_of(TRUTH, 60, 0.01, 9)
    form, x, y = FORMS["chinchilla"], runs.features(("params", "tokens")), np.log(runs.values["loss"])
    _, value = minimise(form, x, y, form.starts[::37])
    near = np.sort(value)[: len(value) // 3]
    assert near[-1] == pytest.approx(near[0], rel=1e-3), "a third of the starts end at the same sum"
    assert best(form, x, y)[1] <= near[0] * (1 + 1e-9), "the whole grid, most of it left early"
    truth = [*np.log([TRUTH.A, TRUTH.B, TRUTH.E]), TRUTH.alpha, TRUTH.beta]
    assert value.min() <= minimise(form, x, y, np.array([truth]))[1][0] * (1 + 1e-6)


def test_a_warm_ups_tokens_are_counted_by_their_rate():
    """The integral of min(1, done / warm-up) over a run's tokens."""
    tokens, warmup = np.array([1000.0, 100.0, 1000.0, 60.0]), np.array([0.0, 100.0, 400.0, 120.0])
    summed = [np.minimum(1, (np.arange(n) + 0.5) / max(w, 1e-9)).sum() for n, w in zip(tokens.astype(int), warmup)]
    assert by_rate(tokens, warmup) == pytest.approx(summed)


@pytest.mark.usefixtures("few_starts")
def test_warm_up_is_discounted_in_the_fit_and_in_what_it_predicts(tmp_path):
    """Runs whose loss follows their tokens at the full rate: the fit that counts so finds the law, the other does not."""
    made, generator = runs_of(TRUTH, 48, 0.001, 3), np.random.default_rng(0)
    warmup = np.round(made.values["tokens"] * generator.uniform(0.1, 1.5, 48) / (512 * 2048)) + 1
    rated = by_rate(made.values["tokens"], warmup * 512 * 2048)
    loss = TRUTH.loss(made.values["params"], rated)
    columns = {**made.values, "loss": loss, "warmup": warmup, "global_bs": np.full(48, 512.0)}
    rows = [{name: float(column[i]) for name, column in columns.items()} for i in range(48)]
    path, law = table(tmp_path / "runs.csv", rows), tmp_path / "law.json"
    common = ["scale", "fit", str(path), "--loss", "loss", "--bootstraps", "20", "--out", str(law)]
    errors, run = {}, CliRunner().invoke
    for name, more in (("all", []), ("rate", ["--discount-warmup"])):
        said = run(app, [*common, *more]).output
        assert ("tokens by their rate" in said) == (name == "rate")
        predicted = run(app, ["scale", "predict", str(law), "--runs", str(path), "--loss", "loss", "--json"])
        errors[name] = json.loads(predicted.stdout)["relative_error"]["median"]
    assert errors["rate"] < 1e-3 < errors["all"]
    with pytest.raises(Refused, match="--discount-warmup counts tokens, which law gpt4 does not take"):
        fit_file(path, "gpt4", "loss", law, {}, None, max_warmup=None, sequence_length=2048, discount_warmup=True)


def part(runs: Runs, places: list[int]) -> Runs:
    """Some of the runs."""
    values = {key: column[places] for key, column in runs.values.items()}
    return Runs(values, [runs.group[i] for i in places], [runs.line[i] for i in places], [])


@pytest.mark.slow
@pytest.mark.parametrize(("left_out", "by_rates"), [(0.4, True), (0.2, False)])
def test_openlm_runs_left_out_are_predicted(left_out, by_rates):
    """Two splits of those in docs/scaling.md: parameters without embeddings, the two fifths of most compute left out, warm-up
    counted by its rate; and the fifth, all tokens counted. Other splits miss by 1 to 6% in the median, and the page says so."""
    data = os.environ.get("LMLAB_DATA")
    if not data or not (Path(data) / "scaling_openlm/runs.csv").is_file():
        pytest.skip("LMLAB_DATA does not name a folder with scaling_openlm/runs.csv")
    columns, path = {"params": "params_no_embed"}, Path(data) / "scaling_openlm/runs.csv"
    runs = read(path, ("params", "tokens"), columns, "loss_c4_val", "train_set", discount_warmup=by_rates)
    assert len(runs.line) == 65 and not runs.set_aside
    small, large = [], []
    for name in sorted(set(runs.group)):
        places = [i for i, each in enumerate(runs.group) if each == name]
        places.sort(key=lambda i: runs.values["compute"][i])
        cut = round((1 - left_out) * len(places))
        small, large = small + places[:cut], large + places[cut:]
    fitted = {"columns": columns, "loss": "loss_c4_val", "group": "train_set"}
    law = fit(part(runs, small), "chinchilla", **fitted, bootstraps=200)
    found = predict(law, part(runs, large))
    print(found["relative_error"], found["coverage90"], found["runs"])
    assert found["relative_error"]["median"] < 0.01
    assert found["coverage90"] >= 0.75, "measured 23 of 26, and 13 of 13: wider than a 90% interval should be"
