"""Rotary position embedding (RoFormer, 2104.09864), the half-split pairing that the ecosystem's Llama files use."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_table(length: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin of position x frequency, each (length, head_dim / 2), float32; frequency i is theta^(-2i/head_dim)."""
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
    angle = torch.arange(length, dtype=torch.float32)[:, None] * frequency
    return angle.cos(), angle.sin()


def rotate(x_BTHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pair (i, i + K/2) by its angle. cos and sin broadcast to (B, T, 1, K/2). Computed in float32."""
    first, second = x_BTHK.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x_BTHK.dtype)
