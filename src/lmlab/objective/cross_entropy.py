"""Cross-entropy of a linear head that never holds the logits of all positions.

The gradient of a chunk is computed right after its logits, in the forward pass, so that each chunk's logits are made
once, used for loss and gradient while they are in the cache, and forgotten. (Keeping them, as the textbook form does,
costs 4 bytes x positions x vocabulary; making them again in the backward pass costs a third more matrix work.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lmlab.model.wide import wide, wide_type

CHUNK = 256
"""Rows a chunk: 512 x 4,096 float32 logits are 8 MB, about a CPU's shared cache (guessed, then measured: 256 and 1,024
are within 3%)."""


@dataclass(frozen=True)
class Vocabulary:
    """Some rows of a head: the first one's id, and the largest and the sum of a tensor over all who hold rows (they may
    work in place). What is computed of the whole vocabulary is then alike on all of them (Megatron-LM, 1909.08053)."""

    start: int
    largest: Callable[[Tensor], Tensor]
    total: Callable[[Tensor], Tensor]


def _gradients(
    hidden_ND: Tensor,
    head_VD: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    weights_N: Tensor,
    softcap: float | None,
    chunk: int,
    dtype: torch.dtype,
    z_weight: float,
    part: Vocabulary | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What each row adds of cross-entropy and of log^2 Z, weighted (N,); the gradients of the weighted sum by hidden states,
    head and bias (empty where there is none).

    Of a chunk's entries, logits become log-probabilities and then the gradient, in as few passes as torch has operators. The
    weight of a row is multiplied into what is D wide, not V wide.
    """
    head, sums = head_VD.to(dtype), wide_type(head_VD)
    bias_grad = torch.zeros(0 if bias_V is None else len(bias_V), dtype=sums, device=head.device)
    head_grad = torch.zeros(head.shape, dtype=sums, device=head.device)
    hidden_grad = torch.empty_like(hidden_ND)
    nats, squares = [weights_N[:0]], [weights_N[:0]]
    for start in range(0, hidden_ND.shape[0], chunk):
        rows = slice(start, start + chunk)
        hidden, target, weight = hidden_ND[rows].to(dtype), targets_N[rows, None], weights_N[rows, None]
        logits = _capped(F.linear(hidden, head).to(sums), bias_V, softcap)
        inside, place = _places(target, len(head), part)
        logprobs, log_z = _normalised(logits, part)
        found = logprobs.gather(1, place)
        found = part.total(torch.where(inside, found, 0.0)) if part else found
        nats.append((-found * weight)[:, 0])
        share = logprobs.exp_()
        if z_weight:
            squares.append((log_z.square() * weight)[:, 0])
            share.mul_(1 + 2 * z_weight * log_z)
        own = share.gather(1, place)
        share.scatter_(1, place, torch.where(inside, own - 1, own))
        if softcap is not None:
            share.mul_(1 - (logits / softcap).square())
        del logits  # as large as all the rest of the chunk
        if bias_V is not None:
            bias_grad += (share * weight).sum(0)
        gradient = share.to(dtype)
        hidden_grad[rows] = (gradient @ head) * weight
        scaled = (hidden * weight).to(dtype)
        if dtype == sums:
            head_grad.addmm_(gradient.T, scaled)
        else:
            head_grad += gradient.T @ scaled
    nats_N = torch.cat(nats)
    squares_N = torch.cat(squares) if z_weight else torch.zeros_like(nats_N)
    hidden_grad = part.total(hidden_grad) if part else hidden_grad
    return nats_N, squares_N, hidden_grad, head_grad.to(head_VD.dtype), bias_grad


def _places(target: Tensor, rows: int, part: Vocabulary | None) -> tuple[Tensor, Tensor]:
    """Of targets (n, 1): whether they are among a head's rows, and as which of them (the nearest where not)."""
    if part is None:
        return torch.ones_like(target, dtype=torch.bool), target
    place = target - part.start
    return (place >= 0) & (place < rows), place.clamp(0, rows - 1)


def _normalised(logits: Tensor, part: Vocabulary | None) -> tuple[Tensor, Tensor]:
    """Log-probabilities (n, V), and the log of the normaliser (n, 1)."""
    if part is None:
        logprobs = logits.log_softmax(-1)
        return logprobs, logits[:, :1] - logprobs[:, :1]
    largest = part.largest(logits.amax(-1, keepdim=True))
    log_z = part.total((logits - largest).exp_().sum(-1, keepdim=True)).log() + largest
    return logits - log_z, log_z


@torch.library.custom_op("lmlab::cross_entropy_gradients", mutates_args=())
def _compiled_gradients(
    hidden_ND: Tensor,
    head_VD: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    weights_N: Tensor,
    softcap: float | None,
    chunk: int,
    dtype: torch.dtype,
    z_weight: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`_gradients` as an operator that torch.compile leaves as it is: taken apart, every chunk would be compiled for itself,
    and what is added up in place would be copied for each of them."""
    return _gradients(hidden_ND, head_VD, bias_V, targets_N, weights_N, softcap, chunk, dtype, z_weight)


@_compiled_gradients.register_fake
def _(
    hidden_ND: Tensor,
    head_VD: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    weights_N: Tensor,
    softcap: float | None,
    chunk: int,
    dtype: torch.dtype,
    z_weight: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    sums = wide_type(head_VD)
    bias_grad = head_VD.new_empty(0 if bias_V is None else len(bias_V), dtype=sums)
    rows = (torch.empty_like(weights_N), torch.empty_like(weights_N))
    return *rows, torch.empty_like(hidden_ND), torch.empty_like(head_VD), bias_grad


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum over rows of weight x (-log softmax(hidden head^T)[target] + z_weight log^2 Z), Z the softmax's normaliser; and
    both parts of each row (N,), weighted, without a gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        head_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        weights_N: Tensor,
        softcap: float | None,
        chunk: int,
        dtype: torch.dtype,
        z_weight: float,
        part: Vocabulary | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        given = (hidden_ND, head_VD, bias_V, targets_N, weights_N, softcap, chunk, dtype, z_weight)
        whole = torch.compiler.is_compiling() and part is None
        found = _compiled_gradients(*given) if whole else _gradients(*given, part)
        nats_N, squares_N, hidden_grad, head_grad, bias_grad = found
        ctx.save_for_backward(hidden_grad, head_grad, None if bias_V is None else bias_grad)
        ctx.mark_non_differentiable(nats_N, squares_N)
        return nats_N.sum() + z_weight * squares_N.sum(), nats_N, squares_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, head_grad, bias_grad = ctx.saved_tensors
        bias_grad = None if bias_grad is None else bias_grad * grads[0]
        return hidden_grad * grads[0].to(hidden_grad.dtype), head_grad * grads[0], bias_grad, *(None,) * 7


class ByRow(NamedTuple):
    """`total` is the weighted sum, with its gradient; nats_N and squares_N (N,) what each row adds of cross-entropy and of
    log^2 Z (before its weight), for reports: they have none."""

    total: Tensor
    nats_N: Tensor
    squares_N: Tensor


def linear_cross_entropy(
    hidden_ND: Tensor,
    head_VD: Tensor,
    targets_N: Tensor,
    weights_N: Tensor,
    *,
    bias_V: Tensor | None = None,
    softcap: float | None = None,
    chunk: int = CHUNK,
    vocabulary: Vocabulary | None = None,
) -> Tensor:
    """Sum over rows of `weights_N` x cross-entropy in nats of logits hidden @ head^T against `targets_N`; a scalar.

    The logits take `bias_V`, and then become softcap tanh(logits / softcap), where these are given (see `Output`).
    `vocabulary`: which rows of the vocabulary `head_VD` and `bias_V` hold, where these are not all.
    Under autocast the matrix products are made in autocast's type, the softmax always in float32.
    """
    given = (hidden_ND, head_VD, targets_N, weights_N)
    more: dict[str, Any] = {"bias_V": bias_V, "softcap": softcap, "chunk": chunk, "vocabulary": vocabulary}
    return cross_entropy_by_row(*given, **more).total


def cross_entropy_by_row(
    hidden_ND: Tensor,
    head_VD: Tensor,
    targets_N: Tensor,
    weights_N: Tensor,
    *,
    bias_V: Tensor | None = None,
    softcap: float | None = None,
    chunk: int = CHUNK,
    vocabulary: Vocabulary | None = None,
    z_weight: float = 0.0,
) -> ByRow:
    """As `linear_cross_entropy`, by row too; with `z_weight` times the z-loss, log^2 of the softmax's normaliser, which
    keeps log Z near 0 (PaLM, 2204.02311, section 5: 1e-4)."""
    device = hidden_ND.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head_VD.dtype
    weights_N = weights_N.to(wide_type(head_VD))
    if torch.is_grad_enabled() or vocabulary is not None:
        given = (hidden_ND, head_VD, bias_V, targets_N, weights_N)
        return ByRow(*_LinearCrossEntropy.apply(*given, softcap, chunk, dtype, z_weight, vocabulary))
    nats, squares = [weights_N[:0]], [weights_N[:0]]
    for start in range(0, hidden_ND.shape[0], chunk):
        rows = slice(start, start + chunk)
        logits = _capped(wide(F.linear(hidden_ND[rows].to(dtype), head_VD.to(dtype))), bias_V, softcap)
        nats.append(F.cross_entropy(logits, targets_N[rows], reduction="none") * weights_N[rows])
        squares.append(logits.logsumexp(-1).square() * weights_N[rows])
    nats_N, squares_N = torch.cat(nats), torch.cat(squares)
    return ByRow(nats_N.sum() + z_weight * squares_N.sum(), nats_N, squares_N)


def _capped(logits: Tensor, bias_V: Tensor | None, softcap: float | None) -> Tensor:
    logits = logits if bias_V is None else logits + bias_V
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def token_logprobs(
    hidden_ND: Tensor,
    head_VD: Tensor,
    targets_N: Tensor,
    temperature: float = 1.0,
    *,
    bias_V: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """log softmax(logits / temperature)[target] of each row (N,), differentiable, softmax in float32; logits as in
    `linear_cross_entropy`."""
    logits = _capped(wide(F.linear(hidden_ND, head_VD)), bias_V, softcap) / temperature
    return logits.gather(1, targets_N[:, None])[:, 0] - logits.logsumexp(-1)
