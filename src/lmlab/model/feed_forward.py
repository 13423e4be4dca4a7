"""Feed-forward layers: plain (W2 f(W1 x)) and gated (W2 (f(Wg x) * W1 x)), GLU Variants Improve Transformer, 2002.05202."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmlab.model.config import GATED, ModelConfig

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu-tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "relu2": lambda x: F.relu(x).square(),
    "glu": torch.sigmoid,
    "swiglu": F.silu,
    "geglu": F.gelu,
    "geglu-tanh": lambda x: F.gelu(x, approximate="tanh"),
    "reglu": F.relu,
}


class FeedForward(nn.Module):
    """(B, T, D) -> (B, T, D) through d_ff."""

    def __init__(self, config: ModelConfig, d_ff: int | None = None, activation: str | None = None) -> None:
        super().__init__()
        d_ff, activation, bias = (
            d_ff or config.dims[2],
            activation or config.activation,
            config.has_bias("feed_forward"),
        )
        self.activation = ACTIVATIONS[activation]
        self.gate = nn.Linear(config.d_model, d_ff, bias=bias) if activation in GATED else None
        self.up = nn.Linear(config.d_model, d_ff, bias=bias)
        self.down = nn.Linear(d_ff, config.d_model, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        up_BTF = self.up(x_BTD)
        if self.gate is None:
            return self.down(self.activation(up_BTF))
        return self.down(self.activation(self.gate(x_BTD)) * up_BTF)
