"""Log-probabilities of given tokens: continuations of contexts, and whole documents.

Continuations that share a context make one sequence: the context once, then each continuation, at the positions that
follow the context and hidden from the other continuations by a mask. So a question with four answers costs its own
tokens once, in one pass. Contexts that begin alike, such as questions behind the same demonstrations, share that too.
Logits are made at the positions that predict a continuation's token, nowhere else.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmlab.errors import Failed, Refused
from lmlab.generate.attend import CHUNK
from lmlab.generate.cache import Cache
from lmlab.generate.decoders import AnyDecoder
from lmlab.generate.infill import Blank, Blanks
from lmlab.generate.prefixes import shareable

PASS_TOKENS = 512
"""Tokens in one pass (guessed, see batching.PREFILL_TOKENS)."""

CONTINUATION_TOKENS = 1024
"""Continuation tokens behind one copy of their context: attention within a sequence costs the square of its length."""

LOGIT_BYTES = 16 << 20
"""Logits that are held at once: 128 positions at a vocabulary of 32,000."""


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
    source: tuple[int, ...] | None = None
    """What the encoder reads, where there is one; of glm-2d the blank."""
    prefix: int = 0
    """So many first tokens are read in both directions."""

    def mask(self, device: torch.device) -> Tensor | None:
        """(T, T), True where a token sees another; None for causal."""
        if not self.blocks and not self.prefix:
            return None
        T, C = len(self.tokens), self.context
        seen = torch.zeros((T, T), dtype=torch.bool, device=device)
        seen[:, :C] = True
        for start, end in ((0, C), *self.blocks):
            seen[start:end, start:end] = torch.ones(end - start, end - start, dtype=torch.bool, device=device).tril()
        if self.prefix:
            seen[: self.prefix, : self.prefix] = True
        return seen


@torch.inference_mode()
def score_pairs(
    decoder: AnyDecoder,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    start_id: int | None,
    decoder_start_id: int | None = None,
    blanks: Blanks | None = None,
) -> list[Scored]:
    """Score each (context, continuation). An empty context is `start_id` (the end of a document: what a document
    follows). Of an encoder-decoder the context goes to the encoder, and the continuation follows `decoder_start_id`. With
    glm-2d it fills the blank of its context, as `blanks` says.

    Raises Refused where a pair is longer than the model's context, Failed where logits are not numbers.
    """
    sums, greedy = [0.0] * len(pairs), [True] * len(pairs)
    for owner, logprob, is_top in _predictions(decoder, _trees(decoder, pairs, start_id, decoder_start_id, blanks)):
        if math.isnan(logprob):
            raise Failed(f"pair {owner}: the logits of its continuation are not numbers (NaN or infinite)")
        sums[owner] += logprob
        greedy[owner] = greedy[owner] and is_top
    return [Scored(s, g, len(pair[1])) for s, g, pair in zip(sums, greedy, pairs)]


@torch.inference_mode()
def score_documents(
    decoder: AnyDecoder, documents: Sequence[Sequence[int]], window: int, stride: int, start_id: int | None
) -> list[float]:
    """-log P of each document in nats, the first token given `start_id`; every token is predicted once.

    A window is at most `window` tokens; after the first each predicts its last `stride` tokens, so that a token has at
    least window - stride tokens before it wherever its document does.
    """
    totals = [0.0] * len(documents)
    for owner, _, logprob in _document_tokens(decoder, documents, window, stride, start_id):
        totals[owner] -= logprob
    for owner, total in enumerate(totals):
        if math.isnan(total):
            raise Failed(f"document {owner}: its logits are not numbers (NaN or infinite)")
    return totals


@torch.inference_mode()
def score_tokens(
    decoder: AnyDecoder, documents: Sequence[Sequence[int]], window: int, stride: int, start_id: int | None
) -> list[list[float]]:
    """-log P of every token of each document in nats, in their order, over the windows of `score_documents`."""
    found = [[math.nan] * len(ids) for ids in documents]
    for owner, place, logprob in _document_tokens(decoder, documents, window, stride, start_id):
        found[owner][place] = -logprob
    for owner, nats in enumerate(found):
        if any(map(math.isnan, nats)):
            raise Failed(f"document {owner}: its logits are not numbers (NaN or infinite)")
    return found


@dataclass(frozen=True)
class Cost:
    """Documents in another precision beside float32. Log-probabilities are in nats; `difference` is the mean absolute
    difference of a token's; bits per byte are None where there is no text."""

    tokens: int
    nats_per_token: float
    nats_per_token_float32: float
    difference: float
    bits_per_byte: float | None
    bits_per_byte_float32: float | None


@torch.inference_mode()
def cost(
    exact: AnyDecoder,
    rough: AnyDecoder,
    documents: Sequence[Sequence[int]],
    window: int,
    start_id: int | None,
    size: int | None,
) -> Cost:
    """What `rough` costs beside `exact` on documents of `size` bytes. Raises as `score_documents` does."""
    settings = (documents, window, max(1, window // 2), start_id)
    pairs = list(zip(_document_tokens(exact, *settings), _document_tokens(rough, *settings), strict=True))
    if not pairs:
        raise Refused("precision_cost: the documents have no tokens")
    n = len(pairs)
    nats, rough_nats = (-math.fsum(pair[which][2] for pair in pairs) for which in (0, 1))
    bits = [None if not size else each / math.log(2) / size for each in (rough_nats, nats)]
    return Cost(n, rough_nats / n, nats / n, math.fsum(abs(a[2] - b[2]) for a, b in pairs) / n, *bits)


def _document_tokens(
    decoder: AnyDecoder, documents: Sequence[Sequence[int]], window: int, stride: int, start_id: int | None
) -> Iterator[tuple[int, int, float]]:
    """(document, place in it, log-probability) of every token, in an order that the lengths alone decide."""
    context = decoder.config.context_length
    if not 1 <= stride <= window <= context:
        raise Refused(
            f"window {window}, stride {stride}: expected 1 <= stride <= window <= the model's context {context}"
        )
    if decoder.config.has_encoder:
        raise Refused("score_documents: an encoder-decoder predicts a text given a source; use score with pairs")
    if start_id is None:
        raise Refused("score_documents: the engine knows no end-of-document token to condition the first token on")
    starts = list(itertools.accumulate((len(ids) for ids in documents), initial=0))
    windows = (
        each for first, ids in zip(starts, documents) for each in _windows(first, [start_id, *ids], window, stride)
    )
    for number, logprob, _ in _predictions(decoder, windows):
        owner = bisect.bisect_right(starts, number) - 1
        yield owner, number - starts[owner], logprob


def _windows(first: int, ids: list[int], window: int, stride: int) -> Iterator[_Sequence]:
    """A document's windows; what owns a token is its number, counted from `first` over all documents."""
    done, last = 0, len(ids) - 1
    while done < last:
        end = min(last, window if done == 0 else done + stride)
        begin = max(0, end - window)
        wanted = [(first + place - 1, place - 1 - begin, ids[place]) for place in range(done + 1, end + 1)]
        yield _Sequence(ids[begin:end], list(range(end - begin)), wanted, [])
        done = end


def _trees(
    decoder: AnyDecoder,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    start_id: int | None,
    decoder_start_id: int | None,
    blanks: Blanks | None,
) -> Iterator[_Sequence]:
    if decoder.config.has_encoder and decoder_start_id is None:
        raise Refused("score: an encoder-decoder needs decoder_start_id, the token that its answers begin after")
    begin = (decoder_start_id or 0,) if decoder.config.has_encoder else None
    limit, vocabulary = decoder.config.context_length, decoder.config.vocab_size
    groups: dict[tuple[int, ...], list[int]] = {}
    opened: dict[tuple[int, ...], Blank] = {}
    for owner, (context, continuation) in enumerate(pairs):
        if not context and start_id is None:
            raise Refused(f"pair {owner}: its context is empty and the engine knows no end-of-document token to use")
        given = tuple(context) or (start_id or 0,)
        check_ids(f"pair {owner}", [*given, *continuation], vocabulary)
        if blanks is not None:
            given, blank = blanks.opened(f"pair {owner}", given)
            opened[given] = blank
        before = given if begin is None else begin
        if max(len(given), len(before) + len(continuation) - 1) > limit:
            raise Refused(
                f"pair {owner}: {len(given)} tokens of context and {len(continuation)} of continuation do not fit into "
                f"the model's context of {limit}"
            )
        if continuation:
            groups.setdefault(given, []).append(owner)
    for given, owners in groups.items():
        continuations = [(owner, list(pairs[owner][1])) for owner in owners]
        source, prefix = None if begin is None else given, 0
        if decoder.config.architecture == "prefix-decoder":
            source = opened.get(given)
            prefix = len(given) if source is None else source.source
        yield from _tree(begin or given, continuations, source, prefix)


def _tree(
    context: tuple[int, ...],
    continuations: list[tuple[int, list[int]]],
    source: tuple[int, ...] | None,
    prefix: int,
) -> Iterator[_Sequence]:
    sequence: _Sequence | None = None
    C = len(context)
    for owner, ids in continuations:
        if sequence is None or len(sequence.tokens) - C + len(ids) > max(CONTINUATION_TOKENS, C):
            if sequence is not None:
                yield _settled(sequence)
            sequence = _Sequence(list(context), list(range(C)), [], [], C, source, prefix)
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
    if len(sequence.blocks) < 2 and not sequence.prefix:
        sequence.blocks = []
    return sequence


def _predictions(decoder: AnyDecoder, sequences: Iterable[_Sequence]) -> Iterator[tuple[int, float, bool]]:
    """(owner, log-probability, whether it is the likeliest) of every wanted token, in passes of like lengths.

    What contexts begin with in common (few-shot demonstrations) is computed once, into one row of a cache that the
    sequences of a group all read; groups come sorted, so that the row is kept as far as the next begins alike.
    """
    every = list(sequences)
    starts = _shared_beginnings(every) if shareable(decoder.config) else [0] * len(every)
    beginnings = [tuple(each.tokens[:start]) for each, start in zip(every, starts)]
    order = sorted(zip(beginnings, every), key=lambda pair: (pair[0], bool(pair[1].blocks), len(pair[1].tokens)))
    cache = Cache(decoder.config, 1, decoder.config.context_length, decoder.device) if any(starts) else None
    held: tuple[int, ...] = ()
    for beginning, group in itertools.groupby(order, key=lambda pair: pair[0]):
        if cache is not None and beginning:
            kept = _in_common(held, beginning)
            if kept < len(beginning):
                decoder.prefill([beginning[kept:]], cache=cache, rows=[0], starts=[kept])
            held = beginning
        for batch in _passes([each for _, each in group], len(beginning)):
            yield from _pass(decoder, batch, len(beginning), cache if beginning else None)


def _shared_beginnings(sequences: Sequence[_Sequence]) -> list[int]:
    """For each sequence how many first tokens of its context, in whole chunks, another sequence's context has too. A
    token of the context is always left, which predicts the continuation."""
    numbers: dict[tuple[int, tuple[int, ...]], int] = {}
    chains: list[list[int]] = []
    for each in sequences:
        chain: list[int] = []
        for at in range(0, each.context - CHUNK, CHUNK):
            key = (chain[-1] if chain else -1, tuple(each.tokens[at : at + CHUNK]))
            chain.append(numbers.setdefault(key, len(numbers)))
        chains.append(chain)
    times = Counter(number for chain in chains for number in chain)
    return [CHUNK * sum(times[number] > 1 for number in chain) for chain in chains]


def _in_common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first tokens are the same, in whole chunks."""
    least = min(len(a), len(b))
    return next((at for at in range(0, least, CHUNK) if a[at : at + CHUNK] != b[at : at + CHUNK]), least)


def _pass(
    decoder: AnyDecoder, batch: Sequence[_Sequence], begin: int, cache: Cache | None
) -> Iterator[tuple[int, float, bool]]:
    """One pass over sequences whose first `begin` tokens stand in row 0 of the cache."""
    masks = [each.mask(decoder.device) for each in batch]
    hidden_ND = decoder.prefill(
        [each.tokens[begin:] for each in batch],
        positions=[each.positions[begin:] for each in batch],
        masks=[None if mask is None else mask[begin:] for mask in masks],
        sources=[each.source for each in batch],
        cache=cache,
        # All read row 0; what they write stands behind the beginning, where nobody reads.
        rows=[0] * len(batch),
        starts=[begin] * len(batch),
    )
    places, targets, owners, start = [], [], [], 0
    for each in batch:
        for owner, place, token in each.wanted:
            owners.append(owner)
            places.append(start + place - begin)
            targets.append(token)
        start += len(each.tokens) - begin
    many = max(8, LOGIT_BYTES // (4 * decoder.config.vocab_size) // 8 * 8)
    for at in range(0, len(places), many):
        rows = torch.tensor(places[at : at + many], device=decoder.device)
        target_N = torch.tensor(targets[at : at + many], device=decoder.device)
        logits_NV = decoder.logits(hidden_ND[rows])
        logprobs = logits_NV.gather(1, target_N[:, None])[:, 0] - logits_NV.logsumexp(-1)
        is_top = logits_NV.argmax(-1) == target_N
        yield from zip(owners[at : at + many], logprobs.tolist(), is_top.tolist())


def _passes(sequences: Sequence[_Sequence], begin: int) -> Iterator[list[_Sequence]]:
    batch: list[_Sequence] = []
    filled = 0
    for each in sequences:
        length = len(each.tokens) - begin
        if batch and filled + length > PASS_TOKENS:
            yield batch
            batch, filled = [], 0
        batch.append(each)
        filled += length
    if batch:
        yield batch


def check_ids(what: str, ids: Sequence[int], vocabulary: int) -> None:
    """Raises Refused where an id is no token of the model."""
    if len(ids) and not (min(ids) >= 0 and max(ids) < vocabulary):
        wrong = next(i for i in ids if not 0 <= i < vocabulary)
        raise Refused(f"{what}: token id {wrong} is none of the model's; expected 0 to {vocabulary - 1}")
