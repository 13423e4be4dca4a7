"""Speculative decoding (2211.17192): a small model proposes tokens, the large one checks them all in one pass.

The answer is distributed as the large model's alone. With both distributions of one token each (greedy) the rule below
accepts exactly the tokens that the large model would say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmlab.generate.batching import Request
from lmlab.generate.decoders import AnyDecoder
from lmlab.generate.sampling import Sampling, kept_tokens, penalise
from lmlab.generate.search import begin, groups


@dataclass
class Tally:
    """How many tokens were proposed, how many of them were accepted, and how many passes the large model made (one
    over several requests counts for each)."""

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
    """One of the two models with its cache: of request i's sequence `tokens[i]` stand in row i."""

    def __init__(self, decoder: AnyDecoder, requests: Sequence[Request], tokens: int) -> None:
        self.decoder = decoder
        self.cache, hidden = begin(decoder, requests, len(requests), tokens)
        self.tokens = [len(request.prompt) for request in requests]
        self.last = [decoder.logits(hidden_TD[-1:])[0] for hidden_TD in hidden]

    def read(self, sequences: Mapping[int, Sequence[int]]) -> dict[int, Tensor]:
        """Logits (T, V) after each token of these rows' sequences that is not in the cache yet."""
        rows = list(sequences)
        starts = [self.tokens[row] for row in rows]
        new = [sequences[row][start:] for row, start in zip(rows, starts)]
        hidden_ND = self.decoder.prefill(new, cache=self.cache, rows=rows, starts=starts)
        for row in rows:
            self.tokens[row] = len(sequences[row])
        return {row: self.decoder.logits(each) for row, each in zip(rows, hidden_ND.split([len(n) for n in new]))}

    def forget(self, row: int, length: int) -> None:
        """What a row has after so many tokens was rejected: its slots are written over."""
        self.tokens[row] = min(self.tokens[row], length)


class _Answer:
    """A request with its random numbers and what is proposed for it now."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.random = np.random.Generator(np.random.Philox(key=request.sampling.seed))
        self.proposed: list[int] = []
        self.q: list[np.ndarray] = []

    @property
    def sequence(self) -> list[int]:
        return [*self.request.prompt, *self.request.ids, *self.proposed]

    def wanted(self, logits_V: Tensor, ids: Sequence[int]) -> np.ndarray:
        """What is drawn from after an answer's `ids`."""
        sampling = self.request.sampling
        if sampling.penalised:
            logits_V = penalise(logits_V, sampling, self.request.said, ids)
        return distribution(logits_V, sampling)

    def accept(self, token: int, logits_V: Tensor) -> None:
        if not self.request.done:
            temperature = self.request.sampling.temperature or 1.0
            self.request.accept(token, float(torch.log_softmax(logits_V / temperature, -1)[token]))

    def propose(self, logits_V: Tensor) -> None:
        self.q.append(self.wanted(logits_V, [*self.request.ids, *self.proposed]))
        self.proposed.append(draw(self.q[-1], self.random.random()))

    def judge(self, logits_TV: Tensor, tally: Tally) -> int:
        """Accept what the large model accepts, and its own next token. How many proposals were accepted."""
        said = list(self.request.ids)
        p = [self.wanted(logits_V, [*said, *self.proposed[:place]]) for place, logits_V in enumerate(logits_TV)]
        count, after = verify(self.proposed, self.q, p, self.random.random(len(p) + 1))
        tally.drafted += len(self.proposed)
        tally.accepted += count
        for token, logits_V in zip([*self.proposed[:count], after], logits_TV):
            self.accept(token, logits_V)
        self.proposed, self.q = [], []
        return count


@torch.inference_mode()
def speculate(
    target: AnyDecoder, draft: AnyDecoder, requests: Sequence[Request], tokens: int, tally: Tally, most_rows: int = 32
) -> None:
    """Complete requests, with at most so many proposals a pass; `most_rows` of them share their passes. Each draws from its
    own seed, so that its answer is what it is alone."""
    for group in groups([request for request in requests if not request.done], 1, most_rows):
        large, small = _Side(target, group, tokens), _Side(draft, group, tokens)
        answers = [_Answer(request) for request in group]
        for answer, logits_V in zip(answers, large.last):
            tally.passes += 1
            if _are_numbers(answer.request, logits_V):
                answer.accept(draw(answer.wanted(logits_V, []), answer.random.random()), logits_V)
        while under_way := {row: answer for row, answer in enumerate(answers) if not answer.request.done}:
            lengths = {row: len(answer.sequence) for row, answer in under_way.items()}
            room = {
                row: min(answer.request.limit - len(answer.request.ids), draft.config.context_length - lengths[row]) - 1
                for row, answer in under_way.items()
            }
            for count in range(tokens):
                going = {row: answer.sequence for row, answer in under_way.items() if count < room[row]}
                for row, logits_TV in small.read(going).items() if going else ():
                    under_way[row].propose(logits_TV[-1])
            for row, logits_TV in large.read({row: answer.sequence for row, answer in under_way.items()}).items():
                tally.passes += 1
                if _are_numbers(under_way[row].request, logits_TV):
                    kept = lengths[row] + under_way[row].judge(logits_TV, tally)
                    large.forget(row, kept)
                    small.forget(row, kept)


def _are_numbers(request: Request, logits: Tensor) -> bool:
    """Whether logits are numbers; a request whose are not ends with that error."""
    if bool(logits.isnan().any()):
        request.accept(0, float("nan"))
        return False
    return True
