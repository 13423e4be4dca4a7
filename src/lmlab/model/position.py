"""Positions: the rotary table and its stretched forms, sinusoids, ALiBi's slopes, T5's buckets."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lmlab.model.settings import RopeScaling
from lmlab.model.wide import wide


def rotary_table(length: int, head_dim: int, theta: float, scaling: RopeScaling | None = None) -> tuple[Tensor, Tensor]:
    """cos and sin of position x frequency, each (length, head_dim / 2), float32; frequency i is theta^(-2i/head_dim)
    (RoFormer, 2104.09864), stretched where `scaling` says so. `head_dim` counts the rotated dimensions."""
    factor = 1.0
    if scaling is None:
        frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
    else:
        frequency, factor = scaled_frequencies(head_dim, theta, scaling, length)
    angle = torch.arange(length, dtype=torch.float32)[:, None] * frequency
    return (angle.cos(), angle.sin()) if factor == 1.0 else (angle.cos() * factor, angle.sin() * factor)


def scaled_frequencies(dim: int, theta: float, scaling: RopeScaling, length: int) -> tuple[Tensor, float]:
    """Frequencies (dim / 2,) of a stretched rotation, and the factor on cos and sin. Sources stand at `RopeScaling`."""
    power = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    frequency = theta**-power
    original = scaling.original_context or max(1, round(length / scaling.factor))
    if scaling.kind == "ntk":
        return (theta * scaling.factor ** (dim / max(dim - 2, 1))) ** -power, 1.0
    if scaling.kind == "llama3":
        turns = original * frequency / (2 * math.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return frequency * (kept + (1 - kept) / scaling.factor), 1.0
    if scaling.kind == "yarn":

        def dimension(turns: float) -> float:
            return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

        first = max(math.floor(dimension(scaling.beta_fast)), 0)
        last = min(math.ceil(dimension(scaling.beta_slow)), dim - 1)
        ramp = ((torch.arange(dim // 2).float() - first) / max(last - first, 0.001)).clamp(0, 1)
        factor = scaling.attention_factor
        if factor is None:
            factor = 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
        return frequency * (1 - ramp + ramp / scaling.factor), factor
    return frequency / scaling.factor, 1.0


def rotate(x_BTHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pair (i, i + K/2) by its angle. cos and sin broadcast to (B, T, 1, K/2). Computed in float32."""
    if not torch.compiler.is_compiling():
        return _rotated(x_BTHK, torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1), _halves_swapped)
    first, second = wide(x_BTHK).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x_BTHK.dtype)


def rotate_interleaved(x_BTHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same for the pair (2i, 2i + 1)."""
    if not torch.compiler.is_compiling():
        cos_K, sin_K = (torch.stack(each, -1).flatten(-2) for each in ((cos, cos), (-sin, sin)))
        return _rotated(x_BTHK, cos_K, sin_K, _neighbours_swapped)
    first, second = wide(x_BTHK).unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.flatten(-2).to(x_BTHK.dtype)


ROTATIONS = {"half": rotate, "interleaved": rotate_interleaved}

Swap = Callable[[Tensor], Tensor]
"""(..., K) -> the same with the members of each pair exchanged."""


def _halves_swapped(x: Tensor) -> Tensor:
    return x.roll(x.shape[-1] // 2, -1)


def _neighbours_swapped(x: Tensor) -> Tensor:
    return x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)


def _rotated(x: Tensor, cos_K: Tensor, sin_K: Tensor, swap: Swap) -> Tensor:
    """Each member times its pair's cosine, and the other member times the sine with its sign: in three operators where the
    formula has seven, which counts where each is a call."""
    if x.requires_grad:  # an inference tensor cannot be kept for a gradient
        return _Rotated.apply(x, cos_K, sin_K, swap)
    return _turn(x, cos_K, sin_K, swap)


def _turn(x: Tensor, cos_K: Tensor, sin_K: Tensor, swap: Swap) -> Tensor:
    x_wide = wide(x)
    return swap(x_wide).mul_(sin_K).addcmul_(x_wide, cos_K).to(x.dtype)


class _Rotated(torch.autograd.Function):
    """A rotation, whose gradient is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos_K: Tensor, sin_K: Tensor, swap: Swap) -> Tensor:
        ctx.save_for_backward(cos_K, sin_K)
        ctx.swap = swap
        return _turn(x, cos_K, sin_K, swap)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos_K, sin_K = ctx.saved_tensors
        return _turn(grads[0], cos_K, -sin_K, ctx.swap), None, None, None


def sinusoid(positions: Tensor, width: int) -> Tensor:
    """(...,) positions -> (..., width), float32: entry 2i is sin(p / 10000^(2i/width)), entry 2i + 1 its cosine
    (1706.03762, section 3.5)."""
    frequency = 10000.0 ** (-torch.arange(0, width, 2, device=positions.device).float() / width)
    angle = positions.float()[..., None] * frequency
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)[..., :width]


def alibi_slopes(heads: int) -> list[float]:
    """Slope of each head: 2^(-8h/n), h = 1 to n, for n a power of two; else those of the power below, then every other
    one of the power above (2108.12409 and its code)."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    between = [2 ** (-8 * h / (2 * power)) for h in range(1, 2 * power + 1, 2)]
    return slopes + between[: heads - power]


def relative_bucket(distance: Tensor, buckets: int, longest: int, bidirectional: bool) -> Tensor:
    """T5's bucket of each distance i - j (query minus key), int64 (1910.10683, section 2.1).

    Half of the buckets are one distance each, the rest grow as powers up to `longest`, beyond which all share the last.
    In an encoder half of all buckets are for keys after the query; a decoder counts those as distance 0.
    """
    offset = torch.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        offset = torch.where(distance < 0, buckets, offset)
        distance = distance.abs()
    else:
        distance = distance.clamp_min(0)
    exact = buckets // 2
    ratio = torch.log(distance.clamp_min(1).float() / exact) / math.log(longest / exact)
    far = (exact + (ratio * (buckets - exact)).long()).clamp_max(buckets - 1)
    return offset + torch.where(distance < exact, distance, far)
