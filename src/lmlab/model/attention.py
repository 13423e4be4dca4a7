"""Attention: multi-head, grouped-query and multi-query in one.

The kernel is a run-time choice, not the model's: `math` is the formula written out, `sdpa` is torch's fused kernel. They
agree to rounding (a test says so). On CPU the formula is the faster one to train with below about 1,000 tokens (measured
by `benchmarks/train_cpu.py`), because torch compiles its softmax into one pass while its CPU kernel does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmlab.model.config import ModelConfig
from lmlab.model.norm import RMSNorm
from lmlab.model.position import rotate

Kernel = Literal["auto", "math", "sdpa"]


@dataclass
class Place:
    """Where the tokens of a pass stand: the rotation of each, and what each may see.

    `cos`, `sin` (B or 1, T, 1, K/2) or None; `mask_BTS` True where query t may see key s, or None for plain causal.
    """

    cos: Tensor | None
    sin: Tensor | None
    mask_BTS: Tensor | None


def attend(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, mask_BTS: Tensor | None, kernel: Kernel) -> Tensor:
    """softmax(q k^T / sqrt(K)) v -> (B, H, T, K) (1706.03762, eq. 1). `mask_BTS` None is causal, T = S."""
    if kernel == "sdpa":
        mask = None if mask_BTS is None else mask_BTS[:, None]
        return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, attn_mask=mask, is_causal=mask is None)
    scores_BHTS = (q_BHTK @ k_BHSK.transpose(-1, -2)).float() * q_BHTK.shape[-1] ** -0.5
    if mask_BTS is None:
        length = scores_BHTS.shape[-1]
        seen = torch.ones(length, length, dtype=torch.bool, device=scores_BHTS.device).tril()
    else:
        seen = mask_BTS[:, None]
    weights_BHTS = scores_BHTS.masked_fill(~seen, torch.finfo(torch.float32).min).softmax(-1)
    return weights_BHTS.to(v_BHSK.dtype) @ v_BHSK


class Attention(nn.Module):
    """(B, T, D) -> (B, T, D). Parameter names are the ones that adapters target: q, k, v, out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.kv_heads, self.head_dim, _ = config.dims
        self.q = nn.Linear(config.d_model, self.heads * self.head_dim, bias=config.bias)
        self.k = nn.Linear(config.d_model, self.kv_heads * self.head_dim, bias=config.bias)
        self.v = nn.Linear(config.d_model, self.kv_heads * self.head_dim, bias=config.bias)
        self.out = nn.Linear(self.heads * self.head_dim, config.d_model, bias=config.bias)
        self.q_norm = RMSNorm(self.head_dim, config.eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, config.eps) if config.qk_norm else None

    def forward(self, x_BTD: Tensor, place: Place, kernel: Kernel) -> Tensor:
        B, T, _ = x_BTD.shape
        q_BTHK = self.q(x_BTD).view(B, T, self.heads, self.head_dim)
        k_BTGK = self.k(x_BTD).view(B, T, self.kv_heads, self.head_dim)
        v_BTGK = self.v(x_BTD).view(B, T, self.kv_heads, self.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q_BTHK, k_BTGK = self.q_norm(q_BTHK), self.k_norm(k_BTGK)
        if place.cos is not None and place.sin is not None:
            q_BTHK, k_BTGK = rotate(q_BTHK, place.cos, place.sin), rotate(k_BTGK, place.cos, place.sin)
        q_BHTK, k_BGSK, v_BGSK = (each.transpose(1, 2) for each in (q_BTHK, k_BTGK, v_BTGK))
        if self.kv_heads != self.heads:
            k_BGSK = k_BGSK.repeat_interleave(self.heads // self.kv_heads, dim=1)
            v_BGSK = v_BGSK.repeat_interleave(self.heads // self.kv_heads, dim=1)
        mixed_BHTK = attend(q_BHTK, k_BGSK, v_BGSK, place.mask_BTS, kernel)
        return self.out(mixed_BHTK.transpose(1, 2).reshape(B, T, self.heads * self.head_dim))
