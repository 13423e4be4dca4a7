"""From messages or text to a running answer. The API and the terminal share this; the engine does the work."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from lmlab.errors import Refused

if TYPE_CHECKING:
    from lmlab.generate.engine import Piece, Sampling
    from lmlab.generate.handle import Model


T = TypeVar("T")

PENALTIES = ("min_p", "repetition_penalty", "frequency_penalty", "presence_penalty")
"""Settings of `Sampling` that a request names as the engine does."""


class TooLongError(Refused):
    """The prompt leaves no room for an answer in the model's context."""


def context_length(model: Model) -> int:
    """The longest sequence, prompt and answer together, in tokens."""
    return model.network.config.context_length


def room(model: Model, ids: Sequence[int], wanted: int | None) -> int:
    """How many new tokens fit after a prompt, at most `wanted`.

    Raises TooLongError with the numbers if not even one fits (a prompt that is only scored may fill the context).
    """
    context = context_length(model)
    free = context - len(ids)
    if free < (0 if wanted == 0 else 1):
        raise TooLongError(
            f"the prompt has {len(ids)} tokens, and this model's context is {context} tokens for the prompt and the "
            "answer together; shorten the prompt"
        )
    return free if wanted is None else min(wanted, free)


def chat_prompt(
    model: Model, messages: Sequence[Mapping[str, str]], wanted: int | None = None, *, shorten: bool = False
) -> tuple[list[int], int]:
    """(ids of a conversation that asks for an answer, how many messages were left out).

    With `shorten`, the oldest messages go (never a leading system message, nor the last one) until a quarter of the
    context, or `wanted` tokens if that is less, is free for the answer, and the first that is left is not an answer.
    """
    ids = model.renderer.encode(messages, add_generation_prompt=True)
    if not shorten:
        return ids, 0
    context = context_length(model)
    goal = context - max(1, min(context // 4, context if wanted is None else wanted))
    head = [messages[0]] if messages[0]["role"] == "system" else []
    turns = list(messages[len(head) :])
    left_out = 0
    while len(turns) > 1 and (len(ids) > goal or (left_out and turns[0]["role"] == "assistant")):
        turns.pop(0)
        left_out += 1
        ids = model.renderer.encode([*head, *turns], add_generation_prompt=True)
    return ids, left_out


def make_sampling(
    max_new_tokens: int,
    *,
    temperature: float,
    seed: int | None = None,
    top_p: float = 1.0,
    top_k: int = 0,
    stop: Sequence[str] = (),
    **penalties: Any,
) -> Sampling:
    """The engine's settings; without a seed one is drawn. `penalties`: any of PENALTIES."""
    from lmlab.generate.engine import Sampling

    return Sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=secrets.randbits(31) if seed is None else seed % 2**63,
        stop=tuple(stop),
        **penalties,
    )


@dataclass(frozen=True)
class TokenScore:
    """One token, its log-probability (nats; None for the first of a text) and the likeliest tokens at its place.
    `width`: characters of the text that it ends; None where they are those of `token`."""

    token_id: int
    token: str
    logprob: float | None
    top: list[tuple[int, str, float]] = field(default_factory=list)
    width: int | None = None


@dataclass(frozen=True)
class Finished:
    """The last item of an answer: why it ended, and the scores that were asked for."""

    reason: str
    """`stop`: the model ended it, or a stop string did; `length`: the limit on tokens was reached."""
    scores: list[TokenScore] | None = None


def answer(
    model: Model, ids: list[int], sampling: Sampling, *, score_from: int | None = None, top: int = 0
) -> Iterator[Piece | Finished]:
    """The pieces of an answer, then Finished. Closing the iterator stops the work.

    `score_from`: when the answer is complete, score the tokens of prompt and answer from this index on in one more
    forward pass, with the `top` likeliest beside each.
    """
    new: list[int] = []
    if sampling.max_new_tokens > 0:
        with closing(model.engine.stream(ids, sampling)) as pieces:
            for piece in pieces:
                new.append(piece.token_id)
                yield piece
    full = len(new) >= sampling.max_new_tokens and not ended(model, new, sampling)
    scores = None
    if score_from is not None:
        scores = score_tokens(
            model, [*ids, *new], score_from, top, drawn_from=len(ids), temperature=sampling.temperature
        )
    yield Finished("length" if full else "stop", scores)


def ended(model: Model, new: Sequence[int], sampling: Sampling) -> bool:
    """Did the last of the new tokens end the answer by itself, and not the limit on tokens?"""
    if not new:
        return False
    return new[-1] in model.engine.stop_ids or any(stop in model.tokenizer.decode(new) for stop in sampling.stop)


@contextmanager
def closing(iterator: Iterator[T]) -> Iterator[Iterator[T]]:
    """Close an iterator on leaving the block, if it can be closed: so the work behind it stops."""
    try:
        yield iterator
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()


def token_text(model: Model, token_id: int) -> str:
    """The text of one token; `token_id:N` where it is only a part of a character, so that no two tokens look alike."""
    text = model.tokenizer.decode([token_id], skip_special=False)
    return text if text and "\ufffd" not in text else f"token_id:{token_id}"


def score_tokens(
    model: Model, ids: Sequence[int], start: int, top: int, *, drawn_from: int, temperature: float
) -> list[TokenScore]:
    """Scores of ids[start:], each given all that stands before it.

    Tokens from `drawn_from` on are scored as the engine draws them, by softmax(logits / temperature) (greedy:
    temperature 1); those before it, the prompt's, at temperature 1. The first token of a text has no score: nothing
    stands before it.
    """
    import torch

    if start >= len(ids):
        return []
    logits_TV = model.logits(torch.tensor([list(ids)]))[0].float().clone()
    # Row t is the distribution of token t + 1.
    logits_TV[drawn_from - 1 :] /= temperature or 1.0
    logprobs_TV = torch.log_softmax(logits_TV, dim=-1)
    scores = []
    widths = _widths(model, ids[start:])
    for place in range(start, len(ids)):
        width = widths[place - start]
        if place == 0:
            scores.append(TokenScore(ids[0], token_text(model, ids[0]), None, width=width))
            continue
        row_V = logprobs_TV[place - 1]
        best = torch.topk(row_V, min(top, row_V.numel()))
        near = [(i, token_text(model, i), value) for i, value in zip(best.indices.tolist(), best.values.tolist())]
        scores.append(TokenScore(ids[place], token_text(model, ids[place]), float(row_V[ids[place]]), near, width))
    return scores


def _widths(model: Model, ids: Sequence[int]) -> list[int]:
    """How many characters each token ends: a token that is a part of a character ends none, or the whole one."""
    widths: list[int] = []
    # The tokens before are decoded along, because some tokenizers write a piece otherwise at the start of a text.
    before, first = 0, 0
    for place in range(len(ids)):
        text = model.tokenizer.decode(list(ids[before : place + 1]), skip_special=False)
        if text.endswith("\ufffd"):
            widths.append(0)
            continue
        widths.append(len(text) - len(model.tokenizer.decode(list(ids[before:first]), skip_special=False)))
        before, first = first, place + 1
    return widths
