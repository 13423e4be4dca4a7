"""The shapes of OpenAI's answers, as pure functions: two kinds, whole or in chunks."""

from __future__ import annotations

import math
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lmlab.serve.generation import TokenScore

LEAST_LOGPROB = -9999.0
"""JSON knows no infinity; this is what OpenAI writes for a token that cannot be."""


@dataclass
class Answer:
    """One choice as it grows."""

    text: str = ""
    tokens: int = 0
    scores: list[TokenScore] = field(default_factory=list)
    reason: str | None = None


def usage(prompt: int, completion: int) -> dict[str, int]:
    """Counts of tokens."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def finite(logprob: float) -> float:
    """A log-probability that JSON can hold."""
    return logprob if math.isfinite(logprob) else LEAST_LOGPROB


class Body(ABC):
    """What the answers of one request have in common."""

    prefix = ""
    whole_object = ""
    chunk_object = ""

    def __init__(self, model: str, *, with_scores: bool, extra: dict[str, Any] | None = None) -> None:
        self.model = model
        self.with_scores = with_scores
        self.extra = extra or {}
        self.id = f"{self.prefix}-{secrets.token_hex(12)}"
        self.created = int(time.time())

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            **self.extra,
        }

    def whole(self, answers: Sequence[Answer], prompt_tokens: int) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        body = self._envelope(self.whole_object, [self._choice(i, each) for i, each in enumerate(answers)])
        return body | {"usage": usage(prompt_tokens, sum(each.tokens for each in answers))}

    def chunk(self, index: int, text: str, scores: Sequence[TokenScore], start: int) -> dict[str, Any]:
        """A chunk with new text; `start`: how many characters of this choice came before."""
        return self._envelope(self.chunk_object, [self._delta(index, text, scores, start)])

    def opening(self, index: int) -> dict[str, Any] | None:
        """The chunk that opens a choice, where the kind has one."""
        return None

    @abstractmethod
    def closing(self, index: int, reason: str) -> dict[str, Any]:
        """The chunk that ends a choice."""

    def counts(self, prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
        """The chunk without choices that holds the counts."""
        return self._envelope(self.chunk_object, []) | {"usage": usage(prompt_tokens, completion_tokens)}

    @abstractmethod
    def _choice(self, index: int, answer: Answer) -> dict[str, Any]: ...

    @abstractmethod
    def _delta(self, index: int, text: str, scores: Sequence[TokenScore], start: int) -> dict[str, Any]: ...


class ChatBody(Body):
    """chat.completion and chat.completion.chunk"""

    prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": self._scores(answer.scores),
            "finish_reason": answer.reason,
        }

    def _delta(self, index: int, text: str, scores: Sequence[TokenScore], start: int) -> dict[str, Any]:
        return {"index": index, "delta": {"content": text}, "logprobs": self._scores(scores), "finish_reason": None}

    def opening(self, index: int) -> dict[str, Any]:
        """The role comes first."""
        choice = {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        return self._envelope(self.chunk_object, [choice])

    def closing(self, index: int, reason: str) -> dict[str, Any]:
        """An empty delta with the reason."""
        return self._envelope(self.chunk_object, [{"index": index, "delta": {}, "finish_reason": reason}])

    def _scores(self, scores: Sequence[TokenScore]) -> dict[str, Any] | None:
        if not self.with_scores:
            return None
        return {"content": [self._one(score) for score in scores], "refusal": None}

    def _one(self, score: TokenScore) -> dict[str, Any]:
        top = [_named(token, logprob) for _, token, logprob in score.top]
        logprob = LEAST_LOGPROB if score.logprob is None else score.logprob
        return _named(score.token, logprob) | {"top_logprobs": top}


def _named(token: str, logprob: float) -> dict[str, Any]:
    data = None if token.startswith("token_id:") else list(token.encode())
    return {"token": token, "logprob": finite(logprob), "bytes": data}


class CompletionBody(Body):
    """text_completion, whole or in chunks of the same shape"""

    prefix = "cmpl"
    whole_object = chunk_object = "text_completion"

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        scores = self._scores(answer.scores, 0)
        return {"index": index, "text": answer.text, "logprobs": scores, "finish_reason": answer.reason}

    def _delta(self, index: int, text: str, scores: Sequence[TokenScore], start: int) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": self._scores(scores, start), "finish_reason": None}

    def closing(self, index: int, reason: str) -> dict[str, Any]:
        """An empty text with the reason."""
        choice = {"index": index, "text": "", "logprobs": None, "finish_reason": reason}
        return self._envelope(self.chunk_object, [choice])

    def _scores(self, scores: Sequence[TokenScore], start: int) -> dict[str, Any] | None:
        if not self.with_scores:
            return None
        offsets = []
        for score in scores:
            offsets.append(start)
            start += len(score.token) if score.width is None else score.width
        return {
            "tokens": [score.token for score in scores],
            "token_logprobs": [None if score.logprob is None else finite(score.logprob) for score in scores],
            "top_logprobs": [{token: finite(value) for _, token, value in score.top} or None for score in scores],
            "text_offset": offsets,
        }
