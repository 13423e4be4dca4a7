"""Matrix products in float8 (Micikevicius et al. 2022, 2209.05433): e4m3 for weights and activations, whose numbers lie close
together, e5m2 for gradients, whose do not.

Each tensor is scaled as a whole before it is rounded, by the largest number that it holds at this moment (dynamic scaling, as
torchao's tensorwise recipe has it). Scales are powers of two, so that a scale itself rounds nothing: a number comes out the same
whatever shares its tensor, unless it is some ten thousand times smaller than the largest one. So a matrix or a batch that is cut
among ranks is rounded as the whole would be. Sums are float32 (no `use_fast_accum`, which on Hopper keeps about 14 bits:
2412.19437, section 3.3.2), what comes out is bfloat16, and gradients of weights have their weights' type.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmlab.device import gpus

VALUES, GRADIENTS = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16
"""What sizes of a float8 product must be whole multiples of (cuBLASLt)."""
EXPONENT = 0x7F800000
"""The bits of a float32 that hold its exponent: without the others a positive number is the power of two below it."""
MOST = 2.0**126
"""The largest scale: its reciprocal is still a normal float32. Tensors of zeros have it."""


def lacking(precision: str, device: torch.device) -> str | None:
    """What a device lacks for a precision, None where it lacks nothing."""
    if precision != "float8":
        return None
    found = gpus() or []
    if device.type == "cuda" and found and all(each["float8"] for each in found):
        return None
    here = ", ".join(f"{each['name']} ({each['capability']})" for each in found) or "no GPU"
    where = "and this stage trains on the CPU" if found and device.type != "cuda" else f"found {here}"
    return (
        f"precision float8: its products need an NVIDIA GPU of compute capability 8.9 or later (L40S, H100, B200), {where}; "
        "expected bfloat16"
    )


def quantise(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`x` in bfloat16, times a power of two that brings its largest number into the upper half of what `dtype` holds, rounded to
    it; and the reciprocal (float32, no dimensions): x is about the one times the other. Nothing saturates.

    Where x holds a number that is none, all of it becomes such numbers or zeros, and products with it say so.
    """
    x = x.to(torch.bfloat16)
    room = torch.finfo(dtype).max / x.abs().amax().float()
    scale = room.view(torch.int32).bitwise_and(EXPONENT).view(torch.float32).clamp(max=MOST)
    return (x * scale).to(dtype), scale.reciprocal()


def product(
    a_MK: Tensor, a_scale: Tensor, b_KN: Tensor, b_scale: Tensor, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """(M, N) of two float8 matrices and their scales: a by rows, b by columns (its transpose is contiguous), K and N multiples
    of 16, at most one of them e5m2. On CPUs the same numbers are multiplied in float32 (tests, and plans made without a GPU)."""
    if a_MK.device.type == "cpu":
        return _in_float32(a_MK, a_scale, b_KN, b_scale, dtype)
    return torch._scaled_mm(a_MK, b_KN, scale_a=a_scale, scale_b=b_scale, out_dtype=dtype, use_fast_accum=False)


@torch.library.custom_op("lmlab::float8_product", mutates_args=())
def _in_float32(a_MK: Tensor, a_scale: Tensor, b_KN: Tensor, b_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """An operator of its own, so that plans count its result and not what it needs on the way, which a GPU does not. Torch's
    product of float8 on CPUs takes 1 s for 512 x 64 x 1,000 on an Intel Xeon with AMX, this one 5 ms (measured)."""
    return (a_MK.float() @ b_KN.float() * a_scale * b_scale).to(dtype)


@_in_float32.register_fake
def _(a_MK: Tensor, a_scale: Tensor, b_KN: Tensor, b_scale: Tensor, dtype: torch.dtype) -> Tensor:
    return a_MK.new_empty((a_MK.shape[0], b_KN.shape[1]), dtype=dtype)


def by_columns(x: Tensor) -> Tensor:
    """The same matrix, laid out column after column."""
    return x.t().contiguous().t()


class _Linear(torch.autograd.Function):
    """x W^T and its two gradients. x is kept in float8; the weight as it is, because where weights are in parts (FSDP) the
    gathered one is given back meanwhile, and a copy of it would not be. It is rounded to the same numbers again."""

    @staticmethod
    def forward(ctx: Any, x_MK: Tensor, weight_NK: Tensor) -> Tensor:
        x8_MK, x_scale = quantise(x_MK, VALUES)
        weight8_NK, weight_scale = quantise(weight_NK, VALUES)
        ctx.save_for_backward(x8_MK, x_scale, weight_NK)
        ctx.dtype = x_MK.dtype
        return product(x8_MK, x_scale, weight8_NK.t(), weight_scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x8_MK, x_scale, weight_NK = ctx.saved_tensors
        g8_MN, g_scale = quantise(gradients[0], GRADIENTS)
        x_grad = weight_grad = None
        if ctx.needs_input_grad[0]:
            weight8_NK, weight_scale = quantise(weight_NK, VALUES)
            x_grad = product(g8_MN, g_scale, by_columns(weight8_NK), weight_scale).to(ctx.dtype)
        if ctx.needs_input_grad[1]:
            weight_grad = product(g8_MN.t().contiguous(), g_scale, by_columns(x8_MK), x_scale, weight_NK.dtype)
        return x_grad, weight_grad


def linear(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """(..., K) -> (..., N) in bfloat16, as `F.linear` under autocast, with all three products in float8. N and K must be multiples
    of 16; rows are filled up with zeros to be so too, since the gradient of the weight is summed over them."""
    x_MK = x.reshape(-1, x.shape[-1])
    rows = len(x_MK)
    more = max(MULTIPLE, -(-rows // MULTIPLE) * MULTIPLE) - rows
    made_MN = _Linear.apply(F.pad(x_MK, (0, 0, 0, more)) if more else x_MK, weight_NK)
    if more:
        made_MN = made_MN[:rows]
    if bias_N is not None:
        made_MN = made_MN + bias_N.to(made_MN.dtype)
    return made_MN.view(*x.shape[:-1], len(weight_NK))
