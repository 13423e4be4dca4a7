"""Attention: multi-head, grouped-query and multi-query in one; of a stack to itself, or of a decoder to an encoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lmlab.model.config import ModelConfig
from lmlab.model.kernels import KERNELS, Kernel, Resolved, Scores, hidden_by
from lmlab.model.norm import RMSNorm
from lmlab.model.pattern import FULL, Pattern
from lmlab.model.position import ROTATIONS
from lmlab.model.seeing import Bias, Sight
from lmlab.model.wide import wide

__all__ = ["Attention", "Kernel", "Place"]

Turn = tuple[Tensor, Tensor]
"""cos and sin, which broadcast to (..., 1, rotated / 2)."""


@dataclass
class Place:
    """Where the tokens of a pass stand: what each may see, the rotation of each, what is added to scores.

    `cos`, `sin` (B or 1, T, 1, rotated / 2) or None. `bias`: a function of head and distance, for every layer. For
    Transformer-XL `relative_RD` holds the sinusoids of all distances, and `distance_BTS` the row of each pair's.
    Masks and biases are made when the first layer asks.
    """

    sight: Sight
    kernel: Resolved
    cos: Tensor | None = None
    sin: Tensor | None = None
    bias: Bias | None = None
    relative_RD: Tensor | None = None
    distance_BTS: Tensor | None = None
    _masks: dict[Pattern, Tensor | None] = field(default_factory=dict)
    _hidden: dict[Pattern, Tensor | None] = field(default_factory=dict)
    _blocks: dict[Pattern, Any] = field(default_factory=dict)
    _dense: Tensor | None = None

    def scores(self, pattern: Pattern, scale: float, softcap: float | None, bias_BHTS: Tensor | None) -> Scores:
        """The settings of a layer's kernel; `bias_BHTS` is the layer's own."""
        if self.kernel == "flex":
            return Scores(self.sight, pattern, None, bias_BHTS, scale, softcap, self.bias, self._blocks)
        if pattern not in self._masks:
            self._masks[pattern] = self.sight.dense(pattern)
        if self.bias is not None:
            bias_BHTS = self.dense()
        scores = Scores(self.sight, pattern, self._masks[pattern], bias_BHTS, scale, softcap)
        if self.kernel == "math":
            if pattern not in self._hidden:
                self._hidden[pattern] = hidden_by(self.sight, self._masks[pattern])
            scores.hidden_BTS = self._hidden[pattern]
        return scores

    def dense(self) -> Tensor | None:
        """The bias of every layer, made once. To be made before a layer that is computed again in the backward pass, which
        must find what it found."""
        if self._dense is None and self.bias is not None and self.kernel != "flex":
            self._dense = self.bias.dense(self.sight.distance())
        return self._dense


class Attention(nn.Module):
    """(B, T, D) -> (B, T, D). Parameter names are the ones that adapters target: q, k, v, out."""

    def __init__(
        self, config: ModelConfig, *, encoder: bool = False, pattern: Pattern = FULL, cross: bool = False
    ) -> None:
        super().__init__()
        _, self.heads, self.kv_heads, self.head_dim, _ = config.sizes(encoder)
        self.pattern, self.scale, self.softcap = pattern, config.score_scale, config.attention_softcap
        inner, narrow, bias = self.heads * self.head_dim, self.kv_heads * self.head_dim, config.has_bias("qkv")
        self.q = nn.Linear(config.d_model, inner, bias=bias)
        self.k = nn.Linear(config.d_model, narrow, bias=bias)
        self.v = nn.Linear(config.d_model, narrow, bias=bias)
        self.out = nn.Linear(inner, config.d_model, bias=config.has_bias("attention_out"))
        self.norm_all = config.qk_norm and config.qk_norm_width == "all"
        widths = (inner, narrow) if self.norm_all else (self.head_dim, self.head_dim)
        self.q_norm = RMSNorm(widths[0], config.eps) if config.qk_norm else None
        self.k_norm = RMSNorm(widths[1], config.eps) if config.qk_norm else None
        self.rotate, self.rotary_dim = ROTATIONS[config.rope_pairing], config.rotary_dim
        self.relative = None
        if config.position == "transformer-xl" and not cross:
            self.relative = nn.Linear(config.d_model, inner, bias=False)
            self.content_bias = nn.Parameter(torch.zeros(self.heads, self.head_dim))
            self.position_bias = nn.Parameter(torch.zeros(self.heads, self.head_dim))

    def forward(self, x_BTD: Tensor, place: Place, memory_BSD: Tensor | None = None) -> Tensor:
        """Attention of x to itself, or to an encoder's hidden states."""
        B, T, _ = x_BTD.shape
        turn = None if place.cos is None or place.sin is None else (place.cos, place.sin)
        q_BTHK = self.queries(x_BTD, turn)
        k_BSGK, v_BSGK = self.keys_values(x_BTD if memory_BSD is None else memory_BSD, turn)
        bias_BHTS = None
        if self.relative is not None:
            bias_BHTS = self._relative_scores(q_BTHK, place) * self.scale
            q_BTHK = q_BTHK + self.content_bias
        mixed_BTHK = self.mix(q_BTHK, k_BSGK, v_BSGK, place, bias_BHTS)
        return self.out(mixed_BTHK.reshape(B, T, self.heads * self.head_dim))

    def mix(
        self, q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, place: Place, bias_BHTS: Tensor | None = None
    ) -> Tensor:
        """What each query finds of the values, (B, T, H, K). May be replaced where a row's tokens are several networks'."""
        q_BHTK, k_BGSK, v_BGSK = (each.transpose(1, 2) for each in (q_BTHK, k_BSGK, v_BSGK))
        if self.kv_heads != self.heads:
            each_serves = q_BHTK.shape[1] // k_BGSK.shape[1]
            k_BGSK = k_BGSK.repeat_interleave(each_serves, dim=1)
            v_BGSK = v_BGSK.repeat_interleave(each_serves, dim=1)
        scores = place.scores(self.pattern, self.scale, self.softcap, bias_BHTS)
        return KERNELS[place.kernel](q_BHTK, k_BGSK, v_BGSK, scores).transpose(1, 2)

    def queries(self, x: Tensor, turn: Turn | None = None) -> Tensor:
        """(..., D) -> (..., H, K), normalised and rotated."""
        return self._by_head(self.q(x), self.heads, self.q_norm, turn)

    def keys_values(self, x: Tensor, turn: Turn | None = None) -> tuple[Tensor, Tensor]:
        """(..., D) -> keys, normalised and rotated, and values, each (..., G, K)."""
        keys = self._by_head(self.k(x), self.kv_heads, self.k_norm, turn)
        return keys, self._by_head(self.v(x), self.kv_heads, None, None)

    def _by_head(self, x: Tensor, heads: int, norm: RMSNorm | None, turn: Turn | None) -> Tensor:
        """Between norm and rotation nothing is rounded."""
        dtype = x.dtype
        if norm is not None and self.norm_all:
            x, norm = norm(wide(x)), None
        x = x.view(*x.shape[:-1], heads, self.head_dim)
        x = x if norm is None else norm(wide(x))
        return (x if turn is None else self._turned(x, *turn)).to(dtype)

    def _turned(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Queries or keys (..., heads, K) rotated, as far as a head is; cos and sin broadcast to (..., 1, rotated / 2)."""
        if self.rotary_dim == self.head_dim:
            return self.rotate(x, cos, sin)
        turned, kept = x.split((self.rotary_dim, self.head_dim - self.rotary_dim), dim=-1)
        return torch.cat((self.rotate(turned, cos, sin), kept), dim=-1)

    def _relative_scores(self, q_BTHK: Tensor, place: Place) -> Tensor:
        """(q + v) . W R(i - j), unscaled, (B, H, T, S), float32 (Transformer-XL, 1901.02860, section 3.3, terms b and d).

        All distances are multiplied once and each pair takes its own: the paper's shift, for any positions.
        """
        assert self.relative is not None and place.relative_RD is not None and place.distance_BTS is not None
        r_RHK = self.relative(place.relative_RD.to(q_BTHK.dtype)).view(-1, self.heads, self.head_dim)
        all_BHTR = wide(torch.einsum("bthk,rhk->bhtr", q_BTHK + self.position_bias, r_RHK))
        index_BHTS = place.distance_BTS[:, None].expand(len(all_BHTR), self.heads, -1, -1)
        return all_BHTR.gather(-1, index_BHTS)
