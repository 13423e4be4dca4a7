"""One token from a row of logits: greedy, or by temperature, top-k, top-p and min-p (survey, section 4.2.4).

Randomness is one uniform number a token, turned into a token by the inverse of the cumulative distribution. Number t
of a request comes from Philox(seed) at place t and from nothing else: whoever shares the batch, the request draws the
same.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lmlab.errors import Refused, nearest

CANDIDATES = 256
"""Tokens that a truncated row looks at before it sorts the whole vocabulary (256 of 4,096 cost a fifth of a full
sort)."""

BLOCK = 64
"""Tokens a block of the two-level inverse: sums of blocks first, then one block, so that no row is summed token by
token."""


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens and when to end. The order is penalties, constraint, temperature, top-k, top-p, min-p.

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
    min_p: float = 0.0
    """Only tokens at least this share as likely as the likeliest (2407.01082); 0 does not limit."""
    repetition_penalty: float = 1.0
    """Above 1: logits of tokens that the prompt or the answer has are divided by it, negative ones multiplied (CTRL,
    1909.05858, section 4.1; for negative logits as transformers does). 1 changes nothing."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time that the answer has it."""
    presence_penalty: float = 0.0
    """Subtracted once from the logit of each token that the answer has."""
    top_logprobs: int = 0
    """So many of the likeliest tokens at each place are told with the answer."""
    regex: str | None = None
    """The whole answer matches this regular expression (Rust's syntax)."""
    json_schema: str | Mapping[str, Any] | None = None
    """The whole answer is JSON of this schema; kept as its text."""
    truncate: Literal["left", "right"] | None = None
    """A prompt that leaves no room for an answer is refused; or cut at its beginning (left) or end (right), to what
    leaves `max_new_tokens` free, or to one token."""
    decoder_start_ids: tuple[int, ...] | None = None
    """What the decoder of an encoder-decoder, or the filling of a blank (glm-2d), begins with; None means the engine's
    `decoder_start_id`."""
    blank: int | None = None
    """Of a model with position glm-2d: the place of the mask in the prompt that the answer fills; None means the one mask
    that the prompt has, or one that is put behind it."""

    def __post_init__(self) -> None:
        """Raises Refused naming the setting."""
        checks = (
            ("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 0, "0 or more"),
            ("temperature", self.temperature, 0 <= self.temperature < float("inf"), "0 (greedy) or a positive number"),
            ("top_k", self.top_k, self.top_k >= 0, "0 (no limit) or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0, at most 1"),
            ("min_p", self.min_p, 0 <= self.min_p <= 1, "0 (no limit) to 1"),
            ("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0, "above 0 (1 changes nothing)"),
            ("top_logprobs", self.top_logprobs, self.top_logprobs >= 0, "0 or more"),
            ("truncate", self.truncate, self.truncate in ("left", "right", None), "left, right or None"),
            ("seed", self.seed, 0 <= self.seed < 2**128, "0 or more, below 2^128"),
        )
        for name, found, good, expected in checks:
            if not good:
                raise Refused(f"sampling: {name} is {found}; expected {expected}")
        if self.json_schema is not None and not isinstance(self.json_schema, str):
            object.__setattr__(self, "json_schema", json.dumps(self.json_schema))
        if self.json_schema is not None:
            try:
                json.loads(str(self.json_schema))
            except ValueError as error:
                raise Refused(f"sampling: json_schema is no JSON: {error}") from None
        if self.regex is not None and self.json_schema is not None:
            raise Refused("sampling: regex and json_schema are both set; expected one of them")
        if self.constrained and self.stop:
            raise Refused(
                "sampling: stop strings would cut what regex and json_schema promise; expected none with them"
            )
        if isinstance(self.stop, str) or not all(self.stop):
            raise Refused(f"sampling: stop is {self.stop!r}; expected a tuple of strings, none of them empty")

    @property
    def truncated(self) -> bool:
        """Whether top-k, top-p or min-p leaves tokens out."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)

    @property
    def constrained(self) -> bool:
        """Whether the answer has a form to keep."""
        return self.regex is not None or self.json_schema is not None

    @property
    def penalised(self) -> bool:
        """Whether what was said before changes the logits."""
        return self.repetition_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0


def stops_of(stop: str | Sequence[str]) -> tuple[str, ...]:
    """One stop string or several."""
    return (stop,) if isinstance(stop, str) else tuple(stop)


def one_each(prompts: int, seed: int | Sequence[int], stop: str | Sequence[str], **settings: Any) -> list[Sampling]:
    """The sampling of each of so many prompts: one seed for all, or one each. Raises Refused for a setting that there is
    not, and for other numbers of seeds."""
    known = {field.name for field in fields(Sampling)} - {"seed", "stop"}
    for name in settings:
        if name not in known:
            raise Refused(f"generate: '{name}' is no setting of sampling{nearest(name, known)}")
    seeds = [seed] * prompts if isinstance(seed, int) else list(seed)
    if len(seeds) != prompts:
        raise Refused(f"generate: {prompts} prompts and {len(seeds)} seeds; expected one seed or one each")
    return [Sampling(seed=each, stop=stops_of(stop), **settings) for each in seeds]


def penalise(logits_V: Tensor, sampling: Sampling, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """A row of logits after the penalties for what was said before. (V,)"""
    changed_V = logits_V.clone()
    if sampling.repetition_penalty != 1:
        said = torch.tensor(sorted({*prompt, *answer}), dtype=torch.long, device=logits_V.device)
        at = changed_V[said]
        changed_V[said] = torch.where(at > 0, at / sampling.repetition_penalty, at * sampling.repetition_penalty)
    if answer:
        counts = Counter(answer)
        said = torch.tensor(list(counts), device=logits_V.device)
        times = torch.tensor(list(counts.values()), dtype=changed_V.dtype, device=logits_V.device)
        changed_V[said] -= times * sampling.frequency_penalty + sampling.presence_penalty
    return changed_V


def likeliest(logits_V: Tensor, temperature: float, count: int) -> list[tuple[int, float]]:
    """(id, log-probability in nats at the temperature; 0 counts as 1) of the likeliest tokens, best first."""
    logprobs_V = torch.log_softmax(logits_V / (temperature or 1.0), -1)
    values, ids = torch.topk(logprobs_V, min(count, len(logprobs_V)))
    return list(zip(ids.tolist(), values.tolist()))


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

    def choose(
        self, logits_BV: Tensor, uniforms_B: Sequence[float], drawn_BV: Tensor | None = None
    ) -> tuple[list[int], list[float]]:
        """(ids, log-probabilities in nats). Tokens are drawn from `drawn_BV`: the logits after penalties and
        constraints, by default the logits themselves.

        A log-probability is of softmax(logits / temperature) before all that changes or truncates it (greedy:
        temperature 1): what a policy gradient at the sampling temperature needs. It is NaN where a row's logits are no
        numbers.
        """
        said = torch.softmax(self._scaled(logits_BV), -1).cpu().numpy()
        source = logits_BV if drawn_BV is None else drawn_BV
        probabilities = said if drawn_BV is None else torch.softmax(self._scaled(drawn_BV), -1).cpu().numpy()
        ids = np.zeros(len(probabilities), dtype=np.int64)
        draws = np.asarray(uniforms_B, dtype=np.float64)
        if len(self.greedy) == len(ids):
            ids = source.cpu().numpy().argmax(axis=1)
        elif self.greedy:
            ids[self.greedy] = source.cpu().numpy()[self.greedy].argmax(axis=1)
        if self.plain:
            everyone = len(self.plain) == len(ids)
            part = probabilities if everyone else probabilities[self.plain]
            ids[self.plain] = invert(part, draws[self.plain])
        for row in self.truncated:
            kept, masses = kept_tokens(probabilities[row], self.settings[row])
            ids[row] = _inverse(kept, masses, float(draws[row]))
        chosen = said[np.arange(len(ids)), ids].astype(np.float64)
        with np.errstate(divide="ignore"):
            return ids.tolist(), np.log(chosen).tolist()

    def _scaled(self, logits_BV: Tensor) -> Tensor:
        return logits_BV if self.temperature_B1 is None else logits_BV / self.temperature_B1


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


def kept_tokens(probabilities_V: np.ndarray, settings: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """(ids, masses in float64) that top-k, top-p and min-p keep, the likeliest first. Among equals the order is fixed,
    and never more than k are kept."""
    row = torch.from_numpy(probabilities_V)
    few, total = min(CANDIDATES, len(row)), float(row.double().sum())
    values, order = torch.topk(row, few)
    bounded = 0 < settings.top_k <= few
    if settings.top_k == 0:
        bounded = settings.top_p < 1 and float(values.double().sum()) >= settings.top_p * total
        bounded = bounded or float(values[-1]) < settings.min_p * float(values[0])
    if not bounded:
        values, order = torch.sort(row, descending=True, stable=True)
    masses = values.double().numpy()
    if settings.top_k:
        masses = masses[: settings.top_k]
        total = float(masses.sum())
    kept = len(masses)
    if settings.top_p < 1:  # those before which the mass has not reached p yet
        kept = min(kept, int(np.searchsorted(masses.cumsum(), settings.top_p * total, side="left")) + 1)
    if settings.min_p > 0:
        kept = min(kept, int((masses >= settings.min_p * masses[0]).sum()))
    kept = max(kept, 1)
    return order.numpy()[:kept], masses[:kept]


def _inverse(ids: np.ndarray, masses: np.ndarray, uniform: float) -> int:
    sums = masses.cumsum()
    wanted = min(uniform * sums[-1], float(np.nextafter(sums[-1], 0)))
    return int(ids[min(int(np.searchsorted(sums, wanted, side="right")), len(ids) - 1)])
