"""Decoding that looks at several continuations: beam search and contrastive search, of several prompts at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lmlab.errors import Failed, Refused
from lmlab.generate.batching import Request, passes
from lmlab.generate.cache import Cache
from lmlab.generate.decoders import AnyDecoder


@dataclass(frozen=True)
class Beam:
    """Beam search. A hypothesis of n tokens scores log P / n^length_penalty (the end token counts as one)."""

    beams: int = 4
    max_new_tokens: int = 64
    length_penalty: float = 1.0
    """0 is log P itself, which favours short answers; larger values favour long ones (1609.08144, section 7, with the
    plain power of the length that transformers has)."""
    n_best: int = 1
    early_stopping: bool = False
    """Stop as soon as `beams` hypotheses have ended; else only when no beam under way could still be among them."""
    stop_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Raises Refused naming the setting."""
        if self.beams < 1 or self.max_new_tokens < 1:
            raise Refused(f"beam: {self.beams} beams, {self.max_new_tokens} new tokens; expected 1 or more of each")
        if not 1 <= self.n_best <= self.beams:
            raise Refused(f"beam: n_best is {self.n_best}; expected 1 to the {self.beams} beams")


@dataclass(frozen=True)
class Contrastive:
    """Contrastive search (2202.06417, eq. 5): of the `top_k` likeliest tokens v the one with the highest (1 - alpha)
    p(v) - alpha max_j cos(h_v, h_j), j over all tokens before; h is the last layer after the final norm. alpha 0 is
    greedy."""

    top_k: int = 4
    alpha: float = 0.6
    max_new_tokens: int = 64
    stop_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Raises Refused naming the setting."""
        if self.top_k < 1 or self.max_new_tokens < 1:
            raise Refused(f"contrastive: top_k {self.top_k}, {self.max_new_tokens} new tokens; expected 1 or more")
        if not 0 <= self.alpha <= 1:
            raise Refused(f"contrastive: alpha is {self.alpha}; expected 0 to 1")


@dataclass(frozen=True)
class Found:
    """A hypothesis: its tokens, the log-probability of each, whether it ended by itself, and its score."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool
    score: float


def begin(decoder: AnyDecoder, requests: Sequence[Request], rows: int, slack: int = 0) -> tuple[Cache, list[Tensor]]:
    """A cache with room for so many answers, the prompts in its first rows; hidden states (T, D) of each prompt. `slack`:
    how many tokens may be taken back."""
    cache = Cache(decoder.config, rows, max(len(r.prompt) + r.limit for r in requests), decoder.device, slack)
    hidden: dict[int, Tensor] = {}
    for part in passes(range(len(requests)), [len(request.prompt) for request in requests]):
        batch = [requests[i] for i in part]
        prompts, sources = [request.prompt for request in batch], [request.source for request in batch]
        hidden_ND = decoder.prefill(prompts, cache=cache, rows=part, sources=sources, prefix=True)
        hidden |= dict(zip(part, hidden_ND.split([len(prompt) for prompt in prompts])))
    return cache, [hidden[i] for i in range(len(requests))]


def groups(requests: Sequence[Request], rows_each: int, most_rows: int) -> Iterator[Sequence[Request]]:
    """Requests that are computed at once, in their order: as many as have room."""
    count = max(1, most_rows // rows_each)
    for at in range(0, len(requests), count):
        yield requests[at : at + count]


@torch.inference_mode()
def beam_search(decoder: AnyDecoder, requests: Sequence[Request], beam: Beam, most_rows: int = 32) -> list[list[Found]]:
    """The best hypotheses of each request, best first; requests share passes as far as `most_rows` beams go. Raises
    Failed where logits are not numbers."""
    found: list[list[Found]] = []
    for group in groups(requests, beam.beams, most_rows):
        runs = under_way = [_Beams(request, beam) for request in group]
        cache, hidden = begin(decoder, group, beam.beams * len(group))
        hidden_BD = torch.stack([hidden_TD[-1] for hidden_TD in hidden])
        while True:
            logprobs_BV = decoder.logits(hidden_BD).log_softmax(-1)
            rows: list[int] = []
            first = 0
            for run, mine_BV in zip(under_way, logprobs_BV.split([len(run.alive) for run in under_way])):
                rows += [first + parent for parent in run.advance(mine_BV)]
                first += len(mine_BV)
            under_way = [run for run in under_way if not run.done]
            if not under_way:
                break
            places = [run.place for run in under_way for _ in run.alive]
            cache.choose_rows(rows, max(places))
            hidden_BD = decoder.decode([each.ids[-1] for run in under_way for each in run.alive], places, cache)
        found += [run.ended[: beam.n_best] for run in runs]
    return found


class _Beams:
    """The beams of one request."""

    def __init__(self, request: Request, beam: Beam) -> None:
        self.request, self.beam = request, beam
        self.alive = [Found((), (), False, 0.0)]
        self.ended: list[Found] = []
        self.length = 0
        self.done = False
        # Enough candidates that `beams` of them go on even if all others end.
        self.wide = beam.beams * (1 + len(request.stop_ids))

    @property
    def place(self) -> int:
        """The position of the beams' last tokens."""
        return len(self.request.prompt) + self.length - 1

    def advance(self, logprobs_BV: Tensor) -> list[int]:
        """Take the next token of each beam. The beams that those under way now were made of; none where it is done."""
        beam, limit = self.beam, self.request.limit
        if bool(logprobs_BV.isnan().any()):
            raise Failed(
                f"{self.request.name}: the logits of new token {self.length} are not numbers (NaN or infinite)"
            )
        self.length += 1
        sums_B1 = torch.tensor([[math.fsum(each.logprobs)] for each in self.alive], device=logprobs_BV.device)
        totals_BV = logprobs_BV.double() + sums_B1
        values, places = totals_BV.flatten().topk(min(self.wide, totals_BV.numel()))
        going: list[Found] = []
        parents: list[int] = []
        for rank, (total, place) in enumerate(zip(values.tolist(), places.tolist())):
            parent, token = divmod(place, totals_BV.shape[1])
            stopped = token in self.request.stop_ids
            if (stopped and rank >= beam.beams) or (not stopped and len(going) == beam.beams):
                continue
            logprobs = (*self.alive[parent].logprobs, float(logprobs_BV[parent, token]))
            score = total / self.length**beam.length_penalty
            made = Found((*self.alive[parent].ids, token), logprobs, stopped, score)
            if stopped:
                self.ended.append(made)
            else:
                going.append(made)
                parents.append(parent)
        self.ended = _best(self.ended, beam.beams)
        if self.length == limit and not (beam.early_stopping and len(self.ended) == beam.beams):
            self.ended = _best([*self.ended, *going], beam.beams)
        self.done = not going or self.length == limit or _is_settled(going, self.ended, beam, self.length, limit)
        self.alive = going
        return [] if self.done else parents


def _best(found: Sequence[Found], count: int) -> list[Found]:
    return sorted(found, key=lambda each: -each.score)[:count]


def _is_settled(going: Sequence[Found], ended: Sequence[Found], beam: Beam, length: int, limit: int) -> bool:
    if len(ended) < beam.beams:
        return False
    if beam.early_stopping:
        return True
    # Totals only fall. The best that one can still reach is its total now over the length that flatters it most.
    flattering = limit if beam.length_penalty > 0 else length + 1
    best = max(math.fsum(each.logprobs) for each in going) / flattering**beam.length_penalty
    return ended[-1].score >= best


@torch.inference_mode()
def contrastive_search(
    decoder: AnyDecoder, requests: Sequence[Request], settings: Contrastive, most_rows: int = 32
) -> list[Found]:
    """One answer to each request; requests share passes as far as `most_rows` candidates go. Raises Failed where logits
    are not numbers."""
    K = min(settings.top_k, decoder.config.vocab_size)
    found: list[Found] = []
    for group in groups(requests, K, most_rows):
        cache, hidden = begin(decoder, group, K * len(group))
        runs = under_way = [_Candidates(decoder, *each) for each in zip(group, hidden)]
        kept = [row for row in range(len(group)) for _ in range(K)]
        while True:
            under_way = [run for run in under_way if not run.done]
            if not under_way:
                break
            cache.choose_rows(kept, max(run.place for run in under_way))
            proposals = [run.propose(K) for run in under_way]
            places = [run.place for run in under_way for _ in range(K)]
            hidden_ND = decoder.decode([token for tokens in proposals for token in tokens], places, cache)
            kept = []
            for index, (run, hidden_KD) in enumerate(zip(under_way, hidden_ND.split(K))):
                rows, place = range(index * K, (index + 1) * K), run.place
                cache.copy_slot(rows[run.choose(decoder, hidden_KD, settings.alpha)], place, rows)
                kept += [] if run.done else rows
        found += [run.found for run in runs]
    return found


class _Candidates:
    """One request's answer, its candidates for the next token, and the states of all tokens before."""

    def __init__(self, decoder: AnyDecoder, request: Request, hidden_TD: Tensor) -> None:
        self.request = request
        self.before_SD = F.normalize(decoder.states(hidden_TD), dim=-1)
        self.logits_V = decoder.logits(hidden_TD[-1:])[0]
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.tokens: list[int] = []
        self.values_K = torch.empty(0)

    @property
    def place(self) -> int:
        """The position of the next token."""
        return len(self.request.prompt) + len(self.ids)

    @property
    def stopped(self) -> bool:
        return bool(self.ids) and self.ids[-1] in self.request.stop_ids

    @property
    def done(self) -> bool:
        return self.stopped or len(self.ids) >= self.request.limit

    @property
    def found(self) -> Found:
        return Found(tuple(self.ids), tuple(self.logprobs), self.stopped, math.fsum(self.logprobs))

    def propose(self, K: int) -> list[int]:
        """The likeliest K tokens."""
        logprobs_V = self.logits_V.log_softmax(-1)
        if bool(logprobs_V.isnan().any()):
            raise Failed(
                f"{self.request.name}: the logits of new token {len(self.ids)} are not numbers (NaN or infinite)"
            )
        self.values_K, tokens_K = logprobs_V.topk(K)
        self.tokens = tokens_K.tolist()
        return self.tokens

    def choose(self, decoder: AnyDecoder, hidden_KD: Tensor, alpha: float) -> int:
        """Take the best of the candidates; which one it is."""
        states_KD = F.normalize(decoder.states(hidden_KD), dim=-1)
        penalty_K = (states_KD @ self.before_SD.T).amax(-1)
        best = int(((1 - alpha) * self.values_K.exp() - alpha * penalty_K).argmax())
        self.ids.append(self.tokens[best])
        self.logprobs.append(float(self.values_K[best]))
        self.before_SD = torch.cat((self.before_SD, states_KD[best : best + 1]))
        self.logits_V = decoder.logits(hidden_KD[best : best + 1])[0]
        return best
