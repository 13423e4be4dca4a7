"""Planning: one of compute, parameters, tokens or loss given, the other three by each law, and what that costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lmlab.device.hardware import find
from lmlab.errors import Refused
from lmlab.scaling.forms import FORMS
from lmlab.scaling.laws import CHINCHILLA, PF_DAY, Chinchilla, Kaplan

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
    """`given` is one of QUANTITIES; `law` a law file of the law chinchilla or overtraining. `price` is dollars an hour of
    one GPU. Rows: `law`, the four quantities, `low` and `high` (90%, of a law file; published laws come without the draws
    that an interval needs), `tokens_per_param`, `days`, `dollars`."""
    if len(given) != 1:
        raise Refused(f"plan: give exactly one of --compute, --params, --tokens, --loss; found {len(given)}")
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
        if not np.isfinite(row["compute"]) or row["compute"] <= 0:
            row.update(dict.fromkeys(QUANTITIES), **{name: value}, note="this law reaches no such loss")
            continue
        row["tokens_per_param"] = row["tokens"] / row["params"]
        row["days"] = row["compute"] / speed / 86400
        row["dollars"] = None if price is None else row["days"] * 24 * gpus * price
    return {
        "given": {name: value},
        "gpu": gpu, "gpus": gpus, "utilisation": utilisation, "price": price, "peak_flops": peak,
        "rows": rows,
    }  # fmt: skip


def _fitted(name: str, group: Mapping[str, Any], law: str, given: str, value: float) -> dict[str, Any]:
    if law not in ("chinchilla", "overtraining"):
        raise Refused(f"plan: a law file of '{law}' gives no best size; fit --law chinchilla or overtraining")

    def laws(theta: np.ndarray) -> list[Chinchilla]:
        natural = FORMS[law].natural(theta)
        return [
            Chinchilla(*row) for row in np.stack([natural[k] for k in ("E", "A", "B", "alpha", "beta")], 1).tolist()
        ]

    (best,) = laws(np.array(group["theta"])[None])
    # a resample whose exponent is not positive knows no best size: it is left out, and counted
    draws = [each for each in laws(np.array(group["bootstrap"][:DRAWS])) if min(each.alpha, each.beta) > 0]
    found = [by_chinchilla(each, given, value) for each in draws]
    ends = {}
    for quantity in QUANTITIES:
        known = [each[quantity] for each in found if np.isfinite(each[quantity])]
        ends[quantity] = np.percentile(known, (5, 95)).tolist() if len(known) > 10 else [None, None]
    return {
        "law": f"fitted: {name}",
        **(by_chinchilla(best, given, value) if min(best.alpha, best.beta) > 0 else {"compute": float("inf")}),
        "low": {quantity: each[0] for quantity, each in ends.items()},
        "high": {quantity: each[1] for quantity, each in ends.items()},
        "draws_without": min(DRAWS, len(group["bootstrap"])) - int(sum(np.isfinite(each["compute"]) for each in found)),
    }
