"""StarCoder 2 files (2402.19173): LayerNorm, rotary positions, grouped-query attention over a window, biases."""

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
    rotation,
    rotation_to_hub,
    setting,
)

MODEL_TYPES = {"starcoder2": "Starcoder2ForCausalLM"}

NAMES = Names(
    top={
        "embedding": "model.embed_tokens",
        "final_norm": "model.norm",
        "head.weight": "lm_head.weight",
    },
    block={
        "attention_norm": "input_layernorm",
        "attention.q": "self_attn.q_proj",
        "attention.k": "self_attn.k_proj",
        "attention.v": "self_attn.v_proj",
        "attention.out": "self_attn.o_proj",
        "feed_forward_norm": "post_attention_layernorm",
        "feed_forward.up": "mlp.c_fc",
        "feed_forward.down": "mlp.c_proj",
    },
    base="model.",
    blocks="layers",
    buffers=(r"rotary_emb\.inv_freq$",),
)
weights_to_hub, weights_from_hub = NAMES.to_hub, NAMES.from_hub


def misfit(config: ModelConfig) -> str | None:
    """Why StarCoder 2 files cannot hold a config, or None."""
    patterns = {config.pattern(layer) for layer in range(config.layers)}
    if len(patterns) > 1 or next(iter(patterns)).kind not in ("full", "local"):
        return f"attention is {config.attention}, these files have full or local(W) in every layer"
    bias = config.has_bias("qkv")
    return differs(
        config,
        frozenset({"kv_heads", "d_ff", "eps", "tie_embeddings", "rope_theta", "attention", "qkv_bias"}),
        norm="layernorm",
        norm_bias=True,
        activation=set(ACTIVATION_NAMES),
        position="rope",
        attention_out_bias=bias,
        feed_forward_bias=bias,
    )


def to_hub(config: ModelConfig, special: SpecialTokens) -> dict[str, Any]:
    """The `config.json` of a config."""
    pattern, rope = config.pattern(0), rotation_to_hub(config)
    return (
        common(config, "starcoder2", MODEL_TYPES["starcoder2"], special)
        | rope
        | {
            "hidden_size": config.d_model,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.sizes().kv_heads,
            "intermediate_size": config.sizes().d_ff,
            "max_position_embeddings": config.context_length,
            "hidden_act": ACTIVATION_NAMES[config.activation],
            "norm_epsilon": config.eps,
            "sliding_window": None if pattern.is_full else pattern.numbers[0],
            "use_bias": config.has_bias("qkv"),
            "residual_dropout": config.dropout,
            "embedding_dropout": config.dropout,
            "attention_dropout": 0.0,
        }
    )


def from_hub(hub: dict[str, Any]) -> ModelConfig:
    """A config from `config.json`. Raises ValueError where it asks for a part that this model has not."""
    d_model, heads = hub["hidden_size"], hub["num_attention_heads"]
    expect(hub, head_dim=d_model // heads, partial_rotary_factor=1.0)
    window = hub.get("sliding_window")
    return ModelConfig(
        **rotation(hub),
        layers=hub["num_hidden_layers"],
        d_model=d_model,
        heads=heads,
        kv_heads=setting(hub, "num_key_value_heads", default=2),
        d_ff=hub["intermediate_size"],
        vocab_size=hub["vocab_size"],
        context_length=hub["max_position_embeddings"],
        norm="layernorm",
        norm_bias=True,
        eps=setting(hub, "norm_epsilon", default=1e-5),
        activation=activation_of(hub, "hidden_act", "gelu_pytorch_tanh"),
        attention="full" if window is None else f"local({window})",
        bias=hub.get("use_bias", True),
        tie_embeddings=hub.get("tie_word_embeddings", True),
    )
