"""A block (attention, cross-attention in a decoder with an encoder, feed-forward) and a stack of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmlab.model.attention import Attention, Place
from lmlab.model.config import ModelConfig
from lmlab.model.feed_forward import FeedForward
from lmlab.model.kernels import Kernel, Resolved
from lmlab.model.moe import MoE, Routing
from lmlab.model.norm import PLACEMENTS, deepnorm_constants, norm_of
from lmlab.model.pattern import FULL
from lmlab.model.position import alibi_slopes, rotary_table, sinusoid
from lmlab.model.seeing import Alibi, Buckets, Sight, with_padding


class Block(nn.Module):
    """The branches one after another, each with its norm where `PLACEMENTS` has it; or side by side (parallel)."""

    def __init__(self, config: ModelConfig, layer: int, encoder: bool = False) -> None:
        super().__init__()
        cross, second = config.has_encoder and not encoder, config.norm_placement == "sandwich"
        self.parallel = config.norm_placement == "parallel"
        self.attention_norm = norm_of(config)
        self.attention = Attention(config, encoder=encoder, pattern=FULL if encoder else config.pattern(layer))
        self.attention_post_norm = norm_of(config) if second else None
        self.cross_attention_norm = norm_of(config) if cross else None
        self.cross_attention = Attention(config, cross=True) if cross else None
        self.cross_attention_post_norm = norm_of(config) if cross and second else None
        self.feed_forward_norm = None if self.parallel and config.parallel_norms == 1 else norm_of(config)
        d_ff = config.sizes(encoder).d_ff
        experts = config.moe if config.has_experts(layer) else None
        self.feed_forward = FeedForward(config, d_ff) if experts is None else MoE(config, experts, d_ff)
        self.feed_forward_post_norm = norm_of(config) if second else None
        self.dropout = config.dropout
        self.alpha = deepnorm_constants(config, encoder).alpha if config.norm_placement == "deepnorm" else 1.0
        self.placed = None if self.parallel else PLACEMENTS[config.norm_placement]

    def forward(
        self,
        x_BTD: Tensor,
        place: Place,
        routing: Routing,
        memory_BSD: Tensor | None = None,
        cross: Place | None = None,
    ) -> Tensor:
        if self.placed is None:
            normed_BTD = self.attention_norm(x_BTD)
            other_BTD = normed_BTD if self.feed_forward_norm is None else self.feed_forward_norm(x_BTD)
            return x_BTD + self._drop(self.attention(normed_BTD, place)) + self._drop(self._think(other_BTD, routing))
        x_BTD = self.placed(
            x_BTD,
            lambda x: self._drop(self.attention(x, place)),
            self.attention_norm,
            self.attention_post_norm,
            self.alpha,
        )
        if self.cross_attention is not None and self.cross_attention_norm is not None and cross is not None:
            attend = self.cross_attention
            x_BTD = self.placed(
                x_BTD,
                lambda x: self._drop(attend(x, cross, memory_BSD)),
                self.cross_attention_norm,
                self.cross_attention_post_norm,
                self.alpha,
            )
        return self.placed(
            x_BTD,
            lambda x: self._drop(self._think(x, routing)),
            cast(nn.Module, self.feed_forward_norm),
            self.feed_forward_post_norm,
            self.alpha,
        )

    def _drop(self, x_BTD: Tensor) -> Tensor:
        return F.dropout(x_BTD, self.dropout, self.training)

    def _think(self, x_BTD: Tensor, routing: Routing) -> Tensor:
        return self.feed_forward(x_BTD, routing) if isinstance(self.feed_forward, MoE) else self.feed_forward(x_BTD)


@dataclass
class Seen:
    """What the blocks of a stack are told of a batch: its tokens a row, positions and segments (padding reckoned in), which of
    all tokens are real, and what their attention to each other may see."""

    length: int
    positions_BT: Tensor | None
    segments_BT: Tensor | None
    real_N: Tensor | None
    place: Place


def all_there_is(sight: Sight) -> Sight:
    """What is seen where one network holds all tokens of a row."""
    return sight


class Stack(nn.Module):
    """Positions, blocks and final norm of an encoder or a decoder: embedded tokens in, hidden states out.

    `widened` may be replaced where a row's tokens are several networks': what this one's tokens see of all.
    """

    widened: Callable[[Sight], Sight] = staticmethod(all_there_is)

    cos: Tensor
    sin: Tensor
    sinusoids: Tensor
    slopes: Tensor

    def __init__(self, config: ModelConfig, encoder: bool = False) -> None:
        super().__init__()
        self._assemble(config, encoder)

    def _assemble(self, config: ModelConfig, encoder: bool) -> None:
        self.config, self.is_encoder = config, encoder
        sizes, rows = config.sizes(encoder), config.context_length + config.position_offset
        learned = config.position in ("learned", "glm-2d")
        self.position = nn.Embedding(rows, config.d_model) if learned else None
        self.block_position = nn.Embedding(rows, config.d_model) if config.position == "glm-2d" else None
        self.embedding_norm = norm_of(config) if config.embedding_norm else None
        self.relative_bias = None
        if config.position == "relative-bias":
            self.relative_bias = nn.Embedding(config.relative_buckets, sizes.heads)
        self.blocks = nn.ModuleList(Block(config, layer, encoder) for layer in range(sizes.layers))
        self.final_norm = norm_of(config) if config.has_final_norm else None
        self.make_tables()

    def make_tables(self) -> None:
        """The fixed tables of positions, which no file holds: computed here, whatever device the parameters are on."""
        config, sizes = self.config, self.config.sizes(self.is_encoder)
        if config.position == "rope":
            cos, sin = rotary_table(config.context_length, config.rotary_dim, config.rope_theta, config.rope_scaling)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
        elif config.position == "sinusoidal":
            table = sinusoid(torch.arange(config.context_length), config.d_model)
            self.register_buffer("sinusoids", table, persistent=False)
        elif config.position == "alibi":
            self.register_buffer("slopes", torch.tensor(alibi_slopes(sizes.heads)), persistent=False)

    def placed(self, x_BTD: Tensor, positions_BT: Tensor | None, block_positions_BT: Tensor | None) -> Tensor:
        """Embedded tokens with what positions add to them, and the norm after the embedding."""
        T, offset = x_BTD.shape[1], self.config.position_offset
        if self.position is not None:
            table = self.position
            x_BTD = x_BTD + (
                table.weight[offset : offset + T] if positions_BT is None else table(positions_BT + offset)
            )
            if self.block_position is not None:
                inside = torch.zeros(1, T, dtype=torch.long, device=x_BTD.device)
                inside = inside if block_positions_BT is None else block_positions_BT
                x_BTD = x_BTD + self.block_position(inside + offset)
        elif self.config.position == "sinusoidal":
            x_BTD = x_BTD + (self.sinusoids[:T] if positions_BT is None else self.sinusoids[positions_BT])
        if self.embedding_norm is not None:
            x_BTD = self.embedding_norm(x_BTD)
        return F.dropout(x_BTD, self.config.dropout, self.training)

    def seen(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None,
        segments_BT: Tensor | None,
        padding_BT: Tensor | None,
        prefix_B: Tensor | None,
        kernel: Kernel,
    ) -> Seen:
        """See `Transformer.forward`."""
        (B, T), device = tokens_BT.shape, tokens_BT.device
        positions_BT, segments_BT, real_N = with_padding(positions_BT, segments_BT, padding_BT)
        prefix_BT = None if prefix_B is None else (prefix_B if prefix_B.dim() == 2 else prefix_B[:, None]).expand(B, T)
        own = (positions_BT, positions_BT, segments_BT, segments_BT)
        sight = Sight(not self.is_encoder, T, T, device, *own, prefix_BT)
        if kernel == "auto":
            small = device.type == "cpu" and T <= 1024
            kernel = "math" if small or self.config.attention_softcap is not None else "sdpa"
        return Seen(T, positions_BT, segments_BT, real_N, self.place(sight, positions_BT, kernel))

    def place(self, sight: Sight, positions_BT: Tensor | None, kernel: Resolved) -> Place:
        """The `Place` of this stack's attention to itself."""
        config, T = self.config, sight.queries
        sight = self.widened(sight)
        place = Place(sight, kernel)
        if config.position == "rope":
            if positions_BT is None:
                place.cos, place.sin = self.cos[None, :T, None], self.sin[None, :T, None]
            else:
                place.cos, place.sin = self.cos[positions_BT][:, :, None], self.sin[positions_BT][:, :, None]
        elif config.position == "alibi":
            place.bias = Alibi(self.slopes)
        elif self.relative_bias is not None:
            place.bias = Buckets(self.relative_bias.weight, config.relative_distance, self.is_encoder)
        elif config.position == "transformer-xl":
            # Distances from -(reach - 1), keys after the query, to reach - 1.
            reach = T if positions_BT is None else config.context_length
            distances = torch.arange(1 - reach, reach, device=sight.device)
            place.relative_RD = sinusoid(distances, config.d_model)
            place.distance_BTS = sight.distance() + (reach - 1)
        return place

    def run(
        self, x_BTD: Tensor, place: Place, routing: Routing, memory: Tensor | None = None, cross: Place | None = None
    ) -> Tensor:
        """The blocks and the final norm."""
        for block in self.blocks:
            x_BTD = block(x_BTD, place, routing, memory, cross)
        return x_BTD if self.final_norm is None else self.final_norm(x_BTD)
