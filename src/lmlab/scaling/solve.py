"""Least summed Huber loss of residuals in log L, for many starts or many resamples at once.

Each round is a damped Gauss-Newton step on the squares that lie above the Huber loss and touch it (weights 1 and
delta / |r|), so that the sum falls in every accepted round; vectors that do not improve raise their own damping. The terms
are summed and not averaged, and rounds go on until nothing moves: averaging them and stopping early is what put
Chinchilla's printed constants off (2404.10102).
"""

from __future__ import annotations

import numpy as np

from lmlab.scaling.forms import Form

DELTA = 1e-3
"""Chinchilla's. Larger lets runs of little compute rule the fit."""


def huber(residuals: np.ndarray, weights: np.ndarray, delta: float = DELTA) -> np.ndarray:
    """(S, n) residuals and weights -> (S,) sums."""
    size = np.abs(residuals)
    return (weights * np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))).sum(-1)


def minimise(
    form: Form,
    x: np.ndarray,
    log_loss: np.ndarray,
    theta: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    rounds: int = 400,
    tolerance: float = 1e-10,
    delta: float = DELTA,
) -> tuple[np.ndarray, np.ndarray]:
    """(theta (S, P), sums (S,)) after descending from each of `theta`. `weights` (S, n) count each run (a resample)."""
    theta = np.array(theta, dtype=float)
    weights = np.ones((1, len(x))) if weights is None else weights
    weights = np.broadcast_to(weights, (len(theta), len(x)))
    predicted, jacobian = form.predict(theta, x)
    value = huber(predicted - log_loss, weights, delta)
    damping = np.full(len(theta), 1e-2)
    still = np.zeros(len(theta), dtype=int)
    active = np.arange(len(theta))
    for _ in range(rounds):
        if not len(active):
            break
        residual = predicted[active] - log_loss
        squares = weights[active] * np.minimum(1.0, delta / np.maximum(np.abs(residual), 1e-300))
        weighted = jacobian[active] * squares[..., None]
        gradient = np.einsum("snp,sn->sp", weighted, residual)
        curvature = np.einsum("snp,snq->spq", weighted, jacobian[active])
        diagonal = np.einsum("spp->sp", curvature)
        scale = np.maximum(diagonal, 1e-12 * diagonal.max(-1, keepdims=True) + 1e-300)
        curvature[:, np.arange(theta.shape[1]), np.arange(theta.shape[1])] += damping[active, None] * scale
        step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
        trial = theta[active] - step
        with np.errstate(all="ignore"):
            new_predicted, new_jacobian = form.predict(trial, x)
            new_value = huber(new_predicted - log_loss, weights[active], delta)
        better = np.isfinite(new_value) & np.isfinite(new_jacobian).all((1, 2)) & (new_value < value[active])
        gained = np.where(better, (value[active] - new_value) / np.maximum(value[active], 1e-300), 0.0)
        moved = active[better]
        theta[moved], value[moved] = trial[better], new_value[better]
        predicted[moved], jacobian[moved] = new_predicted[better], new_jacobian[better]
        damping[active] = np.where(better, damping[active] * 0.3, damping[active] * 4).clip(1e-12, 1e12)
        still[active] = np.where(gained > tolerance, 0, still[active] + 1)
        active = active[(still[active] < 12) & (damping[active] < 1e11)]
    return theta, value


def best(
    form: Form, x: np.ndarray, log_loss: np.ndarray, *, keep: int = 64, delta: float = DELTA
) -> tuple[np.ndarray, float]:
    """(theta (P,), sum) of the least sum over the form's whole grid of starts: all descend a little, the most promising to
    the end. Double precision throughout."""
    theta, value = minimise(form, x, log_loss, form.starts, rounds=25, delta=delta)
    order = np.argsort(np.where(np.isfinite(value), value, np.inf))[:keep]
    theta, value = minimise(form, x, log_loss, theta[order], rounds=3000, tolerance=1e-13, delta=delta)
    place = int(np.argmin(value))
    return theta[place], float(value[place])
