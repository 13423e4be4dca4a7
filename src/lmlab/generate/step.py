"""A layer's step of decoding in one compiled call, for processors that simd.py has kernels for.

At batch 1 a small model's step is hundreds of operations of a few microseconds, and calling them from Python costs more
than computing them. Here norms, products, attention and activation of a layer are one call; what it computes is what
`Decoder._run` does, to rounding, and each row's numbers are its own.
"""

from __future__ import annotations

import numpy as np

from lmlab.generate.kernels import _compiled, attend_rows, exponentials, unit_rows
from lmlab.generate.products import Packed, product

ACTIVATION_CODES = {
    "relu": 0,
    "reglu": 0,
    "relu2": 1,
    "glu": 2,
    "silu": 3,
    "swiglu": 3,
    "gelu-tanh": 4,
    "geglu-tanh": 4,
    "gelu": 5,
    "geglu": 5,
}


@_compiled
def normalise(
    x: np.ndarray, norm: tuple[bool, np.float32, np.ndarray, np.ndarray], out: np.ndarray
) -> None:  # pragma: no cover (compiled)
    """RMSNorm without its gain, or LayerNorm with what it has."""
    is_rms, eps, weight, bias = norm
    if is_rms:
        unit_rows(x, eps, out)
        return
    rows, width = x.shape
    for row in range(rows):
        here, there = x[row], out[row]
        mean, spread = np.float32(0), np.float32(0)
        for i in range(width):
            mean += here[i]
        mean /= np.float32(width)
        for i in range(width):
            spread += (here[i] - mean) * (here[i] - mean)
        scale = np.float32(1) / np.sqrt(spread / np.float32(width) + eps)
        for i in range(width):
            there[i] = (here[i] - mean) * scale
        if len(weight):
            for i in range(width):
                there[i] *= weight[i]
        if len(bias):
            for i in range(width):
                there[i] += bias[i]


@_compiled
def _activate(  # noqa: PLR0912
    code: int, up: np.ndarray, gated: bool, w: np.ndarray, powers: np.ndarray, bits: np.ndarray, out: np.ndarray
) -> None:  # pragma: no cover (compiled)
    """f(up) of one row, times the other half of `up` where it is gated. w and powers (F,), bits is powers' memory."""
    F = len(out)
    x = up[:F]
    if code <= 1:
        for i in range(F):
            out[i] = max(x[i], np.float32(0)) + x[i] * np.float32(0)  # NaN stays NaN
        if code == 1:
            for i in range(F):
                out[i] *= out[i]
    elif code <= 4:  # x, or 1, times the logistic function of something
        for i in range(F):
            w[i] = -x[i]
        if code == 4:
            for i in range(F):
                w[i] = np.float32(-1.5957691216057308) * (x[i] + np.float32(0.044715) * x[i] * x[i] * x[i])
        exponentials(w, powers, bits, F)
        if code == 2:
            for i in range(F):
                out[i] = np.float32(1) / (np.float32(1) + w[i]) + x[i] * np.float32(0)
        else:
            for i in range(F):
                out[i] = x[i] / (np.float32(1) + w[i])
    else:  # x (1 + erf(x / sqrt 2)) / 2; erf by Abramowitz and Stegun 7.1.26, to 1.5e-7
        for i in range(F):
            w[i] = np.float32(-0.5) * x[i] * x[i]
        exponentials(w, powers, bits, F)
        for i in range(F):
            t = np.float32(1) / (np.float32(1) + np.float32(0.3275911 * 0.7071067811865476) * abs(x[i]))
            p = np.float32(1.061405429)
            p = p * t + np.float32(-1.453152027)
            p = p * t + np.float32(1.421413741)
            p = p * t + np.float32(-0.284496736)
            p = p * t + np.float32(0.254829592)
            far = p * t * w[i]  # 1 - erf(|x| / sqrt 2)
            share = np.float32(0.5) * far
            out[i] = x[i] * (np.float32(1) - share if x[i] > np.float32(0) else share)
    if gated:
        for i in range(F):
            out[i] *= up[F + i]


@_compiled
def think(
    x: np.ndarray,
    norm: tuple[bool, np.float32, np.ndarray, np.ndarray],
    up: Packed,
    down: Packed,
    activation: int,
    gated: bool,
) -> None:  # pragma: no cover (compiled)
    """x += the feed-forward block's output, of rows x (N, D), in place."""
    N = len(x)
    normed, raised = np.empty_like(x), np.empty((N, up[1]), np.float32)
    width = up[1] // 2 if gated else up[1]
    inner = np.empty((N, width), np.float32)
    w, powers = np.empty(width, np.float32), np.empty(width, np.float32)
    bits = powers.view(np.int32)
    normalise(x, norm, normed)
    product(up, normed, False, raised)
    for row in range(N):
        _activate(activation, raised[row], gated, w, powers, bits, inner[row])
    product(down, inner, True, x)


@_compiled
def layer_step(
    x: np.ndarray,
    norms: tuple[tuple[bool, np.float32, np.ndarray, np.ndarray], tuple[bool, np.float32, np.ndarray, np.ndarray]],
    matrices: tuple[Packed, Packed, Packed, Packed],
    activation: int,
    gated: bool,
    cache: np.ndarray,
    positions: np.ndarray,
    gains: np.ndarray,
    eps: np.float32,
    cos: np.ndarray,
    sin: np.ndarray,
    scale: np.float32,
) -> None:  # pragma: no cover (compiled)
    """One layer of one new token of each row, x (B, D) in place. matrices: q k v, output, up, down; the rest as in
    `attend_rows`."""
    qkv, output, up, down = matrices
    B = len(x)
    normed = np.empty_like(x)
    projected = np.empty((B, qkv[1]), np.float32)
    kv = 2 * cache.shape[2] * cache.shape[4]
    mixed = np.empty((B, qkv[1] - kv), np.float32)
    normalise(x, norms[0], normed)
    product(qkv, normed, False, projected)
    attend_rows(projected, cache, positions, gains, eps, cos, sin, scale, mixed)
    product(output, mixed, True, x)
    think(x, norms[1], up, down, activation, gated)
