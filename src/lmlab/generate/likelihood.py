"""How likely a network finds texts: what the corpus's perplexity asks of a MODEL."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from lmlab.generate.handle import load


def scorer(model: str) -> Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]:
    """Open a MODEL; the function takes texts to (bits, tokens) of each, float64 [texts], an empty text being (0, 0).

    Windows slide by half a context, so that a token has at least half a context before it wherever its text does.
    """
    opened = load(model)
    length = opened.network.config.context_length

    def score(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        ids = opened.tokenizer.encode_batch(list(texts))
        nats = opened.engine.score_documents(ids, window=length, stride=max(1, length // 2))
        return np.array(nats) / math.log(2), np.array(list(map(len, ids)), float)

    return score
