"""The ways in which activations pass between ranks, each with its gradient.

Between tensor-parallel ranks (Megatron-LM, 1909.08053, section 3: `same` is its f, `added` its g; 2205.05198, section 4.2.2,
for `cut` and `joined`, which cut the sequence) activations are replicated on one side, so that gradients there are complete on
every rank and alike. Between ranks that have tokens of their own (`shared`, `exchanged`) gradients are each rank's part.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
"""The name of torch 2.13, and the one before."""


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


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _joined(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        parts = torch.cat(grads[0].chunk(dist.get_world_size(ctx.group), 1))
        own = parts.new_empty((len(grads[0]), grads[0].shape[1] // dist.get_world_size(ctx.group), *grads[0].shape[2:]))
        _reduce_scatter(own, parts, group=ctx.group)
        return own, None


class _Exchanged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_XD: Tensor, sent: list[int], received: list[int], group: Any) -> Tensor:
        ctx.sizes, ctx.group = (received, sent), group
        return _all_to_all(x_XD, sent, received, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        came, went = ctx.sizes
        return _all_to_all(grads[0], came, went, ctx.group), None, None, None


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


def shared(x_BT: Tensor, group: Any) -> Tensor:
    """All ranks' tokens (B, T, ...), each rank using them for its own: their gradients are added up."""
    return _Shared.apply(x_BT, group)


def exchanged(x_XD: Tensor, sent: list[int], received: list[int], group: Any) -> Tensor:
    """Of the rows (X, ...) the first sent[0] to rank 0, the next sent[1] to rank 1, ...; what came, in the order of ranks."""
    return _Exchanged.apply(x_XD, sent, received, group)


def _all_to_all(x_XD: Tensor, sent: list[int], received: list[int], group: Any) -> Tensor:
    found = x_XD.new_empty((sum(received), *x_XD.shape[1:]))
    dist.all_to_all_single(found, x_XD.contiguous(), received, sent, group=group)
    return found


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
