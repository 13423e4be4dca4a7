"""Log-probabilities of given tokens: continuations of contexts, and whole documents.

Continuations that share a context make one sequence: the context once, then each continuation, at the positions that
follow the context and hidden from the other continuations by a mask. So a question with four answers costs its own
tokens once, in one pass, and needs no cache. Logits are made at the positions that predict a continuation's token,
nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmlab.errors import Failed, Refused
from lmlab.generate.decoder import Decoder

PASS_TOKENS = 2048
"""Tokens in one pass (guessed, see batching.PREFILL_TOKENS)."""

CONTINUATION_TOKENS = 1024
"""Continuation tokens behind one copy of their context: attention within a sequence costs the square of its length."""

LOGIT_ROWS = 512
"""Positions whose logits are held at once: 8 MB at a vocabulary of 4,096."""


@dataclass(frozen=True)
class Scored:
    """A continuation's log-probability (the sum over its tokens, in nats), whether each of its tokens is the
    likeliest at its place, and how many tokens it has."""

    logprob: float
    greedy: bool
    tokens: int


@dataclass
class _Sequence:
    """A sequence to compute, and what it predicts: (owner, place whose logits predict it, token) of each token."""

    tokens: list[int]
    positions: list[int]
    wanted: list[tuple[int, int, int]]
    blocks: list[tuple[int, int]]
    """(start, end) of each continuation; empty where plain causal attention is right."""
    context: int = 0

    def mask(self, device: torch.device) -> Tensor | None:
        """(T, T), True where a token sees another; None for causal."""
        if not self.blocks:
            return None
        T, C = len(self.tokens), self.context
        seen = torch.zeros((T, T), dtype=torch.bool, device=device)
        seen[:, :C] = True
        for start, end in ((0, C), *self.blocks):
            seen[start:end, start:end] = torch.ones(end - start, end - start, dtype=torch.bool, device=device).tril()
        return seen


@torch.inference_mode()
def score_pairs(
    decoder: Decoder, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], start_id: int | None
) -> list[Scored]:
    """Score each (context, continuation). An empty context is `start_id` (the end of a document: what a document
    follows).

    Raises Refused where a pair is longer than the model's context, Failed where logits are not numbers.
    """
    sums, greedy = [0.0] * len(pairs), [True] * len(pairs)
    for owner, logprob, is_top in _predictions(decoder, _trees(decoder, pairs, start_id)):
        if math.isnan(logprob):
            raise Failed(f"pair {owner}: the logits of its continuation are not numbers (NaN or infinite)")
        sums[owner] += logprob
        greedy[owner] = greedy[owner] and is_top
    return [Scored(s, g, len(pair[1])) for s, g, pair in zip(sums, greedy, pairs)]


@torch.inference_mode()
def score_documents(
    decoder: Decoder, documents: Sequence[Sequence[int]], window: int, stride: int, start_id: int | None
) -> list[float]:
    """-log P of each document in nats, the first token given `start_id`; every token is predicted once.

    A window is at most `window` tokens; after the first each predicts its last `stride` tokens, so that a token has at
    least window - stride tokens before it wherever its document does.
    """
    context = decoder.config.context_length
    if not 1 <= stride <= window <= context:
        raise Refused(
            f"window {window}, stride {stride}: expected 1 <= stride <= window <= the model's context {context}"
        )
    if start_id is None:
        raise Refused("score_documents: the engine knows no end-of-document token to condition the first token on")
    totals = [0.0] * len(documents)
    windows = (
        each for owner, ids in enumerate(documents) for each in _windows(owner, [start_id, *ids], window, stride)
    )
    for owner, logprob, _ in _predictions(decoder, windows):
        totals[owner] -= logprob
    for owner, total in enumerate(totals):
        if math.isnan(total):
            raise Failed(f"document {owner}: its logits are not numbers (NaN or infinite)")
    return totals


def _windows(owner: int, ids: list[int], window: int, stride: int) -> Iterator[_Sequence]:
    done, last = 0, len(ids) - 1
    while done < last:
        end = min(last, window if done == 0 else done + stride)
        begin = max(0, end - window)
        wanted = [(owner, place - 1 - begin, ids[place]) for place in range(done + 1, end + 1)]
        yield _Sequence(ids[begin:end], list(range(end - begin)), wanted, [])
        done = end


def _trees(
    decoder: Decoder, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], start_id: int | None
) -> Iterator[_Sequence]:
    limit, vocabulary = decoder.config.context_length, decoder.config.vocab_size
    groups: dict[tuple[int, ...], list[int]] = {}
    for owner, (context, continuation) in enumerate(pairs):
        if not context and start_id is None:
            raise Refused(f"pair {owner}: its context is empty and the engine knows no end-of-document token to use")
        given = tuple(context) or (start_id or 0,)
        check_ids(f"pair {owner}", [*given, *continuation], vocabulary)
        if len(given) + len(continuation) - 1 > limit:
            raise Refused(
                f"pair {owner}: {len(given)} tokens of context and {len(continuation)} of continuation do not fit into "
                f"the model's context of {limit}"
            )
        if continuation:
            groups.setdefault(given, []).append(owner)
    for given, owners in groups.items():
        yield from _tree(given, [(owner, list(pairs[owner][1])) for owner in owners])


def _tree(context: tuple[int, ...], continuations: list[tuple[int, list[int]]]) -> Iterator[_Sequence]:
    sequence: _Sequence | None = None
    C = len(context)
    for owner, ids in continuations:
        if sequence is None or len(sequence.tokens) - C + len(ids) > max(CONTINUATION_TOKENS, C):
            if sequence is not None:
                yield _settled(sequence)
            sequence = _Sequence(list(context), list(range(C)), [], [], C)
        start = len(sequence.tokens)
        sequence.tokens += ids[:-1]
        sequence.positions += range(C, C + len(ids) - 1)
        sequence.blocks.append((start, len(sequence.tokens)))
        places = [C - 1, *range(start, start + len(ids) - 1)]
        sequence.wanted += [(owner, place, token) for place, token in zip(places, ids)]
    if sequence is not None:
        yield _settled(sequence)


def _settled(sequence: _Sequence) -> _Sequence:
    """With at most one continuation of several tokens the sequence is an ordinary causal one."""
    sequence.blocks = [block for block in sequence.blocks if block[1] > block[0]]
    if len(sequence.blocks) < 2:
        sequence.blocks = []
    return sequence


def _predictions(decoder: Decoder, sequences: Iterable[_Sequence]) -> Iterator[tuple[int, float, bool]]:
    """(owner, log-probability, whether it is the likeliest) of every wanted token, in passes of like lengths."""
    for batch in _passes(sorted(sequences, key=lambda each: (bool(each.blocks), len(each.tokens)))):
        hidden_ND = decoder.prefill(
            [each.tokens for each in batch],
            positions=[each.positions for each in batch],
            masks=[each.mask(decoder.device) for each in batch],
        )
        places, targets, owners, start = [], [], [], 0
        for each in batch:
            for owner, place, token in each.wanted:
                owners.append(owner)
                places.append(start + place)
                targets.append(token)
            start += len(each.tokens)
        for at in range(0, len(places), LOGIT_ROWS):
            rows = torch.tensor(places[at : at + LOGIT_ROWS], device=decoder.device)
            target_N = torch.tensor(targets[at : at + LOGIT_ROWS], device=decoder.device)
            logits_NV = decoder.logits(hidden_ND[rows])
            logprobs = logits_NV.gather(1, target_N[:, None])[:, 0] - logits_NV.logsumexp(-1)
            is_top = logits_NV.argmax(-1) == target_N
            yield from zip(owners[at : at + LOGIT_ROWS], logprobs.tolist(), is_top.tolist())


def _passes(sequences: Sequence[_Sequence]) -> Iterator[list[_Sequence]]:
    batch: list[_Sequence] = []
    filled = 0
    for each in sequences:
        if batch and filled + len(each.tokens) > PASS_TOKENS:
            yield batch
            batch, filled = [], 0
        batch.append(each)
        filled += len(each.tokens)
    if batch:
        yield batch


def check_ids(what: str, ids: Sequence[int], vocabulary: int) -> None:
    """Raises Refused where an id is no token of the model."""
    if len(ids) and not (min(ids) >= 0 and max(ids) < vocabulary):
        wrong = next(i for i in ids if not 0 <= i < vocabulary)
        raise Refused(f"{what}: token id {wrong} is none of the model's; expected 0 to {vocabulary - 1}")
