"""Normalisations: LayerNorm (1607.06450) and RMSNorm (1910.07467), where they stand in a block, DeepNorm's constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lmlab.model.config import ModelConfig
from lmlab.model.wide import wide


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, computed in float32 at least."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x_wide = wide(x)
        if torch.compiler.is_compiling():  # the compiler makes one pass of the formula and one of its gradient
            scaled = x_wide * torch.rsqrt(x_wide.square().mean(-1, keepdim=True) + self.eps) * self.weight
        elif x.is_inference():  # cannot be kept for a gradient
            scaled = _normalised(x_wide, self.weight, self.eps)[0]
        else:
            scaled = _Scaled.apply(x_wide, self.weight.to(x_wide.dtype), self.eps)
        return scaled.to(x.dtype)


def _normalised(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(y, r), the same bits whoever asks; see `_Scaled`."""
    r = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (x * r).mul_(weight), r


class _Scaled(torch.autograd.Function):
    """RMSNorm with its gradient by hand: of y = w x r with r = (mean(x^2) + eps)^(-1/2), given g,

        dx = r (g w - x r mean(g w x r)),   dw = the sum over rows of g x r.

    In half the operators, and as much less time where each is a call (benchmarks/train.py --eager); x and r are kept, not
    what lies between.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, r = _normalised(x, weight, eps)
        ctx.save_for_backward(x, weight, r)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, r = ctx.saved_tensors
        g, x_r = grads[0], x * r
        each = g * x_r
        mean = (each * weight).mean(-1, keepdim=True)  # no product of matrices, which autocast would make in 16 bits
        return (g * weight).addcmul_(x_r, mean, value=-1).mul_(r), each.reshape(-1, each.shape[-1]).sum(0), None


def make_norm(kind: str, width: int, eps: float, bias: bool) -> nn.Module:
    """The norm that a config names."""
    return RMSNorm(width, eps) if kind == "rmsnorm" else nn.LayerNorm(width, eps=eps, bias=bias)


def norm_of(config: ModelConfig) -> nn.Module:
    """A norm of the residual stream."""
    return make_norm(config.norm, config.d_model, config.eps, config.norm_bias)


Branch = Callable[[Tensor], Tensor]
Placed = Callable[[Tensor, Branch, nn.Module, "nn.Module | None", float], Tensor]
"""(x, F, norm, second norm, alpha) -> x after the branch F."""

PLACEMENTS: dict[str, Placed] = {
    "pre": lambda x, branch, norm, second, alpha: x + branch(norm(x)),
    "post": lambda x, branch, norm, second, alpha: norm(x + branch(x)),
    "sandwich": lambda x, branch, norm, second, alpha: x + second(branch(norm(x))),  # type: ignore[misc]
    "deepnorm": lambda x, branch, norm, second, alpha: norm(alpha * x + branch(x)),
    "reordered": lambda x, branch, norm, second, alpha: x + norm(branch(x)),
}
"""Where the norm of a branch stands (survey, table 4; reordered is OLMo 2's, 2501.00656). A parallel block has its own
sum, see `Block`."""


class DeepNorm(NamedTuple):
    """`alpha` scales the residual stream, `beta` the initialisation of feed-forward, v and out."""

    alpha: float
    beta: float


def deepnorm_constants(config: ModelConfig, encoder: bool = False) -> DeepNorm:
    """DeepNet's constants (2203.00555, table 1, with its code's rounding) of the decoder's stack or the encoder's, or
    GLM-130B's: alpha (2N)^(1/2), beta (2N)^(-1/2) (2210.02414). `residual_scale` replaces alpha."""
    depth = config.layers
    if config.deepnorm == "glm":
        found = DeepNorm((2 * depth) ** 0.5, (2 * depth) ** -0.5)
    elif not config.has_encoder:
        found = DeepNorm((2 * depth) ** 0.25, (8 * depth) ** -0.25)
    elif encoder:
        mixed = (config.sizes(encoder=True).layers ** 4 * depth) ** (1 / 16)
        found = DeepNorm(0.81 * mixed, 0.87 / mixed)
    else:
        found = DeepNorm((3 * depth) ** 0.25, (12 * depth) ** -0.25)
    return found if config.residual_scale is None else found._replace(alpha=config.residual_scale)
