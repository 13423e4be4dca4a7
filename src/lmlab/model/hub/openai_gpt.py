"""GPT-1 files (Radford et al. 2018): LayerNorm after each branch, learned positions, a tied head."""

from __future__ import annotations

from typing import Any

from lmlab.model.config import ModelConfig
from lmlab.model.hub.family import Names, SpecialTokens, common, differs, setting

MODEL_TYPES = {"openai-gpt": "OpenAIGPTLMHeadModel"}

# This family's files call the tanh form of GELU "gelu".
_ACTIVATIONS = {"gelu": "gelu-tanh", "relu": "relu", "silu": "silu", "swish": "silu"}
_NAMES = {"gelu-tanh": "gelu", "relu": "relu", "silu": "silu"}

NAMES = Names(
    top={
        "embedding": "transformer.tokens_embed",
        "position": "transformer.positions_embed",
        "head.weight": "lm_head.weight",
    },
    block={
        "attention.out": "attn.c_proj",
        "attention_norm": "ln_1",
        "feed_forward.up": "mlp.c_fc",
        "feed_forward.down": "mlp.c_proj",
        "feed_forward_norm": "ln_2",
    },
    base="transformer.",
    blocks="h",
    fused="attn.c_attn",
    transposed=frozenset({"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}),
    buffers=(r"\.attn\.bias$", r"^transformer\.position_ids$"),
)
weights_to_hub, weights_from_hub = NAMES.to_hub, NAMES.from_hub


def misfit(config: ModelConfig) -> str | None:
    """Why GPT-1 files cannot hold a config, or None."""
    return differs(
        config,
        frozenset({"eps", "tie_embeddings"}),
        norm="layernorm",
        norm_bias=True,
        norm_placement="post",
        final_norm=False,
        activation=set(_NAMES),
        d_ff=4 * config.d_model,
        position="learned",
        qkv_bias=True,
        attention_out_bias=True,
        feed_forward_bias=True,
    )


def to_hub(config: ModelConfig, special: SpecialTokens) -> dict[str, Any]:
    """The `config.json` of a config."""
    return common(config, "openai-gpt", MODEL_TYPES["openai-gpt"], special) | {
        "n_positions": config.context_length,
        "n_ctx": config.context_length,
        "n_embd": config.d_model,
        "n_layer": config.layers,
        "n_head": config.heads,
        "afn": _NAMES[config.activation],
        "layer_norm_epsilon": config.eps,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": 0.0,
    }


def from_hub(hub: dict[str, Any]) -> ModelConfig:
    """A config from `config.json`. Raises ValueError for an activation that this model has not."""
    activation = hub.get("afn") or "gelu"
    if activation not in _ACTIVATIONS:
        raise ValueError(f"afn is {activation}; expected one of {', '.join(_ACTIVATIONS)}")
    return ModelConfig(
        layers=setting(hub, "n_layer", "num_hidden_layers"),
        d_model=setting(hub, "n_embd", "hidden_size"),
        heads=setting(hub, "n_head", "num_attention_heads"),
        vocab_size=hub["vocab_size"],
        context_length=setting(hub, "n_positions", "n_ctx", "max_position_embeddings"),
        norm="layernorm",
        norm_bias=True,
        norm_placement="post",
        eps=setting(hub, "layer_norm_epsilon", default=1e-5),
        activation=_ACTIVATIONS[activation],  # pyrefly: ignore
        position="learned",
        bias=True,
        tie_embeddings=hub.get("tie_word_embeddings", True),
    )
