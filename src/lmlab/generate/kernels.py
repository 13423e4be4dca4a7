"""Compiled loops over the rows of a decoding step, for processors; and the same with torch's operations, for
accelerators.

Why not torch's attention on a processor: at 8 and 32 rows of about 100 slots it takes 2 to 4 times as long (4 heads
of 48, 6 of 64; measured), wants all rows padded to one length, and sums in an order that depends on that length. Here
each row is a loop of its own over exactly its own slots, so what it gives cannot depend on the company.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numba
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lmlab.generate.cache import Cache
from lmlab.generate.simd import fetch, kept, read

# What a loop over float32 needs to become SIMD: sums in any (fixed) order and fused multiply-add. NaN and infinity keep
# their meaning, because a NaN must reach the logits to be found there.
_FAST = {"reassoc", "contract", "nsz"}

LINE = 64
"""Bytes of a line of the processor's cache."""

PARALLEL_WORK = 1 << 20
"""Multiply-adds of a layer's attention from which threads are worth their start (guessed: about 0.2 ms of work)."""


def _compiled(function: Callable[..., Any]) -> Any:
    """Compiled, and where another compiled function calls it, a part of that one.

    A copy that is called instead has a name that all modules share, and the first one that a process loads serves them
    all. LLVM optimises each copy with its module, so the order of their sums may differ: the last bits depended on which
    loop had been used, or compiled, before (measured: 1e-6 nats in the first process after installing).
    """

    def compiled(cache: bool) -> Any:
        return numba.njit(cache=cache, nogil=True, fastmath=_FAST, error_model="numpy", forceinline=True)(function)

    try:
        return compiled(cache=True)
    except RuntimeError:  # nowhere to keep the machine code: compile in each process
        return compiled(cache=False)


@_compiled
def unit_rows(x: np.ndarray, eps: np.float32, out: np.ndarray) -> None:  # pragma: no cover (compiled)
    """out = x / sqrt(mean(x^2) + eps) of each row, RMSNorm without its gain."""
    rows, width = x.shape
    for row in range(rows):
        total = np.float32(0)
        for i in range(width):
            total += x[row, i] * x[row, i]
        scale = np.float32(1) / np.sqrt(total / np.float32(width) + eps)
        for i in range(width):
            out[row, i] = x[row, i] * scale


@_compiled
def exponentials(w: np.ndarray, powers: np.ndarray, bits: np.ndarray, n: int) -> None:  # pragma: no cover (compiled)
    """w[:n] = exp(w[:n]), from exp(-87) to exp(88), in place. `bits` is the memory of `powers` as int32.

    exp(x) = 2^i 2^f with i whole and |f| <= 1/2: 2^i is written as a float's exponent, 2^f is its Taylor series in f
    ln 2 to the seventh power (its remainder, 5e-9, is far below a rounding). The library's exp takes one number at a
    time and made attention up to 2.3 times as slow (measured).
    """
    for s in range(n):
        t = min(max(w[s] * np.float32(1.4426950408889634), np.float32(-126)), np.float32(127))
        whole = np.floor(t + np.float32(0.5))
        bits[s] = (np.int32(whole) + np.int32(127)) << np.int32(23)
        f = t - whole
        p = np.float32(1.5252733804059841e-05)
        p = p * f + np.float32(0.00015403530393381608)
        p = p * f + np.float32(0.0013333558146428443)
        p = p * f + np.float32(0.009618129107628477)
        p = p * f + np.float32(0.05550410866482158)
        p = p * f + np.float32(0.2402265069591007)
        p = p * f + np.float32(0.6931471805599453)
        w[s] = p * f + np.float32(1)
    for s in range(n):
        w[s] *= powers[s]


@_compiled
def weigh(w: np.ndarray, powers: np.ndarray, bits: np.ndarray, n: int) -> np.float32:  # pragma: no cover (compiled)
    """w[:n] = exp(w - the largest) in place, and their sum; `powers` and `bits` as above."""
    ordered = w.view(np.int32)
    top_bits = np.int32(-0x80000000)
    for s in range(n):
        # In this order the bits of floats are whole numbers that grow as they do, and those are compared 16 at a time.
        b = ordered[s]
        top_bits = max(top_bits, b ^ ((b >> np.int32(31)) & np.int32(0x7FFFFFFF)))
    bits[0] = top_bits ^ ((top_bits >> np.int32(31)) & np.int32(0x7FFFFFFF))
    top = powers[0]
    for s in range(n):
        w[s] -= top
    exponentials(w, powers, bits, n)
    total = np.float32(0)
    for s in range(n):
        total += w[s]
    return total


@_compiled
def _softmax(w: np.ndarray, powers: np.ndarray, bits: np.ndarray, n: int) -> None:  # pragma: no cover (compiled)
    """softmax of w[:n] in place; `powers` and `bits` as above."""
    total = weigh(w, powers, bits, n)
    for s in range(n):
        w[s] /= total


@_compiled
def turn_heads(
    qkv: np.ndarray, heads: int, gains: np.ndarray, eps: np.float32, cos: np.ndarray, sin: np.ndarray
) -> None:  # pragma: no cover (compiled)
    """Norm (where there are gains) and rotation (where there are angles) of one token's queries and keys, in place."""
    K = max(gains.shape[1], 2 * cos.shape[0])
    for h in range(heads):
        x = qkv[h * K : (h + 1) * K]
        if gains.shape[0]:
            total = np.float32(0)
            for k in range(K):
                total += x[k] * x[k]
            scale = np.float32(1) / np.sqrt(total / np.float32(K) + eps)
            for k in range(K):
                x[k] *= scale * gains[h, k]
        for i in range(cos.shape[0]):
            first, second = x[2 * i], x[2 * i + 1]
            x[2 * i] = first * cos[i] - second * sin[i]
            x[2 * i + 1] = first * sin[i] + second * cos[i]


@_compiled
def attend_rows(  # noqa: PLR0912
    qkv: np.ndarray,
    cache: np.ndarray,
    positions: np.ndarray,
    gains: np.ndarray,
    eps: np.float32,
    cos: np.ndarray,
    sin: np.ndarray,
    scale: np.float32,
    out: np.ndarray,
) -> None:  # pragma: no cover (compiled)
    """Norm and rotation of each row's new query and key, its key and value into their slot, then
    softmax(scale q k^T) v over slots 0 to its position.

    qkv (B, (H + 2 G) K), changed in place; cache (rows, 2, G, S, K), float32 or the bits of bfloat16 as int16;
    positions (B,); gains (H + G, K) or empty; cos and sin (context, K / 2) or of width 0; out (B, H K).
    """
    B, inner = out.shape
    _, _, G, S, K = cache.shape
    R = inner // (G * K)
    line_size = LINE // cache.itemsize
    w, powers = np.empty(S, np.float32), np.empty(S, np.float32)
    bits = powers.view(np.int32)
    mixed = np.empty(K, np.float32)
    zero = np.float32(0)
    for b in range(B):
        n = positions[b] + 1
        whole = n - n % 4
        if gains.shape[0] or cos.shape[1]:
            turn_heads(qkv[b], G * R + G, gains, eps, cos[positions[b]], sin[positions[b]])
        for g in range(G):
            key, value = cache[b, 0, g], cache[b, 1, g]
            # Values are fetched while keys are computed with, and then the next head's keys: memory is read all the
            # time (8 and 32 rows of 192 slots, 12 heads of 64: 0.7 of the time, measured).
            next_key = cache[b, 0, g + 1] if g + 1 < G else cache[min(b + 1, B - 1), 0, 0]
            for k in range(K):
                key[n - 1, k] = kept(qkv[b, inner + g * K + k], cache)
                value[n - 1, k] = kept(qkv[b, inner + (G + g) * K + k], cache)
            for r in range(R):
                at = (g * R + r) * K
                q = qkv[b, at : at + K]
                # Four slots at a time: their sums are independent, and each number of q is read once for four.
                for s in range(0, whole, 4):
                    if r == 0:
                        for line in range(s * K, (s + 4) * K, line_size):
                            fetch(value, line)
                    a0, a1, a2, a3 = zero, zero, zero, zero
                    k0, k1, k2, k3 = key[s], key[s + 1], key[s + 2], key[s + 3]
                    for k in range(K):
                        a0 += q[k] * read(k0[k])
                        a1 += q[k] * read(k1[k])
                        a2 += q[k] * read(k2[k])
                        a3 += q[k] * read(k3[k])
                    w[s], w[s + 1], w[s + 2], w[s + 3] = a0 * scale, a1 * scale, a2 * scale, a3 * scale
                for s in range(whole, n):
                    a0, k0 = zero, key[s]
                    for k in range(K):
                        a0 += q[k] * read(k0[k])
                    w[s] = a0 * scale
                _softmax(w, powers, bits, n)
                for k in range(K):
                    mixed[k] = zero
                for s in range(0, whole, 4):
                    if r == R - 1:
                        for line in range(s * K, (s + 4) * K, line_size):
                            fetch(next_key, line)
                    v0, v1, v2, v3 = value[s], value[s + 1], value[s + 2], value[s + 3]
                    for k in range(K):
                        first = w[s] * read(v0[k]) + w[s + 1] * read(v1[k])
                        mixed[k] += first + w[s + 2] * read(v2[k]) + w[s + 3] * read(v3[k])
                for s in range(whole, n):
                    v0 = value[s]
                    for k in range(K):
                        mixed[k] += w[s] * read(v0[k])
                for k in range(K):
                    out[b, at + k] = mixed[k]


@lru_cache(maxsize=1)
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="lmlab")


def spread(total: int, work: Callable[[slice], object], count: int | None = None) -> None:
    """Call `work` for slices of range(total) that make up the whole, on so many threads (default torch's number)."""
    count = min(count or torch.get_num_threads(), total)
    if count <= 1:
        work(slice(0, total))
        return
    cuts = [total * part // count for part in range(count + 1)]
    for each in [_threads(count).submit(work, slice(a, b)) for a, b in itertools.pairwise(cuts)]:
        each.result()


def parts(positions: list[int], inner: int) -> int:
    """Over how many threads a step's rows are worth spreading: torch's number, or 1 where there is little to do."""
    count = min(torch.get_num_threads(), len(positions))
    return count if (sum(positions) + len(positions)) * inner >= PARALLEL_WORK else 1


def attend_parallel(count: int, qkv: np.ndarray, cache: np.ndarray, positions: np.ndarray, *rest: Any) -> None:
    """`attend_rows`, its rows spread over so many threads. No row's numbers change by that."""
    *settings, out = rest
    spread(len(out), lambda s: attend_rows(qkv[s], cache[s], positions[s], *settings, out[s]), count)


def attend_cached(layer: int, qkv: Tensor, cache: Cache, positions: list[int], inner: int) -> Tensor:
    """Cached attention with torch's kernel, of queries and keys already rotated; rows are padded to the longest. (B,
    H K)"""
    B, length = qkv.shape[0], max(positions) + 1
    _, _, _, kv_heads, _, head_dim = cache.data.shape
    where_B = torch.tensor(positions, device=qkv.device)
    rows_B = torch.arange(B, device=qkv.device)
    cache.write(layer, qkv[:, inner:], rows_B, where_B)
    keys, values = cache.data[layer, :B, 0, :, :length], cache.data[layer, :B, 1, :, :length]
    seen = (torch.arange(length, device=qkv.device) <= where_B[:, None])[:, None, None]
    # The heads that share keys are the queries of one attention: no key is copied for grouped heads.
    q_BGRK = qkv[:, :inner].reshape(B, kv_heads, -1, head_dim)
    return F.scaled_dot_product_attention(q_BGRK, keys, values, attn_mask=seen).reshape(B, inner)
