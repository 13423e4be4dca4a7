"""Speculative decoding (2211.17192): a small model proposes tokens, the large one checks them all in one pass.

The answer is distributed as the large model's alone. With both distributions of one token each (greedy) the rule below
accepts exactly the tokens that the large model would say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmlab.generate.batching import Request
from lmlab.generate.cache import Cache
from lmlab.generate.decoders import AnyDecoder
from lmlab.generate.sampling import Sampling, kept_tokens, penalise
from lmlab.generate.search import begin


@dataclass
class Tally:
    """How many tokens were proposed, how many of them were accepted, and how many passes the large model made."""

    drafted: int = 0
    accepted: int = 0
    passes: int = 0

    @property
    def acceptance(self) -> float:
        """Share of the proposals that were accepted; 0 where there was none."""
        return self.accepted / self.drafted if self.drafted else 0.0


def distribution(logits_V: Tensor, sampling: Sampling) -> np.ndarray:
    """What a request draws from, (V,), float64, sum 1: temperature and truncation applied; one token if greedy."""
    if sampling.temperature == 0:
        only = np.zeros(len(logits_V))
        only[int(logits_V.argmax())] = 1.0
        return only
    probabilities = torch.softmax(logits_V / sampling.temperature, -1).cpu().numpy()
    if sampling.truncated:
        ids, masses = kept_tokens(probabilities, sampling)
        whole = np.zeros(len(probabilities))
        whole[ids] = masses
    else:
        whole = probabilities.astype(np.float64)
    return whole / whole.sum()


def acceptance(p_V: np.ndarray, q_V: np.ndarray) -> np.ndarray:
    """min(1, p / q): how likely a token proposed from q is to be accepted, (V,). 0 where q proposes nothing."""
    sure = (p_V >= q_V) & (q_V > 0)
    return np.divide(p_V, q_V, out=sure.astype(np.float64), where=(q_V > 0) & ~sure)


def residual(p_V: np.ndarray, q_V: np.ndarray) -> np.ndarray:
    """norm(max(0, p - q)): what is drawn from after a rejection, (V,). p where there is nothing left (p equals q)."""
    left = np.maximum(p_V - q_V, 0.0)
    return left / left.sum() if left.sum() > 0 else p_V


def draw(p_V: np.ndarray, uniform: float) -> int:
    """The token at which the cumulative distribution passes `uniform`; never one of probability 0."""
    sums = p_V.cumsum()
    return int(np.searchsorted(sums, min(uniform * sums[-1], np.nextafter(sums[-1], 0)), side="right"))


def verify(
    proposed: Sequence[int], q: Sequence[np.ndarray], p: Sequence[np.ndarray], uniforms: np.ndarray
) -> tuple[int, int]:
    """(how many proposals are accepted, the token after them). `p` has one distribution more than `q`: that after the
    last proposal. `uniforms` has len(p) + 1 numbers."""
    for place, token in enumerate(proposed):
        if uniforms[place] >= acceptance(p[place], q[place])[token]:
            return place, draw(residual(p[place], q[place]), float(uniforms[-1]))
    return len(proposed), draw(p[len(proposed)], float(uniforms[-1]))


class _Side:
    """One of the two models with its cache: `tokens` of the sequence stand in it."""

    def __init__(self, decoder: AnyDecoder, request: Request, tokens: int) -> None:
        self.decoder = decoder
        self.cache: Cache
        self.cache, hidden_TD = begin(decoder, request, 1, tokens)
        self.tokens = len(request.prompt)
        self.last_V = decoder.logits(hidden_TD[-1:])[0]

    def read(self, sequence: Sequence[int]) -> Tensor:
        """Logits (T, V) after each token of the sequence that is not in the cache yet."""
        hidden_TD = self.decoder.prefill([sequence[self.tokens :]], cache=self.cache, rows=[0], starts=[self.tokens])
        self.tokens = len(sequence)
        return self.decoder.logits(hidden_TD)


@torch.inference_mode()
def speculate(target: AnyDecoder, draft: AnyDecoder, request: Request, tokens: int, tally: Tally) -> None:
    """Complete a request, with at most so many proposals a pass."""
    sampling = request.sampling
    random = np.random.Generator(np.random.Philox(key=sampling.seed))
    given = request.source or request.prompt

    def wanted(logits_V: Tensor, ids: Sequence[int]) -> np.ndarray:
        return distribution(penalise(logits_V, sampling, given, ids) if sampling.penalised else logits_V, sampling)

    def accept(token: int, logits_V: Tensor) -> None:
        if not request.done:
            request.accept(token, float(torch.log_softmax(logits_V / (sampling.temperature or 1.0), -1)[token]))

    if request.done:
        return
    large, small = _Side(target, request, tokens), _Side(draft, request, tokens)
    tally.passes += 1
    if bool(large.last_V.isnan().any()):
        request.accept(0, float("nan"))
        return
    accept(draw(wanted(large.last_V, []), random.random()), large.last_V)
    while not request.done:
        sequence = [*request.prompt, *request.ids]
        room = min(request.limit - len(request.ids), draft.config.context_length - len(sequence)) - 1
        proposed: list[int] = []
        q: list[np.ndarray] = []
        for _ in range(min(tokens, room)):
            logits_V = small.read([*sequence, *proposed])[-1]
            q.append(wanted(logits_V, [*request.ids, *proposed]))
            proposed.append(draw(q[-1], random.random()))
        logits_TV = large.read([*sequence, *proposed])
        tally.passes += 1
        if bool(logits_TV.isnan().any()):
            request.accept(0, float("nan"))
            return
        said = list(request.ids)
        p = [wanted(logits_V, [*said, *proposed[:place]]) for place, logits_V in enumerate(logits_TV)]
        count, after = verify(proposed, q, p, random.random(len(p) + 1))
        tally.drafted += len(proposed)
        tally.accepted += count
        for token, logits_V in zip([*proposed[:count], after], logits_TV):
            accept(token, logits_V)
        # What was rejected is forgotten: its slots are written over.
        large.tokens = min(large.tokens, len(sequence) + count)
        small.tokens = min(small.tokens, len(sequence) + count)
