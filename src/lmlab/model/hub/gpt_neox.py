"""GPT-NeoX and Pythia files (2204.06745, 2304.01373): both branches side by side, each with its norm; a quarter of each head
is rotated."""

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
    rotation,
    rotation_to_hub,
    setting,
)

MODEL_TYPES = {"gpt_neox": "GPTNeoXForCausalLM"}

NAMES = Names(
    top={
        "embedding": "gpt_neox.embed_in",
        "final_norm": "gpt_neox.final_layer_norm",
        "head.weight": "embed_out.weight",
    },
    block={
        "attention_norm": "input_layernorm",
        "attention.out": "attention.dense",
        "feed_forward_norm": "post_attention_layernorm",
        "feed_forward.up": "mlp.dense_h_to_4h",
        "feed_forward.down": "mlp.dense_4h_to_h",
    },
    base="gpt_neox.",
    blocks="layers",
    fused="attention.query_key_value",
    order="grouped",
    buffers=(r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$",),
    also={"lm_head.": "embed_out."},
)
weights_to_hub, weights_from_hub = NAMES.to_hub, NAMES.from_hub


def misfit(config: ModelConfig) -> str | None:
    """Why GPT-NeoX files cannot hold a config, or None."""
    return differs(
        config,
        frozenset({"d_ff", "eps", "tie_embeddings", "rope_theta", "rope_fraction", "qkv_bias"}),
        norm="layernorm",
        norm_bias=True,
        norm_placement={"parallel", "pre"},
        parallel_norms=2,
        activation=set(ACTIVATION_NAMES),
        position="rope",
        attention_out_bias=config.has_bias("qkv"),
        feed_forward_bias=True,
    )


def to_hub(config: ModelConfig, special: SpecialTokens) -> dict[str, Any]:
    """The `config.json` of a config."""
    older = {"rotary_pct": config.rope_fraction, "rotary_emb_base": config.rope_theta}
    return (
        common(config, "gpt_neox", MODEL_TYPES["gpt_neox"], special)
        | rotation_to_hub(config)
        | older
        | {
            "hidden_size": config.d_model,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "intermediate_size": config.sizes().d_ff,
            "max_position_embeddings": config.context_length,
            "hidden_act": ACTIVATION_NAMES[config.activation],
            "layer_norm_eps": config.eps,
            "use_parallel_residual": config.norm_placement == "parallel",
            "attention_bias": config.has_bias("qkv"),
            "hidden_dropout": config.dropout,
            "attention_dropout": 0.0,
        }
    )


def from_hub(hub: dict[str, Any]) -> ModelConfig:
    """A config from `config.json`. Raises ValueError where it asks for a part that this model has not."""
    parallel, bias = hub.get("use_parallel_residual", True), hub.get("attention_bias", True)
    return ModelConfig(
        **rotation(hub, 0.25, "rotary_emb_base", "rotary_pct"),
        layers=hub["num_hidden_layers"],
        d_model=hub["hidden_size"],
        heads=hub["num_attention_heads"],
        d_ff=hub["intermediate_size"],
        vocab_size=hub["vocab_size"],
        context_length=hub["max_position_embeddings"],
        norm="layernorm",
        norm_bias=True,
        norm_placement="parallel" if parallel else "pre",
        parallel_norms=2 if parallel else 1,
        eps=setting(hub, "layer_norm_eps", default=1e-5),
        activation=activation_of(hub, "hidden_act", "gelu"),
        bias=True,
        qkv_bias=bias,
        attention_out_bias=bias,
        tie_embeddings=hub.get("tie_word_embeddings", False),
    )
