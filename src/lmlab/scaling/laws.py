"""The published laws, with their constants by name.

Kaplan et al. 2020 (2001.08361): parameters without embeddings, compute in PF-days, C_min the compute at a batch well below
the critical one. Its constants belong to the fit that they come from: those of L(N) alone are not those of L(N, D).
Hoffmann et al. 2022 (2203.15556, "Chinchilla"): all parameters. N's exponent of compute is beta / (alpha + beta), and D's is
alpha / (alpha + beta); the survey prints them the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray | float
PF_DAY = 8.64e19
"""FLOPs of a petaflop a second for a day."""


def flops(params: Array, tokens: Array) -> Array:
    """C = 6 N D: two a parameter and token forward, four backward."""
    return 6.0 * params * tokens


@dataclass(frozen=True)
class Power:
    """L = (scale / x)^exponent."""

    scale: float
    exponent: float

    def loss(self, x: Array) -> Array:
        return (self.scale / x) ** self.exponent

    def inverse(self, loss: Array) -> Array:
        """x at a loss."""
        return self.scale / loss ** (1 / self.exponent)


class Kaplan:
    """2001.08361; the numbers of the equations and of table 5 and 6 in its appendix A."""

    of_params = Power(8.8e13, 0.076)
    """L(N), trained to convergence on data without end."""
    of_tokens = Power(5.4e13, 0.095)
    """L(D), a large model stopped early."""
    of_compute = Power(3.1e8, 0.050)
    """L(C_min), in PF-days: the best size at a batch well below the critical one."""
    of_compute_fixed_batch = Power(1.6e7, 0.057)
    """L(C), in PF-days, at a batch of 2^19 tokens."""
    N_c, D_c, a_N, a_D = 6.4e13, 1.8e13, 0.076, 0.103
    """Of the joint law L(N, D)."""
    batch_star, a_B = 2.1e8, 0.21
    steps_N_c, steps_S_c, steps_a_N, steps_a_S = 6.5e13, 2.1e3, 0.077, 0.76
    """Of L(N, S_min)."""

    @classmethod
    def joint(cls, params: Array, tokens: Array) -> Array:
        """L(N, D) = ((N_c / N)^(a_N / a_D) + D_c / D)^a_D."""
        return ((cls.N_c / params) ** (cls.a_N / cls.a_D) + cls.D_c / tokens) ** cls.a_D

    @classmethod
    def overfit(cls, params: Array, tokens: Array) -> Array:
        """L(N, D) / L(N, inf) - 1; at most 0.02 where D is at least about 5e3 N^0.74."""
        return (1 + (params / cls.N_c) ** (cls.a_N / cls.a_D) * cls.D_c / tokens) ** cls.a_D - 1

    @classmethod
    def of_steps(cls, params: Array, steps: Array) -> Array:
        """L(N, S_min) = (N_c / N)^a_N + (S_c / S_min)^a_S."""
        return (cls.steps_N_c / params) ** cls.steps_a_N + (cls.steps_S_c / steps) ** cls.steps_a_S

    @classmethod
    def critical_batch(cls, loss: Array) -> Array:
        """Tokens of the batch where twice the fewest steps and twice the fewest examples are needed: B* / L^(1 / a_B)."""
        return cls.batch_star / loss ** (1 / cls.a_B)

    @classmethod
    def fewest_steps(cls, steps: Array, batch: Array, loss: Array) -> Array:
        """S_min = S / (1 + B_crit / B)."""
        return steps / (1 + cls.critical_batch(loss) / batch)

    @classmethod
    def least_compute(cls, compute: Array, batch: Array, loss: Array) -> Array:
        """C_min = C / (1 + B / B_crit)."""
        return compute / (1 + batch / cls.critical_batch(loss))

    @staticmethod
    def allocation(pf_days: Array) -> dict[str, Array]:
        """The best use of C_min PF-days: parameters, batch (tokens), fewest steps, tokens."""
        return {
            "params": 1.3e9 * pf_days**0.73,
            "batch": 2.0e6 * pf_days**0.24,
            "steps": 5.4e3 * pf_days**0.03,
            "tokens": 2.0e10 * pf_days**0.27,
        }


@dataclass(frozen=True)
class Chinchilla:
    """L(N, D) = E + A / N^alpha + B / D^beta."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, params: Array, tokens: Array) -> Array:
        return self.E + self.A / params**self.alpha + self.B / tokens**self.beta

    @property
    def exponents(self) -> tuple[float, float]:
        """(a, b): N_opt goes as C^a, D_opt as C^b; a = beta / (alpha + beta)."""
        total = self.alpha + self.beta
        return self.beta / total, self.alpha / total

    def allocation(self, compute: Array) -> tuple[Array, Array]:
        """(N, D) of the least loss with 6 N D = `compute` FLOPs."""
        a, b = self.exponents
        g = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        return g * (compute / 6) ** a, (compute / 6) ** b / g

    def compute_of_params(self, params: Array) -> Array:
        """FLOPs at which so many parameters are the best size."""
        one, _ = self.allocation(6.0)
        return 6.0 * (params / one) ** (1 / self.exponents[0])

    def compute_of_tokens(self, tokens: Array) -> Array:
        """FLOPs at which so many tokens are the best number."""
        _, one = self.allocation(6.0)
        return 6.0 * (tokens / one) ** (1 / self.exponents[1])

    def compute_of_loss(self, loss: float) -> float:
        """The fewest FLOPs that reach a loss; infinite at or below E."""
        if loss <= self.E:
            return float("inf")
        low, high = 0.0, 100.0  # log10 of FLOPs; the best loss falls with compute
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if self.loss(*self.allocation(10.0**middle)) > loss else (low, middle)
        return 10.0**high


@dataclass(frozen=True)
class Joint(Chinchilla):
    """Kaplan's joint L(N, D) with fitted constants: a sum of powers as Chinchilla's, E = 0 and beta = 1, to the power a_D;
    what is best for the sum is best for its power."""

    a_D: float = 1.0

    @classmethod
    def of(cls, N_c: float, D_c: float, a_N: float, a_D: float) -> Joint:
        return cls(E=0.0, A=N_c ** (a_N / a_D), B=D_c, alpha=a_N / a_D, beta=1.0, a_D=a_D)

    def loss(self, params: Array, tokens: Array) -> Array:
        return super().loss(params, tokens) ** self.a_D


CHINCHILLA = {
    "hoffmann": Chinchilla(1.69, 406.4, 410.7, 0.34, 0.28),
    "hoffmann-unrounded": Chinchilla(1.6934, 406.4, 410.7, 0.3392, 0.2849),
    "besiroglu": Chinchilla(1.8172, 482.01, 2085.43, 0.3478, 0.3658),
}
"""As printed; with the digits of the paper's source (its A and B are not given finer); refitted on the points of the paper's
figure (2404.10102), where the sum of the Huber terms was minimised to the end. The printed ones give 60 to 90 tokens a
parameter at the budget of Gopher, the refit about 18."""

APPROACH = {"envelope": (0.50, 0.50), "isoflop": (0.49, 0.51), "parametric": (0.46, 0.54)}
"""(a, b) of Chinchilla's three approaches."""


def gpt4_loss(compute: Array, a: float, b: float, c: float) -> Array:
    """L(C) = a C^b + c (GPT-4 report, 2303.08774): b is negative, c what no compute takes away."""
    return a * compute**b + c
