"""Length extrapolation: the same held-out tokens, read in windows of the trained length and of multiples of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmlab.errors import Refused
from lmlab.generate.engine import Engine
from lmlab.generate.weights import Precision
from lmlab.measure import ratio
from lmlab.model.context import with_context
from lmlab.model.transformer import Transformer
from lmlab.text.tokenizer import Tokenizer

WINDOWS = 8
"""Most windows of the longest length that are read of one document: a long one must not outweigh the others."""


def by_length(
    model: Transformer, tokenizer: Tokenizer, texts: Sequence[str], precision: Precision, multiples: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """Bits per byte at windows of each multiple of the model's context: {by_length: {TOKENS: score or "cannot: why"},
    by_position: {FROM-TO: score}}.

    Windows do not overlap, as in ALiBi's evaluation (2108.12409, section 3 and appendix B): a document is cut into
    windows of so many tokens, each read alone, and every token is predicted once, the first of a window from the token
    before it. Every length predicts the same tokens: of each document that is long enough, as many whole windows of the
    longest as it holds, from its start, but no more than WINDOWS; shorter documents are left out, and no window crosses
    documents. So a model that
    makes good use of a longer context needs fewer bits at each longer window (its tokens have more before them), and one
    that stands a longer window without using it needs about as many.

    `by_position` splits the longest window's tokens by their place in it: places past the trained length are those that
    training never saw. The units of the intervals are documents.
    """
    context, longest = model.config.context_length, model.config.context_length * max(multiples)
    documents, ends = _long_documents(tokenizer, texts, longest)
    found: dict[str, dict[str, Any]] = {"by_length": {}, "by_position": {}}
    for length in [context * multiple for multiple in sorted(set(multiples))]:
        try:
            if not documents:
                raise Refused(f"no held-out document has {longest} tokens")
            engine = Engine(with_context(model, length), tokenizer, precision=precision)
        except Refused as error:
            found["by_length"][str(length)] = f"cannot: {error}"
            continue
        bits = [np.asarray(nats) / math.log(2) for nats in engine.score_tokens(documents, length, length)]
        found["by_length"][str(length)] = ratio([each.sum() for each in bits], [each[-1] for each in ends]).to_json()
        if length == longest:
            found["by_position"] = _by_position(bits, ends, context, longest)
    return found


def _long_documents(
    tokenizer: Tokenizer, texts: Sequence[str], longest: int
) -> tuple[list[list[int]], list[np.ndarray]]:
    """The whole windows of `longest` tokens of each document that has one, and of each token the bytes up to its end."""
    documents, ends = [], []
    for text in texts:
        encoding = tokenizer.encoding(text)
        kept = min(len(encoding.ids) // longest, WINDOWS) * longest
        if kept:
            points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
            widths = 1 + (points > 0x7F).astype(np.int64) + (points > 0x7FF) + (points > 0xFFFF)
            until = np.concatenate(([0], np.cumsum(widths)))
            documents.append(list(encoding.ids[:kept]))
            ends.append(until[[end for _, end in encoding.offsets[:kept]]])
    return documents, ends


def _by_position(
    bits: Sequence[np.ndarray], ends: Sequence[np.ndarray], context: int, longest: int
) -> dict[str, dict[str, Any]]:
    """Bits per byte of places 0 to context - 1 of the longest windows, then to twice that, and so on."""
    edges = [0, context]
    while edges[-1] < longest:
        edges.append(min(2 * edges[-1], longest))
    found = {}
    for low, high in itertools.pairwise(edges):
        top = [each.reshape(-1, longest)[:, low:high].sum() for each in bits]
        bytes_of = [np.diff(each, prepend=0).reshape(-1, longest)[:, low:high].sum() for each in ends]
        found[f"{low}-{high - 1}"] = ratio(top, bytes_of).to_json()
    return found
