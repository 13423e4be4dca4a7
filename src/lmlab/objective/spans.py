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


def poisson_lengths(total: int, mean: float, rng: np.random.Generator, shortest: int = 0) -> list[int]:
    """Lengths drawn from Poisson(mean), those below `shortest` passed over, until together they are `total`; the last is
    cut to fit."""
    lengths: list[int] = []
    left = total
    while left > 0:
        drawn = int(rng.poisson(mean))
        if drawn >= shortest:
            lengths.append(min(drawn, left))
            left -= lengths[-1]
    return lengths


def place_spans(n: int, lengths: list[int], rng: np.random.Generator) -> list[tuple[int, int]]:
    """(start, end) of spans of these lengths, all above 0, in a text of `n` tokens, in their order in the text: anywhere,
    without overlap, with at least a token between two of them as far as there are tokens for that."""
    free = n - sum(lengths)
    gaps = free + 1  # a span may stand before each free token, and after the last
    order = rng.permutation(len(lengths))
    chosen = np.sort(rng.choice(gaps, len(lengths), replace=len(lengths) > gaps))
    spans, used = [], 0
    for gap, which in zip(chosen.tolist(), order.tolist(), strict=True):
        spans.append((gap + used, gap + used + lengths[which]))
        used += lengths[which]
    return spans
