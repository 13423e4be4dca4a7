"""GPT-J files (Wang and Komatsuzaki 2021): one norm for both branches, which stand side by side; the first dimensions of each
head are rotated in interleaved pairs; the head has a bias."""

from __future__ import annotations

import math
from typing import Any

from lmlab.model.config import ModelConfig
from lmlab.model.hub.family import (
    ACTIVATION_NAMES,
    Names,
    SpecialTokens,
    activation_of,
    common,
    differs,
    setting,
)

MODEL_TYPES = {"gptj": "GPTJForCausalLM"}

NAMES = Names(
    top={
        "embedding": "transformer.wte",
        "final_norm": "transformer.ln_f",
        "head.weight": "lm_head.weight",
        "head_bias": "lm_head.bias",
    },
    block={
        "attention_norm": "ln_1",
        "attention.q": "attn.q_proj",
        "attention.k": "attn.k_proj",
        "attention.v": "attn.v_proj",
        "attention.out": "attn.out_proj",
        "feed_forward.up": "mlp.fc_in",
        "feed_forward.down": "mlp.fc_out",
    },
    base="transformer.",
    blocks="h",
    buffers=(r"\.attn\.(bias|masked_bias|causal_mask)$", r"embed_positions$"),
)
weights_to_hub, weights_from_hub = NAMES.to_hub, NAMES.from_hub


def misfit(config: ModelConfig) -> str | None:
    """Why GPT-J files cannot hold a config, or None."""
    return differs(
        config,
        frozenset({"d_ff", "eps", "tie_embeddings", "rope_fraction"}),
        norm="layernorm",
        norm_bias=True,
        norm_placement="parallel",
        activation=set(ACTIVATION_NAMES),
        position="rope",
        rope_pairing="interleaved",
        feed_forward_bias=True,
        head_bias=True,
    )


def to_hub(config: ModelConfig, special: SpecialTokens, kind: str = "gptj", opens: str = "") -> dict[str, Any]:
    """The `config.json` of a config."""
    return common(config, kind, opens or MODEL_TYPES[kind], special) | {
        "n_positions": config.context_length,
        "n_ctx": config.context_length,
        "n_embd": config.d_model,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.sizes().d_ff,
        "rotary_dim": config.rotary_dim,
        "activation_function": ACTIVATION_NAMES[config.activation],
        "layer_norm_epsilon": config.eps,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": 0.0,
    }


def from_hub(hub: dict[str, Any]) -> ModelConfig:
    """A config from `config.json`. Raises ValueError where it asks for a part that this model has not."""
    d_model = setting(hub, "n_embd", "hidden_size")
    heads = setting(hub, "n_head", "num_attention_heads")
    if hub.get("rotary_dim", 64) is None:
        raise ValueError("rotary_dim is null; expected how many dimensions of a head are rotated")
    return ModelConfig(
        layers=setting(hub, "n_layer", "num_hidden_layers"),
        d_model=d_model,
        heads=heads,
        d_ff=setting(hub, "n_inner", default=4 * d_model),
        vocab_size=hub["vocab_size"],
        context_length=setting(hub, "n_positions", "n_ctx", "max_position_embeddings"),
        norm="layernorm",
        norm_bias=True,
        norm_placement="parallel",
        eps=setting(hub, "layer_norm_epsilon", default=1e-5),
        activation=activation_of(hub, "activation_function", "gelu_new"),
        position="rope",
        rope_pairing="interleaved",
        rope_fraction=share(hub.get("rotary_dim", 64), d_model // heads),
        feed_forward_bias=True,
        head_bias=True,
        tie_embeddings=hub.get("tie_word_embeddings", False),
    )


def share(rotated: int, head_dim: int) -> float:
    """The fraction of which `int(head_dim * fraction)` is `rotated`."""
    found = rotated / head_dim
    return found if int(head_dim * found) == rotated else math.nextafter(found, 1.0)
