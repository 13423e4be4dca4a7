"""StarCoder 2 files (2402.19173): LayerNorm, rotary positions, grouped-query attention over a window, biases."""

from __future__ import annotations

from typing import Any

from lmlab.model.config import ModelConfig
from lmlab.model.hub.family import SpecialTokens
from lmlab.model.hub.fit import PLAIN, PLAIN_OF, activation_in, activation_name, common, expect, setting, unlike
from lmlab.model.hub.names import Names
from lmlab.model.hub.rotation import rope_from_hub, rope_to_hub

MODEL_TYPES = {"starcoder2": "Starcoder2ForCausalLM"}

_LAYER = "model.layers.{}"
TABLE = {
    "embedding": "model.embed_tokens",
    "final_norm": "model.norm",
    "head": "lm_head",
    "blocks.{}.attention_norm": f"{_LAYER}.input_layernorm",
    "blocks.{}.attention.q": f"{_LAYER}.self_attn.q_proj",
    "blocks.{}.attention.k": f"{_LAYER}.self_attn.k_proj",
    "blocks.{}.attention.v": f"{_LAYER}.self_attn.v_proj",
    "blocks.{}.attention.out": f"{_LAYER}.self_attn.o_proj",
    "blocks.{}.feed_forward_norm": f"{_LAYER}.post_attention_layernorm",
    "blocks.{}.feed_forward.up": f"{_LAYER}.mlp.c_fc",
    "blocks.{}.feed_forward.down": f"{_LAYER}.mlp.c_proj",
}
NAMES = Names(
    TABLE,
    prefix="model.",
    buffers=r"rotary_emb\.inv_freq",
)
weights_to_hub, weights_from_hub = NAMES.to_hub, NAMES.from_hub


def misfit(config: ModelConfig) -> str | None:
    """Why StarCoder 2 files cannot hold a config, or None."""
    patterns = {config.pattern(layer) for layer in range(config.layers)}
    if len(patterns) > 1 or next(iter(patterns)).kind not in ("full", "local"):
        return f"attention is {config.attention}, these files have full or local(W) in every layer"
    bias = config.has_bias("qkv")
    fixed: dict[str, Any] = {
        "norm": "layernorm",
        "norm_bias": True,
        "activation": PLAIN,
        "position": "rope",
        "attention_out_bias": bias,
        "feed_forward_bias": bias,
    }
    held = ("attention", "kv_heads", "qkv_bias", "rope_scaling", "rope_theta", "tie_embeddings")
    return unlike(config, "starcoder2", fixed, held)


def to_hub(config: ModelConfig, special: SpecialTokens) -> dict[str, Any]:
    """The `config.json` of a config."""
    pattern = config.pattern(0)
    return (
        common(config, "starcoder2", MODEL_TYPES["starcoder2"], special)
        | rope_to_hub(config)
        | {
            "hidden_size": config.d_model,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.sizes().kv_heads,
            "intermediate_size": config.sizes().d_ff,
            "max_position_embeddings": config.context_length,
            "hidden_act": activation_name(config.activation, PLAIN_OF),
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
    expect(hub, head_dim=d_model // heads, mlp_type="default", norm_type="layer_norm")
    window = hub.get("sliding_window")
    return ModelConfig(
        **rope_from_hub(hub),
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
        activation=activation_in(hub, "hidden_act", "gelu_pytorch_tanh"),
        attention="full" if window is None else f"local({window})",
        bias=hub.get("use_bias", True),
        tie_embeddings=hub.get("tie_word_embeddings", True),
    )
