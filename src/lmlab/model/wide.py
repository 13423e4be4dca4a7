"""The type of sums: float32, or float64 where a tensor is of float64 already."""

from __future__ import annotations

import torch
from torch import Tensor


def wide_type(tensor: Tensor) -> torch.dtype:
    """float64 for float64, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def wide(tensor: Tensor) -> Tensor:
    """In the type of sums."""
    return tensor.to(wide_type(tensor))
