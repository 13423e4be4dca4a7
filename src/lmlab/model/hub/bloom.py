"""BLOOM files (2211.05100): ALiBi, a LayerNorm after the embedding, q, k and v of each head side by side."""

from __future__ import annotations

from typing import Any

from lmlab.model.config import ModelConfig
from lmlab.model.hub.family import SpecialTokens
from lmlab.model.hub.fit import common, expect, setting, unlike
from lmlab.model.hub.fused import parts
from lmlab.model.hub.names import Names

MODEL_TYPES = {"bloom": "BloomForCausalLM"}

_LAYER = "transformer.h.{}"
TABLE = {
    "embedding": "transformer.word_embeddings",
    "embedding_norm": "transformer.word_embeddings_layernorm",
    "final_norm": "transformer.ln_f",
    "head": "lm_head",
    "blocks.{}.attention_norm": f"{_LAYER}.input_layernorm",
    "blocks.{}.attention.out": f"{_LAYER}.self_attention.dense",
    "blocks.{}.feed_forward_norm": f"{_LAYER}.post_attention_layernorm",
    "blocks.{}.feed_forward.up": f"{_LAYER}.mlp.dense_h_to_4h",
    "blocks.{}.feed_forward.down": f"{_LAYER}.mlp.dense_4h_to_h",
    **parts(f"{_LAYER}.self_attention.query_key_value"),
}
NAMES = Names(
    TABLE,
    prefix="transformer.",
    fused="self_attention.query_key_value",
    order="grouped",
)
weights_to_hub, weights_from_hub = NAMES.to_hub, NAMES.from_hub


def misfit(config: ModelConfig) -> str | None:
    """Why BLOOM files cannot hold a config, or None."""
    fixed: dict[str, Any] = {
        "norm": "layernorm",
        "norm_bias": True,
        "embedding_norm": True,
        "activation": "gelu-tanh",
        "d_ff": 4 * config.d_model,
        "position": "alibi",
        "qkv_bias": True,
        "attention_out_bias": True,
        "feed_forward_bias": True,
    }
    return unlike(config, "bloom", fixed, ("tie_embeddings",))


def to_hub(config: ModelConfig, special: SpecialTokens) -> dict[str, Any]:
    """The `config.json` of a config."""
    return common(config, "bloom", MODEL_TYPES["bloom"], special) | {
        "hidden_size": config.d_model,
        "n_layer": config.layers,
        "n_head": config.heads,
        "seq_length": config.context_length,
        "layer_norm_epsilon": config.eps,
        "apply_residual_connection_post_layernorm": False,
        "hidden_dropout": config.dropout,
        "attention_dropout": 0.0,
    }


def from_hub(hub: dict[str, Any]) -> ModelConfig:
    """A config from `config.json`. Raises ValueError where it asks for a part that this model has not.

    A file may leave out the context, which ALiBi does not bound: then it is the published models' 2,048.
    """
    expect(hub, apply_residual_connection_post_layernorm=False)
    return ModelConfig(
        layers=setting(hub, "n_layer", "num_hidden_layers"),
        d_model=setting(hub, "n_embed", "hidden_size"),
        heads=setting(hub, "n_head", "num_attention_heads"),
        vocab_size=hub["vocab_size"],
        context_length=setting(hub, "seq_length", default=2048),
        norm="layernorm",
        norm_bias=True,
        eps=setting(hub, "layer_norm_epsilon", default=1e-5),
        embedding_norm=True,
        activation="gelu-tanh",
        position="alibi",
        bias=True,
        tie_embeddings=hub.get("tie_word_embeddings", True),
    )
