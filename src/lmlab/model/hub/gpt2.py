"""GPT-2 files (Radford et al. 2019): pre-LayerNorm, learned positions, q, k and v in one matrix stored (in, out)."""

from __future__ import annotations

from typing import Any

from lmlab.model.config import ModelConfig
from lmlab.model.hub.family import SpecialTokens
from lmlab.model.hub.fit import PLAIN, PLAIN_OF, activation_in, activation_name, common, expect, setting, unlike
from lmlab.model.hub.fused import parts
from lmlab.model.hub.names import Names

MODEL_TYPES = {"gpt2": "GPT2LMHeadModel"}

_LAYER = "transformer.h.{}"
TABLE = {
    "embedding": "transformer.wte",
    "position": "transformer.wpe",
    "final_norm": "transformer.ln_f",
    "head": "lm_head",
    "blocks.{}.attention_norm": f"{_LAYER}.ln_1",
    "blocks.{}.attention.out": f"{_LAYER}.attn.c_proj",
    "blocks.{}.feed_forward_norm": f"{_LAYER}.ln_2",
    "blocks.{}.feed_forward.up": f"{_LAYER}.mlp.c_fc",
    "blocks.{}.feed_forward.down": f"{_LAYER}.mlp.c_proj",
    **parts(f"{_LAYER}.attn.c_attn"),
}
NAMES = Names(
    TABLE,
    prefix="transformer.",
    fused="attn.c_attn",
    transposed=("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    buffers=r"\.attn\.(bias|masked_bias)",
)
weights_to_hub, weights_from_hub = NAMES.to_hub, NAMES.from_hub


def misfit(config: ModelConfig) -> str | None:
    """Why GPT-2 files cannot hold a config, or None."""
    fixed: dict[str, Any] = {
        "norm": "layernorm",
        "norm_bias": True,
        "activation": PLAIN,
        "position": "learned",
        "qkv_bias": True,
        "attention_out_bias": True,
        "feed_forward_bias": True,
        "attention_scale": {None, 1.0},
    }
    return unlike(config, "gpt2", fixed, ("tie_embeddings",))


def to_hub(config: ModelConfig, special: SpecialTokens) -> dict[str, Any]:
    """The `config.json` of a config."""
    return common(config, "gpt2", MODEL_TYPES["gpt2"], special) | {
        "n_positions": config.context_length,
        "n_ctx": config.context_length,
        "n_embd": config.d_model,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.sizes().d_ff,
        "activation_function": activation_name(config.activation, PLAIN_OF),
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
        activation=activation_in(hub, "activation_function", "gelu_new"),
        position="learned",
        attention_scale=1.0 if hub.get("scale_attn_weights") is False else None,
        bias=True,
        tie_embeddings=hub.get("tie_word_embeddings", True),
    )
