"""Falcon files (2311.16867): multi-query with one norm for both branches (7B), or grouped-query with one norm each (40B)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lmlab.model.config import ModelConfig
from lmlab.model.hub.family import (
    ACTIVATION_NAMES,
    Names,
    SpecialTokens,
    Weights,
    activation_of,
    common,
    differs,
    expect,
    rotation,
    rotation_to_hub,
    setting,
)

MODEL_TYPES = {"falcon": "FalconForCausalLM"}

_ONE = Names(
    top={
        "embedding": "transformer.word_embeddings",
        "final_norm": "transformer.ln_f",
        "head.weight": "lm_head.weight",
    },
    block={
        "attention_norm": "input_layernorm",
        "attention.out": "self_attention.dense",
        "feed_forward_norm": "post_attention_layernorm",
        "feed_forward.up": "mlp.dense_h_to_4h",
        "feed_forward.down": "mlp.dense_4h_to_h",
    },
    base="transformer.",
    blocks="h",
    fused="self_attention.query_key_value",
    order="grouped",
    buffers=(r"\.rotary_emb\.inv_freq$", r"\.maybe_rotary\.inv_freq$"),
)
_TWO = replace(_ONE, block={**_ONE.block, "attention_norm": "ln_attn", "feed_forward_norm": "ln_mlp"})


def _names(config: ModelConfig) -> Names:
    return _TWO if config.norm_placement == "parallel" and config.parallel_norms == 2 else _ONE


def weights_to_hub(weights: Weights, config: ModelConfig) -> Weights:
    """Our state dict under the file's names."""
    return _names(config).to_hub(weights, config)


def weights_from_hub(weights: Weights, config: ModelConfig) -> tuple[Weights, list[str]]:
    """The file's weights under our names, and the names that are left over."""
    return _names(config).from_hub(weights, config)


def misfit(config: ModelConfig) -> str | None:
    """Why Falcon files cannot hold a config, or None."""
    kv_heads, bias = config.sizes().kv_heads, config.has_bias("qkv")
    if config.norm_placement == "pre" and kv_heads not in (1, config.heads):
        return f"kv_heads is {kv_heads}, these files have 1 or {config.heads} with norm_placement pre"
    return differs(
        config,
        frozenset({"kv_heads", "d_ff", "eps", "tie_embeddings", "rope_theta", "qkv_bias", "parallel_norms"}),
        norm="layernorm",
        norm_bias=True,
        norm_placement={"parallel", "pre"},
        activation=set(ACTIVATION_NAMES),
        position="rope",
        attention_out_bias=bias,
        feed_forward_bias=bias,
    )


def to_hub(config: ModelConfig, special: SpecialTokens) -> dict[str, Any]:
    """The `config.json` of a config."""
    kv_heads, parallel = config.sizes().kv_heads, config.norm_placement == "parallel"
    new = parallel and (config.parallel_norms == 2 or kv_heads not in (1, config.heads))
    rope = rotation_to_hub(config)
    return (
        common(config, "falcon", MODEL_TYPES["falcon"], special)
        | rope
        | {
            "hidden_size": config.d_model,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "num_kv_heads": kv_heads,
            "multi_query": kv_heads == 1,
            "new_decoder_architecture": new,
            "num_ln_in_parallel_attn": config.parallel_norms if new else None,
            "parallel_attn": parallel,
            "ffn_hidden_size": config.sizes().d_ff,
            "max_position_embeddings": config.context_length,
            "activation": ACTIVATION_NAMES[config.activation],
            "layer_norm_epsilon": config.eps,
            "alibi": False,
            "bias": config.has_bias("qkv"),
            "hidden_dropout": config.dropout,
            "attention_dropout": 0.0,
        }
    )


def from_hub(hub: dict[str, Any]) -> ModelConfig:
    """A config from `config.json`. Raises ValueError where it asks for a part that this model has not.

    ALiBi is refused: Falcon's is divided by the square root of the head dimension and rounded to bfloat16.
    """
    expect(hub, alibi=False, partial_rotary_factor=1.0)
    d_model, heads = setting(hub, "hidden_size", "n_embed"), setting(hub, "num_attention_heads", "n_head")
    new, parallel = hub.get("new_decoder_architecture", False), hub.get("parallel_attn", True)
    norms = setting(hub, "num_ln_in_parallel_attn", default=2 if new else 1)
    if (new and not parallel) or (norms == 2 and not new):
        raise ValueError(
            f"new_decoder_architecture {new}, parallel_attn {parallel} and num_ln_in_parallel_attn {norms} together are "
            "not known"
        )
    multi = setting(hub, "num_kv_heads", "n_head_kv", default=heads)
    return ModelConfig(
        **rotation(hub),
        layers=setting(hub, "num_hidden_layers", "n_layer"),
        d_model=d_model,
        heads=heads,
        kv_heads=multi if new else 1 if hub.get("multi_query", True) else heads,
        d_ff=setting(hub, "ffn_hidden_size", default=4 * d_model),
        vocab_size=hub["vocab_size"],
        context_length=setting(hub, "max_position_embeddings", default=2048),
        norm="layernorm",
        norm_bias=True,
        norm_placement="parallel" if parallel else "pre",
        parallel_norms=norms if parallel else 1,
        eps=setting(hub, "layer_norm_epsilon", default=1e-5),
        activation=activation_of(hub, "activation", "gelu"),
        bias=hub.get("bias", False),
        tie_embeddings=hub.get("tie_word_embeddings", True),
    )
