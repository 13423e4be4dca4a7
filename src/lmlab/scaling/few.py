"""The loss over compute from few runs: every curve that the runs allow, weighed by how well it fits, instead of one and its
resamples (of six runs a resample has four on average, and three constants go through three of them exactly).

    log of a run's loss = log(c + a C^-b) + noise,   a > 0, b > 0

    power-above   c >= 0
    power         c = 0
    power-any     any c: below 0 the curve bends down in log L over log C, as it does where the runs are so short that they
                  have hardly begun to learn; it has no floor, so it reaches less far

The prior is flat in the losses at the first and at the last budget and in b. Given b the curve is linear in those two
losses, so its posterior is a regression's, and b is summed over a grid (Gelman et al., Bayesian Data Analysis, 3rd ed.,
14.2); draws of curves that rise, or with a c that the law forbids, are thrown away. The noise is what the fit leaves, with
a prior worth two runs, since three or four residuals say little about a variance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lmlab.errors import Failed
from lmlab.scaling.fit import INTERVAL

Law = Literal["power-above", "power", "power-any"]
LAWS: tuple[Law, ...] = ("power-above", "power", "power-any")
EXPONENTS = np.linspace(0.01, 1.0, 100)
"""Of b. Published exponents of compute are 0.05 (2001.08361, c = 0) to 0.2 (2203.15556, c > 0)."""
PRIOR_RUNS = 2.0
PRIOR_NOISE = 0.004
"""The noise of one run, relative: guessed, and about what the shipped ladder leaves around its curves (docs/scaling.md)."""


@dataclass(frozen=True)
class Draws:
    """Curves drawn from the posterior, one an entry: L(C) = c + (top - c) (C / first)^-b, and the noise of a run, relative."""

    first: float
    top: np.ndarray
    c: np.ndarray
    b: np.ndarray
    noise: np.ndarray

    def curve(self, compute: float) -> np.ndarray:
        """(draws,) losses without noise."""
        return self.c + (self.top - self.c) * (compute / self.first) ** -self.b

    def predict(self, compute: float, seed: int = 0) -> dict[str, float]:
        """The median and the 90% interval of one new run's loss: the curve's uncertainty and a run's noise together."""
        generator = np.random.default_rng(seed + 1)
        losses = self.curve(compute) * np.exp(self.noise * generator.standard_normal(len(self.noise)))
        low, high = np.percentile(losses, INTERVAL)
        return {"predicted": float(np.median(losses)), "low": float(low), "high": float(high)}

    def constants(self) -> dict[str, dict[str, float]]:
        """a, b, c and the noise: medians and 90% intervals. a is the part above c at the first budget, in the loss's unit."""
        named = {"a": self.top - self.c, "b": self.b, "c": self.c, "noise": self.noise}
        ends = {name: np.percentile(each, (50, *INTERVAL)) for name, each in named.items()}
        return {name: dict(zip(("value", "low", "high"), map(float, each))) for name, each in ends.items()}


def posterior(
    compute: np.ndarray, loss: np.ndarray, law: Law = "power-above", count: int = 20_000, seed: int = 0
) -> Draws:
    """Curves through runs of growing compute (n,) and loss (n,), n >= 2. With two runs the interval is the prior's. Raises Failed
    where no curve that falls goes near them."""
    generator = np.random.default_rng(seed)
    if law != "power":
        found = _allowed(_above(compute, loss, count, generator), law)
        if len(found.b) >= count / 100:
            return found
    found = _allowed(_plain(compute, loss, count, generator), law)  # runs that bend down leave c >= 0 its edge, c = 0
    if not len(found.b):
        raise Failed(
            f"law {law}: no curve that falls goes near these losses: {', '.join(f'{each:.4f}' for each in loss)}"
        )
    return found


def _allowed(made: Draws, law: Law) -> Draws:
    keep = (made.top > made.c) & (made.b > 0) & ((made.c >= 0) | (law == "power-any"))
    return Draws(made.first, made.top[keep], made.c[keep], made.b[keep], made.noise[keep])


def _regress(x_NP: np.ndarray, y_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, float]:
    """(estimate, its covariance at unit noise, the variance's sum of squares, its degrees of freedom), prior included."""
    inner = np.linalg.inv(x_NP.T @ x_NP)
    estimate = inner @ x_NP.T @ y_N
    residual = y_N - x_NP @ estimate
    squares = float(residual @ residual) + PRIOR_RUNS * PRIOR_NOISE**2
    return estimate, inner, squares, len(y_N) - x_NP.shape[1] + PRIOR_RUNS


def _draw(found: tuple[np.ndarray, np.ndarray, float, float], count: int, generator: np.random.Generator) -> Any:
    """(theta (count, P), noise (count,)) of a regression's posterior."""
    estimate, inner, squares, freedom = found
    noise = np.sqrt(squares / generator.chisquare(freedom, count))
    spread = generator.standard_normal((count, len(estimate))) @ np.linalg.cholesky(inner).T
    return estimate + noise[:, None] * spread, noise


def _plain(compute: np.ndarray, loss: np.ndarray, count: int, generator: np.random.Generator) -> Draws:
    """c = 0: a line in log L over log C, by its logarithms at both ends."""
    share = np.log(compute / compute[-1]) / np.log(compute[0] / compute[-1])
    theta, noise = _draw(_regress(np.stack([share, 1 - share], 1), np.log(loss)), count, generator)
    b = (theta[:, 0] - theta[:, 1]) / np.log(compute[-1] / compute[0])
    return Draws(float(compute[0]), np.exp(theta[:, 0]), np.zeros(count), b, noise)


def _above(compute: np.ndarray, loss: np.ndarray, count: int, generator: np.random.Generator) -> Draws:
    """Residuals are relative: rows are divided by the measured loss."""
    ends = compute[0] ** -EXPONENTS, compute[-1] ** -EXPONENTS
    fits, weights = [], []
    for place, b in enumerate(EXPONENTS):
        share = (compute**-b - ends[1][place]) / (ends[0][place] - ends[1][place])
        fits.append(_regress(np.stack([share, 1 - share], 1) / loss[:, None], np.ones(len(loss))))
        weights.append(0.5 * np.linalg.slogdet(fits[-1][1])[1] - fits[-1][3] / 2 * np.log(fits[-1][2]))
    odds = np.exp(np.array(weights) - max(weights))
    chosen = generator.multinomial(count, odds / odds.sum())
    drawn = [_draw(fit, many, generator) for fit, many in zip(fits, chosen)]
    theta, noise = np.concatenate([each[0] for each in drawn]), np.concatenate([each[1] for each in drawn])
    b = np.repeat(EXPONENTS, chosen)
    fallen = (compute[-1] / compute[0]) ** -b
    c = (theta[:, 1] - theta[:, 0] * fallen) / (1 - fallen)
    return Draws(float(compute[0]), theta[:, 0], c, b, noise)


def rehearse(compute: np.ndarray, loss: np.ndarray, law: Law = "power-above", seed: int = 0) -> list[dict[str, Any]]:
    """The law tried among the runs themselves: each run is predicted by those of at most half of its compute, where these are
    at least three. Rows of compute, runs fitted, predicted, low, high, measured, relative_error, inside."""
    rows = []
    for place in range(len(compute)):
        before = compute <= compute[place] / 2
        if before.sum() >= 3:
            found = posterior(compute[before], loss[before], law, 4000, seed).predict(compute[place], seed)
            rows.append(
                {"compute": float(compute[place]), "fitted": int(before.sum()), **judge(found, float(loss[place]))}
            )
    return rows


def rehearsal_errors(compute: np.ndarray, loss: np.ndarray) -> dict[str, dict[str, float]]:
    """Of each law the mean and the root mean square of its rehearsal's relative errors; none where there are too few runs."""
    errors = {law: np.array([row["relative_error"] for row in rehearse(compute, loss, law)]) for law in LAWS}
    return {
        law: {"mean": float(each.mean()), "rms": float(np.sqrt(np.mean(each**2)))}
        for law, each in errors.items()
        if len(each)
    }


def judge(predicted: dict[str, float], measured: float) -> dict[str, Any]:
    """A prediction beside what was measured: also `relative_error` (predicted / measured - 1), `width` of the interval as a
    share of the prediction, and whether the measurement is `inside`."""
    return {
        **predicted,
        "width": (predicted["high"] - predicted["low"]) / predicted["predicted"],
        "measured": measured,
        "relative_error": predicted["predicted"] / measured - 1,
        "inside": predicted["low"] <= measured <= predicted["high"],
    }
