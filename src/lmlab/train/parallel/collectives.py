"""The four ways in which activations pass between tensor-parallel ranks, each with its gradient (Megatron-LM, 1909.08053,
section 3: `same` is its f, `added` its g; 2205.05198, section 4.2.2, for the two that cut the sequence).

All act on activations that are replicated on one side, so that gradients there are complete on every rank and alike.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Same(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _summed(grads[0], ctx.group), None


class _Added(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        return _summed(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _own(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _joined(grads[0], ctx.group), None


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _joined(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _own(grads[0], ctx.group), None


def same(x: Tensor, group: Any) -> Tensor:
    """x, used by each rank for a part of the work: its gradients are added up."""
    return _Same.apply(x, group)


def added(x: Tensor, group: Any) -> Tensor:
    """The sum of the ranks' parts."""
    return _Added.apply(x, group)


def cut(x_BT: Tensor, group: Any) -> Tensor:
    """This rank's tokens of a replicated (B, T, ...)."""
    return _Cut.apply(x_BT, group)


def joined(x_BT: Tensor, group: Any) -> Tensor:
    """All ranks' tokens, replicated."""
    return _Joined.apply(x_BT, group)


def _summed(x: Tensor, group: Any) -> Tensor:
    x = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x, group=group)
    return x


def _own(x_BT: Tensor, group: Any) -> Tensor:
    size, T = dist.get_world_size(group), x_BT.shape[1]
    if T % size:
        raise ValueError(f"{T} tokens of a row cannot be divided among {size} ranks")
    return x_BT.chunk(size, 1)[dist.get_rank(group)].contiguous()


def _joined(x_BT: Tensor, group: Any) -> Tensor:
    parts = [torch.empty_like(x_BT, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, x_BT.contiguous(), group=group)
    return torch.cat(parts, 1)
