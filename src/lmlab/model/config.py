"""The switches of a model: which parts, of which size. What goes together is in rules.py, the counting in count.py."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from lmlab.config import Config
from lmlab.model.pattern import FULL, Pattern, parse_pattern
from lmlab.model.settings import (
    GATED,
    Activation,
    Architecture,
    Initialisation,
    MoEConfig,
    Placement,
    Position,
    RopeScaling,
    Sizes,
)

__all__ = ["GATED", "Activation", "MoEConfig", "ModelConfig", "Parts", "RopeScaling", "Sizes"]


class Parts(Config):
    """Every switch that has a default. The defaults are the survey's recommendation (section 4.2.2, "pre-RMSNorm,
    SwiGLU, RoPE, no biases"); docs/architectures.md has the formula and the source of each."""

    architecture: Architecture = "causal-decoder"
    """Which positions attend to which: a causal decoder's to themselves and those before, a prefix decoder's also to the
    whole prefix, an encoder's to all (survey, figure 4)."""
    kv_heads: int | None = Field(default=None, ge=1)
    """Key-value heads: `heads` is multi-head, 1 multi-query (1911.02150), between them grouped-query (2305.13245)."""
    head_dim: int | None = Field(default=None, ge=1)
    """Default d_model / heads."""
    d_ff: int | None = Field(default=None, ge=1)
    """Inner width. Default 4 d_model; for gated activations 8/3 d_model rounded up to a multiple of 32 (2002.05202)."""
    encoder_layers: int | None = Field(default=None, ge=1)
    """Default the decoder's, as are the two after it."""
    encoder_heads: int | None = Field(default=None, ge=1)
    encoder_d_ff: int | None = Field(default=None, ge=1)
    embedding_dim: int | None = Field(default=None, ge=1)
    """Width of the token embedding where it is not d_model: a projection in and one out (OPT-350M)."""
    norm: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    norm_bias: bool = False
    eps: float = Field(default=1e-5, gt=0)
    norm_placement: Placement = "pre"
    """pre: x + F(N(x)). post: N(x + F(x)). sandwich: x + N(F(N(x))). deepnorm: N(alpha x + F(x)). parallel: x +
    Attention(N(x)) + FeedForward(N(x)). reordered: x + N(F(x))."""
    parallel_norms: Literal[1, 2] = 1
    """Of a parallel block: one norm for both branches (PaLM, GPT-J), or one each (GPT-NeoX, Falcon-40B)."""
    embedding_norm: bool = False
    """A norm right after the embedding (BLOOM, BART)."""
    final_norm: bool | None = None
    """A norm after the last block. Default: yes, but for post and deepnorm."""
    deepnorm: Literal["deepnet", "glm"] = "deepnet"
    """Whose constants alpha and beta deepnorm takes: DeepNet's (2203.00555) or GLM-130B's (2210.02414)."""
    residual_scale: float | None = Field(default=None, gt=0)
    """DeepNorm's alpha, instead of the one that follows from the depth."""
    activation: Activation = "swiglu"
    position: Position = "rope"
    position_offset: int = Field(default=0, ge=0)
    """Rows of a learned table before the first position's (OPT and BART: 2)."""
    relative_buckets: int = Field(default=32, ge=4)
    relative_distance: int = Field(default=128, ge=2)
    """Distance from which all keys share the last bucket of relative-bias (1910.10683)."""
    rope_theta: float = Field(default=10000.0, gt=0)
    """Base of the rotary wavelengths (2104.09864)."""
    rope_fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of each head that is rotated (GPT-NeoX: 0.25)."""
    rope_pairing: Literal["half", "interleaved"] = "half"
    """half: dimension i turns with i + K/2 (GPT-NeoX, Llama files). interleaved: 2i with 2i + 1 (the paper, GPT-J)."""
    rope_scaling: RopeScaling | None = None
    attention: str | tuple[str, ...] = "full"
    """A pattern, or several that the layers take in turn: full, local(W), strided(l), fixed(l, c)."""
    attention_scale: float | None = Field(default=None, gt=0)
    """Factor on q k^T. Default head_dim^-0.5 (T5: 1)."""
    attention_softcap: float | None = Field(default=None, gt=0)
    """Scores s become cap tanh(s / cap) (2408.00118)."""
    logit_softcap: float | None = Field(default=None, gt=0)
    embedding_scale: float | None = Field(default=None, gt=0)
    """Factor on the token embedding, before positions are added (1706.03762: d_model^0.5). Default 1."""
    logit_scale: float | None = Field(default=None, gt=0)
    """Factor on the hidden state before the head (T5 v1.0 and PaLM: d_model^-0.5). Default 1."""
    bias: bool = False
    """Biases of the linear layers."""
    qkv_bias: bool | None = None
    """Of q, k and v. Default `bias`, as are the two after it."""
    attention_out_bias: bool | None = None
    feed_forward_bias: bool | None = None
    head_bias: bool = False
    qk_norm: bool = False
    """RMSNorm over each head's queries and keys before the rotation (2010.04245)."""
    qk_norm_width: Literal["head", "all"] = "head"
    """all: one norm over all heads together (OLMo 2, 2501.00656)."""
    tie_embeddings: bool = True
    """The output head is the input embedding."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    moe: MoEConfig | None = None
    """Experts in place of feed-forward layers."""
    initialisation: Initialisation = "gpt2"
    """How random weights start, see model/initialise.py."""
    mup_base_width: int | None = Field(default=None, ge=1)
    """d_model at which muP's rates and multipliers are 1 (2203.03466)."""

    def differs(self, apart_from: frozenset[str]) -> dict[str, Any]:
        """The switches, apart from those named, that are not at their default: {name: value}."""
        return {
            name: getattr(self, name)
            for name, field in type(self).model_fields.items()
            if name not in apart_from and not field.is_required() and getattr(self, name) != field.default
        }


class ModelConfig(Parts):
    """A model's shape and parts. Fields left at None are derived, see `sizes`."""

    layers: int = Field(ge=1)
    d_model: int = Field(ge=1)
    """Width of the residual stream."""
    heads: int = Field(ge=1)
    vocab_size: int = Field(ge=2)
    context_length: int = Field(ge=1)
    """The longest sequence that the model is made for, in tokens."""

    @model_validator(mode="after")
    def _possible(self) -> ModelConfig:
        from lmlab.model.rules import problems

        found = list(problems(self))
        if found:
            raise ValueError("; ".join(found))
        return self

    @property
    def dims(self) -> tuple[int, int, int]:
        """(key-value heads, head dimension, d_ff) of the decoder, with the defaults filled in."""
        return self.sizes()[2:]

    def sizes(self, encoder: bool = False) -> Sizes:
        """The shape of the decoder's stack, or of the encoder's."""
        layers, heads = self.layers, self.heads
        wide = 4 * self.d_model if self.activation not in GATED else -(-8 * self.d_model // 3 // 32) * 32
        d_ff = self.d_ff or wide
        if encoder:
            layers, heads = self.encoder_layers or layers, self.encoder_heads or heads
            d_ff = self.encoder_d_ff or d_ff
        return Sizes(layers, heads, self.kv_heads or heads, self.head_dim or self.d_model // heads, d_ff)

    @property
    def has_encoder(self) -> bool:
        return self.architecture == "encoder-decoder"

    @property
    def hidden_width(self) -> int:
        """Width of the hidden states that the head takes."""
        return self.embedding_dim or self.d_model

    @property
    def has_final_norm(self) -> bool:
        return self.norm_placement not in ("post", "deepnorm") if self.final_norm is None else self.final_norm

    @property
    def score_scale(self) -> float:
        """The factor on q k^T."""
        if self.attention_scale is not None:
            return self.attention_scale
        return self.sizes().head_dim ** (-1.0 if self.initialisation == "mup" else -0.5)

    @property
    def head_scale(self) -> float:
        """The factor on the hidden state before the head; muP's 1 / (width multiplier) is in it."""
        return (self.logit_scale or 1.0) / self.width_multiplier

    @property
    def width_multiplier(self) -> float:
        """d_model / mup_base_width under muP, else 1."""
        return self.d_model / self.mup_base_width if self.mup_base_width else 1.0

    @property
    def rotary_dim(self) -> int:
        """Dimensions of a head that are rotated."""
        return int(self.sizes().head_dim * self.rope_fraction)

    def has_bias(self, where: Literal["qkv", "attention_out", "feed_forward"]) -> bool:
        """Whether these linear layers have biases."""
        own: bool | None = getattr(self, f"{where}_bias")
        return self.bias if own is None else own

    def pattern(self, layer: int) -> Pattern:
        """The attention pattern of a decoder layer."""
        named = (self.attention,) if isinstance(self.attention, str) else self.attention
        return parse_pattern(named[layer % len(named)])

    @property
    def is_sparse(self) -> bool:
        return any(self.pattern(layer) != FULL for layer in range(self.layers))

    def has_experts(self, layer: int) -> bool:
        """Whether a layer's feed-forward is a mixture of experts."""
        return self.moe is not None and (layer + 1) % self.moe.every == 0

    def parameters(self) -> dict[str, int]:
        """Parameters by part, counted from the shape; `total` counts tied weights once, `active` only the experts that a
        token passes through. `attention`, `feed_forward` and `router` are the decoder's, `encoder` is a whole stack."""
        from lmlab.model.count import parameters

        return parameters(self)

    def flops_per_token(self, length: int) -> float:
        """Training FLOPs a token at a sequence length; the convention stands in `count.flops_per_token`."""
        from lmlab.model.count import flops_per_token

        return flops_per_token(self, length)

    def flops(self, source: float, target: float, length: int) -> float:
        """Training FLOPs of an example of `source` and `target` tokens in sequences of `length`."""
        from lmlab.model.count import flops

        return flops(self, source, target, length)
