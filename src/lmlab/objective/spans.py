"""Where noise falls: T5's random spans."""

from __future__ import annotations

import numpy as np


def noise_counts(n: int, rate: float, mean_span: float) -> tuple[int, int]:
    """(noise tokens, spans) of a text of `n` tokens: round(n rate) and round(noise / mean_span), at least one of each,
    and at least one token of text before each span (1910.10683's code)."""
    noise = min(max(round(n * rate), 1), n - 1)
    return noise, min(max(round(noise / mean_span), 1), n - noise)


def segmentation(items: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths of `parts` non-empty parts of `items` in a row, every way to cut them as likely as another."""
    cuts = np.sort(rng.choice(items - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate(([0], cuts, [items])))


def noise_spans(n: int, rate: float, mean_span: float, rng: np.random.Generator) -> list[tuple[int, int]]:
    """(start, end) of each span of noise: text and noise take turns, text first, so that noise stands last."""
    noise, spans = noise_counts(n, rate, mean_span)
    lengths = np.empty(2 * spans, dtype=np.int64)
    lengths[0::2] = segmentation(n - noise, spans, rng)
    lengths[1::2] = segmentation(noise, spans, rng)
    ends = np.cumsum(lengths)
    return list(zip(ends[0::2].tolist(), ends[1::2].tolist(), strict=True))
