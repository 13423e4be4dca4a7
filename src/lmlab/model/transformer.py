"""The one model. It reads top to bottom like a page; parallelism and precision are applied to it from outside."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmlab.model.attention import Attention, Kernel, Place
from lmlab.model.config import ModelConfig
from lmlab.model.feed_forward import FeedForward
from lmlab.model.norm import make_norm
from lmlab.model.position import rotary_table


@dataclass
class Output:
    """Hidden states after the final norm, and the head that turns them into logits.

    Logits are not computed until someone asks: a loss computes them in chunks, a sampler at the last position only.
    """

    hidden_BTD: Tensor
    head_VD: Tensor
    auxiliary: dict[str, Tensor] = field(default_factory=dict)

    def logits(self, hidden: Tensor | None = None) -> Tensor:
        """Logits in float32 of all positions, or of the given hidden states (..., D) -> (..., V)."""
        return F.linear(self.hidden_BTD if hidden is None else hidden, self.head_VD).float()


class Block(nn.Module):
    """Pre-norm: x + F(Norm(x)), attention then feed-forward (survey, table 4)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = make_norm(config.norm, config.d_model, config.eps, config.norm_bias)
        self.attention = Attention(config)
        self.feed_forward_norm = make_norm(config.norm, config.d_model, config.eps, config.norm_bias)
        self.feed_forward = FeedForward(config)
        self.dropout = config.dropout

    def forward(self, x_BTD: Tensor, place: Place, kernel: Kernel) -> Tensor:
        mixed_BTD = self.attention(self.attention_norm(x_BTD), place, kernel)
        x_BTD = x_BTD + F.dropout(mixed_BTD, self.dropout, self.training)
        thought_BTD = self.feed_forward(self.feed_forward_norm(x_BTD))
        return x_BTD + F.dropout(thought_BTD, self.dropout, self.training)


class Transformer(nn.Module):
    """A decoder made of the parts that the config names."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.kernel: Kernel = "auto"
        _, head_dim, _ = config.dims
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position = nn.Embedding(config.context_length, config.d_model) if config.position == "learned" else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = make_norm(config.norm, config.d_model, config.eps, config.norm_bias)
        self.head = None if config.tie_embeddings else nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.position == "rope":
            cos, sin = rotary_table(config.context_length, head_dim, config.rope_theta)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        segments_BT: Tensor | None = None,
    ) -> Output:
        """Hidden states of every position.

        `positions_BT`: place of each token in its document (default 0, 1, 2, ...). `segments_BT`: document of each token;
        tokens of one document do not see another. Decoding with a cache is the engine's (`generate/decoder.py`).
        Raises ValueError where the sequence is longer than the context.
        """
        _, T = tokens_BT.shape
        if self.config.context_length < T:
            raise ValueError(f"{T} tokens are more than the model's context of {self.config.context_length}")
        place = self._place(T, positions_BT, segments_BT)
        x_BTD = self.embedding(tokens_BT)
        if self.position is not None:
            x_BTD = x_BTD + (self.position.weight[:T] if positions_BT is None else self.position(positions_BT))
        x_BTD = F.dropout(x_BTD, self.config.dropout, self.training)
        kernel = self._kernel(T)
        for block in self.blocks:
            x_BTD = block(x_BTD, place, kernel)
        return Output(self.final_norm(x_BTD), self.embedding.weight if self.head is None else self.head.weight)

    def _place(self, T: int, positions_BT: Tensor | None, segments_BT: Tensor | None) -> Place:
        cos = sin = mask_BTS = None
        if self.config.position == "rope":
            if positions_BT is None:
                cos, sin = self.cos[None, :T, None], self.sin[None, :T, None]
            else:
                cos, sin = self.cos[positions_BT][:, :, None], self.sin[positions_BT][:, :, None]
        if segments_BT is not None:
            causal_TS = torch.ones(T, T, dtype=torch.bool, device=segments_BT.device).tril()
            mask_BTS = causal_TS & (segments_BT[:, :, None] == segments_BT[:, None, :])
        return Place(cos, sin, mask_BTS)

    def _kernel(self, T: int) -> Kernel:
        if self.kernel != "auto":
            return self.kernel
        return "math" if self.embedding.weight.device.type == "cpu" and T <= 1024 else "sdpa"

    def initialise(self, seed: int) -> Transformer:
        """GPT-2's scheme: N(0, 0.02), with the matrices that write to the residual stream scaled by 1/sqrt(2 layers).

        A fixed function of the seed, whatever was drawn before.
        """
        generator = torch.Generator().manual_seed(seed)
        residual = 0.02 / (2 * self.config.layers) ** 0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                std = residual if name.endswith(("attention.out.weight", "feed_forward.down.weight")) else 0.02
                nn.init.normal_(parameter, std=std, generator=generator)
            else:
                nn.init.constant_(parameter, 1.0 if name.endswith("norm.weight") else 0.0)
        return self
