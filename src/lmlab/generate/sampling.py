"""One token from a row of logits: greedy, or by temperature, top-k and top-p (survey, section 4.2.4).

Randomness is one uniform number a token, turned into a token by the inverse of the cumulative distribution. Number t
of a request comes from Philox(seed) at place t and from nothing else: whoever shares the batch, the request draws the
same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmlab.errors import Refused

CANDIDATES = 256
"""Tokens that a truncated row looks at before it sorts the whole vocabulary (256 of 4,096 cost a fifth of a full
sort)."""

BLOCK = 64
"""Tokens a block of the two-level inverse: sums of blocks first, then one block, so that no row is summed token by
token."""


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens and when to end. The order is temperature, then top-k, then top-p.

    `stop_ids` None means the engine's: the end of a document and the end of a turn.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    """0 is greedy; else logits are divided by it."""
    top_k: int = 0
    """Only the k likeliest; 0 does not limit."""
    top_p: float = 1.0
    """Only the likeliest whose mass reaches p (nucleus, 1904.09751); the one that reaches it is kept."""
    seed: int = 0
    stop_ids: tuple[int, ...] | None = None
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these strings; they may straddle tokens."""
    decoder_start_ids: tuple[int, ...] | None = None
    """What the decoder of an encoder-decoder begins with; None means the engine's `decoder_start_id`."""

    def __post_init__(self) -> None:
        """Raises Refused naming the setting."""
        checks = (
            ("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 0, "0 or more"),
            ("temperature", self.temperature, 0 <= self.temperature < float("inf"), "0 (greedy) or a positive number"),
            ("top_k", self.top_k, self.top_k >= 0, "0 (no limit) or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0, at most 1"),
            ("seed", self.seed, 0 <= self.seed < 2**128, "0 or more, below 2^128"),
        )
        for name, found, good, expected in checks:
            if not good:
                raise Refused(f"sampling: {name} is {found}; expected {expected}")
        if isinstance(self.stop, str) or not all(self.stop):
            raise Refused(f"sampling: stop is {self.stop!r}; expected a tuple of strings, none of them empty")

    @property
    def truncated(self) -> bool:
        """Whether top-k or top-p leaves tokens out."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1)


def uniforms(seed: int, count: int) -> np.ndarray:
    """(count,) float64 in [0, 1): number t is the t-th draw of Philox(seed), however many are drawn."""
    return np.random.Generator(np.random.Philox(key=seed)).random(count)


class Chooser:
    """The settings of the rows of a batch, sorted out once and used until a row joins or leaves."""

    def __init__(self, settings: Sequence[Sampling], device: torch.device) -> None:
        self.settings = settings
        warm = [s.temperature for s in settings if s.temperature > 0]
        self.temperature_B1: Tensor | None = None
        if warm:
            each = [s.temperature if s.temperature > 0 else 1.0 for s in settings]
            self.temperature_B1 = torch.tensor(each, device=device)[:, None]
        self.greedy = [i for i, s in enumerate(settings) if s.temperature == 0]
        self.plain = [i for i, s in enumerate(settings) if s.temperature > 0 and not s.truncated]
        self.truncated = [i for i, s in enumerate(settings) if s.truncated]

    def choose(self, logits_BV: Tensor, uniforms_B: Sequence[float]) -> tuple[list[int], list[float]]:
        """(ids, log-probabilities in nats).

        A log-probability is of softmax(logits / temperature) before top-k and top-p (greedy: temperature 1): what a
        policy gradient at the sampling temperature needs. It is NaN where a row's logits are no numbers.
        """
        scaled = logits_BV if self.temperature_B1 is None else logits_BV / self.temperature_B1
        probabilities = torch.softmax(scaled, -1).cpu().numpy()
        ids = np.zeros(len(probabilities), dtype=np.int64)
        draws = np.asarray(uniforms_B, dtype=np.float64)
        if len(self.greedy) == len(ids):
            ids = logits_BV.cpu().numpy().argmax(axis=1)
        elif self.greedy:
            ids[self.greedy] = logits_BV.cpu().numpy()[self.greedy].argmax(axis=1)
        if self.plain:
            everyone = len(self.plain) == len(ids)
            part = probabilities if everyone else probabilities[self.plain]
            ids[self.plain] = invert(part, draws[self.plain])
        for row in self.truncated:
            ids[row] = _truncated(probabilities[row], self.settings[row], float(draws[row]))
        chosen = probabilities[np.arange(len(ids)), ids].astype(np.float64)
        with np.errstate(divide="ignore"):
            return ids.tolist(), np.log(chosen).tolist()


def invert(probabilities_BV: np.ndarray, uniforms_B: np.ndarray) -> np.ndarray:
    """The first token whose cumulative probability passes u x (sum), in float64; never one of probability 0. (B,)"""
    B, V = probabilities_BV.shape
    blocks = np.add.reduceat(probabilities_BV, np.arange(0, V, BLOCK), axis=1, dtype=np.float64)
    block, before, wanted = _first_above(blocks, uniforms_B * blocks.sum(axis=1))
    columns = block[:, None] * BLOCK + np.arange(BLOCK)
    inside = probabilities_BV[np.arange(B)[:, None], np.minimum(columns, V - 1)].astype(np.float64)
    inside[columns >= V] = 0.0
    place, _, _ = _first_above(inside, wanted - before)
    return block * BLOCK + place


def _first_above(masses: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First column whose cumulative mass is above `wanted` (held below the whole), the mass before it, and `wanted`."""
    sums = masses.cumsum(axis=1)
    wanted = np.minimum(wanted, np.nextafter(sums[:, -1], 0))
    first = (sums > wanted[:, None]).argmax(axis=1)
    rows = np.arange(len(masses))
    return first, np.where(first > 0, sums[rows, first - 1], 0.0), wanted


def _truncated(probabilities_V: np.ndarray, settings: Sampling, uniform: float) -> int:
    """One token under top-k and top-p. Among equals the order is fixed, and never more than k are kept."""
    row = torch.from_numpy(probabilities_V)
    few = min(CANDIDATES, len(row))
    if settings.top_k == 0 or settings.top_k > few:
        values, order = torch.topk(row, few)
        enough = settings.top_k == 0 and float(values.double().sum()) >= settings.top_p * float(row.double().sum())
        if not enough:
            values, order = torch.sort(row, descending=True, stable=True)
        total = float(row.double().sum())
    else:
        values, order = torch.topk(row, few)
        total = 0.0
    masses = values.double().numpy()
    if settings.top_k:
        masses = masses[: settings.top_k]
        total = float(masses.sum())
    sums = masses.cumsum()
    # Kept are those before which the mass has not reached p yet.
    kept = (
        max(1, int(np.searchsorted(sums, settings.top_p * total, side="left")) + 1) if settings.top_p < 1 else len(sums)
    )
    kept = min(kept, len(sums))
    wanted = min(uniform * sums[kept - 1], float(np.nextafter(sums[kept - 1], 0)))
    return int(order[min(int(np.searchsorted(sums[:kept], wanted, side="right")), kept - 1)])
