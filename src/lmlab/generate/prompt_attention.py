"""Attention of prompts by the matrix product's own kernel, for processors that simd.py has one for.

Attention is two of the same products: queries with panels of 48 keys, of which a tile of 8 queries takes those that begin
before its last one, and weights with the values. Queries, keys, values and weights are bfloat16 where the cache is and the
processor multiplies that in pairs, float32 else. Sums run over the slots in their order, and what a query does not see has
weight 0: a row's numbers are its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lmlab.generate.kernels import _compiled, weigh
from lmlab.generate.simd import BFLOAT16, FLOAT32, PAIRED, PANEL, ROWS, add_products, kept, read

NEVER = 1 << 62
"""A place behind all tokens."""


class Span(NamedTuple):
    """Rows of one sequence that are computed one after another."""

    place: int
    """The first one's row in what is computed."""
    count: int
    query: int
    """Its row among the queries; keys and values of the sequence's new tokens begin at row `own`."""
    own: int
    held: int
    """Tokens that stand in the cache already, in row `row`."""
    row: int


def spans_of(lengths: Sequence[int], starts: Sequence[int], rows: Sequence[int]) -> list[Span]:
    """All rows of sequences that stand one after another."""
    found, at = [], 0
    for length, start, row in zip(lengths, starts, rows):
        found.append(Span(at, length, at, at, start, row))
        at += length
    return found


def last_rows(spans: Sequence[Span]) -> list[Span]:
    """The last row of each sequence alone, as row i of what is computed."""
    return [Span(i, 1, s.query + s.count - 1, s.own, s.held, s.row) for i, s in enumerate(spans)]


def attention_kind(narrow: bool) -> int:
    """The kind that attention over prompts multiplies with: bfloat16 where the cache is and the processor gains by it."""
    return BFLOAT16 if narrow and PAIRED else FLOAT32


@_compiled
def _recall(
    held: int, row: int, g: int, cache: np.ndarray, like: np.ndarray
) -> np.ndarray:  # pragma: no cover (compiled)
    """Keys and values (held, 2, K) that stand in the cache, as `like` has its numbers, behind them zeros."""
    K = cache.shape[4]
    found = np.zeros((held, 2, like.shape[3]), like.dtype)
    for at in range(held):
        for part in range(2):
            to, of = found[at, part], cache[row, part, g, at]
            for k in range(K):
                to[k] = kept(read(of[k]), like)
    return found


@_compiled
def _lay_out(  # noqa: PLR0912
    pairs: bool, at: int, new: np.ndarray, keys: np.ndarray, values: np.ndarray
) -> int:  # pragma: no cover (compiled)
    """Tokens `at` and on, new (T, 2, K), to where the kernel reads them: keys (panels, words, 48), values (panels, pairs
    or tokens, 48), 4 bytes each. The first token of them whose value is no number, which is laid out as zeros: a tile
    multiplies what its earlier rows do not see by 0."""
    words = new.view(np.int32)
    exponent = np.int32(0x7F80 if pairs else 0x7F800000)
    broken = NEVER
    for t in range(len(new)):
        key, to, lane = words[t, 0], keys[(at + t) // PANEL], (at + t) % PANEL
        for word in range(keys.shape[1]):
            to[word, lane] = key[word]
        top = np.int32(0)
        if pairs:
            value = new[t, 1]
            for k in range(len(value)):
                top = max(top, np.int32(value[k]) & exponent)
        else:
            number = words[t, 1]
            for k in range(len(number)):
                top = max(top, number[k] & exponent)
        mask = np.int32(0xFFFF if pairs else -1)
        if top == exponent:
            mask, broken = np.int32(0), min(broken, at + t)
        for part in range(len(values)):
            if pairs:
                line, of = values[part, (at + t) // 2], new[t, 1, part * PANEL : (part + 1) * PANEL]
                if (at + t) % 2 == 0:
                    for k in range(len(of)):
                        line[k] = np.int32(of[k]) & mask
                else:
                    for k in range(len(of)):
                        line[k] |= (np.int32(of[k]) & mask) << np.int32(16)
            else:
                line, number = values[part, at + t], words[t, 1, part * PANEL : (part + 1) * PANEL]
                for k in range(len(number)):
                    line[k] = number[k] & mask
    return broken


@_compiled
def _aligned(words: int) -> np.ndarray:  # pragma: no cover (compiled)
    """So many zeros of 4 bytes, beginning at a multiple of 64 bytes."""
    raw = np.zeros(words + 16, np.int32)
    skip = (64 - np.int64(raw.ctypes.data) % 64) % 64 // 4
    return raw[skip : skip + words]


@_compiled
def attend_prompts(  # noqa: PLR0912, PLR0915
    kind: int,
    spans: np.ndarray,
    first: int,
    last: int,
    cache: np.ndarray,
    queries: np.ndarray,
    fresh: np.ndarray,
    scale: np.float32,
    out: np.ndarray,
) -> None:  # pragma: no cover (compiled)
    """softmax(scale q k^T) v of rows `first` to `last`, each over its sequence up to itself, to out (last - first, H K).

    queries (N, H words) int32, whatever 4 bytes are: float32, or pairs of bfloat16; cache and fresh as in `project`.
    """
    G, K = cache.shape[2], cache.shape[4]
    R = out.shape[1] // (G * K)
    words = queries.shape[1] // (G * R)
    together = 1 if kind == FLOAT32 else 2
    most = 0
    for each in range(len(spans)):
        place, count, query, own, held, _ = spans[each]
        if place < last and place + count > first:
            most = max(most, held + query - own + min(last, place + count) - place)
    key_panels, value_panels = (most + PANEL - 1) // PANEL, (K + PANEL - 1) // PANEL
    steps = (most + together - 1) // together
    keys = _aligned(key_panels * words * PANEL).reshape((key_panels, words, PANEL))
    values = _aligned(value_panels * steps * PANEL).reshape((value_panels, steps, PANEL))
    scores = np.zeros((ROWS, key_panels * PANEL), np.float32)
    powers = np.empty(key_panels * PANEL, np.float32)
    bits = powers.view(np.int32)
    shares = scores.view(np.int32) if kind == FLOAT32 else np.zeros((ROWS, steps), np.int32)
    halves = shares.view(np.int16)
    tile, inverse = np.empty((ROWS, PANEL), np.float32), np.empty(ROWS, np.float32)
    no_scale, no_pairs = np.empty((0, 0, 2), np.float32), np.empty(0, np.int16)
    for each in range(len(spans)):
        place, count, query, own, held, row = spans[each]
        begin, end = max(first, place), min(last, place + count)
        if begin >= end:
            continue
        before = held + query - own - place  # added to a row: its position
        for g in range(G):
            broken = NEVER
            if held:
                broken = _lay_out(together == 2, 0, _recall(held, row, g, cache, fresh), keys, values)
            new = fresh[own : own + before + end - held, :, g]
            broken = min(broken, _lay_out(together == 2, held, new, keys, values))
            for h in range(g * R, (g + 1) * R):
                for t in range(begin, end, ROWS):
                    n = min(ROWS, end - t)
                    seen = before + t + n  # by the tile's last row
                    asked = (query + t - place, h * words)
                    for panel in range((seen + PANEL - 1) // PANEL):
                        w_at = panel * words * PANEL * 4
                        add_products(kind, n, queries, asked, keys, w_at, words, no_scale, 0, no_pairs, 0, tile)
                        for i in range(n):
                            line, found = scores[i, panel * PANEL : (panel + 1) * PANEL], tile[i]
                            for o in range(PANEL):
                                line[o] = found[o] * scale
                    used = (seen + together - 1) // together
                    for i in range(n):
                        own_seen, line = seen - n + 1 + i, scores[i]
                        inverse[i] = np.float32(1) / weigh(line, powers, bits, own_seen)
                        if own_seen > broken:
                            inverse[i] = np.float32(np.nan)
                        if kind == FLOAT32:
                            for s in range(seen - own_seen):
                                line[own_seen + s] = np.float32(0)
                        else:
                            share = halves[i]
                            for s in range(own_seen):
                                share[s] = kept(line[s], halves)
                            for s in range(2 * used - own_seen):
                                share[own_seen + s] = 0
                    for part in range(value_panels):
                        w_at = part * steps * PANEL * 4
                        add_products(kind, n, shares, (0, 0), values, w_at, used, no_scale, 0, no_pairs, 0, tile)
                        width = min(PANEL, K - part * PANEL)
                        for i in range(n):
                            to, found = out[t - first + i, h * K + part * PANEL :], tile[i]
                            for o in range(width):
                                to[o] = found[o] * inverse[i]
