"""Matrices in 8 or 4 bits for inference: weights only, rounded to the nearest, multiplied in bfloat16.

int8 has one scale a row; int4 a scale and a zero for each group of inputs. Embeddings, norms and routers stay as they
are, and the output head is never below 8 bits. torch's kernels read the packed weights. At many rows, where the 8-bit
one is slow, and for shapes that they do not take, the matrix is unpacked for the call.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

KERNEL_ROWS = 8
"""Rows up to which torch's 8-bit kernel beats unpacking (measured on an AMD Zen 5, 768 to 2,048: at 8 rows both take
about 0.4 ms, at 64 the kernel 2.7 ms, unpacking and the product together under 1.5 ms)."""

GROUPS = (64, 32)
"""Inputs that share a scale in int4: the first that divides their number; none does: int8."""

Bits = Literal["int8", "int4"]


def group_size(inputs: int) -> int:
    """Inputs that share a scale in int4; 0 where their number cannot be grouped."""
    return next((group for group in GROUPS if inputs % group == 0), 0)


def round_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(codes (out, in) int8, scales (out,)) of a matrix: weight = code x scale, to half a step."""
    scale_O1 = weight.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
    return (weight / scale_O1).round().to(torch.int8), scale_O1[:, 0]


def round_int4(weight: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """(codes (out, in) 0 to 15, scales and lowest numbers (out, in / group)): weight = code x scale + lowest."""
    outputs, inputs = weight.shape
    grouped = weight.view(outputs, -1, group)
    low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
    scale = ((high - low) / 15).clamp_min(1e-12)
    codes = ((grouped - low) / scale).round().clamp(0, 15).view(outputs, inputs)
    return codes, scale[..., 0], low[..., 0]


class Quantised:
    """A matrix (out, in) in few bits, where simd.py has no kernel. Calling it multiplies rows (N, in) -> (N, out),
    bfloat16 in and out."""

    def __init__(self, weight: Tensor, bits: Bits) -> None:
        outputs, inputs = weight.shape
        weight = weight.detach().float()
        self.group = group_size(inputs) if bits == "int4" else 0
        self.shape = (outputs, inputs)
        # torch's kernels read whole vectors: other shapes crash or are refused (torch 2.13).
        self.has_kernel = weight.device.type == "cpu" and inputs % 64 == 0 and outputs % 32 == 0
        if not self.group:
            self.codes, scales = round_int8(weight)
            self.scales = scales.bfloat16()
            return
        codes, scale, low = round_int4(weight, self.group)
        # The kernel's convention: weight = (code - 8) scale + zero.
        self.scales = torch.stack((scale.T, (low + 8 * scale).T), -1).contiguous().bfloat16()
        if self.has_kernel:
            self.codes = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
        else:
            pairs_of_codes = codes.to(torch.uint8).view(outputs, -1, 2)
            self.codes = pairs_of_codes[..., 0] | (pairs_of_codes[..., 1] << 4)

    @property
    def bytes(self) -> int:
        """Memory of codes and scales."""
        return sum(each.numel() * each.element_size() for each in (self.codes, self.scales))

    def weight(self) -> Tensor:
        """The matrix that the codes stand for, (out, in), bfloat16."""
        if not self.group:
            return self.codes.bfloat16() * self.scales[:, None]
        if self.has_kernel:  # the order of its codes is the kernel's own
            return self(torch.eye(self.shape[1], dtype=torch.bfloat16)).T
        codes = torch.stack((self.codes & 15, self.codes >> 4), -1).view(self.shape[0], -1, self.group)
        scale, zero = self.scales.transpose(0, 1).unbind(-1)
        return ((codes.bfloat16() - 8) * scale[..., None] + zero[..., None]).view(self.shape)

    def __call__(self, x: Tensor) -> Tensor:
        if not self.has_kernel or (not self.group and len(x) > KERNEL_ROWS):
            return F.linear(x, self.weight())
        if self.group:
            return torch.ops.aten._weight_int4pack_mm_for_cpu(x.contiguous(), self.codes, self.group, self.scales)
        return torch._weight_int8pack_mm(x.contiguous(), self.codes, self.scales)
