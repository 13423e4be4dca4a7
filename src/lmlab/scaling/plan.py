"""Planning: one of compute, parameters, tokens or loss given, the other three by each law, and what that costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lmlab.device.hardware import find
from lmlab.errors import Refused
from lmlab.scaling.approaches import APPROACHES
from lmlab.scaling.forms import FORMS
from lmlab.scaling.laws import CHINCHILLA, PF_DAY, Chinchilla, Joint, Kaplan

QUANTITIES = ("compute", "params", "tokens", "loss")
DRAWS = 300
"""Bootstrapped laws that a plan's intervals come from."""


def by_chinchilla(law: Chinchilla, given: str, value: float) -> dict[str, float]:
    """The compute-optimal plan; infinite or not a number where the law knows none (a loss at or below E)."""
    find: dict[str, Callable[[float], Any]] = {
        "compute": float,
        "params": law.compute_of_params,
        "tokens": law.compute_of_tokens,
        "loss": law.compute_of_loss,
    }
    with np.errstate(all="ignore"):
        compute = float(find[given](value))
        params, tokens = law.allocation(compute)
        loss = law.loss(params, tokens)
    return {"compute": compute, "params": float(params), "tokens": float(tokens), "loss": float(loss)}


def by_kaplan(given: str, value: float) -> dict[str, float]:
    """Kaplan's: parameters without embeddings. Compute is C_min, that of a batch well below the critical one."""
    one = {name: float(each) for name, each in Kaplan.allocation(1.0).items()}
    find: dict[str, Callable[[float], Any]] = {
        "compute": lambda x: x / PF_DAY,
        "params": lambda x: (x / one["params"]) ** (1 / 0.73),
        "tokens": lambda x: (x / one["tokens"]) ** (1 / 0.27),
        "loss": Kaplan.of_compute.inverse,
    }
    days = float(find[given](value))
    best = Kaplan.allocation(days)
    return {
        "compute": days * PF_DAY,
        "params": float(best["params"]),
        "tokens": float(best["tokens"]),
        "loss": float(Kaplan.of_compute.loss(days)),
    }


def plan(
    given: Mapping[str, float],
    law: Mapping[str, Any] | None = None,
    *,
    gpu: str = "h100",
    gpus: int = 8,
    utilisation: float = 0.4,
    price: float | None = None,
) -> dict[str, Any]:
    """`given` is one of QUANTITIES; `law` a law file, of any law but those of steps and batches. `price` is dollars an hour of one
    GPU. Rows: `law`, the four quantities (None where the law knows one of them not), `low` and `high` (90%, of a law file;
    published laws come without the draws that an interval needs), `tokens_per_param`, `days`, `dollars`, and a `note` where
    there is no answer."""
    if len(given) != 1:
        raise Refused(f"plan: give exactly one of --compute, --params, --tokens, --loss; found {len(given)}")
    if law and law["law"] in FORMS and {"steps", "batch"} & {*FORMS[law["law"]].needed}:
        raise Refused(f"plan: a law of steps or batches, '{law['law']}', answers none of {', '.join(QUANTITIES)}")
    peak = find(gpu).peak["bfloat16"]
    if not 0 < utilisation <= 1 or gpus < 1 or (price is not None and price < 0):
        raise Refused("plan: --utilisation lies in (0, 1], --gpus is at least 1, --price is not negative")
    ((name, value),) = given.items()
    rows: list[dict[str, Any]] = [
        {"law": f"chinchilla {key}", **by_chinchilla(each, name, value)} for key, each in CHINCHILLA.items()
    ]
    rows.append({"law": "kaplan", **by_kaplan(name, value)})
    rows += [_fitted(key, group, law["law"], name, value) for key, group in law["groups"].items()] if law else []
    speed = peak * utilisation * gpus
    for row in rows:
        known = {quantity: row.pop(quantity) for quantity in QUANTITIES if quantity in row}
        row.update(dict.fromkeys(QUANTITIES) | {name: value})
        if not known:
            row["note"] = f"this law gives no answer from {name}"
        elif not all(0 < each < np.inf for each in known.values()):
            row["note"] = "this law reaches no such loss"
        else:
            row.update(known)
        both = row["params"] and row["tokens"]
        row["tokens_per_param"] = row["tokens"] / row["params"] if both else None
        row["days"] = row["compute"] / speed / 86400 if row["compute"] and "note" not in row else None
        row["dollars"] = None if price is None or row["days"] is None else row["days"] * 24 * gpus * price
    return {
        "given": {name: value},
        "gpu": gpu, "gpus": gpus, "utilisation": utilisation, "price": price, "peak_flops": peak,
        "rows": rows,
    }  # fmt: skip


Solve = Callable[[str, float], dict[str, float]]
"""(the quantity given, its value) to the quantities that a law knows then; empty where it knows nothing of the one given."""


def solver(law: str, theta: Sequence[float]) -> Solve | None:
    """How a fitted law answers; None where these parameters know no best size, an exponent of them not being positive.

    chinchilla, overtraining, kaplan: all four quantities. envelope, isoflop: compute, params and tokens. The laws of one quantity:
    that one and the loss.
    """
    if law in APPROACHES:
        log_k, a = theta
        return (lambda given, value: by_power(log_k, a, given, value)) if 0 < a < 1 else None
    natural = {name: each[0] for name, each in FORMS[law].natural(np.array([theta])).items()}
    if law in ("chinchilla", "overtraining", "kaplan"):
        best = Joint.of(**natural) if law == "kaplan" else Chinchilla(**natural)
        known = min(best.alpha, best.beta) > 0 and (not isinstance(best, Joint) or best.a_D > 0)
        return (lambda given, value: by_chinchilla(best, given, value)) if known else None
    (x,) = FORMS[law].features
    if law == "gpt4":
        log_a, b, c = theta[0], theta[1], natural["c"]
    else:
        log_a, b, c = theta[0] * theta[1], theta[1], 0.0
    return (lambda given, value: by_one(x, log_a, b, c, given, value)) if b > 0 else None


def by_power(log_k: float, a: float, given: str, value: float) -> dict[str, float]:
    """N_opt = k C^a and D_opt = C / (6 N_opt): the best size without a form for the loss."""
    if given == "loss":
        return {}
    log_d, b = -log_k - np.log(6.0), 1 - a
    logs = {"compute": (0.0, 1.0), "params": (log_k, a), "tokens": (log_d, b)}
    log_c = (np.log(value) - logs[given][0]) / logs[given][1]
    return {name: float(np.exp(np.clip(height + slope * log_c, -700, 700))) for name, (height, slope) in logs.items()}


def by_one(x: str, log_a: float, b: float, c: float, given: str, value: float) -> dict[str, float]:
    """L = c + a x^-b: `x` and the loss, each from the other; infinite at or below c."""
    if given == x:
        return {x: value, "loss": float(c + np.exp(log_a - b * np.log(value)))}
    if given != "loss":
        return {}
    return {x: float(np.exp(min(700.0, (log_a - np.log(value - c)) / b))) if value > c else np.inf, "loss": value}


def _fitted(name: str, group: Mapping[str, Any], law: str, given: str, value: float) -> dict[str, Any]:
    """The row of a law file's group. An end of an interval is None where it has no bound: more than a twentieth of the
    resampled laws never reach the loss."""
    with np.errstate(all="ignore"):
        best = solver(law, group["theta"])
        row: dict[str, Any] = {"law": f"fitted: {name}", **(best(given, value) if best else {})}
        if not row.keys() & set(QUANTITIES):
            return row
        # a resample whose exponent is not positive knows no best size: it is left out, and counted
        solvers = [solver(law, theta) for theta in group["bootstrap"][:DRAWS]]
        found = [solve(given, value) for solve in solvers if solve is not None]
    low, high = {}, {}
    for quantity in (each for each in QUANTITIES if each in row and each != given):
        values = [each[quantity] if np.isfinite(each[quantity]) else np.inf for each in found]
        ends = np.percentile(values, (5, 95), method="nearest").tolist() if len(values) > 10 else [np.inf, np.inf]
        low[quantity], high[quantity] = (end if np.isfinite(end) else None for end in ends)
    return {**row, "low": low, "high": high, "draws_without": len(solvers) - len(found)}
