"""Continuous batching: requests join a running batch when there is room and leave it when they are done."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lmlab.errors import Failed
from lmlab.generate.attend import CHUNK
from lmlab.generate.cache import Cache, Row
from lmlab.generate.compiled import CompiledDecoder
from lmlab.generate.constrain import Constraint
from lmlab.generate.decoders import AnyDecoder, last_states
from lmlab.generate.infill import Blank
from lmlab.generate.prefixes import Key, Prefixes, shareable
from lmlab.generate.sampling import Chooser, Sampling, likeliest, penalise, uniforms
from lmlab.generate.text import TextStream

PREFILL_TOKENS = 2048
"""Prompt tokens in one pass: enough for the matrix products to be efficient, few enough that what lies between the
layers stays small (guessed: 2,048 x 4 d_model float32 are 12 MB at d 384)."""


Given = tuple[tuple[int, ...] | None, tuple[int, ...]]
"""(source, prompt) of a request."""


@dataclass(eq=False)
class Request:
    """One answer under way. `limit` is how many tokens it may have, `source` what the encoder reads where there is one
    (the prompt is then what the decoder begins with), or, of a model with GLM's two positions, its `Blank`."""

    prompt: tuple[int, ...]
    sampling: Sampling
    limit: int
    stop_ids: frozenset[int]
    name: str
    source: tuple[int, ...] | None = None
    text: TextStream | None = None
    constraint: Constraint | None = None
    on_token: Callable[[str, int, float], None] | None = None
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[list[tuple[int, float]]] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] | None = None
    error: Failed | None = None
    draws: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        if self.sampling.temperature > 0:
            self.draws = uniforms(self.sampling.seed, self.limit)
        if self.limit == 0:
            self.finish_reason = "length"

    @property
    def done(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    @property
    def given(self) -> Given:
        """What is computed before the first token is chosen."""
        return self.source, self.prompt

    @property
    def said(self) -> tuple[int, ...]:
        """The tokens that were given: the source's where there is one."""
        return self.prompt if self.source is None or isinstance(self.source, Blank) else self.source

    @property
    def draw(self) -> float:
        """The uniform number of the next token."""
        return float(self.draws[len(self.ids)]) if len(self.draws) else 0.0

    def accept(self, token_id: int, logprob: float) -> None:
        """Take the next token; see whether it ends the answer."""
        if self.error is not None:
            return
        if math.isnan(logprob):
            self.error = Failed(
                f"{self.name}: the logits of new token {len(self.ids)} are not numbers (NaN or infinite)"
            )
            return
        self.ids.append(token_id)
        self.logprobs.append(logprob)
        piece = ""
        if token_id in self.stop_ids:
            self.finish_reason = "stop"
        elif self.text is not None:
            piece = self.text.push(token_id)
            if self.text.stopped:
                self.finish_reason = "stop"
        if self.finish_reason is None and self.constraint is not None and self.constraint.take(token_id):
            self.finish_reason = "stop"
        if self.finish_reason is None and len(self.ids) >= self.limit:
            self.finish_reason = "length"
        if self.finish_reason is not None and self.text is not None:
            piece += self.text.flush()
            if self.finish_reason == "length" and self.text.stopped:  # a held half character completed a stop string
                self.finish_reason = "stop"
        if self.on_token is not None:
            self.on_token(piece, token_id, logprob)


@dataclass
class _Prefix:
    """A prompt's keys, values and last logits (V,), kept while more requests with the same prompt wait."""

    held: Row
    logits: Tensor


class Scheduler:
    """The requests of one engine. `step` gives every request under way one more token."""

    def __init__(self, decoder: AnyDecoder, max_batch: int, prefix_bytes: int = 0) -> None:
        self.decoder, self.max_batch = decoder, max_batch
        self.waiting: deque[Request] = deque()
        self.active: list[Request] = []
        self.cache: Cache | None = None
        self.prefilled_tokens = 0
        """Prompt tokens that were computed so far: samples that share a prompt count it once, and so does what
        prompts begin with in common, in whole blocks."""
        self.shared = Prefixes(prefix_bytes if shareable(decoder.config) else 0)
        self._prompts: Counter[Given] = Counter()
        self._prefixes: dict[Given, _Prefix] = {}
        self._chooser: Chooser | None = None

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests, in this order."""
        queued = [request for request in requests if not request.done]
        self.waiting.extend(queued)
        self._prompts.update(request.given for request in queued)

    @torch.inference_mode()  # rows of the cache are moved, and its tensors were made in this mode
    def drop(self, requests: Sequence[Request]) -> None:
        """Forget requests wherever they are."""
        unwanted = {id(request) for request in requests}
        for request in [r for r in self.waiting if id(r) in unwanted]:
            self.waiting.remove(request)
            self._leave_queue(request)
        self._remove([row for row, request in enumerate(self.active) if id(request) in unwanted])

    @torch.inference_mode()
    def step(self) -> None:
        """Let waiting requests in, as far as there is room, with their first token; the others get their next one."""
        running = len(self.active)
        if self.waiting and running < self.max_batch:
            self._admit()
        if running:
            self._advance(running)
        for row, request in enumerate(self.active):
            if request.error is not None and self.cache is not None:
                self.cache.clear_row(row)
        self._remove([row for row, request in enumerate(self.active) if request.done])

    def _advance(self, rows: int) -> None:
        assert self.cache is not None
        batch = self.active[:rows]
        positions = [len(request.prompt) + len(request.ids) - 1 for request in batch]
        hidden_BD = self.decoder.decode([request.ids[-1] for request in batch], positions, self.cache)
        if self._chooser is None or len(self._chooser.settings) != rows:
            self._chooser = Chooser([request.sampling for request in batch], self.decoder.device)
        self._choose(batch, self.decoder.logits(hidden_BD), self._chooser)

    def _choose(self, batch: Sequence[Request], logits_BV: Tensor, chooser: Chooser) -> None:
        drawn_BV = _adjusted(batch, logits_BV)
        ids, logprobs = chooser.choose(logits_BV, [request.draw for request in batch], drawn_BV)
        for row, request in enumerate(batch):
            if request.sampling.top_logprobs:
                sampling = request.sampling
                request.top.append(likeliest(logits_BV[row], sampling.temperature, sampling.top_logprobs))
        for request, token_id, logprob in zip(batch, ids, logprobs):
            request.accept(token_id, logprob)

    def _admit(self) -> None:
        room = self.max_batch - len(self.active)
        joining = [self.waiting.popleft() for _ in range(min(room, len(self.waiting)))]
        first = len(self.active)
        self.active += joining
        self._chooser = None
        need = max(len(request.prompt) + request.limit for request in self.active)
        # Room for all that wait too, so that the cache grows once and not with every newcomer.
        rows = min(self.max_batch, len(self.active) + len(self.waiting))
        need = max([need, *(len(request.prompt) + request.limit for request in self.waiting)])
        config, device = self.decoder.config, self.decoder.device
        if isinstance(self.decoder, CompiledDecoder):
            rows, need = self.decoder.capacity(rows, need, self.max_batch, self.cache)
        if self.cache is None:
            self.cache = Cache(config, rows, need, device, 0, self.decoder.kept)
        self.cache = self.cache.grown(config, rows, need)
        logits_BV = self._prefill(joining, first, self.cache)
        self._choose(joining, logits_BV, Chooser([request.sampling for request in joining], device))

    def _prefill(self, joining: Sequence[Request], first: int, cache: Cache) -> Tensor:
        """Keys and values of the newcomers' prompts in their rows; logits after each prompt (B, V)."""
        row_of: dict[Given, int] = {}
        logits: dict[Given, Tensor] = {given: kept.logits for given, kept in self._prefixes.items()}
        fresh: list[int] = []
        for row, request in enumerate(joining, first):
            if request.given not in row_of and request.given not in logits:
                row_of[request.given] = row
                fresh.append(row)
        while fresh:
            now, later, awaited = self._apart(fresh)
            self._compute(now, cache, logits)
            fresh = later
            if later and not any(self.shared.holds(key) for key in awaited):  # no room was left for what they wait for
                self._compute(later, cache, logits)
                fresh = []
        for row, request in enumerate(joining, first):
            source = row_of.get(request.given)
            if source is None:
                cache.write_row(row, self._prefixes[request.given].held)
            elif source != row:
                cache.copy_row(source, row, len(request.prompt))
            self._leave_queue(request)
        for given, row in row_of.items():
            if self._prompts[given]:
                self._prefixes[given] = _Prefix(cache.read_row(row, len(given[1])), logits[given])
        return torch.stack([logits[request.given] for request in joining])

    def _apart(self, rows: Sequence[int]) -> tuple[list[int], list[int], set[Key]]:
        """(rows to compute now; rows that wait until one of them has computed what they begin with too; that)."""
        under_way: set[Key] = set()
        now: list[int] = []
        later: list[int] = []
        for row in rows:
            missing = self.shared.missing(self.active[row].prompt)
            if missing is not None and missing in under_way:
                later.append(row)
                continue
            now.append(row)
            if missing is not None:
                under_way.add(missing)
        return now, later, under_way

    def _compute(self, fresh: Sequence[int], cache: Cache, logits: dict[Given, Tensor]) -> None:
        """Prompts into their rows, but for what is kept of their beginnings; their last logits."""
        begins = {row: self.shared.find(self.active[row].prompt) for row in fresh}
        starts = {row: CHUNK * len(blocks) for row, blocks in begins.items()}
        for rows in passes(fresh, [len(self.active[row].prompt) - starts[row] for row in fresh]):
            batch = [self.active[row] for row in rows]
            # A window forgets what prompts begin with, so where that is kept they are computed beside it and moved.
            apart = cache.is_windowed and self.shared.budget > 0
            place, places = (self._beside(batch), list(range(len(rows)))) if apart else (cache, rows)
            for at, row in zip(places, rows):
                for index, block in enumerate(begins[row]):
                    place.write_row(at, block, index * CHUNK)
            hidden_BD = last_states(
                self.decoder,
                [request.prompt[starts[row] :] for row, request in zip(rows, batch)],
                cache=place,
                rows=places,
                starts=[starts[row] for row in rows],
                sources=[request.source for request in batch],
                prefix=True,
            )
            self.prefilled_tokens += sum(len(request.prompt) - starts[row] for row, request in zip(rows, batch))
            sources = {request.source for request in batch if request.said is request.source}
            self.prefilled_tokens += sum(len(source or ()) for source in sources)
            logits |= dict(zip([request.given for request in batch], self.decoder.logits(hidden_BD)))
            for at, row in zip(places, rows):
                self.shared.keep(self.active[row].prompt, place, at)
                if apart:
                    cache.adopt(row, place, at, len(self.active[row].prompt))

    def _beside(self, batch: Sequence[Request]) -> Cache:
        """A cache with all slots for prompts of one pass."""
        longest = max(len(request.prompt) for request in batch)
        return Cache(self.decoder.config, len(batch), longest, self.decoder.device, dtype=self.decoder.kept)

    def _leave_queue(self, request: Request) -> None:
        self._prompts[request.given] -= 1
        if not self._prompts[request.given]:
            del self._prompts[request.given]
            self._prefixes.pop(request.given, None)

    def _remove(self, rows: Sequence[int]) -> None:
        """Take rows out; the last ones move into the gaps, so that those under way stay the first of the cache."""
        for row in sorted(rows, reverse=True):
            last = len(self.active) - 1
            if row != last and self.cache is not None:
                request = self.active[last]
                self.cache.copy_row(last, row, len(request.prompt) + len(request.ids))
                self.active[row] = request
            self.active.pop()
            self._chooser = None


def _adjusted(batch: Sequence[Request], logits_BV: Tensor) -> Tensor | None:
    """The logits that are drawn from, where a request changes its own; None where none does."""
    rows = [row for row, each in enumerate(batch) if each.sampling.penalised or each.constraint is not None]
    if not rows:
        return None
    drawn_BV = logits_BV.clone()
    for row in rows:
        request = batch[row]
        if request.sampling.penalised:
            drawn_BV[row] = penalise(drawn_BV[row], request.sampling, request.said, request.ids)
        if request.constraint is not None:
            masked_V = request.constraint.mask(drawn_BV[row])
            if masked_V is None:
                request.error = Failed(
                    f"{request.name}: no token may follow the first {len(request.ids)}: its regex or json_schema needs "
                    "a token that is a stop token or that the vocabulary lacks"
                )
                continue
            drawn_BV[row] = masked_V
    return drawn_BV


def passes(rows: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Cut rows into passes of at most PREFILL_TOKENS tokens (or one long prompt); short prompts stand together."""
    parts: list[list[int]] = []
    filled = PREFILL_TOKENS
    for length, row in sorted(zip(lengths, rows)):
        if filled + length > PREFILL_TOKENS:
            parts.append([])
            filled = 0
        parts[-1].append(row)
        filled += length
    return parts
