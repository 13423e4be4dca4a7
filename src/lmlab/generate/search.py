"""Decoding that looks at several continuations: beam search and contrastive search, one prompt at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lmlab.errors import Failed, Refused
from lmlab.generate.batching import Request
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


def begin(decoder: AnyDecoder, request: Request, rows: int, slack: int = 0) -> tuple[Cache, Tensor]:
    """A cache with room for so many answers, the prompt in its row 0; hidden states (T, D) of the prompt. `slack`: how
    many tokens may be taken back."""
    cache = Cache(decoder.config, rows, len(request.prompt) + request.limit, decoder.device, slack)
    hidden_TD = decoder.prefill([request.prompt], cache=cache, rows=[0], sources=[request.source], prefix=True)
    return cache, hidden_TD


@torch.inference_mode()
def beam_search(decoder: AnyDecoder, request: Request, beam: Beam) -> list[Found]:
    """The best hypotheses, best first. Raises Failed where logits are not numbers."""
    cache, hidden_TD = begin(decoder, request, beam.beams)
    hidden_BD = hidden_TD[-1:]
    alive = [Found((), (), False, 0.0)]
    ended: list[Found] = []
    # Enough candidates that `beams` of them go on even if all others end.
    wide = beam.beams * (1 + len(request.stop_ids))
    for length in range(1, request.limit + 1):
        logprobs_BV = decoder.logits(hidden_BD).log_softmax(-1)
        if bool(logprobs_BV.isnan().any()):
            raise Failed(f"{request.name}: the logits of new token {length - 1} are not numbers (NaN or infinite)")
        totals_BV = logprobs_BV.double() + torch.tensor([[math.fsum(a.logprobs)] for a in alive], device=decoder.device)
        values, places = totals_BV.flatten().topk(min(wide, totals_BV.numel()))
        going: list[Found] = []
        parents: list[int] = []
        for rank, (total, place) in enumerate(zip(values.tolist(), places.tolist())):
            parent, token = divmod(place, totals_BV.shape[1])
            stopped = token in request.stop_ids
            if (stopped and rank >= beam.beams) or (not stopped and len(going) == beam.beams):
                continue
            logprobs = (*alive[parent].logprobs, float(logprobs_BV[parent, token]))
            score = total / length**beam.length_penalty
            made = Found((*alive[parent].ids, token), logprobs, stopped, score)
            if stopped:
                ended.append(made)
            else:
                going.append(made)
                parents.append(parent)
        ended = _best(ended, beam.beams)
        if length == request.limit and not (beam.early_stopping and len(ended) == beam.beams):
            ended = _best([*ended, *going], beam.beams)
        if not going or length == request.limit or _is_settled(going, ended, beam, length, request.limit):
            break
        alive = going
        place = len(request.prompt) + length - 1
        cache.choose_rows(parents, place)
        hidden_BD = decoder.decode([each.ids[-1] for each in alive], [place] * len(alive), cache)
    return ended[: beam.n_best]


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
def contrastive_search(decoder: AnyDecoder, request: Request, settings: Contrastive) -> Found:
    """One answer. Raises Failed where logits are not numbers."""
    K = min(settings.top_k, decoder.config.vocab_size)
    cache, hidden_TD = begin(decoder, request, K)
    cache.choose_rows([0] * K, len(request.prompt))
    before_SD = F.normalize(decoder.states(hidden_TD), dim=-1)
    logits_V = decoder.logits(hidden_TD[-1:])[0]
    ids: list[int] = []
    logprobs: list[float] = []
    for place in range(len(request.prompt), len(request.prompt) + request.limit):
        logprobs_V = logits_V.log_softmax(-1)
        if bool(logprobs_V.isnan().any()):
            raise Failed(f"{request.name}: the logits of new token {len(ids)} are not numbers (NaN or infinite)")
        values_K, tokens_K = logprobs_V.topk(K)
        hidden_KD = decoder.decode(tokens_K.tolist(), [place] * K, cache)
        states_KD = F.normalize(decoder.states(hidden_KD), dim=-1)
        penalty_K = (states_KD @ before_SD.T).amax(-1)
        best = int(((1 - settings.alpha) * values_K.exp() - settings.alpha * penalty_K).argmax())
        ids.append(int(tokens_K[best]))
        logprobs.append(float(values_K[best]))
        if ids[-1] in request.stop_ids:
            break
        cache.copy_slot(best, place, range(K))
        before_SD = torch.cat((before_SD, states_KD[best : best + 1]))
        logits_V = decoder.logits(hidden_KD[best : best + 1])[0]
    stopped = bool(ids) and ids[-1] in request.stop_ids
    return Found(tuple(ids), tuple(logprobs), stopped, math.fsum(logprobs))
