"""The forms that can be fitted: log L and its derivatives in the parameters, for many parameter vectors at once.

A form's parameters are unconstrained: scales enter by their logarithms. Shapes: theta (S, P), x (n, F), log L (S, n),
Jacobian (S, n, P).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Predict = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Form:
    """`features` are the columns it needs, `names` its parameters, `starts` a grid of beginnings, `natural` turns theta
    (S, P) into the constants as papers print them."""

    features: tuple[str, ...]
    names: tuple[str, ...]
    predict: Predict
    starts: np.ndarray
    natural: Callable[[np.ndarray], dict[str, np.ndarray]]
    target: str = "loss"
    """The quantity that the form is of. A law's "log L" is the logarithm of it."""

    @property
    def needed(self) -> tuple[str, ...]:
        """The quantities beside the loss."""
        return tuple(name for name in (*self.features, self.target) if name != "loss")


def _grid(*axes: Sequence[float]) -> np.ndarray:
    return np.array(list(itertools.product(*axes)), dtype=float)


def _sum_of_exponentials(terms: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """log of the sum of exp(terms), and each term's share of the sum."""
    stacked = np.stack(terms)
    largest = stacked.max(0)
    powers = np.exp(stacked - largest)
    total = powers.sum(0)
    return np.log(total) + largest, list(powers / total)


def _chinchilla(theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log L = LSE(a - alpha log N, b - beta log D, e), theta = (a, b, e, alpha, beta)."""
    a, b, e, alpha, beta = (theta[:, i, None] for i in range(5))
    log_n, log_d = np.log(x[:, 0]), np.log(x[:, 1])
    found, (first, second, third) = _sum_of_exponentials(
        [a - alpha * log_n, b - beta * log_d, np.broadcast_to(e, (len(theta), len(x)))]
    )
    return found, np.stack([first, second, third, -first * log_n, -second * log_d], -1)


def _tied(theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Chinchilla's with one exponent for both: L = E + A / N^eta + B / D^eta (Gadre et al., 2403.08540), theta = (a, b, e, eta)."""
    found, jacobian = _chinchilla(np.concatenate([theta, theta[:, 3:4]], 1), x)
    return found, np.concatenate([jacobian[..., :3], jacobian[..., 3:4] + jacobian[..., 4:5]], -1)


def _kaplan(theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log L = a_D LSE((a_N / a_D)(n - log N), d - log D), theta = (n, d, a_N, a_D): the joint law of 2001.08361."""
    n, d, a_n, a_d = (theta[:, i, None] for i in range(4))
    log_n, log_d = np.log(x[:, 0]), np.log(x[:, 1])
    ratio = a_n / a_d
    total, (first, second) = _sum_of_exponentials([ratio * (n - log_n), d - log_d])
    by_ratio = first * (n - log_n)
    derivatives = [a_d * first * ratio, a_d * second, by_ratio, total - by_ratio * ratio]
    return a_d * total, np.stack(np.broadcast_arrays(*derivatives), -1)


def _power(theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log L = exponent (scale - log x), theta = (scale, exponent)."""
    scale, exponent = theta[:, 0, None], theta[:, 1, None]
    log_x = np.log(x[:, 0])
    return exponent * (scale - log_x), np.stack([np.broadcast_to(exponent, (len(theta), len(x))), scale - log_x], -1)


def _power_above(theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log L = LSE(a - b log x, c), theta = (a, b, c)."""
    a, b, c = (theta[:, i, None] for i in range(3))
    log_x = np.log(x[:, 0])
    found, (first, second) = _sum_of_exponentials([a - b * log_x, np.broadcast_to(c, (len(theta), len(x)))])
    return found, np.stack([first, -first * log_x, second], -1)


def _kaplan_steps(theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log L = LSE(a_N (n - log N), a_S (s - log S)), theta = (n, s, a_N, a_S): L(N, S_min) of 2001.08361."""
    n, s, a_n, a_s = (theta[:, i, None] for i in range(4))
    of_n, of_s = n - np.log(x[:, 0]), s - np.log(x[:, 1])
    found, (first, second) = _sum_of_exponentials([a_n * of_n, a_s * of_s])
    return found, np.stack([first * a_n, second * a_s, first * of_n, second * of_s], -1)


def _exp(logs: np.ndarray) -> np.ndarray:
    """exp, finite: what runs leave wide open would not be a number that JSON can say."""
    return np.exp(np.clip(logs, -700.0, 700.0))


def _powers_of(column: str) -> Form:
    return Form(
        (column,),
        ("log scale", "exponent"),
        _power,
        _grid((10, 20, 30, 40), (0.03, 0.05, 0.1, 0.2)),
        lambda t: {"scale": _exp(t[:, 0]), "exponent": t[:, 1]},
    )


def _powers_above(column: str) -> Form:
    return Form(
        (column,),
        ("log a", "b", "log c"),
        _power_above,
        _grid((0, 5, 10, 15), (0.05, 0.1, 0.3, 0.6, 1.0), (-2, -1, 0, 0.5, 1)),
        lambda t: {"a": _exp(t[:, 0]), "b": -t[:, 1], "c": _exp(t[:, 2])},
    )


HALVES = (0.0, 0.5, 1.0, 1.5, 2.0)
FIVES = (0.0, 5.0, 10.0, 15.0, 20.0, 25.0)
FORMS: dict[str, Form] = {
    "chinchilla": Form(
        ("params", "tokens"),
        ("log A", "log B", "log E", "alpha", "beta"),
        _chinchilla,
        _grid(FIVES, FIVES, (-1.0, -0.5, 0.0, 0.5, 1.0), HALVES, HALVES),
        lambda t: {"E": _exp(t[:, 2]), "A": _exp(t[:, 0]), "B": _exp(t[:, 1]), "alpha": t[:, 3], "beta": t[:, 4]},
    ),
    "overtraining": Form(
        ("params", "tokens"),
        ("log A", "log B", "log E", "eta"),
        _tied,
        _grid(FIVES, FIVES, (-1.0, -0.5, 0.0, 0.5, 1.0), (0.1, 0.3, 0.5, 1.0)),
        lambda t: {"E": _exp(t[:, 2]), "A": _exp(t[:, 0]), "B": _exp(t[:, 1]), "alpha": t[:, 3], "beta": t[:, 3]},
    ),
    "kaplan": Form(
        ("params", "tokens"),
        ("log N_c", "log D_c", "a_N", "a_D"),
        _kaplan,
        _grid((20, 25, 30, 35), (20, 25, 30, 35), (0.05, 0.1, 0.2, 0.4), (0.05, 0.1, 0.2, 0.4)),
        lambda t: {"N_c": _exp(t[:, 0]), "D_c": _exp(t[:, 1]), "a_N": t[:, 2], "a_D": t[:, 3]},
    ),
    "kaplan-steps": Form(
        ("params", "steps"),
        ("log N_c", "log S_c", "a_N", "a_S"),
        _kaplan_steps,
        _grid((20, 25, 30, 35), (2, 6, 10), (0.05, 0.1, 0.2, 0.4), (0.3, 0.6, 1.0)),
        lambda t: {"N_c": _exp(t[:, 0]), "S_c": _exp(t[:, 1]), "a_N": t[:, 2], "a_S": t[:, 3]},
    ),
    "critical-batch": Form(
        ("loss",),
        ("a_B log B*", "1 / a_B"),
        _power,
        _grid((0.5, 1, 2, 4), (2, 5, 10)),
        lambda t: {"B_star": _exp(t[:, 0] * t[:, 1]), "a_B": 1 / t[:, 1]},
        target="batch",
    ),
    "power-params": _powers_of("params"),
    "power-tokens": _powers_of("tokens"),
    "power-compute": _powers_of("compute"),
    "gpt4": _powers_above("compute"),
    "steps": _powers_above("steps"),
}
"""chinchilla: approach 3 from its 4,500 starts. overtraining: the same with alpha = beta.
kaplan: the joint L(N, D). kaplan-steps: L(N, S). critical-batch:
B_crit(L) = B* / L^(1 / a_B). power-*: one power law, nothing below it. gpt4:
L(C) = a C^b + c. steps: the same in optimizer steps, for a learning curve."""
