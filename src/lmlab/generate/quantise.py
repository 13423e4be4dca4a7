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


class Quantised:
    """A matrix (out, in) in few bits. Calling it multiplies rows (N, in) -> (N, out), bfloat16 in and out."""

    def __init__(self, weight: Tensor, bits: Bits) -> None:
        outputs, inputs = weight.shape
        weight = weight.detach().float()
        self.group = next((g for g in GROUPS if inputs % g == 0), 0) if bits == "int4" else 0
        self.shape = (outputs, inputs)
        # torch's kernels read whole vectors: other shapes crash or are refused (torch 2.13).
        self.has_kernel = weight.device.type == "cpu" and inputs % 64 == 0 and outputs % 32 == 0
        if not self.group:
            scale_O1 = weight.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
            self.codes = (weight / scale_O1).round().to(torch.int8)
            self.scales = scale_O1[:, 0].bfloat16()
            return
        grouped = weight.view(outputs, -1, self.group)
        low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
        scale = ((high - low) / 15).clamp_min(1e-12)
        codes = ((grouped - low) / scale).round().clamp(0, 15).view(outputs, inputs)
        # The kernel's convention: weight = (code - 8) scale + zero.
        pairs = torch.stack((scale[..., 0].T, (low + 8 * scale)[..., 0].T), -1)
        self.scales = pairs.contiguous().bfloat16()
        if self.has_kernel:
            self.codes = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
        else:
            pairs_of_codes = codes.to(torch.uint8).view(outputs, -1, 2)
            self.codes = pairs_of_codes[..., 0] | (pairs_of_codes[..., 1] << 4)

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
