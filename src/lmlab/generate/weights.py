"""A Transformer's weights laid out for inference: fewer and larger products, packed for the processor's library.

What is changed, and why the result is the same up to rounding:

- q, k and v are one matrix, and so are gate and up: one product in the place of two or three.
- The gain of an RMSNorm is multiplied into the columns of the matrix after it: (x g) W^T = x (W g)^T.
- The rows of each head of q and k are put in the order 0, K/2, 1, K/2 + 1, ...: the pairs that the rotation turns lie
  side by side and are complex numbers, so that the rotation is one multiplication. q and k are permuted alike, so q
  k^T stays.

On a processor (CPU) with AVX-512 the matrices are packed for products.py's own kernel; on others for oneDNN. That is for
exactness first: their products of float32 rows come out the same to the last bit whatever number of rows is multiplied
at once, which torch's default library (MKL) does not give below four rows. Of our kernel that is so by construction. Of
oneDNN it was measured on an AMD Zen 5 with oneDNN held to AVX2 and to AVX-512: 1 to 255 rows, inputs of 96 to 3,072,
outputs of 32 to 4,099. The one exception was a single row of more than 1,024 inputs, which is therefore multiplied twice
at once (it costs as much: the time goes into reading the matrix). A test watches it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmlab.generate.kernels import unit_rows
from lmlab.generate.mapped import give_back
from lmlab.generate.products import Panels, kind_of
from lmlab.generate.quantise import Quantised
from lmlab.model.feed_forward import FeedForward
from lmlab.model.norm import RMSNorm
from lmlab.model.transformer import Block, Transformer

Precision = Literal["float32", "bfloat16", "int8", "int4"]


LONGEST_ALONE = 1024
"""Inputs up to which a single row is multiplied as it is, see above."""


class Linear:
    """x W^T + b (+ a residual, which may be changed) of rows (N, in) -> (N, out), float32 in and out.

    `gain` (in,) is multiplied into the columns of W.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, precision: Precision, gain: Tensor | None = None) -> None:
        kind = kind_of(precision, weight.shape[1]) if weight.device.type == "cpu" else None
        self.panels = None if kind is None else Panels(weight, bias, kind, gain)
        if self.panels is not None:
            return
        weight = weight if gain is None else weight * gain
        self.dtype = torch.float32 if precision == "float32" else torch.bfloat16
        self.bias = None if bias is None else bias.to(self.dtype)
        self.narrow = precision != "float32"
        self.quantised = Quantised(weight, precision) if precision in ("int8", "int4") else None
        if self.quantised is not None:
            self.weight, self.doubled, self.packed = weight[:0], False, False
            return
        self.weight = weight.to(self.dtype)
        self.doubled = weight.shape[1] > LONGEST_ALONE
        self.packed = weight.device.type == "cpu" and _can_pack(self.dtype)
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous())
            give_back(weight)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.panels is not None:
            return self.panels(x, residual)
        if self.narrow:
            x = x.to(self.dtype)
        alone = self.doubled and self.packed and len(x) == 1
        out = self._product(x.expand(2, -1))[:1] if alone else self._product(x)
        if self.narrow:
            out = out.float()
        # oneDNN can add the residual itself, but takes longer so (3 to 5 us a call at 1 to 8 rows, measured).
        return out if residual is None else out.add_(residual)

    @property
    def bytes(self) -> int:
        """Memory of the matrix, which a product reads once."""
        if self.panels is not None:
            return self.panels.bytes
        if self.quantised is not None:
            return self.quantised.bytes
        return self.weight.numel() * self.weight.element_size()

    def _product(self, x: Tensor) -> Tensor:
        if self.quantised is not None:
            out = self.quantised(x)
            return out if self.bias is None else out + self.bias
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)


def _can_pack(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


class Norm:
    """The norm before a matrix: RMSNorm without its gain (which the matrix holds), or LayerNorm as it is."""

    def __init__(self, norm: nn.Module, width: int) -> None:
        self.width = width
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None
        self.is_rms = isinstance(norm, RMSNorm)
        if isinstance(norm, RMSNorm):
            self.eps = norm.eps
            self.gain: Tensor | None = norm.weight.detach()
            self.eps32, self.eps_tensor = np.float32(norm.eps), torch.tensor(norm.eps, device=norm.weight.device)
        elif isinstance(norm, nn.LayerNorm):
            self.eps, self.gain = norm.eps, None
            self.weight, self.bias = norm.weight.detach(), None if norm.bias is None else norm.bias.detach()
        else:
            raise TypeError(f"{type(norm).__name__} is not a norm that this engine knows")

    def __call__(self, x_ND: Tensor) -> Tensor:
        if not self.is_rms:
            return F.layer_norm(x_ND, (self.width,), self.weight, self.bias, self.eps)
        if x_ND.device.type != "cpu":
            return scale_to_unit(x_ND, self.width, self.eps_tensor)
        out_ND = torch.empty_like(x_ND)
        unit_rows(x_ND.numpy(), self.eps32, out_ND.numpy())
        return out_ND

    @property
    def arrays(self) -> tuple[bool, np.float32, np.ndarray, np.ndarray]:
        """(whether it is an RMSNorm, eps, weight, bias or empty) for compiled functions."""
        weight, bias = (
            np.empty(0, np.float32) if each is None else each.float().cpu().numpy() for each in (self.weight, self.bias)
        )
        return self.is_rms, np.float32(self.eps), weight, bias


def scale_to_unit(x: Tensor, width: int, eps: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last dimension, in four operations."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x * torch.addcmul(eps, length, length, value=1 / width).rsqrt_()


@dataclass
class Layer:
    """One block. `qk_gain` (H + G, K) where queries and keys are normalised; `qk_gain_array` is it, or (0, 0)."""

    attention_norm: Norm
    qkv: Linear
    qk_gain: Tensor | None
    qk_gain_array: np.ndarray
    out: Linear
    feed_forward_norm: Norm
    up: Linear
    gated: bool
    down: Linear


def pair_order(heads: int, head_dim: int) -> Tensor:
    """Row order that puts the pair (i, i + K/2) of each head side by side; (heads x K,)."""
    inside = torch.arange(head_dim).view(2, head_dim // 2).T.reshape(-1)
    return (torch.arange(heads)[:, None] * head_dim + inside).reshape(-1)


def lay_out(block: Block, precision: Precision, rotated: bool) -> Layer:
    """One block's weights for inference."""
    attention, feed_forward = block.attention, block.feed_forward
    if not isinstance(feed_forward, FeedForward) or block.feed_forward_norm is None:
        raise TypeError("experts and parallel blocks are not laid out for inference yet")
    width = attention.q.in_features
    before, between = Norm(block.attention_norm, width), Norm(block.feed_forward_norm, width)
    q, k, v = ((part.weight.detach(), _bias(part)) for part in (attention.q, attention.k, attention.v))
    qk_gain = None
    if attention.q_norm is not None and attention.k_norm is not None:
        gains = (attention.q_norm.weight, attention.k_norm.weight)
        qk_gain = torch.cat([gains[0].expand(attention.heads, -1), gains[1].expand(attention.kv_heads, -1)]).detach()
    if rotated:
        q = _rows(q, pair_order(attention.heads, attention.head_dim))
        k = _rows(k, pair_order(attention.kv_heads, attention.head_dim))
        if qk_gain is not None:
            qk_gain = qk_gain[:, pair_order(1, attention.head_dim)]
    up = [(part.weight.detach(), _bias(part)) for part in (feed_forward.gate, feed_forward.up) if part is not None]
    layer = Layer(
        before,
        _joined([q, k, v], before, precision),
        None if qk_gain is None else qk_gain.contiguous(),
        np.empty((0, 0), np.float32) if qk_gain is None else np.ascontiguousarray(qk_gain.cpu().numpy()),
        Linear(attention.out.weight.detach(), _bias(attention.out), precision),
        between,
        _joined(up, between, precision),
        feed_forward.gate is not None,
        Linear(feed_forward.down.weight.detach(), _bias(feed_forward.down), precision),
    )
    for weight in block.parameters():
        give_back(weight)
    return layer


def head_of(model: Transformer, norm: Norm, precision: Precision) -> Linear:
    """The output head after the final norm."""
    weight = model.embedding.weight if model.head is None else model.head.weight
    return Linear(weight.detach(), None, head_precision(precision), norm.gain)


def head_precision(precision: Precision) -> Precision:
    """The head's: 4 bits are too few where every token's probability is decided."""
    return "int8" if precision == "int4" else precision


Part = tuple[Tensor, Tensor | None]


def _bias(linear: nn.Linear) -> Tensor | None:
    return None if linear.bias is None else linear.bias.detach()


def _rows(part: Part, order: Tensor) -> Part:
    weight, bias = part
    order = order.to(weight.device)
    return weight[order], None if bias is None else bias[order]


def _joined(parts: list[Part], norm: Norm, precision: Precision) -> Linear:
    biases = [bias for _, bias in parts if bias is not None]
    whole = torch.cat([weight for weight, _ in parts])
    return Linear(whole, torch.cat(biases) if biases else None, precision, norm.gain)
