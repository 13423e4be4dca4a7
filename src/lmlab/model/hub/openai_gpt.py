"""GPT-1 files (Radford et al. 2018): LayerNorm after each branch, learned positions, a tied head."""

from __future__ import annotations

from typing import Any

from lmlab.model.config import ModelConfig
from lmlab.model.hub.family import SpecialTokens
from lmlab.model.hub.fit import activation_in, activation_name, common, expect, setting, unlike
from lmlab.model.hub.fused import parts
from lmlab.model.hub.names import Names

MODEL_TYPES = {"openai-gpt": "OpenAIGPTLMHeadModel"}

# This family's files call the tanh form of GELU "gelu".
_ACTIVATIONS = {"gelu": "gelu-tanh", "relu": "relu", "silu": "silu", "swish": "silu"}

_LAYER = "transformer.h.{}"
TABLE = {
    "embedding": "transformer.tokens_embed",
    "position": "transformer.positions_embed",
    "head": "lm_head",
    "blocks.{}.attention.out": f"{_LAYER}.attn.c_proj",
    "blocks.{}.attention_norm": f"{_LAYER}.ln_1",
    "blocks.{}.feed_forward.up": f"{_LAYER}.mlp.c_fc",
    "blocks.{}.feed_forward.down": f"{_LAYER}.mlp.c_proj",
    "blocks.{}.feed_forward_norm": f"{_LAYER}.ln_2",
    **parts(f"{_LAYER}.attn.c_attn"),
}
NAMES = Names(
    TABLE,
    prefix="transformer.",
    fused="attn.c_attn",
    transposed=("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    buffers=r"\.attn\.bias|\.position_ids",
)
weights_to_hub, weights_from_hub = NAMES.to_hub, NAMES.from_hub


def misfit(config: ModelConfig) -> str | None:
    """Why GPT-1 files cannot hold a config, or None."""
    fixed: dict[str, Any] = {
        "norm": "layernorm",
        "norm_bias": True,
        "norm_placement": "post",
        "final_norm": False,
        "activation": set(_ACTIVATIONS.values()),
        "d_ff": 4 * config.d_model,
        "position": "learned",
        "qkv_bias": True,
        "attention_out_bias": True,
        "feed_forward_bias": True,
    }
    return unlike(config, "openai-gpt", fixed, ("tie_embeddings",))


def to_hub(config: ModelConfig, special: SpecialTokens) -> dict[str, Any]:
    """The `config.json` of a config."""
    return common(config, "openai-gpt", MODEL_TYPES["openai-gpt"], special) | {
        "n_positions": config.context_length,
        "n_ctx": config.context_length,
        "n_embd": config.d_model,
        "n_layer": config.layers,
        "n_head": config.heads,
        "afn": activation_name(config.activation, _ACTIVATIONS),
        "layer_norm_epsilon": config.eps,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": 0.0,
    }


def from_hub(hub: dict[str, Any]) -> ModelConfig:
    """A config from `config.json`. Raises ValueError for an activation that this model has not."""
    d_model = setting(hub, "n_embd", "hidden_size")
    expect(hub, n_inner=4 * d_model)
    return ModelConfig(
        layers=setting(hub, "n_layer", "num_hidden_layers"),
        d_model=d_model,
        heads=setting(hub, "n_head", "num_attention_heads"),
        vocab_size=hub["vocab_size"],
        context_length=setting(hub, "n_positions", "n_ctx", "max_position_embeddings"),
        norm="layernorm",
        norm_bias=True,
        norm_placement="post",
        eps=setting(hub, "layer_norm_epsilon", default=1e-5),
        activation=activation_in(hub, "afn", "gelu", _ACTIVATIONS),
        position="learned",
        bias=True,
        tie_embeddings=hub.get("tie_word_embeddings", True),
    )
