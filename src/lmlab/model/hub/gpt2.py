"""GPT-2 files (Radford et al. 2019): pre-LayerNorm, learned positions, q, k and v in one matrix stored (in, out)."""

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

MODEL_TYPES = {"gpt2": "GPT2LMHeadModel"}

NAMES = Names(
    top={
        "embedding": "transformer.wte",
        "position": "transformer.wpe",
        "final_norm": "transformer.ln_f",
        "head.weight": "lm_head.weight",
    },
    block={
        "attention_norm": "ln_1",
        "attention.out": "attn.c_proj",
        "feed_forward_norm": "ln_2",
        "feed_forward.up": "mlp.c_fc",
        "feed_forward.down": "mlp.c_proj",
    },
    base="transformer.",
    blocks="h",
    fused="attn.c_attn",
    transposed=frozenset({"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}),
    buffers=(r"\.attn\.(bias|masked_bias)$",),
)
weights_to_hub, weights_from_hub = NAMES.to_hub, NAMES.from_hub


def misfit(config: ModelConfig) -> str | None:
    """Why GPT-2 files cannot hold a config, or None."""
    return differs(
        config,
        frozenset({"d_ff", "eps", "tie_embeddings"}),
        norm="layernorm",
        norm_bias=True,
        activation=set(ACTIVATION_NAMES),
        position="learned",
        qkv_bias=True,
        attention_out_bias=True,
        feed_forward_bias=True,
        attention_scale={config.sizes().head_dim ** -0.5, 1.0},
    )


def to_hub(config: ModelConfig, special: SpecialTokens) -> dict[str, Any]:
    """The `config.json` of a config."""
    return common(config, "gpt2", MODEL_TYPES["gpt2"], special) | {
        "n_positions": config.context_length,
        "n_ctx": config.context_length,
        "n_embd": config.d_model,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.sizes().d_ff,
        "activation_function": ACTIVATION_NAMES[config.activation],
        "layer_norm_epsilon": config.eps,
        "scale_attn_weights": config.score_scale != 1.0,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": 0.0,
    }


def from_hub(hub: dict[str, Any]) -> ModelConfig:
    """A config from `config.json`. Raises ValueError where it asks for a part that this model has not."""
    expect(hub, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    d_model = setting(hub, "n_embd", "hidden_size")
    return ModelConfig(
        layers=setting(hub, "n_layer", "num_hidden_layers"),
        d_model=d_model,
        heads=setting(hub, "n_head", "num_attention_heads"),
        d_ff=setting(hub, "n_inner", default=4 * d_model),
        vocab_size=hub["vocab_size"],
        context_length=setting(hub, "n_positions", "n_ctx", "max_position_embeddings"),
        norm="layernorm",
        norm_bias=True,
        eps=setting(hub, "layer_norm_epsilon", default=1e-5),
        activation=activation_of(hub, "activation_function", "gelu_new"),
        position="learned",
        attention_scale=1.0 if hub.get("scale_attn_weights") is False else None,
        bias=True,
        tie_embeddings=hub.get("tie_word_embeddings", True),
    )
