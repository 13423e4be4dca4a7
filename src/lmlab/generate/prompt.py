"""Prompts through a layer in two compiled calls, for processors that simd.py has kernels for.

`project` makes queries, keys and values of all rows; `finish` attends and does the rest of the layer. Both take so many
rows at a time that what stands between two products stays in the processor's caches: 1,024 rows of float32 are megabytes
that come from memory and go there, and pages that the system hands out and takes back (at 1,024 rows, d 768 and bfloat16
a quarter of the time; measured). The matrices of a layer stay in the last cache from one such block to the next.

Attention is two of the same products: queries with panels of 48 keys, of which a tile of 8 queries takes those that begin
before its last one, and weights with the values. Queries, keys, values and weights are bfloat16 where the cache is, float32
else. Sums run over the slots in their order, and what a query does not see has weight 0: a row's numbers are its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from lmlab.generate.kernels import _compiled, spread, turn_heads, weigh
from lmlab.generate.products import Packed, product
from lmlab.generate.simd import BFLOAT16, FLOAT32, PANEL, ROWS, add_products, available, kept, read
from lmlab.generate.step import normalise, think

TOGETHER = 128
"""Rows that go through a layer at a time (64 to 256 are within 3%; measured)."""

NEVER = 1 << 62
"""A place behind all tokens."""

NormArrays = tuple[bool, np.float32, np.ndarray, np.ndarray]


class Rotation(NamedTuple):
    """What is done to queries and keys: gains (H + G, K) or empty with their norm's eps, cos and sin (context, K / 2) or
    of width 0."""

    gains: np.ndarray
    eps: np.float32
    cos: np.ndarray
    sin: np.ndarray


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


@_compiled
def project(
    x: np.ndarray,
    norm: NormArrays,
    matrix: Packed,
    spans: np.ndarray,
    first: int,
    last: int,
    rotation: Rotation,
    cache: np.ndarray,
    queries: np.ndarray,
    fresh: np.ndarray,
) -> None:  # pragma: no cover (compiled)
    """Queries (N, H, P) and fresh keys and values (N, 2, G, P) of rows `first` to `last` of x (N, D); these into the cache
    (rows, 2, G, S, K) too, unless it has no slots. float32, or int16 with the bits of bfloat16; P is K, or K + 1."""
    gains, eps, cos, sin = rotation
    _, H, _ = queries.shape
    G, K = cache.shape[2], cache.shape[4]
    together = min(TOGETHER, last - first)
    normed, projected = np.empty((together, x.shape[1]), np.float32), np.empty((together, matrix[1]), np.float32)
    for begin in range(first, last, together):
        end = min(begin + together, last)
        normalise(x[begin:end], norm, normed[: end - begin])
        product(matrix, normed[: end - begin], False, projected[: end - begin])
        for each in range(len(spans)):
            at, count, _, _, held, row = spans[each]
            for r in range(max(begin, at), min(end, at + count)):
                here, position = projected[r - begin], held + r - at
                if gains.shape[0] or cos.shape[1]:
                    turn_heads(here, H + G, gains, eps, cos[position], sin[position])
                for h in range(H):
                    to, of = queries[r, h], here[h * K : (h + 1) * K]
                    for k in range(K):
                        to[k] = kept(of[k], queries)
                for part in range(2):
                    for g in range(G):
                        begins = (H + part * G + g) * K
                        to, of = fresh[r, part, g], here[begins : begins + K]
                        for k in range(K):
                            to[k] = kept(of[k], fresh)
                        if cache.shape[3]:
                            slot = cache[row, part, g, position]
                            for k in range(K):
                                slot[k] = kept(of[k], cache)


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
def _lay_out(
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
def attend_prompts(
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


@_compiled
def finish(
    kind: int,
    x: np.ndarray,
    norm: NormArrays,
    matrices: tuple[Packed, Packed, Packed],
    activation: int,
    gated: bool,
    spans: np.ndarray,
    first: int,
    last: int,
    cache: np.ndarray,
    queries: np.ndarray,
    fresh: np.ndarray,
    scale: np.float32,
) -> None:  # pragma: no cover (compiled)
    """Attention, output, feed-forward of rows `first` to `last` of x (N, D), in place. matrices: output, up, down; the
    rest as in `attend_prompts`."""
    output, up, down = matrices
    together = min(TOGETHER, last - first)
    K = cache.shape[4]
    heads = queries.shape[1] // (K if kind == FLOAT32 else (K + 1) // 2)
    mixed = np.empty((together, heads * K), np.float32)
    for begin in range(first, last, together):
        end = min(begin + together, last)
        here, found = x[begin:end], mixed[: end - begin]
        attend_prompts(kind, spans, begin, end, cache, queries, fresh, scale, found)
        product(output, found, True, here)
        think(here, norm, up, down, activation, gated)


def attention_kind(narrow: bool) -> int:
    """The kind that attention over prompts multiplies with: bfloat16 where the cache is and the processor can."""
    return BFLOAT16 if narrow and BFLOAT16 in available() else FLOAT32


@dataclass(frozen=True)
class CompiledLayer:
    """A layer as the compiled functions take it: norms before attention and feed-forward; q k v, output, up, down."""

    norms: tuple[NormArrays, NormArrays]
    matrices: tuple[Packed, Packed, Packed, Packed]
    activation: int
    gated: bool
    rotation: Rotation


def read_prompts(
    x: np.ndarray,
    layers: Sequence[CompiledLayer],
    spans: Sequence[Span],
    caches: Sequence[np.ndarray],
    heads: tuple[int, int, int],
    narrow: bool,
    last: bool,
) -> np.ndarray:
    """Rows x (N, D), changed in place, through all layers; with `last` the last row of each sequence alone, (B, D).

    caches: of each layer (rows, 2, G, S, K), or none; heads: (H, G, K); narrow: attend in bfloat16. With `last` the last
    layer computes keys and values of all rows, and the rest for the last ones only: nobody reads it.
    """
    H, G, K = heads
    kind = attention_kind(narrow)
    number = np.float32 if kind == FLOAT32 else np.int16
    P = K if kind == FLOAT32 else K + K % 2
    queries, fresh = np.zeros((len(x), H, P), number), np.zeros((len(x), 2, G, P), number)
    words = queries.reshape(len(x), -1).view(np.int32)
    none = np.empty((0, 2, G, 0, K), number)
    scale = np.float32(K**-0.5)
    every = np.array(spans)
    for index, layer in enumerate(layers):
        cache = caches[index] if caches else none
        qkv, *others = layer.matrices

        def begin(rows: slice, x: np.ndarray = x) -> None:
            where = (every, rows.start, rows.stop)
            project(x, layer.norms[0], qkv, *where, layer.rotation, cache, queries, fresh)

        spread(len(x), begin, _threads(len(x)))
        wanted = every
        if last and index == len(layers) - 1:
            wanted = np.array(last_rows(spans))
            x = x[wanted[:, 2]]

        def end(rows: slice, x: np.ndarray = x, wanted: np.ndarray = wanted) -> None:
            how = (layer.norms[1], tuple(others), layer.activation, layer.gated)
            finish(kind, x, *how, wanted, rows.start, rows.stop, cache, words, fresh, scale)

        spread(len(x), end, _threads(len(x)))
    return x


def _threads(rows: int) -> int:
    """Each reads all matrices, so that it should have a tile of rows at least."""
    return max(1, min(torch.get_num_threads(), rows // ROWS))
