"""The switches of a model: which parts, of which size."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lmlab.config import Config

Activation = Literal["relu", "gelu", "gelu-tanh", "silu", "glu", "swiglu", "geglu", "reglu", "relu2"]
GATED: frozenset[str] = frozenset({"glu", "swiglu", "geglu", "reglu"})


class ModelConfig(Config):
    """A model's shape and parts. The defaults are the survey's recommendation (section 4.2.2, "pre-RMSNorm, SwiGLU,
    RoPE, no biases"). Fields left at None are derived, see `derived`.
    """

    architecture: Literal["causal-decoder"] = "causal-decoder"
    """Which positions attend to which: a causal decoder's to themselves and those before (survey, figure 4)."""
    layers: int = Field(ge=1)
    d_model: int = Field(ge=1)
    """Width of the residual stream."""
    heads: int = Field(ge=1)
    kv_heads: int | None = Field(default=None, ge=1)
    """Key-value heads: `heads` is multi-head, 1 multi-query (1911.02150), between them grouped-query (2305.13245)."""
    head_dim: int | None = Field(default=None, ge=1)
    """Default d_model / heads."""
    d_ff: int | None = Field(default=None, ge=1)
    """Inner width. Default 4 d_model; for gated activations 8/3 d_model rounded up to a multiple of 32 (2002.05202)."""
    vocab_size: int = Field(ge=2)
    context_length: int = Field(ge=1)
    """The longest sequence that the model is made for, in tokens."""
    norm: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    norm_bias: bool = False
    eps: float = Field(default=1e-5, gt=0)
    activation: Activation = "swiglu"
    position: Literal["learned", "rope", "none"] = "rope"
    rope_theta: float = Field(default=10000.0, gt=0)
    """Base of the rotary wavelengths (2104.09864)."""
    bias: bool = False
    """Biases of the linear layers."""
    qk_norm: bool = False
    """RMSNorm over each head's queries and keys before the rotation (2010.04245)."""
    tie_embeddings: bool = True
    """The output head is the input embedding."""
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _possible(self) -> ModelConfig:
        if self.head_dim is None and self.d_model % self.heads:
            raise ValueError(
                f"d_model {self.d_model} is no multiple of heads {self.heads}: change one, or set head_dim"
            )
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is no multiple of kv_heads {self.kv_heads}")
        if self.position == "rope" and (self.head_dim or self.d_model // self.heads) % 2:
            raise ValueError("rope rotates pairs: the head dimension must be even")
        if self.norm_bias and self.norm == "rmsnorm":
            raise ValueError("norm_bias belongs to layernorm; rmsnorm has a gain only (1910.07467)")
        return self

    @property
    def dims(self) -> tuple[int, int, int]:
        """(key-value heads, head dimension, d_ff), with the defaults filled in."""
        head_dim = self.head_dim or self.d_model // self.heads
        wide = 4 * self.d_model if self.activation not in GATED else -(-8 * self.d_model // 3 // 32) * 32
        return self.kv_heads or self.heads, head_dim, self.d_ff or wide

    def parameters(self) -> dict[str, int]:
        """Parameters by part, counted from the shape; `total` counts tied weights once."""
        kv_heads, head_dim, d_ff = self.dims
        d, bias, norm = self.d_model, int(self.bias), 2 if self.norm_bias else 1
        inner = self.heads * head_dim
        attention = d * (inner + 2 * kv_heads * head_dim) + inner * d + bias * (inner + 2 * kv_heads * head_dim + d)
        attention += 2 * head_dim if self.qk_norm else 0
        up = 2 if self.activation in GATED else 1
        feed_forward = (up + 1) * d * d_ff + bias * (up * d_ff + d)
        parts = {
            "embedding": self.vocab_size * d + (self.context_length * d if self.position == "learned" else 0),
            "attention": self.layers * attention,
            "feed_forward": self.layers * feed_forward,
            "norms": (2 * self.layers + 1) * d * norm,
            "head": 0 if self.tie_embeddings else self.vocab_size * d,
        }
        return {**parts, "total": sum(parts.values())}

    def flops_per_token(self, length: int) -> float:
        """Training FLOPs a token at a sequence length: 6 x (matrix parameters) + 12 L H K T (2204.02311, appendix B)."""
        _, head_dim, _ = self.dims
        parts = self.parameters()
        matrices = parts["attention"] + parts["feed_forward"] + self.vocab_size * self.d_model
        return 6 * matrices + 12 * self.layers * self.heads * head_dim * length
