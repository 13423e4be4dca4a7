"""Falcon files (2311.16867): multi-query with one norm for both branches (7B), or grouped-query with one norm each (40B)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lmlab.model.config import ModelConfig
from lmlab.model.hub.family import SpecialTokens, Weights
from lmlab.model.hub.fit import PLAIN, PLAIN_OF, activation_in, activation_name, common, expect, setting, unlike
from lmlab.model.hub.fused import parts
from lmlab.model.hub.names import Names
from lmlab.model.hub.rotation import rope_from_hub, rope_to_hub

MODEL_TYPES = {"falcon": "FalconForCausalLM"}

_LAYER = "transformer.h.{}"
_TABLE = {
    "embedding": "transformer.word_embeddings",
    "final_norm": "transformer.ln_f",
    "head": "lm_head",
    "blocks.{}.attention_norm": f"{_LAYER}.input_layernorm",
    "blocks.{}.attention.out": f"{_LAYER}.self_attention.dense",
    "blocks.{}.feed_forward_norm": f"{_LAYER}.post_attention_layernorm",
    "blocks.{}.feed_forward.up": f"{_LAYER}.mlp.dense_h_to_4h",
    "blocks.{}.feed_forward.down": f"{_LAYER}.mlp.dense_4h_to_h",
    **parts(f"{_LAYER}.self_attention.query_key_value"),
}
_ONE = Names(
    _TABLE,
    prefix="transformer.",
    fused="self_attention.query_key_value",
    order="grouped",
    buffers=r"\.rotary_emb\.inv_freq|\.maybe_rotary\.inv_freq",
)
_TWO_NORMS = {"blocks.{}.attention_norm": f"{_LAYER}.ln_attn", "blocks.{}.feed_forward_norm": f"{_LAYER}.ln_mlp"}
_TWO = replace(_ONE, table=_TABLE | _TWO_NORMS)


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
    fixed: dict[str, Any] = {
        "norm": "layernorm",
        "norm_bias": True,
        "norm_placement": {"parallel", "pre"},
        "activation": PLAIN,
        "position": "rope",
        "attention_out_bias": bias,
        "feed_forward_bias": bias,
    }
    return unlike(
        config,
        "falcon",
        fixed,
        ("kv_heads", "parallel_norms", "qkv_bias", "rope_scaling", "rope_theta", "tie_embeddings"),
    )


def to_hub(config: ModelConfig, special: SpecialTokens) -> dict[str, Any]:
    """The `config.json` of a config."""
    kv_heads, parallel = config.sizes().kv_heads, config.norm_placement == "parallel"
    new = parallel and (config.parallel_norms == 2 or kv_heads not in (1, config.heads))
    return (
        common(config, "falcon", MODEL_TYPES["falcon"], special)
        | rope_to_hub(config)
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
            "activation": activation_name(config.activation, PLAIN_OF),
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
    expect(hub, alibi=False)
    d_model, heads = setting(hub, "hidden_size", "n_embed"), setting(hub, "num_attention_heads", "n_head")
    new, parallel = hub.get("new_decoder_architecture", False), hub.get("parallel_attn", True)
    norms = setting(hub, "num_ln_in_parallel_attn", default=2 if new else 1)
    if (new and not parallel) or (norms == 2 and not new):
        raise ValueError(
            f"new_decoder_architecture {new}, parallel_attn {parallel} and num_ln_in_parallel_attn {norms} together are "
            "not known"
        )
    multi = setting(hub, "num_kv_heads", "n_head_kv", default=heads)
    if not new and not hub.get("multi_query", True):
        expect(hub, num_kv_heads=heads)
    return ModelConfig(
        **rope_from_hub(hub),
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
        activation=activation_in(hub, "activation", "gelu"),
        bias=hub.get("bias", False),
        tie_embeddings=hub.get("tie_word_embeddings", True),
    )
