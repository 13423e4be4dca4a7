"""Cross-entropy of a linear head that never holds the logits of all positions.

The gradient of a chunk is computed right after its logits, in the forward pass, so that each chunk's logits are made
once, used for loss and gradient while they are in the cache, and forgotten. (Keeping them, as the textbook form does,
costs 4 bytes x positions x vocabulary; making them again in the backward pass costs a third more matrix work.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lmlab.model.wide import wide, wide_type


class Chunks(NamedTuple):
    """How many rows are taken at a time at most, of how many logits at most, and how many columns of these at a time."""

    rows: int
    logits: int
    columns: int


CHUNKS = {"cpu": Chunks(1024, 1 << 25, 8192)}
"""Measured on one thread of an AMD EPYC (Zen 4), compiled, bfloat16, d 384, ms, best of 4. Vocabulary 50,304, 2,048 rows, 8,192
columns at a time: 128 rows 1,617, 256 rows 1,467, 512 rows 1,388, 1,024 rows 1,467 (the products alone need 1,160), with 2,048
to 16,384 columns 1,388 to 1,443. Vocabulary 4,096, 3,072 rows: 193, 176, 169, 166."""

ELSEWHERE = Chunks(4096, 1 << 28, 1 << 30)
"""Of a GPU (guessed: products large enough for it, 1.5 GB at most)."""


PARTS_CHUNK = 512
"""Rows a chunk where ranks hold parts of the vocabulary."""


def rows_a_chunk(vocabulary: int, device: str = "cpu") -> int:
    """How many rows' logits are held at a time: a power of two, so that batches divide by it."""
    rows, logits, _ = CHUNKS.get(device, ELSEWHERE)
    return min(rows, 1 << max(logits // vocabulary, 16).bit_length() - 1)


Run = Callable[[Callable[..., Any]], Callable[..., Any]]


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
    run: Run = lambda function: function,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What each row adds of cross-entropy and of log^2 Z, weighted (N,); the gradients of the weighted sum by hidden states,
    head and bias (empty where there is none).

    The gradient of a row by its logits is its softmax, times a number, less something at the target alone. So a chunk's
    logits become exp(logit - the largest) once, some columns at a time while these are in the cache. What makes
    probabilities of them, a number for each row and piece, is multiplied into what is D wide; so is the target's part. `run`
    makes what is done to single entries faster, or leaves it.
    """
    head, sums = head_VD.to(dtype), wide_type(head_VD)
    bias_grad = torch.zeros(0 if bias_V is None else len(bias_V), dtype=sums, device=head.device)
    head_grad = torch.zeros(head.shape, dtype=sums, device=head.device)
    hidden_grad = torch.empty_like(hidden_ND)
    nats, squares = [weights_N[:0]], [weights_N[:0]]
    columns = CHUNKS.get(head.device.type, ELSEWHERE).columns
    pieces = [slice(start, min(start + columns, len(head))) for start in range(0, len(head), columns)]
    for start in range(0, hidden_ND.shape[0], chunk):
        rows = slice(start, start + chunk)
        hidden, target, weight = hidden_ND[rows].to(dtype), targets_N[rows, None], weights_N[rows, None]
        inside, place = _places(target, len(head), part)
        found = [_piece(hidden, head, bias_V, place, softcap, piece, run) for piece in pieces]
        shares, log_z = _normaliser(found, part)
        own = torch.where(inside, torch.stack([each.own for each in found]).sum(0), 0.0)
        own = part.total(own) if part else own
        nats.append(((log_z - own) * weight)[:, 0])
        if z_weight:
            squares.append((log_z.square() * weight)[:, 0])
        pull = torch.where(inside, weight, 0.0)
        pull = pull if softcap is None else pull * (1 - (own / softcap).square())
        gradient = pull * -head[place[:, 0]]
        for piece, each, share in zip(pieces, found, shares * (weight * (1 + 2 * z_weight * log_z))):
            gradient.addcmul_(each.exponentials @ head[piece], share)
            _add_product(head_grad[piece], each.exponentials, (hidden * share).to(dtype), run)
            if bias_V is not None:
                bias_grad[piece] += (each.exponentials * share).sum(0)
        head_grad.index_put_((place[:, 0],), -pull * hidden, accumulate=True)
        if bias_V is not None:
            bias_grad.index_put_((place[:, 0],), -pull[:, 0], accumulate=True)
        hidden_grad[rows] = gradient
    nats_N = torch.cat(nats)
    squares_N = torch.cat(squares) if z_weight else torch.zeros_like(nats_N)
    hidden_grad = part.total(hidden_grad) if part else hidden_grad
    return nats_N, squares_N, hidden_grad, head_grad.to(head_VD.dtype), bias_grad


class _Piece(NamedTuple):
    """Of some columns of a chunk's logits: exp(logit - each row's largest) (n, columns), these largest (n, 1), the sums
    (n, 1), and the target's logit (n, 1), 0 where it is another piece's."""

    exponentials: Tensor
    largest: Tensor
    total: Tensor
    own: Tensor


def _piece(
    hidden: Tensor, head: Tensor, bias_V: Tensor | None, place: Tensor, softcap: float | None, piece: slice, run: Run
) -> _Piece:
    """Of hidden states (n, D) and all targets' columns `place` (n, 1)."""
    logits = F.linear(hidden, head[piece])
    bias = None if bias_V is None else bias_V[piece]
    here = (place >= piece.start) & (place < piece.start + logits.shape[1])
    inside = (place - piece.start).clamp(0, logits.shape[1] - 1)
    own = logits.gather(1, inside).to(wide_type(logits))
    own = torch.where(here, _capped(own, None if bias is None else bias[inside], softcap), 0.0)
    exponentials, largest, total = run(_exponentials)(logits, bias, softcap)
    return _Piece(exponentials, largest, total, own)


def _exponentials(logits: Tensor, bias: Tensor | None, softcap: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """See `_Piece`. Under a softcap the exponentials are multiplied by its derivative once they have been added up, as the
    gradient wants them."""
    capped = _capped(wide(logits), bias, softcap)
    largest = capped.amax(1, keepdim=True)
    found = (capped - largest).exp_()
    total = found.sum(1, keepdim=True)
    found = found if softcap is None else found * (1 - (capped / softcap).square())
    return found.to(logits.dtype), largest, total


def _normaliser(found: Sequence[_Piece], part: Vocabulary | None) -> tuple[Tensor, Tensor]:
    """What makes probabilities of each piece's exponentials (pieces, n, 1), and the log of the normaliser (n, 1)."""
    each = torch.stack([piece.largest for piece in found])
    largest = each.amax(0)
    largest = part.largest(largest) if part else largest
    shares = (each - largest).exp_()
    total = (shares * torch.stack([piece.total for piece in found])).sum(0)
    total = part.total(total) if part else total
    return shares / total, total.log() + largest


def _add_product(target_VD: Tensor, a_NV: Tensor, b_ND: Tensor, run: Run) -> None:
    """target += a^T b, in place; the product is rounded to the type of a and b first where that is another."""
    if target_VD.dtype == a_NV.dtype:
        target_VD.addmm_(a_NV.T, b_ND)
    else:
        run(_add)(target_VD, a_NV.T @ b_ND)


def _add(target: Tensor, more: Tensor) -> None:
    target.add_(more)


@functools.cache
def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """Of any shape: chunks and pieces differ at their ends."""
    return torch.compile(function, dynamic=True)


def _places(target: Tensor, rows: int, part: Vocabulary | None) -> tuple[Tensor, Tensor]:
    """Of targets (n, 1): whether they are among a head's rows, and as which of them (the nearest where not)."""
    if part is None:
        return torch.ones_like(target, dtype=torch.bool), target
    place = target - part.start
    return (place >= 0) & (place < rows), place.clamp(0, rows - 1)


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
    return _gradients(hidden_ND, head_VD, bias_V, targets_N, weights_N, softcap, chunk, dtype, z_weight, run=_compile)


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
    chunk: int | None = None,
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
    chunk: int | None = None,
    vocabulary: Vocabulary | None = None,
    z_weight: float = 0.0,
) -> ByRow:
    """As `linear_cross_entropy`, by row too; with `z_weight` times the z-loss, log^2 of the softmax's normaliser, which
    keeps log Z near 0 (PaLM, 2204.02311, section 5: 1e-4)."""
    device = hidden_ND.device.type
    # Ranks that share the vocabulary meet at every chunk, so they take as many rows, however many columns each has.
    chunk = chunk or (PARTS_CHUNK if vocabulary else rows_a_chunk(len(head_VD), device))
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
