"""Phi-1, 1.5 and 2 files (2306.11644, 2309.05463): one norm for both branches, which stand side by side; biases everywhere,
on the head too; the first dimensions of each head are rotated."""

from __future__ import annotations

from typing import Any

from lmlab.model.config import ModelConfig
from lmlab.model.hub.family import SpecialTokens
from lmlab.model.hub.fit import PLAIN, PLAIN_OF, activation_in, activation_name, common, expect, setting, unlike
from lmlab.model.hub.names import Names
from lmlab.model.hub.rotation import rope_from_hub, rope_to_hub

MODEL_TYPES = {"phi": "PhiForCausalLM"}

_LAYER = "model.layers.{}"
TABLE = {
    "embedding": "model.embed_tokens",
    "final_norm": "model.final_layernorm",
    "head_bias": "lm_head.bias",
    "head": "lm_head",
    "blocks.{}.attention_norm": f"{_LAYER}.input_layernorm",
    "blocks.{}.attention.q": f"{_LAYER}.self_attn.q_proj",
    "blocks.{}.attention.k": f"{_LAYER}.self_attn.k_proj",
    "blocks.{}.attention.v": f"{_LAYER}.self_attn.v_proj",
    "blocks.{}.attention.out": f"{_LAYER}.self_attn.dense",
    "blocks.{}.feed_forward.up": f"{_LAYER}.mlp.fc1",
    "blocks.{}.feed_forward.down": f"{_LAYER}.mlp.fc2",
}
NAMES = Names(
    TABLE,
    prefix="model.",
    buffers=r"rotary_emb\.inv_freq",
)
weights_to_hub, weights_from_hub = NAMES.to_hub, NAMES.from_hub


def misfit(config: ModelConfig) -> str | None:
    """Why Phi files cannot hold a config, or None."""
    fixed: dict[str, Any] = {
        "norm": "layernorm",
        "norm_bias": True,
        "norm_placement": "parallel",
        "activation": PLAIN,
        "position": "rope",
        "qkv_bias": True,
        "attention_out_bias": True,
        "feed_forward_bias": True,
        "head_bias": True,
    }
    return unlike(config, "phi", fixed, ("kv_heads", "rope_fraction", "rope_scaling", "rope_theta", "tie_embeddings"))


def to_hub(config: ModelConfig, special: SpecialTokens) -> dict[str, Any]:
    """The `config.json` of a config."""
    return (
        common(config, "phi", MODEL_TYPES["phi"], special)
        | rope_to_hub(config, default=0.5)
        | {
            "hidden_size": config.d_model,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.sizes().kv_heads,
            "intermediate_size": config.sizes().d_ff,
            "max_position_embeddings": config.context_length,
            "hidden_act": activation_name(config.activation, PLAIN_OF),
            "layer_norm_eps": config.eps,
            "qk_layernorm": False,
            "resid_pdrop": config.dropout,
            "embd_pdrop": config.dropout,
            "attention_dropout": 0.0,
        }
    )


def from_hub(hub: dict[str, Any]) -> ModelConfig:
    """A config from `config.json`. Raises ValueError where it asks for a part that this model has not."""
    d_model, heads = hub["hidden_size"], hub["num_attention_heads"]
    expect(hub, qk_layernorm=False, head_dim=d_model // heads)
    return ModelConfig(
        **rope_from_hub(hub, fraction=0.5),
        layers=hub["num_hidden_layers"],
        d_model=d_model,
        heads=heads,
        kv_heads=setting(hub, "num_key_value_heads", default=heads),
        d_ff=hub["intermediate_size"],
        vocab_size=hub["vocab_size"],
        context_length=hub["max_position_embeddings"],
        norm="layernorm",
        norm_bias=True,
        norm_placement="parallel",
        eps=setting(hub, "layer_norm_eps", default=1e-5),
        activation=activation_in(hub, "hidden_act", "gelu_new"),
        bias=True,
        head_bias=True,
        tie_embeddings=hub.get("tie_word_embeddings", False),
    )
