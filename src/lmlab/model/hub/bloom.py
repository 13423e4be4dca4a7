"""BLOOM files (2211.05100): ALiBi, a LayerNorm after the embedding, q, k and v of each head side by side."""

from __future__ import annotations

from typing import Any

from lmlab.model.config import ModelConfig
from lmlab.model.hub.family import Names, SpecialTokens, common, differs, expect, setting

MODEL_TYPES = {"bloom": "BloomForCausalLM"}

NAMES = Names(
    top={
        "embedding": "transformer.word_embeddings",
        "embedding_norm": "transformer.word_embeddings_layernorm",
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
)
weights_to_hub, weights_from_hub = NAMES.to_hub, NAMES.from_hub


def misfit(config: ModelConfig) -> str | None:
    """Why BLOOM files cannot hold a config, or None."""
    return differs(
        config,
        frozenset({"eps", "tie_embeddings"}),
        norm="layernorm",
        norm_bias=True,
        embedding_norm=True,
        activation="gelu-tanh",
        d_ff=4 * config.d_model,
        position="alibi",
        qkv_bias=True,
        attention_out_bias=True,
        feed_forward_bias=True,
    )


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
