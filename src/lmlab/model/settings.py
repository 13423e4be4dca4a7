"""Settings that stand inside a `ModelConfig`: the words for its parts, the stretched rotation, the experts."""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from lmlab.config import Config

Activation = Literal["relu", "gelu", "gelu-tanh", "silu", "glu", "swiglu", "geglu", "geglu-tanh", "reglu", "relu2"]
GATED: frozenset[str] = frozenset({"glu", "swiglu", "geglu", "geglu-tanh", "reglu"})

Architecture = Literal["causal-decoder", "prefix-decoder", "encoder-decoder"]
Placement = Literal["pre", "post", "sandwich", "deepnorm", "parallel", "reordered"]
Position = Literal[
    "learned", "sinusoidal", "relative-bias", "rope", "alibi", "transformer-xl", "glm-2d", "none"
]  # fmt: skip
Initialisation = Literal["gpt2", "small", "fan-in", "deepnorm", "mup"]


class Sizes(NamedTuple):
    """The shape of one stack of blocks, encoder or decoder, with the defaults filled in."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    d_ff: int


class RopeScaling(Config):
    """Rotary frequencies stretched for a context longer than the one trained with, in transformers' conventions."""

    kind: Literal["linear", "ntk", "yarn", "llama3"]
    """linear: all frequencies / factor (2306.15595). ntk: the base x factor^(d/(d-2)). yarn: between the two by
    wavelength (2309.00071). llama3: low frequencies / factor, high ones kept (2407.21783)."""
    factor: float = Field(ge=1)
    original_context: int | None = Field(default=None, ge=1)
    """Context before stretching, in tokens. Default: the model's context / factor."""
    low_freq_factor: float = Field(default=1.0, gt=0)
    """llama3's."""
    high_freq_factor: float = Field(default=4.0, gt=0)
    """llama3's."""
    beta_fast: float = Field(default=32.0, gt=0)
    """yarn's: dimensions that turn more often than this in the original context are kept."""
    beta_slow: float = Field(default=1.0, gt=0)
    """yarn's: dimensions that turn less often than this are interpolated."""
    attention_factor: float | None = Field(default=None, gt=0)
    """yarn's factor on cos and sin. Default 0.1 ln(factor) + 1."""

    @model_validator(mode="after")
    def _possible(self) -> RopeScaling:
        if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor {self.high_freq_factor} must be above low_freq_factor {self.low_freq_factor}"
            )
        if self.kind == "yarn" and self.beta_fast <= self.beta_slow:
            raise ValueError(f"beta_fast {self.beta_fast} must be above beta_slow {self.beta_slow}")
        return self


class MoEConfig(Config):
    """A mixture of experts in place of feed-forward layers. A router in float32 sends each token to `top_k` of them."""

    experts: int = Field(ge=1)
    top_k: int = Field(default=2, ge=1)
    every: int = Field(default=1, ge=1)
    """Experts in every n-th layer, the last of each n (Switch and GLaM: 2; Mixtral: 1)."""
    normalise: Literal["chosen", "all"] = "chosen"
    """Whether the chosen experts' weights are a softmax over those chosen (Mixtral) or over all (Switch, 2101.03961)."""
    capacity_factor: float | None = Field(default=None, gt=0)
    """In training an expert takes at most ceil(factor x top_k x tokens / experts) tokens of a batch; the others pass by
    in the residual stream. null: no token is dropped."""
    evaluation_capacity_factor: float | None = Field(default=None, gt=0)
    """The same in evaluation. null: no token is dropped."""
    sequence_capacity: int | None = Field(default=None, ge=1)
    """In training and in evaluation an expert takes at most this many tokens of each sequence, the first ones (Switch as
    its public files have it). null: no limit."""
    second_policy: Literal["all", "random"] = "all"
    """random: in training a token's second expert is kept with probability min(1, 2 x its weight) (GShard, 2006.16668)."""
    shared_experts: int = Field(default=0, ge=0)
    """Experts that every token passes through, added to the chosen ones (2401.06066)."""
    d_ff: int | None = Field(default=None, ge=1)
    """Inner width of an expert. Default the model's."""
    activation: Activation | None = None
    """Activation of the experts. Default the model's."""
    balance_loss: float = Field(default=0.01, ge=0)
    """Weight of experts x sum over experts of (share of the assignments) x (mean probability), each layer's."""
    z_loss: float = Field(default=0.0, ge=0)
    """Weight of mean(logsumexp(router logits)^2) (ST-MoE, 2202.08906), each layer's."""
    jitter: float = Field(default=0.0, ge=0, lt=1)
    """In training the router's input is multiplied by U(1 - jitter, 1 + jitter)."""

    @model_validator(mode="after")
    def _possible(self) -> MoEConfig:
        if self.top_k > self.experts:
            raise ValueError(f"top_k {self.top_k} is more than the {self.experts} experts")
        if self.second_policy == "random" and self.top_k != 2:
            raise ValueError(f"second_policy random is GShard's, of top_k 2; found top_k {self.top_k}")
        return self
