"""Prompts through a layer in two compiled calls, for processors that simd.py has kernels for.

`project` makes queries, keys and values of all rows; `finish` attends and does the rest of the layer. Both take so many
rows at a time that what stands between two products stays in the processor's caches: 1,024 rows of float32 are megabytes
that come from memory and go there, and pages that the system hands out and takes back (3 of 35 ms of a product of 1,024 rows,
768 by 4,096, bfloat16; measured). The matrices of a layer stay in the last cache from one such block to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from lmlab.generate.kernels import _compiled, spread, turn_heads
from lmlab.generate.products import Packed, product
from lmlab.generate.prompt_attention import Span, attend_prompts, attention_kind, last_rows
from lmlab.generate.simd import FLOAT32, ROWS, kept, read
from lmlab.generate.step import normalise, think

TOGETHER = 128
"""Rows that go through a layer at a time (128 to 512 are alike, 64 was 5 to 7% slower; measured on a crowded machine)."""

NormArrays = tuple[bool, np.float32, np.ndarray, np.ndarray]


class Rotation(NamedTuple):
    """What is done to queries and keys: gains (H + G, K) or empty with their norm's eps, cos and sin (context, K / 2) or
    of width 0."""

    gains: np.ndarray
    eps: np.float32
    cos: np.ndarray
    sin: np.ndarray


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
    (rows, 2, G, S, K) too, in whose precision they are, unless it has no slots. float32, or int16 with the bits of bfloat16;
    P is K, or K + 1."""
    gains, eps, cos, sin = rotation
    _, H, _ = queries.shape
    G, K = cache.shape[2], cache.shape[4]
    together = max(1, min(TOGETHER, last - first))
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
                            to[k] = kept(read(kept(of[k], cache)), fresh)  # as those are that stand in the cache
                        if cache.shape[3]:
                            slot = cache[row, part, g, position]
                            for k in range(K):
                                slot[k] = kept(of[k], cache)


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
    together = max(1, min(TOGETHER, last - first))
    K = cache.shape[4]
    heads = queries.shape[1] // (K if kind == FLOAT32 else (K + 1) // 2)
    mixed = np.empty((together, heads * K), np.float32)
    for begin in range(first, last, together):
        end = min(begin + together, last)
        here, found = x[begin:end], mixed[: end - begin]
        attend_prompts(kind, spans, begin, end, cache, queries, fresh, scale, found)
        product(output, found, True, here)
        think(here, norm, up, down, activation, gated)


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

    caches: of each layer (rows, 2, G, S, K), or none; heads: (H, G, K); narrow: keys and values are bfloat16. With `last` the last
    layer computes keys and values of all rows, and the rest for the last ones only: nobody reads it.
    """
    H, G, K = heads
    kind = attention_kind(narrow)
    number = np.float32 if kind == FLOAT32 else np.int16
    P = K if kind == FLOAT32 else K + K % 2
    queries, fresh = np.zeros((len(x), H, P), number), np.zeros((len(x), 2, G, P), number)
    words = queries.reshape(len(x), -1).view(np.int32)
    none = np.empty((0, 2, G, 0, K), np.int16 if narrow else np.float32)
    scale = np.float32(K**-0.5)
    every = np.array(spans)
    for index, layer in enumerate(layers):
        cache = caches[index] if caches else none
        qkv, *others = layer.matrices
        first = partial(project, x, layer.norms[0], qkv, every)
        _over_rows(len(x), first, (layer.rotation, cache, queries, fresh))
        wanted = every
        if last and index == len(layers) - 1:
            wanted = np.array(last_rows(spans))
            x = x[wanted[:, 2]]
        then = partial(finish, kind, x, layer.norms[1], tuple(others), layer.activation, layer.gated, wanted)
        _over_rows(len(x), then, (cache, words, fresh, scale))
    return x


def _over_rows(total: int, work: Callable[..., None], rest: tuple[Any, ...]) -> None:
    """work(first, last, ...) over all rows on torch's number of threads. Each reads all matrices, so that it should have a
    tile of rows at least."""
    count = max(1, min(torch.get_num_threads(), total // ROWS))
    spread(total, lambda rows: work(rows.start, rows.stop, *rest), count)
