"""Cached attention of any kind: position biases, Transformer-XL's distances, sparse patterns, softcaps.

`attend_slots` is a compiled loop over the rows of a decoding step, as kernels.py's, each row over exactly its own
slots; `attend_tokens` is the formula with torch's operations, for several new tokens of one sequence at once.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmlab.generate.kernels import _compiled, _softmax
from lmlab.model.kernels import Scores, attend_math, attend_sdpa
from lmlab.model.pattern import FULL, Pattern
from lmlab.model.seeing import Sight

CHUNK = 64
"""Queries of a prompt that attend at once, counted from the start of the sequence. A prompt whose first chunks are
taken from the cache of prefixes is then computed with the same shapes, to the last bit, as one that is new."""

LONG = 1024
"""Keys from which torch's fused kernel takes the formula's place, as in the model."""


def chunks(start: int, end: int) -> list[tuple[int, int]]:
    """Tokens `start` to `end` of a sequence, cut at the multiples of CHUNK."""
    cuts = [start, *range(start + CHUNK - start % CHUNK, end, CHUNK), end]
    return list(itertools.pairwise(cuts))


@dataclass
class Terms:
    """What is added to a layer's scores. With C the context length, column or row d + C - 1 is distance d (query minus
    key): `table_HR` a bias of the head and the distance, `relative_RHK` Transformer-XL's keys of the distances."""

    pattern: Pattern
    scale: float
    softcap: float | None
    table_HR: Tensor | None = None
    relative_RHK: Tensor | None = None


@_compiled
def attend_slots(  # noqa: PLR0912
    q: np.ndarray,
    other: np.ndarray,
    cache: np.ndarray,
    positions: np.ndarray,
    first: np.ndarray,
    seen: np.ndarray,
    table: np.ndarray,
    relative: np.ndarray,
    scale: np.float32,
    softcap: np.float32,
    out: np.ndarray,
) -> None:  # pragma: no cover (compiled)
    """softmax(softcap(scale (q k^T + other r^T) + table)) v over tokens `first` to `positions` of each row; token p stands
    in slot p modulo S, and no more than S tokens are asked for.

    q (B, H, K); other (B, H, K) and relative (R, H, K), or empty; cache (rows, 2, G, S, K); table (H, R) or empty;
    seen (B, S), 0 where a slot is hidden, or empty; softcap 0 is none; out (B, H K). R = 2 C - 1.
    """
    B, H, K = q.shape
    _, _, G, S, _ = cache.shape
    w, powers = np.empty(S, np.float32), np.empty(S, np.float32)
    bits = powers.view(np.int32)
    mixed = np.empty(K, np.float32)
    zero = np.float32(0)
    near = max(table.shape[1], relative.shape[0]) // 2
    for b in range(B):
        begin, n = first[b], positions[b] + 1 - first[b]
        turn = begin % S
        for h in range(H):
            key, value = cache[b, 0, h * G // H], cache[b, 1, h * G // H]
            for s in range(n):
                a, row = zero, key[turn + s if turn + s < S else turn + s - S]
                for k in range(K):
                    a += q[b, h, k] * row[k]
                distance = near + positions[b] - begin - s
                if relative.shape[0]:
                    far = relative[distance, h]
                    for k in range(K):
                        a += other[b, h, k] * far[k]
                a *= scale
                if table.shape[0]:
                    a += table[h, distance]
                if softcap > zero:
                    a = softcap * np.tanh(a / softcap)
                if seen.shape[0] and not seen[b, begin + s]:
                    a = np.float32(-1e38)
                w[s] = a
            _softmax(w, powers, bits, n)
            for k in range(K):
                mixed[k] = zero
            for s in range(n):
                row = value[turn + s if turn + s < S else turn + s - S]
                for k in range(K):
                    mixed[k] += w[s] * row[k]
            for k in range(K):
                out[b, h * K + k] = mixed[k]


def visible(pattern: Pattern, positions: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(first slot of each row, (B, size) 0 at hidden slots or empty) of queries at these positions."""
    if pattern.kind == "local":
        return np.maximum(positions - pattern.numbers[0] + 1, 0), np.empty((0, 0), np.uint8)
    first = np.zeros_like(positions)
    if pattern == FULL:
        return first, np.empty((0, 0), np.uint8)
    return first, pattern.sees(positions[:, None], np.arange(size)[None]).astype(np.uint8)


def attend_tokens(
    q_THK: Tensor,
    other_THK: Tensor | None,
    k_SGK: Tensor,
    v_SGK: Tensor,
    positions: tuple[Tensor, Tensor],
    terms: Terms,
    mask_TS: Tensor | None = None,
) -> Tensor:
    """Attention of the last T of a sequence's S tokens, (T, H K). `positions`: of the T and of the S tokens.

    `mask_TS`, True where a token sees another, defaults to causal; the layer's pattern is applied to it.
    """
    T, H, K = q_THK.shape
    S, G, _ = k_SGK.shape
    group = H // G
    k_1HSK, v_1HSK = (each.repeat_interleave(group, dim=1).transpose(0, 1)[None] for each in (k_SGK, v_SGK))
    query, key = positions
    start = S - T
    cuts = chunks(start, S) if mask_TS is None else [(start, S)]
    found = []
    for begin, end in cuts:
        a, b = begin - start, end - start
        if mask_TS is None:
            seen = torch.ones(b - a, end, dtype=torch.bool, device=q_THK.device).tril(end - (b - a))
        else:
            seen = mask_TS[a:b]
        if terms.pattern != FULL:
            seen = seen & terms.pattern.sees(query[a:b, None], key[None, :end])
        bias = _bias(other_THK, query[a:b], key[:end], terms, a)
        scores = Scores(
            Sight(mask_TS is None, b - a, end, q_THK.device), FULL, seen[None], bias, terms.scale, terms.softcap
        )
        kernel = attend_sdpa if end > LONG or q_THK.device.type != "cpu" else attend_math
        mixed = kernel(q_THK[a:b].transpose(0, 1)[None], k_1HSK[:, :, :end], v_1HSK[:, :, :end], scores)
        found.append(mixed[0].transpose(0, 1).reshape(b - a, H * K))
    return found[0] if len(found) == 1 else torch.cat(found)


def _bias(other_THK: Tensor | None, query_T: Tensor, key_S: Tensor, terms: Terms, start: int) -> Tensor | None:
    if terms.table_HR is None and terms.relative_RHK is None:
        return None
    distance_TS = query_T[:, None] - key_S[None]
    if terms.table_HR is not None:
        return terms.table_HR[:, distance_TS + terms.table_HR.shape[1] // 2][None]
    assert terms.relative_RHK is not None and other_THK is not None
    T = len(query_T)
    all_HTR = torch.einsum("thk,rhk->htr", other_THK[start : start + T], terms.relative_RHK)
    index_TS = distance_TS + len(terms.relative_RHK) // 2
    return all_HTR.gather(-1, index_TS[None].expand(len(all_HTR), -1, -1))[None] * terms.scale
