"""OPT files (2205.01068): learned positions from row 2 on; the 350M model has post-LayerNorm and a narrow embedding."""

from __future__ import annotations

from typing import Any

from lmlab.model.config import ModelConfig
from lmlab.model.hub.family import (
    ACTIVATION_NAMES,
    Names,
    SpecialTokens,
    activation_of,
    common,
    differs,
    expect,
    setting,
)

MODEL_TYPES = {"opt": "OPTForCausalLM"}

NAMES = Names(
    top={
        "embedding": "model.decoder.embed_tokens",
        "position": "model.decoder.embed_positions",
        "project_in": "model.decoder.project_in",
        "project_out": "model.decoder.project_out",
        "final_norm": "model.decoder.final_layer_norm",
        "head.weight": "lm_head.weight",
    },
    block={
        "attention.q": "self_attn.q_proj",
        "attention.k": "self_attn.k_proj",
        "attention.v": "self_attn.v_proj",
        "attention.out": "self_attn.out_proj",
        "attention_norm": "self_attn_layer_norm",
        "feed_forward.up": "fc1",
        "feed_forward.down": "fc2",
        "feed_forward_norm": "final_layer_norm",
    },
    base="model.decoder.",
    blocks="layers",
    also={"decoder.": "model.decoder."},
)
weights_to_hub, weights_from_hub = NAMES.to_hub, NAMES.from_hub


def misfit(config: ModelConfig) -> str | None:
    """Why OPT files cannot hold a config, or None."""
    if config.norm_placement == "post" and config.has_final_norm:
        return "final_norm is True, these files have one with norm_placement pre only"
    return differs(
        config,
        frozenset({"d_ff", "tie_embeddings", "embedding_dim", "final_norm", "qkv_bias"}),
        norm="layernorm",
        norm_bias=True,
        norm_placement={"pre", "post"},
        activation=set(ACTIVATION_NAMES),
        position="learned",
        position_offset=2,
        attention_out_bias=config.has_bias("qkv"),
        feed_forward_bias=config.has_bias("qkv"),
    )


def to_hub(config: ModelConfig, special: SpecialTokens) -> dict[str, Any]:
    """The `config.json` of a config."""
    return common(config, "opt", MODEL_TYPES["opt"], special) | {
        "max_position_embeddings": config.context_length,
        "hidden_size": config.d_model,
        "word_embed_proj_dim": config.hidden_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "ffn_dim": config.sizes().d_ff,
        "activation_function": ACTIVATION_NAMES[config.activation],
        "do_layer_norm_before": config.norm_placement == "pre",
        "_remove_final_layer_norm": not config.has_final_norm,
        "enable_bias": config.has_bias("qkv"),
        "layer_norm_elementwise_affine": True,
        "dropout": config.dropout,
        "attention_dropout": 0.0,
    }


def from_hub(hub: dict[str, Any]) -> ModelConfig:
    """A config from `config.json`. Raises ValueError where it asks for a part that this model has not."""
    expect(hub, layer_norm_elementwise_affine=True)
    d_model, before = hub["hidden_size"], hub.get("do_layer_norm_before", True)
    narrow = setting(hub, "word_embed_proj_dim", default=d_model)
    return ModelConfig(
        layers=hub["num_hidden_layers"],
        d_model=d_model,
        heads=hub["num_attention_heads"],
        d_ff=setting(hub, "ffn_dim", default=4 * d_model),
        vocab_size=hub["vocab_size"],
        context_length=hub["max_position_embeddings"],
        embedding_dim=None if narrow == d_model else narrow,
        norm="layernorm",
        norm_bias=True,
        norm_placement="pre" if before else "post",
        final_norm=bool(before and not hub.get("_remove_final_layer_norm")),
        activation=activation_of(hub, "activation_function", "relu"),
        position="learned",
        position_offset=2,
        bias=hub.get("enable_bias", True),
        tie_embeddings=hub.get("tie_word_embeddings", True),
    )
