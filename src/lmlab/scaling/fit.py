"""Fitting a law to runs, one a group, with bootstrap intervals, and predicting by it.

A prediction's interval joins two uncertainties: the parameters' (runs resampled, the law fitted again) and a single run's
(residuals resampled, widened by sqrt(n / (n - P)) for the P parameters that were fitted to them).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lmlab.errors import Refused, nearest
from lmlab.scaling.approaches import APPROACHES
from lmlab.scaling.forms import FORMS, Form
from lmlab.scaling.solve import DELTA, best, minimise
from lmlab.scaling.table import UNITS, Runs

HELD_OUT = 0.2
"""Share of a group's runs, those of most compute, that the held-out error leaves out."""
FALLS = ("alpha", "beta", "exponent", "a_N", "a_D", "a_S", "a_B")
"""Exponents by which the loss falls where they are positive."""
STEEPEST = 3.0
"""Published exponents lie below 1, that of steps too."""
INTERVAL = (5.0, 95.0)


def fit(
    runs: Runs,
    law: str,
    *,
    columns: Mapping[str, str],
    loss: str,
    group: str | None,
    bootstraps: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """The law file's content. Refused where a group has no more runs than the law has parameters."""
    form = FORMS[law]
    groups = {}
    for name in sorted(set(runs.group)):
        mine = runs.of(name)
        if len(mine.line) <= len(form.names):
            raise Refused(
                f"{law}: {len(mine.line)} runs in group '{name}', and the law has {len(form.names)} parameters; "
                f"give at least {len(form.names) + 1}, better 3 times as many"
            )
        groups[name] = _fit_group(form, mine, bootstraps, seed)
    return {
        "law": law,
        "loss": loss,
        "group": group,
        "columns": {name: columns.get(name, name) for name in form.needed},
        "units": {name: UNITS[name] for name in (*form.needed, "loss")},
        "delta": DELTA,
        "seed": seed,
        "set_aside": runs.set_aside,
        "groups": groups,
    }


def bootstrap(form: Form, x: np.ndarray, log_loss: np.ndarray, theta: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(count, P): the law fitted to runs drawn with replacement, each descent from `theta`."""
    n = len(x)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=count).astype(float)
    return minimise(form, x, log_loss, np.repeat(theta[None], count, 0), weights, rounds=200)[0]


def interval(
    form: Form, x: np.ndarray, thetas: np.ndarray, residuals: np.ndarray, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) of the loss of one new run at each x, 90%."""
    generator = np.random.default_rng(seed + 1)
    wide = residuals * np.sqrt(len(residuals) / max(1, len(residuals) - len(form.names)))
    noise = generator.choice(wide, size=(len(thetas), len(x)))
    low, high = np.percentile(form.predict(thetas, x)[0] + noise, INTERVAL, axis=0)
    return np.exp(low), np.exp(high)


def _fit_group(form: Form, runs: Runs, bootstraps: int, seed: int) -> dict[str, Any]:
    x, log_loss = runs.features(form.features), np.log(runs.values[form.target])
    theta, value = best(form, x, log_loss)
    thetas = bootstrap(form, x, log_loss, theta, bootstraps, seed)
    residuals = log_loss - form.predict(theta[None], x)[0][0]
    natural, spread = form.natural(theta[None]), form.natural(thetas)
    constants = {}
    for name, found in natural.items():
        low, high = np.percentile(spread[name], INTERVAL)
        constants[name] = {"value": float(found[0]), "low": float(low), "high": float(high)}
    return {
        "runs": len(x),
        "constants": constants,
        "objective": value,
        "theta": theta.tolist(),
        "bootstrap": [[float(f"{each:.8g}") for each in row] for row in thetas],
        "residuals": residuals.tolist(),
        "lines": runs.line,
        "x": x.tolist(),
        "range": {name: [float(column.min()), float(column.max())] for name, column in zip(form.features, x.T)},
        "held_out": _held_out(form, runs, min(bootstraps, 200), seed),
        "warnings": _warnings(form, x, constants),
    }


def _held_out(form: Form, runs: Runs, bootstraps: int, seed: int) -> dict[str, Any] | None:
    """The law fitted without the runs of most compute (of most of its first quantity where compute is unknown, of the least
    loss where that is the quantity), on them."""
    size = runs.values.get("compute", runs.values[form.features[0]])
    order = np.argsort(size if form.target == "loss" else -runs.values["loss"], kind="stable")
    kept = min(len(order) - 1, round((1 - HELD_OUT) * len(order)))
    if kept <= len(form.names):
        return None
    x, loss = runs.features(form.features), runs.values[form.target]
    small, large = order[:kept], order[kept:]
    theta, _ = best(form, x[small], np.log(loss[small]))
    thetas = bootstrap(form, x[small], np.log(loss[small]), theta, bootstraps, seed)
    residuals = np.log(loss[small]) - form.predict(theta[None], x[small])[0][0]
    low, high = interval(form, x[large], thetas, residuals, seed)
    error = np.abs(np.exp(form.predict(theta[None], x[large])[0][0]) / loss[large] - 1)
    covered = (low <= loss[large]) & (loss[large] <= high)
    return {
        "fitted": kept,
        "held_out": len(large),
        "relative_error": {"median": float(np.median(error)), "max": float(error.max())},
        "coverage90": float(covered.mean()),
    }


def _warnings(form: Form, x: np.ndarray, constants: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Where the data cannot decide. The limits are judgement: half the value for an exponent, a quarter for E."""
    found = []
    if len(x) < 3 * len(form.names):
        found.append(f"{len(x)} runs for {len(form.names)} parameters: give at least {3 * len(form.names)}")
    for name, each in constants.items():
        limit = 0.25 if name in ("E", "c") else 0.5
        wide = (each["high"] - each["low"]) / max(abs(each["value"]), 1e-12)
        if name in ("E", "c", "b", *FALLS) and wide > limit:
            found.append(
                f"{name} = {each['value']:.3g} is not decided by these runs: 90% interval {each['low']:.3g} to {each['high']:.3g}"
            )
        if name in FALLS and each["value"] <= 0:
            found.append(
                f"{name} = {each['value']:.3g} is not positive: by these runs the loss does not fall with more of it"
            )
        elif name in FALLS and each["value"] > STEEPEST:
            found.append(
                f"{name} = {each['value']:.3g} is steeper than any law known: its term fits a few runs, and says nothing"
            )
    if x.shape[1] == 2:
        logs = np.log(x)
        if min(len(np.unique(logs[:, i])) for i in range(2)) < 3:
            found.append("fewer than 3 different values of one quantity: its exponent and E cannot be told apart")
        elif abs(together := np.corrcoef(logs.T)[0, 1]) > 0.95:
            how = (
                "rise together (correlation above 0.95)"
                if together > 0
                else "go opposite ways (correlation below -0.95)"
            )
            found.append(f"{' and '.join(form.features)} {how}: their terms cannot be told apart")
    for name, column in zip(form.features, x.T):
        if name != "loss" and column.max() < 10 * column.min():
            found.append(f"{name} spans less than a factor of 10")
    return found


def load(path: Path, others: Collection[str] = ()) -> dict[str, Any]:
    """A law file; Refused where it is none, or not whole. `others` are laws that are no form for the loss, with two
    parameters."""
    expected = f"{path}: no law file; expected what lmlab scale fit --out wrote"
    try:
        law = json.loads(path.read_text(encoding="utf-8"))
        name = law["law"]
        if name not in {*FORMS, *others}:
            why = "gives the best size and no loss" if name in APPROACHES else "is not known"
            raise Refused(f"{path}: law '{name}' {why}; expected one of {', '.join([*FORMS, *others])}")
        size = len(FORMS[name].names) if name in FORMS else 2
        numbers = [[group["theta"], *group["bootstrap"]] for group in law["groups"].values()]
        whole = all(np.isfinite(np.array(each, float)).all() and np.shape(each)[1:] == (size,) for each in numbers)
        if name in FORMS:
            whole &= isinstance(law["columns"], dict) and {"group", "seed"} <= law.keys()
            whole &= all(len(group["residuals"]) > 0 for group in law["groups"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise Refused(expected) from None
    if not (numbers and whole):
        raise Refused(expected)
    return law


def predict(law: Mapping[str, Any], runs: Runs) -> dict[str, Any]:
    """Predicted against measured: `relative_error`, `coverage90`, `rows` with `line`, `group`, `predicted`, `low`,
    `high`, `measured`, `relative_error`. Refused where a group was not fitted."""
    form = FORMS[law["law"]]
    rows: list[dict[str, Any]] = []
    for name in sorted(set(runs.group)):
        if name not in law["groups"]:
            raise Refused(f"group '{name}' was not fitted{nearest(name, law['groups'])}")
        fitted, mine = law["groups"][name], runs.of(name)
        x = mine.features(form.features)
        low, high = interval(form, x, np.array(fitted["bootstrap"]), np.array(fitted["residuals"]), law["seed"])
        value = np.exp(form.predict(np.array(fitted["theta"])[None], x)[0][0])
        for line, at, guess, bottom, top, loss in zip(mine.line, x, value, low, high, mine.values[form.target]):
            error = abs(guess / loss - 1)
            rows.append(
                {
                    "line": line,
                    "group": name,
                    **dict(zip(form.features, at.tolist())),
                    "predicted": float(guess),
                    "low": float(bottom),
                    "high": float(top),
                    "measured": float(loss),
                    "relative_error": float(error),
                    "inside": bool(bottom <= loss <= top),
                }
            )
    errors = [row["relative_error"] for row in rows]
    return {
        "law": law["law"],
        "runs": len(rows),
        "relative_error": {"median": float(np.median(errors)), "max": float(np.max(errors))},
        "coverage90": float(np.mean([row["inside"] for row in rows])),
        "set_aside": runs.set_aside,
        "rows": rows,
    }
