"""What the engine answers with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Completion:
    """An answer. `ids` has every token that was chosen, a stop id or the token that completed a stop string included;
    `text` ends before either. `logprobs` are in nats, at the sampling temperature, before penalties, constraints, top-k,
    top-p and min-p; `top_logprobs` has the likeliest tokens at each place, (id, log-probability), where asked for."""

    ids: list[int]
    text: str
    logprobs: list[float]
    finish_reason: Literal["stop", "length"]
    top_logprobs: list[list[tuple[int, float]]] | None = None

    @property
    def tokens(self) -> int:
        """How many tokens it has."""
        return len(self.ids)


@dataclass(frozen=True)
class Reply:
    """A server's answer, with its own counts of tokens."""

    text: str
    finish_reason: str
    prompt_tokens: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Hypothesis:
    """What beam search found, with the score that it is ranked by: log P / length^length_penalty."""

    completion: Completion
    score: float


@dataclass(frozen=True)
class Piece:
    """One new token and the text that it made certain (it may be empty, or belong to tokens before it as well)."""

    text: str
    token_id: int
    logprob: float
